"""MetaMimic: equation 2 and algorithms 1 to 4 word by word; what is never read; bad input."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import d4pg
import env
import metamimic
import networks
import train
from tests.conftest import tiny
from tests.test_d4pg import drive
from tests.test_train import assert_same, columns

T = 20
F = env.Stack.FEATURES


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Four short demonstrations of each person."""
    root = tmp_path_factory.mktemp("demos")
    for by in env.PEOPLE:
        env.make_demos(root / f"stack{T}" / by, "stack", by, 4, horizon=T, processes=1)
    return root


@pytest.fixture
def config(demos):
    def make(**changes):
        return tiny(metamimic, **{"demos": str(demos)} | changes)

    return make


@pytest.fixture
def paid(monkeypatch):
    """Every step earns something: rewards of 0 would be right by chance."""
    monkeypatch.setitem(env.REWARDS, "reach", np.array([0.5, 1, 1, 1]))


def test_the_preset_paper_is_table_1():
    paper = {name: values[2] for name, (_, *values) in metamimic.FLAGS.items()}
    table = {"size": 128, "atoms": 101, "nstep": 5, "batch": 64, "target_period": 100,
             "gamma": 0.99, "imitation_gamma": 0.99, "network": "large",
             "dial": 1, "cutoff": 0.5, "beta_image": 15, "beta_body": 2, "curriculum": 300,
             "obs": "pixels", "demonstrations": 500}  # fmt: skip
    assert {name: paper[name] for name in table} == table
    assert paper["actors"] * paper["robots"] == 256  # "imitation actors"
    assert paper["actors"] * paper["task_robots"] == 256  # "task actors"


# -- equation 2


def literal_reward(o, d, beta1, beta2):
    """β1 and β2 within the exponents, number by number (departures 1 and 2)."""
    image = body = 0.0
    for name, columns_ in F.items():
        for k, column in enumerate(range(columns_.start, columns_.stop)):
            turn = name in ("block_a", "block_b") and k >= 3
            unit = 1.5 if "velocit" in name or turn else 0.15
            squared = ((float(o[column]) - float(d[column])) / unit) ** 2
            if name in ("joints", "joint_velocities", "pinch", "pinch_velocity"):
                body += squared
            else:
                image += squared
    return 0.5 * np.exp(-beta1 * image) + 0.5 * np.exp(-beta2 * body)


def test_the_tracking_reward_is_equation_2(config, demos):
    demo = env.load_demo(demos / f"stack{T}/A/0000.npz", "stack")["obs/features"]
    rng = np.random.default_rng(0)
    o = demo[:8] + rng.normal(size=(8, 51)).astype(np.float32) * 0.02
    reward = metamimic.tracking(config(), o, demo[1:9]).mean(0)
    expected = [literal_reward(*pair, 15, 2) for pair in zip(o, demo[1:9])]
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    assert len(set(reward)) == 8
    np.testing.assert_array_equal(metamimic.tracking(config(), demo, demo), 1)


@pytest.mark.parametrize(("part", "betas"), [("body", (0, 2)), ("image", (15, 0))])
def test_each_part_of_the_reward_looks_at_its_own(config, part, betas):
    """The body's part knows no blocks; what is seen knows no joints."""
    flags = config(beta_image=betas[0], beta_body=betas[1])
    for name, where in F.items():
        o, d = np.zeros((1, 51)), np.zeros((1, 51))
        o[0, where] = 0.1
        body = name in ("joints", "joint_velocities", "pinch", "pinch_velocity")
        assert (metamimic.tracking(flags, o, d).mean() < 1) == (body == (part == "body"))


def test_in_pixels_the_image_itself_is_compared(config):
    o = np.zeros((3, 51), np.float32)
    image = np.zeros((3, 8, 8, 3), np.uint8)
    other = image.copy()
    other[1, :4] = 255  # half of it
    other[2, 0, 0] = 25  # a spot
    reward = metamimic.tracking(config(), o, o, image, other).mean(0)
    half, spot = 0.5 / metamimic.PIXEL**2, (25 / 255) ** 2 / 64 / metamimic.PIXEL**2
    np.testing.assert_allclose(reward, 0.5 + 0.5 * np.exp(-15 * np.array([0, half, spot])), 1e-5)
    o[0, 3] = 0.1  # and the body counts, too
    less = metamimic.tracking(config(), o, 0 * o, image, other).mean(0)
    assert less[0] < reward[0]
    assert less[1] == reward[1]


def test_imitation_is_lost_below_the_cutoff_or_where_the_hand_is_off_its_way(config):
    o, d = np.zeros((4, 51)), np.zeros((4, 51))
    o[:, F["pinch_to_a"]] = [[0, 0, 0], [0.0299, 0, 0], [0, 0, 0.0301], [0.02, 0.02, 0.02]]
    flags = config(deviation=0.03)
    assert metamimic.lost(flags, np.ones(4), o, d).tolist() == [False, False, True, True]
    reward = np.array([0.51, 0.49, 0.51, 0.51])
    assert metamimic.lost(flags, reward, 0 * o, d).tolist() == [False, True, False, False]


# -- algorithms 1 to 4


def stored(learner):
    """What a memory holds, by name."""
    live = learner.memory.index.live()
    rows = learner.items.shared.rows[live]
    return {name: rows[:, where] for name, where in learner.items.columns.items()}


