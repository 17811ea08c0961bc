"""Both worlds as standard environments of gymnasium, if that is installed."""

import sys

import numpy as np
import pytest

import env


@pytest.mark.filterwarnings("error", "ignore:.*infinity", "ignore:.*symmetric", "ignore:.*spec")
@pytest.mark.parametrize("obs", ["features", "pixels"])
@pytest.mark.parametrize("world", env.WORLDS)
def test_gymnasium_finds_nothing_to_complain_of(world, obs):
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    check_env(env.gym(world, obs=obs))


def test_a_time_limit_is_truncation_and_a_seed_repeats_an_episode():
    pytest.importorskip("gymnasium")
    one = env.gym("stack", horizon=3)
    first, _ = one.reset(seed=5)
    ends = [one.step(np.zeros(9))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    second, _ = one.reset()
    assert (first != second).any()
    np.testing.assert_array_equal(one.reset(seed=5)[0], first)


def test_kitchen_pixels_come_with_the_pose():
    pytest.importorskip("gymnasium")
    obs, _ = env.gym("kitchen", size=48).reset(seed=0)
    assert obs["image"].shape == (48, 48, 3)
    assert obs["pose"].shape == (7,)


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match="pip install gymnasium"):
        env.gym("stack")


def test_an_unknown_world_is_named():
    with pytest.raises(ValueError, match="'garden'; it is one of stack, kitchen"):
        env.gym("garden")


def test_environments_without_a_seed_differ():
    pytest.importorskip("gymnasium")
    first = [env.gym("stack").reset()[0] for _ in range(2)]
    assert (first[0] != first[1]).any()


def test_environments_of_one_seed_are_alike():
    """Given to the world, not to reset; one episode after the other."""
    pytest.importorskip("gymnasium")
    one, other = (env.gym("stack", seed=3) for _ in range(2))
    first, second = ((each.reset()[0], each.reset()[0]) for each in (one, other))
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()
