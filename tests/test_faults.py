"""A run survives what it promises to survive; benchmarks.faults injects hundreds of faults more."""

import numpy as np
import pytest

from benchmarks import faults


def inject(injections):
    """All of them; what went wrong, and how many there were."""
    every = list(injections)
    assert [wrong for wrong, _ in every if wrong] == []
    return sum(numbers.get("injected", 1) for _, numbers in every)


@pytest.fixture
def rng(monkeypatch):
    monkeypatch.setattr(faults, "SOON", 20)  # the benchmark holds it to 5 s, on a quiet machine
    return np.random.default_rng(0)


def test_a_killed_run_goes_on_from_a_whole_checkpoint(tmp_path, rng):
    assert inject(faults.learner_killed(tmp_path, rng, 2)) == 2


def test_items_of_a_killed_writer_are_whole_and_each_arrives_once(tmp_path, rng):
    assert inject(faults.writer_killed(tmp_path, rng, 10)) == 10


def test_a_killed_actor_is_soon_back_and_blocks_no_round_meanwhile(tmp_path, rng):
    assert inject(faults.real_actor_killed(tmp_path, rng, 1, actors=1)) == 1


def test_a_killed_learner_leaves_no_actors_and_no_shared_memory(tmp_path, rng):
    assert inject(faults.parent_killed(tmp_path, rng, 1, actors=1)) == 1


@pytest.mark.parametrize("kind", [pytest.param("start", marks=pytest.mark.slow), "saving"])
def test_ctrl_c_ends_a_run_soon_with_a_checkpoint_and_without_a_traceback(tmp_path, rng, kind):
    assert inject(faults.ctrl_c(tmp_path, rng, 1, [kind])) == 1


def test_a_checkpoint_that_was_cut_or_of_which_a_bit_turned_is_not_used(tmp_path, rng):
    assert inject(faults.checkpoint_cut(tmp_path, rng, 16)) >= 36


def test_a_full_disk_is_an_error_of_one_line_and_earlier_checkpoints_stay_whole(tmp_path, rng):
    assert inject(faults.disk_full(tmp_path, rng, 1)) == 1


def test_too_little_shared_memory_is_an_error_of_one_line_that_names_the_flag(tmp_path):
    with pytest.raises(SystemExit, match=r"^train.py: [^\n]+ --capacity[^\n]+$"):
        faults.train_here("--capacity", 2 * 10**9, "--out", tmp_path / "run")


def test_a_nan_stops_the_run_where_it_arose_and_spares_the_checkpoints(tmp_path, rng):
    assert inject(faults.nan(tmp_path, rng, 4)) == 4
