"""The command line does what its help says, and tells what it cannot do."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import d4pg
import env
import metamimic
import mili
import train


def test_demos_makes_files_and_tells_how_good_they_are(tmp_path, capsys):
    train.main(["demos", "--demos", str(tmp_path), "--count", "2"])
    assert sorted(os.listdir(tmp_path / "stack200")) == ["A", "B"]
    assert len(os.listdir(tmp_path / "stack200" / "B")) == 2
    out = capsys.readouterr().out
    assert out.startswith("A: 2 demonstrations in ")
    assert "stacked 100.0 %" in out


@pytest.mark.parametrize("ending", ["gif", "png"])
@pytest.mark.parametrize("world", ["stack", "kitchen"])
def test_look_draws_a_picture(world, ending, tmp_path):
    image = pytest.importorskip("PIL.Image")
    out = tmp_path / f"look.{ending}"
    train.main(["look", "--world", world, "--size", "40", "--out", str(out)])
    with image.open(out) as picture:
        wide = 2 if world == "stack" else 4
        assert picture.size == ((40 * wide, 40) if ending == "gif" else (320, 40 * wide))
        assert getattr(picture, "n_frames", 1) > (20 if ending == "gif" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look", "--outt", "x.gif"], "unrecognized arguments: --outt"),
        (["look", "--ou", "x.gif"], "unrecognized arguments: --ou"),
        (["look", "--count", "3"], "unrecognized arguments: --count"),
        (["look", "--size", "big"], "invalid int value: 'big'"),
        (["demos", "--world", "garden"], "invalid choice: 'garden'"),
        (["dance"], "invalid choice: 'dance'"),
        (["d4pg", "--sampling", "fair"], "argument --sampling: invalid choice: 'fair'"),
        (["d4pg", "--batch", "many"], "argument --batch: invalid int value: 'many'"),
    ],
)
def test_a_typo_is_an_error(words, message, capsys):
    with pytest.raises(SystemExit):
        train.main(words)
    assert message in capsys.readouterr().err


def test_what_a_world_refuses_is_one_line():
    with pytest.raises(SystemExit, match=r"^train.py: --count is 0; expected 1 or more$"):
        train.main(["demos", "--count", "0"])
    with pytest.raises(SystemExit, match=r"^train.py: --out is x.txt; it ends in .gif or .png$"):
        train.main(["look", "--out", "x.txt"])
    with pytest.raises(
        SystemExit, match=r"^train.py: size is 5; expected a whole number from 32 to 256"
    ):
        train.main(["look", "--size", "5"])


@pytest.mark.parametrize(
    ("command", "count"), [("look", 5), ("demos", 6), ("d4pg", len(d4pg.FLAGS) + 6),
     ("metamimic", len(metamimic.FLAGS) + 6), ("mili", len(mili.FLAGS) + 6), ("eval", 4)],
)  # fmt: skip
def test_every_flag_is_explained(command, count, capsys):
    with pytest.raises(SystemExit):
        train.main([command, "--help"])
    text = capsys.readouterr().out
    flags = re.findall(r"^  (--\w+)[^\n]*?(?:\s{2,}|\n\s+)(\S[^\n]*)", text, re.MULTILINE)
    assert len(flags) == len(re.findall(r"^  --", text, re.MULTILINE)) == count
    assert all(len(words) > 10 for _, words in flags)


# -- runs


def columns(folder):
    """metrics.csv without what depends on the clock."""
    names, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    clock = [names.index(name) for name in ("steps_per_s", "updates_per_s", "seconds")]
    return [[cell for i, cell in enumerate(row) if i not in clock] for row in rows]


def assert_same(one, other, where=""):
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif where != "/log/seconds":
        assert one == other or (one != one and other != other), where  # or both are nan


TINY = ["d4pg", "--preset", "tiny", "--steps", "1200", "--save_minutes", "100"]


def test_time_since_the_last_row_is_not_lost_when_a_run_is_stopped(tmp_path, monkeypatch):
    turn, seconds = d4pg.Run.round, lambda: train.load_newest(tmp_path / "run")["log"]["seconds"]

    def stopped(run):
        turn(run)
        if run.steps >= 400:
            signal.raise_signal(signal.SIGINT)

    rare = ["--log_every", "100000", "--eval_every", "100000", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(d4pg.Run, "round", stopped)
        train.main([*TINY, *rare])
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    names, *first = [row.split(",") for row in rows]
    before, row = seconds(), dict(zip(names, first[-1]))
    assert int(row["steps"]) < 100
    assert before > float(row["seconds"])
    train.main(["d4pg", "--resume", str(tmp_path / "run")])
    assert seconds() > before


@pytest.fixture(scope="module", params=["uniform", "prioritised"])
def whole(request, tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main([*TINY, "--sampling", request.param, "--out", str(folder)])
    return request.param, folder


@pytest.mark.parametrize("steps", [4, 600, 1196])
def test_a_run_that_was_resumed_is_bit_for_bit_one_that_was_not(
    whole, steps, tmp_path, monkeypatch
):
    sampling, folder = whole
    parts, turn = tmp_path / "parts", d4pg.Run.round

    def stopped(run):
        turn(run)
        if run.steps == steps:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    with monkeypatch.context() as patch:
        patch.setattr(d4pg.Run, "round", stopped)
        train.main([*TINY, "--sampling", sampling, "--out", str(parts)])
    assert [path.name for path in parts.glob("*.pt")] == [f"step{steps:012d}.pt"]
    train.main(["d4pg", "--resume", str(parts)])
    name = "step000000001200.pt"
    load = lambda path: torch.load(path / name, weights_only=True)
    one, other = load(folder), load(parts)
    assert one["learners"][0]["agent"]["updates"] == 550
    assert columns(folder) == columns(parts)
    assert_same(one, other)


def test_a_run_leaves_its_flags_its_numbers_and_two_checkpoints(whole):
    _, folder = whole
    config = json.loads((folder / "config.json").read_text())
    assert config["algorithm"] == "d4pg"
    assert config["steps"] == 1200
    assert config["nstep"] == 3
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) for row in rows] == [0, *range(200, 1201, 200)]
    assert float(rows[-1]["ratio"]) == 0.5
    assert float(rows[-1]["critic_loss"]) > 0
    assert rows[-1]["eval_return"] != ""
    assert sorted(p.name for p in folder.glob("*.pt")) == ["step000000001200.pt"]


def test_the_last_two_checkpoints_stay(tmp_path):
    train.main([*TINY, "--save_minutes", "0", "--steps", "120", "--out", str(tmp_path / "run")])
    names = sorted(path.name for path in (tmp_path / "run").glob("step*"))
    assert names == ["step000000000116.pt", "step000000000120.pt"]


def test_results_of_an_earlier_end_do_not_outlive_it(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train.main([*TINY, "--steps", "120", "--out", str(folder)])
    assert (folder / "results.json").exists()
    monkeypatch.setattr(train, "report", lambda *_: None)  # killed before it could tell
    train.main(["d4pg", "--resume", str(folder), "--steps", "124"])
    assert not (folder / "results.json").exists()
    monkeypatch.undo()
    train.main(["d4pg", "--resume", str(folder)])
    assert (folder / "results.json").exists()


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(tmp_path, capsys):
    folder = tmp_path / "run"
    train.main([*TINY, "--save_minutes", "0", "--steps", "400", "--out", str(folder)])
    newest = folder / "step000000000400.pt"
    newest.write_bytes(newest.read_bytes()[:-5000])
    train.main(["d4pg", "--resume", str(folder), "--steps", "404"])
    assert "step000000000400.pt is damaged, the one before it is used" in capsys.readouterr().out
    assert (folder / "step000000000404.pt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "--resume nowhere: there is no run"),
        (
            ["--resume", "RUN", "--gamma", "0.5"],
            "--gamma is 0.95 in .*; leave it out, or begin a new run",
        ),
        (["--resume", "RUN", "--preset", "tiny"], "leave out --preset"),
        (["--out", "RUN"], "RUN is not empty: --resume .* goes on, --out takes another"),
        (["--out", "new", "--gamma", "2"], "--gamma is 2.0"),
        (["--out", "new", "--capacity", "99999999999"], "GB are needed: lower --capacity"),
        (["--out", "new", "--fd", "3", "--task", "stack"], "make some with: python train.py demos"),
        (["--out", "new", "--robots", "99999"], "--robots is 99999; expected"),
        (["--out", "new", "--minutes", "nan"], "--minutes is nan; expected"),
        (["--out", "new", "--env", "gymnasium:Nothing-v0"], "gymnasium cannot make Nothing-v0"),
        (
            ["--resume", "RUN", "--out", "new"],
            "--resume goes on in its own folder; leave out --out",
        ),
        (["--resume", "RUN", "--steps", "500"], "--steps 500 are taken; raise --steps to go on"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(words, message, whole, tmp_path, monkeypatch):
    _, folder = whole
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(folder)
    with pytest.raises(SystemExit, match=f"^train.py: .*{message}"):
        train.main(["d4pg", *words, *(["--preset", "tiny"] if "--resume" not in words else [])])
    assert os.listdir() == ["RUN"]
    assert (folder / "step000000001200.pt").exists()
    assert json.loads((folder / "config.json").read_text())["steps"] == 1200


def test_tensorboard_gets_every_number_of_a_row(tmp_path, monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder):
            (folder / "events.out.1").write_text("")  # as it does before the first checkpoint

        def add_scalar(self, name, value, step):
            told.append((name, step))

        def close(self):
            told.append(("closed", None))

    monkeypatch.setattr(train, "summary_writer", lambda: Writer)
    words = [*TINY, "--steps", "200", "--tensorboard", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(d4pg.Run, "evaluate", mock.Mock(side_effect=ValueError("not now")))
        with pytest.raises(SystemExit, match="not now"):
            train.main(words)
    assert [p.name for p in (tmp_path / "run").glob("events*")] == ["events.out.1"]
    train.main(words)  # the folder counts as empty
    assert {step for _, step in told[:-1]} == {0, 200}
    with open(tmp_path / "run/metrics.csv") as file:
        assert {name for name, _ in told[:-1]} == set(next(csv.reader(file)))
    assert told[-1] == ("closed", None)


def test_of_two_runs_begun_at_once_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    """Both find it empty; while the second gets ready, the first trains and ends."""
    words, make = [*TINY, "--steps", "200", "--out", str(tmp_path / "run")], d4pg.make_run

    def slowly(config):
        monkeypatch.setattr(d4pg, "make_run", make)
        train.main(words)
        return make(config)

    monkeypatch.setattr(d4pg, "make_run", slowly)
    with pytest.raises(SystemExit, match="run has a run by now: --resume"):
        train.main(words)
    assert (tmp_path / "run/results.json").exists()


def test_an_evaluation_ends_in_json_even_if_no_picture_can_be_drawn(whole, tmp_path, capsys):
    folder = copy_of(whole[1], tmp_path)
    (folder / "metrics.csv").unlink()
    train.main(["eval", str(folder), "--episodes", "2"])
    *_, told, last = capsys.readouterr().out.splitlines()
    assert told.startswith("no pictures")
    assert json.loads(last)["steps"] == 1200


def copy_of(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_run_that_can_be_read_by_nobody_is_left_as_it_is(whole, tmp_path, monkeypatch):
    """Neither a memory that is short nor files that are damaged may cost a run its numbers."""
    folder = copy_of(whole[1], tmp_path)
    rows = (folder / "metrics.csv").read_text()

    def short(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", short)
        with pytest.raises(SystemExit, match="can't allocate"):
            train.main(["d4pg", "--resume", str(folder), "--steps", "1300"])
    assert (folder / "step000000001200.pt").exists()
    with monkeypatch.context() as patch:
        patch.setattr(d4pg.Crew, "begin", short)
        with pytest.raises(SystemExit, match="can't allocate"):
            train.main(["d4pg", "--resume", str(folder), "--steps", "1300"])
    assert json.loads((folder / "config.json").read_text())["steps"] == 1200
    assert (folder / "results.json").exists()
    (folder / "step000000001200.pt").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"no checkpoint of .* could be read"):
            train.main(["d4pg", "--resume", str(folder), "--steps", "1300"])
    assert (folder / "metrics.csv").read_text() == rows


def test_a_run_goes_on_whose_metrics_are_lost(whole, tmp_path):
    folder = copy_of(whole[1], tmp_path)
    (folder / "metrics.csv").unlink()
    train.main(["d4pg", "--resume", str(folder), "--steps", "2400"])
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["eval_return"] != ""
    assert [int(row["steps"]) for row in rows] == list(range(1400, 2401, 200))


def test_a_run_goes_on_with_other_threads_as_on_another_machine(whole, tmp_path, monkeypatch):
    folder, tuned = copy_of(whole[1], tmp_path), []
    monkeypatch.setattr(d4pg, "tune", tuned.append)
    train.main(["d4pg", "--resume", str(folder), "--steps", "1204", "--threads", "2"])
    assert tuned == [2]
    assert json.loads((folder / "config.json").read_text())["threads"] == 2


def test_a_run_ends_after_so_many_minutes(tmp_path):
    flags = ["--steps", "1000000", "--minutes", "0.03", "--out", str(tmp_path / "run")]
    train.main([*TINY, *flags])
    assert (tmp_path / "run/results.json").exists()
    *_, last = csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines())
    assert int(last["steps"]) < 1_000_000
    assert 1.8 <= float(last["seconds"]) < 20


def test_learning_rates_fall_with_all_of_a_runs_minutes_not_with_those_since_it_was_resumed(
    tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(d4pg.Agent, "anneal", lambda self, progress: seen.append(progress))
    flags = ["--steps", "1000000", "--minutes", "0.05"]
    train.main([*TINY, *flags, "--out", str(tmp_path / "run")])
    first, seen[:] = list(seen), []
    train.main(["d4pg", "--resume", str(tmp_path / "run"), *flags])
    assert (first, seen) == (sorted(first), sorted(seen))
    assert first[0] < 0.5 <= seen[0] + 0.01  # three seconds of six have passed


def test_a_sound_checkpoint_that_the_system_refuses_to_read_is_kept(whole, tmp_path, monkeypatch):
    folder = copy_of(whole[1], tmp_path)
    before = sorted(path.name for path in folder.iterdir())

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(train.zipfile, "ZipFile", refuse)
    with pytest.raises(OSError, match=r"could not be read: .*Too many open files"):
        train.load_newest(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_openmp_that_leaves_rows_of_products_out_is_noticed_before_anything_is_learned():
    """Where it does: on a processor without AVX-512, products were right all the same."""
    product = "import d4pg, torch; d4pg.tune(2); a = torch.ones(999, 64) @ torch.ones(64, 32); "
    product += "print(*{float(x) for x in a.ravel()})"
    begin = lambda **limit: subprocess.run(
        [sys.executable, "-c", product], cwd=Path(train.__file__).parent, env=os.environ | limit,
        capture_output=True, text=True)  # fmt: skip
    limited = begin(OMP_THREAD_LIMIT="1")
    refused = "matrix products are wrong: unset OMP_THREAD_LIMIT" in limited.stderr
    assert refused or limited.stdout == "64.0\n"
    assert begin().stdout == "64.0\n"


def test_wrong_products_are_refused_on_any_processor(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.zeros(len(a), b.shape[1]))
    with pytest.raises(ValueError, match="matrix products are wrong: unset OMP_THREAD_LIMIT"):
        d4pg.tune(1)


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"algorithm": "d4pg", "steps": "many"}'])
def test_a_damaged_config_is_refused_by_name(whole, text, tmp_path):
    folder = copy_of(whole[1], tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(SystemExit, match=r"config.json is damaged, or of another version"):
        train.main(["d4pg", "--resume", str(folder)])


def test_a_checkpoint_of_other_code_stays_and_says_what_to_do(whole, tmp_path, monkeypatch):
    folder = copy_of(whole[1], tmp_path)
    monkeypatch.setattr(train, "VERSION", train.VERSION + 1)
    there = sorted(folder.iterdir())
    with pytest.raises(SystemExit, match=r"not \d+: use the code that began the run, or begin"):
        train.main(["d4pg", "--resume", str(folder), "--steps", "1300"])
    assert sorted(folder.iterdir()) == there


def test_a_run_whose_rewards_leave_the_support_can_be_begun_again_at_once(tmp_path):
    pytest.importorskip("gymnasium")
    words = ["d4pg", "--preset", "tiny", "--env", "gymnasium:Pendulum-v1", "--steps", "300"]
    words += ["--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="begin again with --vmin=-"):
        train.main(words)
    train.main([*words, "--vmin=-340", "--vmax=1"])
    assert json.loads((tmp_path / "run/config.json").read_text())["horizon"] == 0  # its own 200


def test_a_run_in_use_is_refused(whole):
    _, folder = whole
    with train.only_user(folder), pytest.raises(SystemExit, match="is in use by another process"):
        train.main(["d4pg", "--resume", str(folder)])


@pytest.mark.parametrize("flag", ["--gama", "--nsteps", "--step"])
def test_a_misspelt_flag_of_an_algorithm_is_an_error(flag, capsys):
    with pytest.raises(SystemExit):
        train.main(["d4pg", flag, "1"])
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    env.make_demos("demos/stack200/A", "stack", "A", count=10)
    text = (Path(train.__file__).parent / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    names = {}
    exec(example, names)
    assert names["obs"].shape == (32, 51)
    assert "actions" not in names["demos"][0]
    assert "actions" in names["clones"][0]