def random_policies(run):
    """Policies that do something."""
    for learner in run.learners:
        torch.manual_seed(5)
        learner.agent.flats[1].normal_(0, 0.2)


@pytest.mark.parametrize("ahead", [1, 3])  # the paper's, and a goal further off
def test_one_step_of_an_actor_is_algorithms_1_and_3(config, ahead, paid):
    quiet = dict.fromkeys(("sigma_min", "sigma_max", "task_sigma_min", "task_sigma_max"), 1e-9)
    flags = config(nstep=1, robots=3, task_robots=2, warmup=40, ahead=ahead, **quiet)
    run = metamimic.make_run(flags)
    random_policies(run)
    run.start()
    run.board.limit[:] = 10**6
    actor, M = run.inline, run.learners
    while run.steps < 40:  # random actions
        actor.step()
    for learner in M:
        learner.memory.collect()
    before = [stored(learner) for learner in M]
    quartiles = np.quantile(np.concatenate([rows["action"] for rows in before]), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-0.5, 0, 0.5], atol=0.15)  # of -1 to 1
    world = d4pg.make_world(run.config, 5, 3)
    world.set_state(actor.world.get_state())
    now, frame, end = world.observe(), actor.frame.copy(), actor.end.copy()
    actor.step()
    for learner in M:
        learner.memory.collect()

    nets = run.nets()
    for i in range(3):  # algorithm 1
        d_next, shown, after = (
            actor.demos.features[min(frame[i] + k, end[i])] for k in (1, ahead, 1 + ahead)
        )
        o_t = now[i]
        x = torch.from_numpy(np.concatenate([o_t, shown - o_t]))[None]
        encoder, policy, _ = nets[0]
        a_t = policy(encoder(x))[0].detach().numpy()  # sample action π(o_t, d_{t+1})
        o_next, r_task = alone(world, i, a_t)  # execute a_t, observe o_{t+1} and r_task
        r_imitate = literal_reward(o_next, d_next, 15, 2)
        new = {name: rows[len(before[0]["obs"]) + i] for name, rows in stored(M[0]).items()}
        np.testing.assert_allclose(new["obs"], o_t, atol=1e-6)
        np.testing.assert_allclose(new["action"], a_t, atol=1e-5)
        np.testing.assert_allclose(new["next_obs"], o_next, atol=1e-4)
        np.testing.assert_allclose(new["reward"], r_imitate, atol=1e-4)
        seen = M[0].see({k: torch.from_numpy(v[None]) for k, v in new.items()})
        np.testing.assert_allclose(seen["obs"][0, 51:], shown - o_t, atol=1e-6)  # d_{t+1}
        np.testing.assert_allclose(seen["next_obs"][0, 51:], after - o_next, atol=1e-4)
    for i in range(5):  # algorithm 3, and what algorithm 1 stores for the task
        new = {name: rows[len(before[1]["obs"]) + i] for name, rows in stored(M[1]).items()}
        if i >= 3:
            encoder, policy, _ = nets[1]
            a_t = policy(encoder(torch.from_numpy(now[i : i + 1])))[0].detach().numpy()  # π(o_t)
            np.testing.assert_allclose(new["action"], a_t, atol=1e-5)
        o_next, r_task = alone(world, i, new["action"])
        np.testing.assert_allclose(new["next_obs"], o_next, atol=1e-4)
        assert new["reward"] == r_task


def alone(world, i, action):
    """o_{t+1} and r_task of one robot's action, in a world that is put back."""
    states, actions = world.get_state(), np.zeros((world.n, 9))
    actions[i] = action
    obs, reward, _, _ = world.step(actions)
    world.set_state(states)
    return obs[i], reward[i]


def test_one_step_of_a_learner_is_algorithms_2_and_4(config, monkeypatch):
    """Minibatches of (o_t, a_t, o_{t+1}, r_imitate, d_{t+1}) and of (o_t, a_t, o_{t+1}, r_task)."""
    run = drive(metamimic.make_run(config(steps=1200)).start())
    demos, seen = run.inline.demos, []
    for learner in run.learners:
        sample, update = learner.memory.sample, learner.agent.update
        drawn, given = [], []
        keep = lambda count, sample=sample, drawn=drawn: drawn.append(sample(count)) or drawn[-1]
        spy = lambda b, m, w, update=update, given=given: given.append((b, m)) or update(b, m, w)
        monkeypatch.setattr(learner.memory, "sample", keep)
        monkeypatch.setattr(learner.agent, "update", spy)
        learner.learn()
        seen.append((drawn[0][0], given))
    imitation, task = run.learners
    slots, given = seen[0]
    rows = imitation.items.shared.rows[slots]
    field = lambda name: rows[:, imitation.items.columns[name]]
    o, goal = field("obs"), demos.frames[field("goal")[:, 0].astype(int)]
    o_next, after = field("next_obs"), demos.frames[field("next_goal")[:, 0].astype(int)]
    expected = {"obs": np.concatenate([o, goal - o], 1), "action": field("action"),
                "next_obs": np.concatenate([o_next, after - o_next], 1),
                "reward": field("reward")}  # fmt: skip
    for name, value in expected.items():
        got = torch.cat([batch[name] for batch, _ in given]).numpy()
        np.testing.assert_allclose(got, value, atol=1e-6)
    slots, given = seen[1]
    rows = task.items.shared.rows[slots]
    for name in ("obs", "action", "next_obs", "reward", "discount"):
        got = torch.cat([batch[name] for batch, _ in given]).numpy()
        np.testing.assert_array_equal(got, rows[:, task.items.columns[name]])
    assert imitation.sampling == "prioritised"  # table 1
    assert task.sampling == "uniform"
    assert imitation.agent.z[-1] == pytest.approx(1 / (1 - 0.95))
    assert task.agent.z[-1] == pytest.approx(1 / (1 - 0.9))


