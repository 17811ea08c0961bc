"""What actors do and what learners do with it, watched from outside, number by number."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import d4pg
import networks
import replay
from tests.test_d4pg import drive, literal_items, make_config


class Script:
    """A world whose every number tells when it was: obs = 100 robot + time, since its beginning.

    Robot 0 terminates after 4 steps, robot 1 runs out of time after 7, robot 2 after 11. Actions
    are from -2 to 6.
    """

    def __init__(self, n, seed):
        self.n, self.seed, self.seen = n, seed, []
        self.low, self.high = np.array([-2.0]), np.array([6.0])
        self.length = np.array([4, 7, 11])[np.arange(n) % 3]
        self.now, self.t, self.begun = np.zeros(n), np.zeros(n, int), np.zeros(n, int)
        self.reset(np.arange(n))

    def observe(self):
        return (100 * np.arange(self.n) + self.now)[:, None].astype(np.float32)

    def reset(self, ids):
        self.begun[ids] += 1
        self.now[ids] += 0.5  # a new beginning looks different from the end before it
        self.t[ids] = 0
        return self.observe()[ids]

    def step(self, actions):
        self.seen.append(actions)
        self.now, self.t = self.now + 1, self.t + 1
        last = self.t == self.length
        discount = np.where(last & (self.length == 4), 0.0, 1.0)
        return self.observe(), 0.01 * self.now, discount, last


@pytest.fixture
def actor(monkeypatch):
    """An actor of three robots in the scripted world, its board and its memory."""
    monkeypatch.setattr(d4pg, "make_world", lambda config, n, seed: Script(n, seed))
    return begin(make_config(robots=3, gamma=0.9, warmup=60, vmax=1000.0))


def begin(config, number=0):
    config = d4pg.complete(config)
    fields = d4pg.item_fields(Script(1, 0))
    items = replay.Items(fields, config.capacity, max(config.actors, 1))
    memory = replay.Replay(items)
    weights = networks.count(*d4pg.make_networks(config, (1,), 1)[:2])
    board = replay.make_board(max(config.actors, 1), weights)
    one = d4pg.Actor(config, number, [items], board)
    return SimpleNamespace(act=one, items=items, memory=memory, board=board, config=config)


def test_an_actors_items_are_the_ones_that_its_world_told(actor):
    """Terminations, time limits, the last observation before a reset, the first after it."""
    world, steps = actor.act.world, [[] for _ in range(3)]
    for _ in range(40):
        before, now, t = world.observe(), world.now.copy(), world.t.copy()
        actor.act.step()
        action = (world.seen[-1] + 2) / 8 * 2 - 1
        last = t + 1 == world.length
        more = np.where(last & (world.length == 4), 0.0, 1.0)
        after = 100 * np.arange(3) + now + 1
        for i in range(3):
            steps[i].append(
                (before[i, 0], action[i, 0], 0.01 * (now[i] + 1), more[i], after[i], last[i])
            )
    actor.memory.collect()
    rows = actor.items.shared.rows[actor.memory.index.live()]
    expected = [item for robot in steps for item in literal_items(robot, 3, 0.9)]
    columns = ("obs", "action", "reward", "discount", "next_obs")
    mine = [rows[:, actor.items.columns[name]][:, 0] for name in columns]
    assert (np.array([item[3] for item in expected]) == 0).any()
    np.testing.assert_allclose(sorted(zip(*mine)), sorted(expected), atol=1e-4)
    assert actor.board.steps[0] == 120
    assert actor.board.episodes[0] == 40 // 4 + 40 // 7 + 40 // 11
    returns, G = [], np.zeros(3)
    for i, robot in enumerate(steps):
        total, k = 0.0, 0
        for *_, reward, _, _, last in robot:
            total, G[i], k = total + reward, G[i] + 0.9**k * reward, k + 1
            if last:
                returns.append(total)
                total, G[i], k = 0.0, 0.0, 0
    np.testing.assert_allclose(sorted(replay.read_returns(actor.board)), sorted(returns))
    np.testing.assert_allclose(actor.act.G, G)  # since each robot's present episode began


def test_it_acts_at_random_first_and_then_by_the_published_policy_with_each_robots_noise(actor):
    actions = lambda: (actor.act.world.seen[-1][:, 0] + 2) / 4 - 1
    policy = actor.act.networks[1]
    weights = np.zeros(len(actor.board.weights))
    weights[-1] = np.arctanh(0.3)  # the last bias: the policy says 0.3, whatever it sees
    replay.publish_weights(actor.board, weights)
    random = []
    while actor.board.steps[0] < 60:
        actor.act.step()
        random.append(actions())
    assert np.abs(random).max() > 0.8
    noise = []
    for _ in range(3000):
        actor.act.step()
        noise.append(actions() - 0.3)
        actor.memory.collect()
    assert policy.mlp[-1].bias.item() == pytest.approx(np.arctanh(0.3))
    noise, sigma = np.array(noise), actor.act.sigma[:, 0]
    assert len(set(sigma)) == 3
    np.testing.assert_allclose(noise.std(0), sigma, rtol=0.08)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.03)
    correlation = np.corrcoef(noise.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.1  # each has its own


def test_actions_reach_the_whole_range_of_the_world(actor):
    for _ in range(20):
        actor.act.step()
    seen = np.concatenate(actor.act.world.seen)
    assert seen.min() < -1.5
    assert seen.max() > 5.5


def test_two_actors_have_chances_and_noise_of_their_own(monkeypatch):
    monkeypatch.setattr(d4pg, "make_world", lambda config, n, seed: Script(n, seed))
    config = make_config(robots=3, actors=2, warmup=60)
    one, two = begin(config, 0).act, begin(config, 1).act
    assert one.world.seed != two.world.seed
    assert one.rng.random() != two.rng.random()
    together = np.concatenate([one.sigma, two.sigma])[:, 0]
    assert len(set(together)) == 6
    assert one.sigma[0] < two.sigma[0] < one.sigma[1] < two.sigma[1]
    again = d4pg.Actor(one.config, 0, [one.items], one.board, life=1)
    assert again.world.seed != one.world.seed  # not the same episodes once more


def test_a_return_beyond_the_support_is_noticed_but_a_single_high_reward_is_not(actor):
    actor.act.config.vmax = 2.0
    reward = np.zeros(3)
    reward[1] = 1.9  # at the goal, once
    actor.act.check(np.zeros((3, 1)), reward)
    actor.act.check(np.zeros((3, 1)), np.zeros(3))
    small = np.array([0.0, 0.15, 0.0])
    actor.act.check(np.zeros((3, 1)), small / 10)
    with pytest.raises(ValueError, match=r"a return of 2.0\d* leaves the support, 0 to 2; .*=5,"):
        actor.act.check(np.zeros((3, 1)), small)


# -- the learner


@pytest.mark.parametrize("sampling", ["uniform", "prioritised"])
def test_batches_weights_and_priorities_belong_together(sampling, monkeypatch):
    run = d4pg.make_run(make_config(sampling=sampling, warmup=100)).start()
    drive(run, until=lambda run: run.updates)
    seen, told, targets = [], [], []
    update, sample = run.learners[0].agent.update, run.learners[0].memory.sample
    drawn = []

    def spy_sample(count):
        drawn.append(sample(count))
        targets.append(run.learners[0].agent.targets(drawn[-1][2]))
        return drawn[-1]

    def spy_update(batch, m, weights):
        metrics, TD = update(batch, m, weights)
        seen.append((batch["obs"].clone(), m.clone(), weights, TD.clone()))
        return metrics, TD

    monkeypatch.setattr(run.learners[0].memory, "sample", spy_sample)
    monkeypatch.setattr(run.learners[0].agent, "update", spy_update)
    monkeypatch.setattr(run.learners[0].memory, "update", lambda slots, p: told.append((slots, p)))
    run.learners[0].agent.learn(run.learners[0].memory, 5)
    slots, weights, _ = drawn[0]
    obs = run.learners[0].items.shared.rows[slots, run.learners[0].items.columns["obs"]]
    np.testing.assert_array_equal(torch.cat([o for o, *_ in seen]).numpy(), obs)
    torch.testing.assert_close(torch.cat([m for _, m, *_ in seen]), targets[0])
    if sampling == "uniform":
        assert weights is None
    else:
        assert torch.equal(torch.cat([w for *_, w, _ in seen]), weights)
    assert (told[0][0] == slots).all()
    np.testing.assert_array_equal(told[0][1], torch.cat([TD for *_, TD in seen]).numpy())


def test_features_are_scaled_once_by_what_memory_holds_then():
    run = d4pg.make_run(make_config(warmup=200)).start()
    drive(run, until=lambda run: run.updates)
    obs = run.learners[0].items.shared.rows[
        run.learners[0].memory.index.live(), run.learners[0].items.columns["obs"]
    ]
    scale, target = run.learners[0].agent.online[0], run.learners[0].agent.target[0]
    np.testing.assert_allclose(scale.mean, obs.mean(0), atol=1e-4)
    expected = 1 / obs.std(0, ddof=1).clip(0.01)
    np.testing.assert_allclose(scale.scale, expected, rtol=1e-3)
    assert torch.equal(scale.mean, target.mean)
    before = scale.mean.clone()
    for _ in range(100):
        run.round()
    assert torch.equal(scale.mean, before)
    assert torch.equal(target.mean, before)


def test_actors_wait_for_the_learner(monkeypatch):
    run = d4pg.make_run(make_config(actors=2, steps=10**6, updates_per_step=0.5)).start()
    try:
        learnt_nothing = lambda *_: dict.fromkeys(d4pg.METRICS, 0.0)
        monkeypatch.setattr(run.learners[0].agent, "learn", learnt_nothing)
        drive(run, until=lambda run: run.steps > run.config.warmup)
        for _ in range(300):
            run.learners[0].memory.collect()
            run.set_limits()
            time.sleep(0.002)
        ahead = run.steps - run.config.warmup
        assert ahead <= 2 * run.config.round / 0.5 + 2 * run.config.robots
    finally:
        run.close()


def test_an_actor_that_stands_still_does_not_stop_the_others():
    run = d4pg.make_run(make_config(actors=2, steps=10**6, updates_per_step=0.5)).start()
    try:
        drive(run, until=lambda run: run.updates and (run.board.steps > 0).all())
        os.kill(run.crew.processes[0].pid, signal.SIGSTOP)
        still, before = run.board.steps[0], run.updates
        drive(run, until=lambda run: run.updates >= before + 10 * run.config.round)
        assert run.board.steps[0] <= still + run.config.robots  # amid a step, perhaps
    finally:
        os.kill(run.crew.processes[0].pid, signal.SIGCONT)
        run.close()


def test_evaluation_is_without_noise_of_the_present_policy_and_of_one_episode_a_robot(monkeypatch):
    monkeypatch.setattr(d4pg, "make_world", lambda config, n, seed: Script(n, seed))
    run = d4pg.make_run(make_config(warmup=60))
    run.learners[0].agent.flats[1].zero_()
    run.learners[0].agent.flats[1][-1] = np.arctanh(0.5)
    worlds = []
    monkeypatch.setattr(
        d4pg, "make_world", lambda config, n, seed: worlds.append(Script(n, seed)) or worlds[-1]
    )
    results = run.evaluate(3)
    lengths = np.array([4, 7, 11])
    expected = [0.01 * sum(0.5 + np.arange(1, n + 1)) for n in lengths]  # not a step more
    assert results["eval_return"] == pytest.approx(np.mean(expected))
    assert results["eval_std"] == pytest.approx(np.std(expected))
    np.testing.assert_allclose(np.concatenate(worlds[0].seen), -2 + 1.5 / 2 * 8, atol=1e-5)


def test_the_logs_return_is_that_of_the_latest_episodes():
    run = d4pg.make_run(make_config(actors=2))
    run.allocate()
    board = run.board
    for value in range(70):  # more than are kept
        replay.publish_return(board, 0, 100 + value)
    replay.publish_return(board, 1, 1)
    replay.publish_return(board, 1, 3)
    expected = np.concatenate([100 + np.arange(6, 70), [1, 3]]).mean()
    assert run.row()["return"] == pytest.approx(expected)
    assert run.row()["episodes"] == 72