def test_imitation_goes_into_both_memories_and_the_task_into_its_own(config):
    run = metamimic.make_run(config(robots=3, task_robots=2, warmup=200, steps=400)).start()
    drive(run)
    imitation, task = (stored(learner) for learner in run.learners)
    whole = lambda items: {
        (a.tobytes(), b.tobytes()) for a, b in zip(items["obs"], items["action"])
    }
    assert len(whole(imitation)) == len(imitation["obs"]) > 100
    assert whole(imitation) < whole(task)
    assert len(whole(task)) == len(task["obs"]) > len(imitation["obs"]) + 100


@pytest.mark.parametrize("limits", [{"deviation": 0.002}, {"cutoff": 0.999, "deviation": 99.0}])
def test_what_is_lost_ends_for_imitation_but_not_for_the_task(config, limits):
    """Nothing is worth anything after a termination; a task merely is no longer watched."""
    run = metamimic.make_run(config(**limits, nstep=1, steps=400, warmup=300)).start()
    drive(run)
    imitation, task = (stored(learner) for learner in run.learners)
    assert run.board.episodes[0, metamimic.IMITATION] > 400 / 2 / 5  # of five steps or fewer
    assert run.board.episodes[0, metamimic.TASK] <= 400 / 2 / 10  # amid a demonstration, or before
    assert (imitation["discount"] == 0).mean() > 0.5
    assert np.isin(imitation["discount"], np.float32([0, 0.95])).all()
    assert (task["discount"] == np.float32(0.9)).all()


def test_an_episode_follows_its_demonstration_to_the_last_frame(config):
    """Frame by frame from where it starts, then it ends, without a termination."""
    run = metamimic.make_run(config(deviation=99.0, cutoff=0.0, nstep=1, steps=1600)).start()
    actor, at = run.inline, []
    run.board.limit[:] = 10**6
    for _ in range(100):
        before = actor.frame[:4].copy(), actor.world.t[:4].copy()
        at.append(before)
        actor.step()
        for learner in run.learners:
            learner.memory.collect()
    frame, t = (np.array(part) for part in zip(*at))
    np.testing.assert_array_equal(frame % (T + 1), t)  # o_t and d_t are of the same time
    rows = stored(run.learners[0])
    goal, after = rows["goal"][:, 0] % (T + 1), rows["next_goal"][:, 0] % (T + 1)
    np.testing.assert_array_equal(after, np.minimum(goal + 1, T))
    assert (rows["discount"] == np.float32(0.95)).all()
    assert {0, 1} < set(t[:, 0])
    assert run.board.episodes[0, metamimic.IMITATION] > 10
    assert len(set(frame[:, 0] // (T + 1))) > 1  # another demonstration each time


def test_without_a_curriculum_all_begin_at_the_beginning(config):
    for flags in ({"curriculum": 0, "amid": 1.0}, {"amid": 0.0}):
        actor = metamimic.make_run(config(robots=30, warmup=1000, **flags)).start().inline
        assert (actor.frame % (T + 1) == 0).all()


def test_robots_begin_in_a_demonstrations_state(config):
    flags = config(robots=30, task_robots=30, amid=0.4, curriculum=10, warmup=1000)
    actor = metamimic.make_run(flags).start().inline
    states = actor.world.get_state()
    theirs = actor.demos.states[actor.frame]
    same = (states[:, 1:24] == theirs[:, 1:24]).all(1)
    assert same[:30].all()  # who imitates begins with d_1, or amid
    t = actor.frame % (T + 1)
    assert t.max() < 10
    assert 0.15 < (t[:30] > 0).mean() < 0.65
    assert same[30:][t[30:] > 0].all()  # so is who does the task, where not at the beginning
    assert 0.15 < same[30:].mean() < 0.65  # who does the task mostly begins anywhere


def test_the_learners_share_the_updates_as_told(config):
    for share in (0.0, 0.25, 1.0):
        run = drive(metamimic.make_run(config(task_share=share, steps=1000)).start())
        updates = [learner.agent.updates for learner in run.learners]
        assert updates[1] == pytest.approx(share * sum(updates), abs=run.config.round)
        assert sum(updates) > 300


def test_many_robots_that_do_the_task_do_not_wait_forever(config):
    flags = config(task_robots=400, warmup=5000, steps=8000, updates_per_step=0.01, capacity=9000)
    run = drive(metamimic.make_run(flags).start(), seconds=60)
    assert run.steps >= 8000
    flags = config(task_robots=0, task_share=0.0, steps=400)
    assert drive(metamimic.make_run(flags).start(), seconds=60).updates > 100


def test_every_robot_explores_with_noise_of_its_own_around_its_policy(config):
    sigmas = {"sigma_min": 0.02, "sigma_max": 0.2, "task_sigma_min": 0.01, "task_sigma_max": 0.1}
    flags = config(robots=2, task_robots=2, warmup=60, **sigmas)
    actor = metamimic.make_run(flags).start().inline
    actor.board.steps[0] = 60
    goal = actor.frame + 1
    actions = np.array([actor.act(goal) for _ in range(300)])  # [300, n, 9]
    np.testing.assert_allclose(actions.std(0).mean(1), actor.sigma[:, 0], rtol=0.1)
    assert len(set(actor.sigma[:2, 0])) == 2
    np.testing.assert_allclose(actor.sigma[:2], 2 * actor.sigma[2:])  # a ladder for either kind


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_policy_sees_the_goal_as_a_difference_scaled_by_the_step_between_frames(config, ahead):
    run = metamimic.make_run(config(ahead=ahead))
    demos, scale = run.aids[0], run.learners[0].agent.online[0]
    frames = demos.frames.reshape(4, T + 1, 51)
    then = np.minimum(np.arange(T) + ahead, T)
    steps = (frames[:, then] - frames[:, :-1]).reshape(-1, 51)
    np.testing.assert_allclose(scale.scale[51:], 1 / steps.std(0, ddof=1).clip(0.001), rtol=1e-3)
    o, goal = torch.rand(3, 51), torch.rand(3, 51)
    assert torch.equal(metamimic.see(o, goal), torch.cat((o, goal - o), 1))
    o, goal = (torch.randint(255, (2, 4, 4, 3), dtype=torch.uint8) for _ in range(2))
    assert torch.equal(metamimic.see(o, goal)[..., :3], o)
    assert torch.equal(metamimic.see(o, goal)[..., 3:], goal)


def test_adams_steps_shrink_towards_the_end(config):
    run = metamimic.make_run(config(lr_end=0.2, policy_lr=1e-3, critic_lr=2e-3))
    agent = run.learners[1].agent
    for progress, part in ((0, 1), (0.5, 0.6), (1, 0.2), (3, 0.2)):
        agent.anneal(progress)
        rates = sorted(group["lr"] for group in agent.adam.param_groups)
        np.testing.assert_allclose(rates, [1e-3 * part, 2e-3 * part])
    run = drive(metamimic.make_run(config(lr_end=0.2, steps=800)).start())
    for learner in run.learners:
        assert learner.agent.adam.param_groups[0]["lr"] == pytest.approx(0.2e-3, rel=0.1)
        learner.row()
        learner.learn()
        learner.learn()
        q = learner.sums["q"] / 2
        assert learner.row()[learner.name + "q"] == pytest.approx(q)
        assert np.isnan(learner.row()[learner.name + "q"])


@pytest.fixture(scope="module")
def shorter(demos, tmp_path_factory):
    """A's demonstrations, of 12, 14, 16 and 18 steps in episodes of 20."""
    root = tmp_path_factory.mktemp("shorter")
    shutil.copytree(demos, root, dirs_exist_ok=True)
    for k, path in enumerate(sorted((root / f"stack{T}/A").glob("*.npz"))):
        steps = 12 + 2 * k
        cut = {
            "states": 1,
            "obs/features": 1,
            "obs/body": 1,
            "actions": 0,
            "rewards": 0,
            "dones": 0,
        }
        spoil(path, **{name: np.load(path)[name][: steps + more] for name, more in cut.items()})
    return root


def test_demonstrations_may_be_shorter_than_an_episode(config, shorter, paid, monkeypatch):
    flags = config(demos=str(shorter), deviation=99.0, cutoff=0.0, nstep=1, amid=1.0, curriculum=99)
    run = metamimic.make_run(flags).start()
    actor, demos = run.inline, run.aids[0]
    np.testing.assert_array_equal(demos.end - demos.first, [12, 14, 16, 18])
    run.board.limit[:] = 10**6
    for _ in range(60):
        assert (actor.frame < actor.end)[:4].all()  # there is always a frame to follow
        actor.step()
        for learner in run.learners:
            learner.memory.collect()
    goals = []
    monkeypatch.setattr(metamimic, "follow", lambda _, obs, d: goals.append(d) or np.zeros((4, 9)))
    task, imitation = metamimic.rollout(run.config, run.nets(), demos, 4)
    assert np.isfinite(imitation[:, 0]).sum(0).tolist() == [12, 14, 16, 18]
    np.testing.assert_array_equal(np.array(goals)[:12, 0], demos.frames[1:13])  # d_{t+1}
    run.config.ahead, goals[:] = 3, []
    metamimic.rollout(run.config, run.nets(), demos, 4)
    np.testing.assert_array_equal(np.array(goals)[:10, 0], demos.frames[3:13])
    np.testing.assert_array_equal(np.array(goals)[10:12, 0], demos.frames[[12, 12]])
    states = demos.states[demos.end]
    world = env.Stack(4, horizon=T)
    world.set_state(states)
    last = env.REWARDS["reach"][world.stage()]
    theirs = metamimic.task_rewards(run.config, demos, 4)
    for k, steps in enumerate([12, 14, 16, 18]):
        assert theirs[steps - 1, k] == last[k]
        assert not theirs[steps:, k].any()
        assert task[:steps, k].all()
        assert not task[steps:, k].any()


def test_the_task_policy_begins_as_a_demonstration_does_and_ends_with_it(
    config, shorter, paid, monkeypatch
):
    run, acts = metamimic.make_run(config(demos=str(shorter))).start(), []
    demos, nets = run.aids[0], run.nets()
    monkeypatch.setattr(metamimic, "follow", lambda *_: np.zeros((4, 9)))
    monkeypatch.setattr(d4pg, "pick", lambda nets, obs: acts.append((nets, obs)) or np.ones((2, 9)))
    task, _ = metamimic.rollout(run.config, nets, demos, 4, 2)
    (first, obs), worlds = acts[0], env.Stack(2, horizon=T)
    assert first is nets[metamimic.TASK]
    np.testing.assert_array_equal(obs, worlds.set_state(demos.states[demos.first[:2]]))
    for _, after in acts[1:]:
        np.testing.assert_allclose(worlds.step(np.ones((2, 9)))[0], after, atol=1e-4)
    for k, steps in enumerate([12, 14]):
        assert task[:steps, 4 + k].all()
        assert not task[steps:, 4 + k].any()


# -- what is never read


def test_demonstrators_actions_and_rewards_are_never_read(demos, tmp_path):
    """Table 2: with both replaced by NaN, a run with its evaluations is bit for bit the same."""
    blind, runs = tmp_path / "blind", []
    for path in demos.rglob("*.npz"):
        arrays = dict(np.load(path))
        for name in ("actions", "rewards"):
            arrays[name] = np.full_like(arrays[name], np.nan)
        out = blind / path.relative_to(demos)
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez(out, **arrays)
    with pytest.raises(ValueError, match="actions holds a NaN"):
        env.load_demos(blind / f"stack{T}/A", "stack", ("actions",))
    for root in (demos, blind):
        out = tmp_path / f"run{len(runs)}"
        train.main([*TINY, "--demos", str(root), "--steps", "800", "--out", str(out)])
        runs.append(out)
    load = lambda run: torch.load(run / "step000000000800.pt", weights_only=True)
    assert_same(*(load(run)["learners"] for run in runs))
    assert columns(runs[0]) == columns(runs[1])


def test_in_pixels_the_policy_sees_images_alone(config):
    flags = config(obs="pixels", size=32, steps=400, batch=8, warmup=100, round=1, capacity=400)
    run = drive(metamimic.make_run(flags).start())
    imitation, task = run.learners
    assert imitation.items.fields["obs"] == ((32, 32, 3), np.uint8)
    assert next(imitation.agent.online[0].parameters()).shape[1] == 6  # channels: o_t and d_{t+1}
    assert next(task.agent.online[0].parameters()).shape[1] == 3
    actor = run.inline
    np.testing.assert_array_equal(actor.obs, actor.world.pixels())
    demos = actor.demos
    image = actor.world.render(demos.states[25:26])[0]
    np.testing.assert_array_equal(demos.frames[25], image)
    assert np.isfinite(run.evaluate(2)["imitation_val_reward"])


def test_images_are_shifted_and_their_edges_repeated():
    images = torch.randint(256, (9, 6, 7, 2), dtype=torch.uint8)
    out = metamimic.shifted(images, 2, np.random.default_rng(0))
    down, right = np.random.default_rng(0).integers(-2, 3, (2, 9))
    assert {*down, *right} == {-2, -1, 0, 1, 2}
    for image, moved, y, x in zip(images.numpy(), out, down, right):
        literal = np.pad(image, ((2, 2), (2, 2), (0, 0)), "edge")[2 - y : 8 - y, 2 - x : 9 - x]
        np.testing.assert_array_equal(moved, literal)


def test_who_learns_from_images_sees_frame_and_goal_shifted_alike(config):
    flags = config(obs="pixels", size=32, steps=400, warmup=100, capacity=400, shift=4)
    run = metamimic.make_run(flags).start()
    (imitation, task), frames = run.learners, torch.from_numpy(run.aids[0].frames[:8])
    number = torch.arange(8, dtype=torch.float32)[:, None]
    batch = {"obs": frames, "next_obs": frames, "goal": number, "next_goal": number}
    seen = imitation.see(batch)
    for name in ("obs", "next_obs"):
        assert torch.equal(seen[name][..., :3], seen[name][..., 3:])
        assert not torch.equal(seen[name][..., :3], frames)
    assert torch.equal(seen["obs"], imitation.see(batch)["obs"])  # so that a run can be resumed
    assert not torch.equal(seen["obs"], seen["next_obs"])
    imitation.agent.updates += 1
    assert not torch.equal(seen["obs"], imitation.see(batch)["obs"])
    assert not torch.equal(task.see(batch)["obs"], frames)
    flags.shift = 0
    plain = metamimic.make_run(flags).start().learners
    assert torch.equal(plain[1].see(batch)["obs"], frames)
    assert torch.equal(plain[0].see(batch)["next_obs"], torch.cat((frames, frames), 3))


def test_in_pixels_an_actor_rewards_by_the_images_it_stores(config):
    flags = config(
        obs="pixels", size=32, nstep=1, warmup=400, capacity=400, deviation=99.0, cutoff=0.0
    )
    run = metamimic.make_run(flags).start()
    run.board.limit[:] = 10**6
    actor, demos = run.inline, run.aids[0]
    for _ in range(3):
        goal = np.minimum(actor.frame + 1, actor.end)[:4]
        before = actor.obs.copy()
        actor.step()
    run.learners[0].memory.collect()
    memory, live = run.learners[0].items.shared, run.learners[0].memory.index.live()[-4:]
    rows = stored(run.learners[0])
    np.testing.assert_array_equal(memory.obs[live], before[:4])
    np.testing.assert_array_equal(rows["goal"][-4:, 0], goal)
    image = np.float64(memory.next_obs[live]) - demos.frames[goal]
    seen = np.exp(-15 * np.square(image / 255 / metamimic.PIXEL).mean((1, 2, 3))) / 2
    body = rows["reward"][-4:, 0] - seen
    assert (body > -1e-6).all()
    assert (body < 0.5 + 1e-6).all()
    features, wrist = actor.world.features()[:4], 5
    features[:, wrist] = demos.features[goal, wrist] + (features - demos.features[goal])[:, 5] / 10
    np.testing.assert_allclose(body[actor.world.t[:4] > 0], [
        literal_reward(o, d, 1e9, 2) for o, d in zip(features, demos.features[goal])
    ], atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("kind", [metamimic.IMITATION, metamimic.TASK])
def test_from_images_a_network_learns_to_tell_what_features_would_have_shown(config, kind):
    """--tell: what is stored beside an image, its scale, and the loss, word by word."""
    flags = config(
        obs="pixels", size=32, nstep=1, warmup=400, capacity=400, tell=0.5, critic_lr=1e-2
    )
    run = metamimic.make_run(flags).start()
    run.board.limit[:] = 10**6
    actor, demos, learner = run.inline, run.aids[0], run.learners[kind]
    for _ in range(5):
        before, goal = actor.world.features(), np.minimum(actor.frame + 1, actor.end)
        actor.step()
    learner.memory.collect()
    live = learner.memory.index.live()[-8 if kind else -4 :]
    rows = {name: torch.from_numpy(value[-len(live) :]) for name, value in stored(learner).items()}
    np.testing.assert_array_equal(rows["told"], before[: len(live)])
    images = {
        k: torch.from_numpy(getattr(learner.items.shared, k)[live]) for k in ("obs", "next_obs")
    }
    batch = learner.see(rows | images)

    now = np.setdiff1d(np.arange(len(demos.features)), demos.end)
    step = demos.features[now + 1] - demos.features[now]
    o = (before - demos.features.mean(0)) / np.maximum(demos.features.std(0, ddof=1), 0.01)
    here = demos.features[now]
    if kind == metamimic.IMITATION:  # o_t, and from there to d_{t+1}
        way = demos.features[goal[:4]] - before[:4]
        o = (before[:4] - here.mean(0)) / np.maximum(here.std(0, ddof=1), 0.001)
        way = (way - step.mean(0)) / np.maximum(step.std(0, ddof=1), 0.001)
        o = np.concatenate([o, way], 1)
    np.testing.assert_allclose(batch["told"], o.clip(-10, 10), atol=2e-3)

    agent = learner.agent
    (encoder, *_, head), m, off = agent.online, agent.targets(batch), []
    x = head(encoder(batch["obs"])) - batch["told"]
    loss = 0.5 * torch.where(x.abs() < 1, x.square() / 2, x.abs() - 0.5).mean()
    slopes = torch.autograd.grad(loss, head.parameters())
    agent.update(batch, m, None)
    for p, slope in zip(head.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, slope)
    for tell in (0.0, 0.5):
        agent.config.tell = tell
        for _ in range(300):
            agent.update(batch, m, None)
        with torch.no_grad():
            x = (head(encoder(batch["obs"])) - batch["told"]).abs()
        off.append(torch.where(x < 1, x.square() / 2, x - 0.5).mean())
    assert off[1] < 0.7 * off[0]


# -- evaluation


def test_who_does_what_the_demonstrator_did_scores_1(tmp_path, monkeypatch, config):
    """The demonstrations' own actions as the policy: ratio 1, reward 1, the frame they stacked."""
    env.make_demos(tmp_path / "stack200/A", "stack", "A", 3, processes=1)
    flags = config(demos=str(tmp_path), horizon=200, task="stack")
    flags = d4pg.complete(SimpleNamespace(**vars(flags), env="stack", vmin=0.0, vmax=0.0))
    seen = metamimic.load_demos(flags, tmp_path / "stack200/A", 3)
    every = env.load_demos(tmp_path / "stack200/A", "stack", ("actions", "rewards"))
    actions, t = np.stack([demo["actions"] for demo in every], 1), iter(range(200))
    monkeypatch.setattr(metamimic, "follow", lambda *_: actions[next(t)])
    task, imitation = metamimic.rollout(flags, [None, None], seen, 3)
    rewards = np.stack([demo["rewards"] for demo in every], 1)
    np.testing.assert_array_equal(task, rewards)
    np.testing.assert_allclose(imitation, 1, atol=1e-3)
    np.testing.assert_array_equal(metamimic.task_rewards(flags, seen, 3), rewards)
    expected = np.mean([np.flatnonzero(r == 1)[0] + 1 for r in rewards.T])
    assert metamimic.frames_to_solve(task) == expected
    assert metamimic.part(task, rewards) == 1


def test_an_evaluation_is_of_both_people_and_of_both_policies(monkeypatch):
    """Each number of the table, from made-up rewards."""
    A, B = np.zeros((10, 3)), np.zeros((10, 2))
    A[5:], B[8:] = 1, 1
    ours = np.zeros((10, 6))
    ours[6:, :3], ours[2:, 3:5] = 1, 1
    theirs = np.zeros((10, 2))
    theirs[9:, 0] = 1
    seen, unseen = (SimpleNamespace(first=np.zeros(n)) for n in (3, 2))
    parts = {3: np.full((10, 2, 3), 0.5), 2: np.full((10, 2, 2), 0.25)}
    parts[2][:, 1] = 0.75
    fake = lambda config, nets, demos, copies, tasks, stop: (
        (ours, parts[3]) if demos is seen else (theirs, parts[2])
    )
    monkeypatch.setattr(metamimic, "rollout", fake)
    monkeypatch.setattr(metamimic, "task_rewards", lambda c, demos, n: A if demos is seen else B)
    assert metamimic.evaluate(None, None, 9, None, seen, unseen) == {
        "train_episodes": 3, "val_episodes": 2,
        "imitation_train_ratio": 12 / 15, "imitation_val_ratio": 1 / 4,
        "imitation_train_reward": 0.5, "imitation_val_reward": 0.5,
        "tracking_seen_val": 0.25, "tracking_body_val": 0.75,
        "stack_success_train": 1, "stack_success_val": 0.5,
        "task_policy_ratio": 16 / 15, "task_policy_success": pytest.approx(2 / 3),
        "task_policy_frames_to_stack": 3, "demo_frames_to_stack": 6,
    }  # fmt: skip


def test_frames_to_stack_counts_only_who_stacks():
    rewards = np.zeros((5, 3))
    rewards[2:, 0] = 1
    rewards[3, 1] = 0.25
    rewards[4:, 1] = 1
    assert metamimic.frames_to_solve(rewards) == (3 + 5) / 2
    assert np.isnan(metamimic.frames_to_solve(np.zeros((5, 3))))


# -- runs, from the command line

TINY = ["metamimic", "--preset", "tiny", "--save_minutes", "100"]


@pytest.fixture(scope="module")
def whole(demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main([*TINY, "--demos", str(demos), "--steps", "1200", "--out", str(folder)])
    return folder


def test_a_run_that_was_resumed_is_bit_for_bit_one_that_was_not(
    whole, demos, tmp_path, monkeypatch
):
    parts, turn = tmp_path / "parts", d4pg.Run.round

    def stopped(run):
        turn(run)
        if run.steps == 600:
            os.kill(os.getpid(), 2)  # Ctrl-C

    with monkeypatch.context() as patch:
        patch.setattr(d4pg.Run, "round", stopped)
        train.main([*TINY, "--demos", str(demos), "--steps", "1200", "--out", str(parts)])
    assert not (parts / "results.json").exists()
    train.main(["metamimic", "--resume", str(parts)])
    load = lambda path: torch.load(path / "step000000001200.pt", weights_only=True)
    assert_same(load(whole), load(parts))
    assert columns(whole) == columns(parts)


def test_an_actor_process_does_what_acting_in_turn_does(config):
    runs = []
    for actors in (0, 1):
        flags = config(actors=actors, steps=400, updates_per_step=0.0, capacity=5000)
        run = metamimic.make_run(flags).start()
        try:
            drive(run)
            for learner in run.learners:
                while learner.memory.collect():
                    pass
        finally:
            run.close()
        runs.append(run)
    for one, other in zip(*(run.learners for run in runs)):
        assert len(one.memory) > 100
        for name, rows in stored(one).items():
            np.testing.assert_array_equal(rows, stored(other)[name], name)


def test_a_run_ends_with_a_table_and_pictures(whole, capsys):
    train.main(["eval", str(whole), "--episodes", "3"])
    out = capsys.readouterr().out
    assert "never seen" in out
    results = json.loads(out.splitlines()[-1])
    assert set(results) >= {
        "imitation_train_ratio", "imitation_val_ratio", "imitation_val_reward",
        "stack_success_val", "task_policy_ratio", "task_policy_frames_to_stack",
        "demo_frames_to_stack",
    }  # fmt: skip
    for name in ("curves.png", "imitation.gif", "results.json"):
        assert (whole / name).stat().st_size > 50
    train.main(["eval", str(whole), "--episodes", "3"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == results  # fixed seeds


def test_eval_imitates_one_file_in_one_shot(whole, demos, paid, tmp_path, capsys):
    path, out = demos / f"stack{T}/B/0002.npz", tmp_path / "copy.gif"
    train.main(["eval", str(whole), "--demo", str(path), "--out", str(out)])
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= results["imitation_reward"] <= 1
    assert results["demo_task_reward"] == T / 2  # it has not reached the block by then
    assert out.stat().st_size > 1000


def test_with_no_arguments_it_is_metamimic_on_two_cores():
    args = train.parse([])
    assert (args.command, args.obs, args.task) == ("metamimic", "features", "stack")
    assert vars(args) == vars(train.parse(["metamimic", "--preset", "classroom"])) | {
        "preset": None, "given": {"command", "tensorboard"}}  # fmt: skip
    assert train.parse(["--minutes", "3"]).minutes == 3


def test_missing_demonstrations_are_made(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(env, "make_demos", lambda folder, *args, **kw: made.append(args))
    folder = tmp_path / "demos"
    with pytest.raises(SystemExit, match="0 demonstrations, 4 wanted"):
        train.main([*TINY, "--demos", str(folder), "--out", str(tmp_path / "run")])
    assert [args[:3] for args in made] == [("stack", "A", 500), ("stack", "B", 500)]
    assert not (tmp_path / "run").exists()


# -- bad input


def spoil(path, **changes):
    """A demonstration with other arrays; `None` leaves one out."""
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_demonstrations_that_cannot_be_imitated_are_refused_by_name(whole, demos, tmp_path):
    good = demos / f"stack{T}/B/0001.npz"
    env.make_demos(tmp_path / "stack30/A", "stack", "A", 1, horizon=30, processes=1)
    env.make_demos(tmp_path / "kitchen", "kitchen", "test", 1, processes=2)
    states = np.load(good)["states"]
    flat, far, late, moved = states.copy(), states.copy(), states.copy(), states.copy()
    flat[0, 13:17] = 0
    far[0, 5] = np.inf
    late[:, 0] += 1
    moved[0, 1] += 0.5
    short = {key: value[:1] for key, value in np.load(good).items() if value.ndim}
    short |= {key: value[:0] for key, value in short.items() if key[0] in "ard"}
    for changes, message in (
        ({"states": flat}, "no unit quaternions"),
        ({"states": far}, "states holds a NaN or an infinity"),
        ({"states": late}, r"it does not go on from time 0 in steps of 0\.05 s"),
        ({"states": moved}, "begins in a state that looks different here, by 0.5"),
        (short, "0 steps; a demonstration has 1 to"),
        ("stack30/A/0000.npz", "it has 30 steps, an episode here has 20; a run with --horizon 30"),
        ("kitchen/000_0.npz", "made for the world 'kitchen'"),
        ("nowhere.npz", "there is no such demonstration"),
    ):
        path = tmp_path / "one.npz"
        if isinstance(changes, dict):
            shutil.copy(good, path)
            spoil(path, **changes)
        else:
            path = tmp_path / changes
        with pytest.raises(SystemExit, match=f"^train.py: .*{path.name}.*{message}"):
            train.main(["eval", str(whole), "--demo", str(path), "--out", f"{tmp_path}/x.gif"])
        assert not (tmp_path / "x.gif").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metamimic", "--demonstrations", "0"], "--demonstrations is 0; expected"),
        (["metamimic", "--cutoff", "nan"], "--cutoff is nan; expected"),
        (["metamimic", "--imitation_gamma", "1"], "--imitation_gamma is 1.0; expected between"),
        (["eval", "RUN", "--out", "x.gif"], "--out is the picture of a --demo"),
        (["metamimic", "--task_share", "1.5"], "--task_share is 1.5; expected"),
        (["metamimic", "--warmup", "40"], "--warmup is 40; 56 are needed for a batch"),
        (["metamimic", "--out", "RUN"], "RUN is not empty: --resume RUN goes on"),
        (
            ["d4pg", "--resume", "RUN"],
            "RUN is a run of metamimic; go on with: python train.py meta",
        ),
        (["metamimic", "--resume", "RUN", "--deviation", "0.5"], "--deviation is 0.03 in RUN"),
        (["eval", "nowhere"], "nowhere: there is no run"),
        (["eval", "RUN", "--episodes", "0"], "--episodes is 0; expected"),
        (["eval", "RUN", "--demo", "DEMO", "--out", "x.txt"], "ends in .gif or .png"),
    ],
)
def test_bad_flags_are_one_line_and_leave_no_folder(
    words, message, whole, demos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(whole)
    words = [str(demos / f"stack{T}/B/0000.npz") if word == "DEMO" else word for word in words]
    if words[0] != "eval" and "--resume" not in words:
        words += ["--preset", "tiny", "--demos", str(demos)]
    with pytest.raises(SystemExit, match=f"^train.py: .*{message}"):
        train.main(words)
    assert os.listdir() == ["RUN"]


def test_eval_makes_no_demonstrations_and_refuses_others_than_the_runs_own(
    whole, demos, shorter, tmp_path
):
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    flags = json.loads((copy / "config.json").read_text())
    for folder, message in (
        (str(tmp_path / "gone"), "gone.* holds 0 demonstrations, 4 wanted"),
        (str(shorter), "trained on other demonstrations than there are"),
    ):
        (copy / "config.json").write_text(json.dumps(flags | {"demos": folder}))
        with pytest.raises(SystemExit, match=message):
            train.main(["eval", str(copy), "--episodes", "3"])
        assert not (tmp_path / "gone").exists()
    train.main(["eval", str(copy), "--demo", str(demos / f"stack{T}/B/0001.npz")])  # needs no other
    assert (copy / "B-0001.gif").stat().st_size > 1000


def test_a_damaged_demonstration_of_b_is_found_before_training(demos, tmp_path):
    root = Path(shutil.copytree(demos, tmp_path / "demos"))
    (root / f"stack{T}/B/0003.npz").write_bytes(b"no demonstration")
    with pytest.raises(SystemExit, match=r"B.0003.npz: truncated, damaged or no demonstration"):
        train.main([*TINY, "--demos", str(root), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_in_use_is_left_alone(whole):
    with train.only_user(whole), pytest.raises(SystemExit, match="is in use by another process"):
        train.main(["eval", str(whole), "--episodes", "3"])


def test_networks_of_both_kinds_are_counted_alike_by_learners_and_actors(config):
    run = metamimic.make_run(config())
    parts = [part for learner in run.learners for part in learner.agent.online[:2]]
    assert len(run.board.weights) == networks.count(*parts)
