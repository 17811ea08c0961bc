"""D4PG: every equation against a slow transcription; actors and learner against each other."""

import copy
import time

import numpy as np
import pytest
import torch

import d4pg
import env
import networks
import replay
from tests.conftest import tiny


def make_config(**changes):
    return tiny(d4pg, **changes)


def test_the_preset_paper_is_table_1():
    paper = {name: values[2] for name, (_, *values) in d4pg.FLAGS.items()}
    table = {"size": 128, "vmin": 0, "vmax": 100, "atoms": 101, "nstep": 5, "batch": 64,
             "target_period": 100, "gamma": 0.99, "capacity": 1_000_000, "network": "large",
             "dial": 1, "sampling": "uniform"}  # fmt: skip
    assert {name: paper[name] for name in table} == table
    assert 5e-5 <= paper["policy_lr"] <= 2e-4
    assert 5e-5 <= paper["critic_lr"] <= 2e-4
    assert paper["actors"] * paper["robots"] == 256  # "task actors"


# -- the projection


def literal_projection(p, R, discount, z):
    """Bellemare et al. 2017, algorithm 1, word by word, in float64."""
    N, vmin, vmax = len(z), float(z[0]), float(z[-1])
    dz = (vmax - vmin) / (N - 1)
    m = np.zeros((len(p), N))
    for i in range(len(p)):
        for j in range(N):
            Tz = min(max(R[i] + discount[i] * float(z[j]), vmin), vmax)
            b = (Tz - vmin) / dz
            lower, upper = int(np.floor(b)), int(np.ceil(b))
            if lower == upper:  # the case that the paper forgets: all mass would be lost
                m[i, lower] += p[i, j]
            else:
                m[i, lower] += p[i, j] * (upper - b)
                m[i, upper] += p[i, j] * (b - lower)
    return m


SUPPORTS = [(0, 100, 101), (-10, 10, 51), (-150, 150, 51), (0, 1, 2), (-1.7, 0.3, 11), (0, 20, 21)]


@pytest.mark.parametrize("support", SUPPORTS)
def test_projection_equals_the_papers_loop(support):
    vmin, vmax, N = support
    rng, B = np.random.default_rng(0), 200
    p = rng.dirichlet(np.full(N, 0.3), B)
    R = rng.uniform(vmin - 1.5 * (vmax - vmin), vmax + 1.5 * (vmax - vmin), B)  # far outside, too
    discount = rng.choice([0, 0.5, 0.99**5, 1.0], B)
    R[:50] = np.linspace(vmin, vmax, N)[rng.integers(N, size=50)]  # straight onto atoms
    discount[:40], discount[40:50] = 0, 1
    R[50:60] = 0
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        z = torch.linspace(vmin, vmax, N, dtype=dtype)
        inputs = [torch.tensor(x, dtype=dtype) for x in (p, R, discount)]
        m = d4pg.project(*inputs, z)
        expected = literal_projection(*(x.double().numpy() for x in inputs), z.double().numpy())
        np.testing.assert_allclose(m.numpy(), expected, atol=tolerance)
        np.testing.assert_allclose(m.sum(1).numpy(), 1, atol=tolerance)
        assert (m >= 0).all()


def test_projection_keeps_the_mean_of_what_stays_within_the_support():
    z = torch.linspace(0, 100, 101, dtype=torch.float64)
    p = torch.rand(64, 101, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    R, discount = torch.rand(64, dtype=torch.float64) * 4, torch.full((64,), 0.95**5).double()
    m = d4pg.project(p, R, discount, z)
    assert torch.allclose(m @ z, R + discount * (p @ z), atol=1e-10)


# -- one update


def make_batch(config, rng, count):
    x = lambda *shape: torch.tensor(rng.normal(size=shape), dtype=torch.float32)
    return {"obs": x(count, 6), "action": x(count, 2).clamp(-1, 1), "next_obs": x(count, 6),
            "reward": x(count, 1).abs(), "discount": torch.full((count, 1), 0.8)}  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
def test_an_update_is_two_losses_and_two_adams(weighted):
    """Against autograd on appendix C.1's formulas, each network with an optimiser of its own."""
    config = d4pg.complete(make_config(policy_lr=1e-3, critic_lr=2e-3))
    agent = d4pg.Agent(config, (6,), 2)
    _, policy, critic = copy.deepcopy(agent.online)
    theirs = copy.deepcopy(agent.target)
    adams = [
        torch.optim.Adam(critic.parameters(), 2e-3),
        torch.optim.Adam(policy.parameters(), 1e-3),
    ]
    rng, z = np.random.default_rng(0), agent.z
    for _ in range(3):
        batch = make_batch(config, rng, 8)
        weights = torch.rand(8) if weighted else None
        with torch.no_grad():
            _, policy_target, critic_target = theirs
            Z = critic_target(batch["next_obs"], policy_target(batch["next_obs"])).softmax(1)
            target = d4pg.project(Z, batch["reward"][:, 0], batch["discount"][:, 0], z)
        logits = critic(batch["obs"], batch["action"])
        H = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        L = ((1 if weights is None else weights) * H).mean()
        J = -(critic(batch["obs"], policy(batch["obs"])).softmax(1) @ z).mean()
        gradients = [torch.autograd.grad(L, list(critic.parameters()), retain_graph=True)]
        gradients += [torch.autograd.grad(J, list(policy.parameters()))]
        expected_TD = (target @ z - logits.softmax(1) @ z).abs()
        metrics, TD = agent.update(batch, agent.targets(batch), weights)
        assert metrics["critic_loss"].item() == pytest.approx(L.item(), rel=1e-4)
        assert metrics["q"].item() == pytest.approx(-J.item(), rel=1e-4)
        assert torch.allclose(TD, expected_TD, atol=1e-3)
        for module, adam, gradient in zip((critic, policy), adams, gradients):
            for p, g in zip(module.parameters(), gradient):
                p.grad = g
            adam.step()
    for mine, other in zip(agent.online[1:], (policy, critic)):
        for p, q in zip(mine.parameters(), other.parameters()):
            assert torch.allclose(p, q, atol=2e-5)


def test_targets_are_copied_every_so_many_updates_and_only_then():
    config = d4pg.complete(make_config(target_period=3))
    agent, rng = d4pg.Agent(config, (6,), 2), np.random.default_rng(0)
    frozen = [x.clone() for x in agent.target_flats]
    for k in range(1, 8):
        batch = make_batch(config, rng, 4)
        agent.update(batch, agent.targets(batch), None)
        if k % 3 == 0:
            frozen = [x.clone() for x in agent.flats]
        for mine, expected in zip(agent.target_flats, frozen):
            assert torch.equal(mine, expected)


def test_a_rounds_targets_are_those_of_its_batches_one_by_one():
    config = d4pg.complete(make_config())
    agent = d4pg.Agent(config, (6,), 2)
    batch = make_batch(config, np.random.default_rng(0), 40)
    together = agent.targets(batch)
    for k in range(5):
        part = {name: value[8 * k : 8 * k + 8] for name, value in batch.items()}
        assert torch.allclose(agent.targets(part), together[8 * k : 8 * k + 8], atol=1e-6)


def test_only_the_critics_loss_trains_the_encoder():
    config = d4pg.complete(make_config(dial=0.1))
    agent = d4pg.Agent(config, (32, 32, 3), 2)
    encoder, _, critic = agent.online
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    x = encoder(images).detach()
    before = [flat.clone() for flat in agent.flats]
    batch = {"obs": images, "action": torch.zeros(4, 2)}
    m = critic(x, batch["action"]).softmax(1).detach()  # the critic is right: nothing to learn
    agent.update(batch, m, None)
    moved = [(flat - old).abs().max().item() for flat, old in zip(agent.flats, before)]
    gradients = [flat.grad.norm().item() for flat in agent.flats]
    assert gradients[0] < 1e-6
    assert gradients[2] < 1e-6
    assert gradients[1] > 1e-6
    assert moved[1] > 0
    agent.update(batch, m.roll(1, 1), None)  # now it is wrong
    assert agent.flats[0].grad.norm() > 1e-6


def test_targets_come_from_the_target_networks_alone():
    agent = d4pg.Agent(d4pg.complete(make_config(dial=0.1)), (32, 32, 3), 2)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    batch = {"next_obs": images, "reward": torch.ones(4, 1), "discount": torch.full((4, 1), 0.8)}
    before = agent.targets(batch)
    for flat in agent.flats:
        flat.normal_(0, 0.1)
    assert torch.equal(agent.targets(batch), before)
    for flat in agent.target_flats:
        flat.normal_(0, 0.1)
    assert not torch.equal(agent.targets(batch), before)


def test_a_policy_finds_the_best_actions_from_random_ones():
    """A reward of 5 for the best action, half of each next one: the best value is 10."""
    config = make_config(batch=64, vmax=15.0, policy_lr=1e-3, critic_lr=1e-3, target_period=20)
    agent = d4pg.Agent(d4pg.complete(config), (2,), 2)
    rng = torch.Generator().manual_seed(0)
    some = lambda: torch.rand(64, 2, generator=rng) * 1.6 - 0.8
    off = lambda o, a: (a - o).square().sum(1, True)  # to act as one sees is best
    for _ in range(1_200):
        batch = {"obs": some(), "action": some(), "next_obs": some()}
        batch["reward"] = 5 * torch.exp(-3 * off(batch["obs"], batch["action"]))
        batch["discount"] = torch.full((64, 1), 0.5)
        agent.update(batch, agent.targets(batch), None)
    encoder, policy, critic = agent.online
    with torch.no_grad():
        x = encoder(o := some())
        assert off(o, policy(x)).mean().sqrt() < 0.1
        assert (critic(x, policy(x)).softmax(1) @ agent.z).mean() == pytest.approx(10, abs=1)


# -- n-step returns


def literal_items(steps, N, gamma):
    """All items of one robot: for each t the sum to t + N or to the episode's end."""
    items = []
    for t, (obs, action, *_) in enumerate(steps):
        R, discount = 0.0, 1.0
        for k in range(t, min(t + N, len(steps))):
            _, _, reward, more, next_obs, last = steps[k]
            R += discount * reward
            discount *= gamma * more
            end = next_obs
            if last:
                break
        else:
            if t + N > len(steps):
                continue  # not complete when the recording stops
        items.append((obs, action, R, discount, end))
    return items


@pytest.mark.parametrize("N", [1, 3, 5])
def test_n_step_items_equal_the_sum_that_defines_them(N):
    rng, n, T = np.random.default_rng(N), 7, 120
    window = d4pg.NStep(n, N, 0.9)
    steps, items, obs = [[] for _ in range(n)], [[] for _ in range(n)], rng.random(n)
    for _ in range(T):
        action, reward, after = rng.random(n), rng.random(n), rng.random(n)
        discount = (rng.random(n) > 0.05).astype(float)
        last = (discount == 0) | (rng.random(n) < 0.1)  # terminations, and time limits
        start = {"obs": obs[:, None], "action": action[:, None]}
        robot, new = window.step(start, reward[:, None], discount[:, None], last)
        for j, i in enumerate(robot):
            item = [new[k][j, 0] for k in ("obs", "action", "reward", "discount")]
            items[i].append((*item, after[i]))
        for i in range(n):
            steps[i].append((obs[i], action[i], reward[i], discount[i], after[i], last[i]))
        obs = np.where(last, rng.random(n), after)
    for i in range(n):
        expected = sorted(literal_items(steps[i], N, 0.9))
        assert len(expected) > T - N
        np.testing.assert_allclose(sorted(items[i]), expected)


def test_a_one_step_return_is_the_reward():
    window = d4pg.NStep(2, 1, 0.9)
    start = {"obs": np.array([[1.0], [2.0]])}
    reward, discount = np.array([[3.0], [4.0]]), np.array([[1.0], [0.0]])
    robot, item = window.step(start, reward, discount, np.array([False, True]))
    np.testing.assert_array_equal(robot, [0, 1])
    np.testing.assert_array_equal(item["reward"], reward)
    np.testing.assert_array_equal(item["discount"], [[0.9], [0.0]])


# -- actors and learner


def drive(run, until=None, seconds=60):
    begun = time.monotonic()
    while not run.finished() and not (until and until(run)):
        run.round()
        assert time.monotonic() - begun < seconds
    return run


def rows(run):
    return run.learners[0].items.shared.rows[run.learners[0].memory.index.live()]


def test_an_actor_process_does_what_acting_in_turn_does():
    runs = []
    for actors in (0, 1):
        config = make_config(actors=actors, steps=400, updates_per_step=0.0, capacity=5000)
        run = d4pg.make_run(config).start()
        try:
            drive(run)
            while run.learners[0].memory.collect():
                pass
        finally:
            run.close()
        runs.append(run)
    assert len(runs[0].learners[0].memory) > 300
    np.testing.assert_array_equal(rows(runs[0]), rows(runs[1]))


@pytest.mark.parametrize("actors", [0, 2])
def test_updates_keep_the_ratio_to_environment_steps(actors):
    config = make_config(actors=actors, steps=1000, updates_per_step=0.25, sampling="prioritised")
    run = d4pg.make_run(config).start()
    try:
        drive(run)
        row = run.row()
    finally:
        run.close()
    assert run.steps >= 1000
    assert row["updates"] == pytest.approx(0.25 * (run.steps - config.warmup), abs=config.round)
    assert row["ratio"] == pytest.approx(0.25, rel=0.03)
    assert np.isfinite([row[name] for name in d4pg.METRICS]).all()
    assert all(p is None or p.exitcode is not None for p in run.crew.processes)


def test_weights_that_are_being_written_are_not_read():
    board = replay.make_board(1, 4)
    replay.publish_weights(board, np.arange(4.0))
    version, weights = replay.read_weights(board, -1)
    assert weights.tolist() == [0, 1, 2, 3]
    assert replay.read_weights(board, version) == (version, None)  # nothing new
    board.version += 1  # a learner begins to write, and is killed half-way
    board.weights[:2] = 9
    assert replay.read_weights(board, version) == (version, None)
    assert replay.read_weights(board, -1) == (-1, None)


def test_weights_that_change_while_they_are_read_are_not_used():
    board = replay.make_board(1, 4)
    replay.publish_weights(board, np.arange(4.0))

    class Busy:  # the learner publishes while the actor copies
        version, weights = board.version, board.weights

        def copy(self):
            mixed = board.weights.copy()
            replay.publish_weights(board, np.full(4, 7.0))
            return mixed

    busy = Busy()
    busy.weights = busy
    assert replay.read_weights(busy, -1) == (-1, None)
    assert replay.read_weights(board, -1)[1].tolist() == [7, 7, 7, 7]


def test_every_robot_explores_with_noise_of_its_own():
    run = d4pg.make_run(make_config(robots=4, sigma_min=0.01, sigma_max=0.16)).start()
    expected = 0.01 * np.sqrt(2) * np.array([1, 2, 4, 8])  # the middles of four equal steps
    np.testing.assert_allclose(run.inline.sigma[:, 0], expected, rtol=1e-5)


def test_rewards_beyond_the_support_end_the_run_and_name_the_flag():
    pytest.importorskip("gymnasium")
    run = d4pg.make_run(make_config(env="gymnasium:Pendulum-v1", horizon=0)).start()
    with pytest.raises(
        ValueError, match=r"leaves the support, 0 to 20; begin again with --vmin=-\d+"
    ):
        drive(run)


def test_it_trains_in_any_gymnasium_environment():
    pytest.importorskip("gymnasium")
    flags = {"env": "gymnasium:Pendulum-v1", "horizon": 0, "vmin": -340.0, "vmax": 1.0}
    run = d4pg.make_run(make_config(**flags, steps=500)).start()
    before = run.act_weights()
    drive(run)
    assert run.updates >= 190
    assert (run.act_weights() != before).mean() > 0.9
    assert run.learners[0].items.fields["obs"][0] == (3,)
    results = run.evaluate(2)
    assert results["eval_std"] > 0


def test_no_environment_is_stepped_after_its_end(monkeypatch):
    """While others still run, it begins anew; what it earns then does not count."""
    pytest.importorskip("gymnasium")
    config = make_config(env="gymnasium:Pendulum-v1", horizon=0)
    world = env.Gymnasium("Pendulum-v1", 2, horizon=5)
    world.envs[1] = env.Gymnasium("Pendulum-v1", 1, horizon=12).envs[0]
    world.envs[1].reset(seed=0)
    ended, rewards = [], []

    def step(actions, plain=world.step):
        assert not (ended and ended[-1].any())
        obs, reward, discount, last = plain(actions)
        ended.append(last.copy())
        rewards.append(reward)
        return obs, reward, discount, last

    def reset(ids, plain=world.reset):
        ended[-1][ids] = False
        return plain(ids)

    monkeypatch.setattr(world, "step", step)
    monkeypatch.setattr(world, "reset", reset)
    monkeypatch.setattr(d4pg, "make_world", lambda *_: world)
    found = d4pg.evaluate(config, [d4pg.make_run(config).nets()[0]], 2)
    rewards = np.array(rewards)
    assert len(rewards) == 12
    returns = [rewards[:5, 0].sum(), rewards[:, 1].sum()]
    assert found["eval_return"] == pytest.approx(np.mean(returns))


@pytest.mark.parametrize(
    ("name", "message"),
    [("Nothing-v0", "cannot make Nothing-v0"), ("CartPole-v1", "other actions")],
)
def test_an_environment_that_does_not_fit_is_refused(name, message):
    pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=message):
        d4pg.make_run(make_config(env=f"gymnasium:{name}"))


def test_it_trains_from_pixels():
    config = make_config(obs="pixels", size=32, steps=160, batch=8, warmup=40, capacity=200)
    run = d4pg.make_run(config).start()
    before = run.act_weights()
    drive(run)
    assert run.learners[0].items.fields["obs"] == ((32, 32, 3), np.uint8)
    assert run.updates >= 50
    assert (run.act_weights() != before).mean() > 0.9
    assert np.isfinite(run.evaluate(1)["eval_return"])


@pytest.mark.parametrize("signal", ["observation", "reward"])
def test_a_nan_from_the_world_is_named(signal):
    run = d4pg.make_run(make_config()).start()
    world, step = run.inline.world, run.inline.world.step

    def poisoned(actions):
        obs, reward, discount, last = step(actions)
        (obs if signal == "observation" else reward)[2] = np.nan
        return obs, reward, discount, last

    world.step = poisoned
    with pytest.raises(FloatingPointError, match=f"the {signal} of robot 2 is not a finite number"):
        run.round()


# -- baselines of figure 8


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    root = tmp_path_factory.mktemp("demos")
    env.make_demos(root / "stack200/A", "stack", "A", count=3, processes=1)
    return root


def test_d4pgfd_begins_with_the_demonstrations_and_keeps_them(demos):
    config = make_config(
        task="stack", demos=str(demos), fd=3, horizon=200, capacity=2000, steps=3000
    )
    run = d4pg.make_run(config)
    run.start()
    assert len(run.learners[0].memory) == 600
    made = env.load_demos(demos / "stack200/A", "stack", ("obs/features", "actions", "rewards"))
    kept = run.learners[0].memory.index.live()
    rows = run.learners[0].items.shared.rows[kept]
    columns = run.learners[0].items.columns
    for demo in made:
        at = np.abs(rows[:, columns["obs"]] - demo["obs/features"][150]).max(1).argmin()
        np.testing.assert_allclose(rows[at, columns["action"]], demo["actions"][150], atol=1e-6)
        np.testing.assert_allclose(
            rows[at, columns["next_obs"]], demo["obs/features"][153], atol=1e-5
        )
        R = sum(0.95**k * demo["rewards"][150 + k] for k in range(3))
        assert rows[at, columns["reward"]] == pytest.approx(R, rel=1e-5)
    drive(run)
    assert set(kept) <= set(run.learners[0].memory.index.live())


def test_d4pgfd_refuses_demonstrations_of_unequal_lengths(demos, tmp_path):
    """They are replayed side by side."""
    for number, steps in enumerate((200, 150)):
        demo = env.load_demo(demos / f"stack200/A/000{number}.npz", "stack", env.ARRAYS)
        short = {key: demo[key][: steps + extra] for key, (_, _, extra) in env.ARRAYS.items()}
        env.save_demo(tmp_path / f"stack200/A/000{number}.npz", short, "stack", 0, "A")
    config = make_config(task="stack", demos=str(tmp_path), fd=2, horizon=200, capacity=2000)
    with pytest.raises(ValueError, match=r"demonstrations of \[150, 200\] steps; make some of one"):
        d4pg.make_run(config)


def test_a_curriculum_begins_within_the_first_part_of_demonstrations(demos):
    config = make_config(demos=str(demos), curriculum=60, horizon=200, robots=16)
    run = d4pg.make_run(config).start()
    states = [d["states"][:60] for d in env.load_demos(demos / "stack200/A", "stack", ("states",))]
    starts = np.concatenate(states)
    now = run.inline.world.get_state()
    nearest = np.abs(now[:, None] - starts[None]).max(2)
    assert (nearest.min(1) < 1e-9).all()
    assert len(set(nearest.argmin(1))) > 8
    again = d4pg.make_run(config)
    again.load_policies(run.state())
    again.mark += 1
    with pytest.raises(ValueError, match="trained on other demonstrations than there are in"):
        again.load_policies(run.state())
    config.curriculum = 300  # nobody begins at the time limit
    assert d4pg.start_states(config).states[:, 0].max() * env.Stack.RATE == pytest.approx(199)


def test_a_checkpoint_has_the_items_of_all_steps_that_it_counts():
    """Also those that the learner has not collected yet."""
    run = d4pg.make_run(make_config(nstep=1, robots=4)).start()
    for _ in range(5):
        run.inline.step()
    assert len(run.learners[0].memory) == 0
    state = run.state()
    assert state["board"]["steps"].sum() == len(state["learners"][0]["memory"]["live"]) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "garden"}, "--env is 'garden'"),
        ({"gamma": 1.0}, "--gamma is 1.0"),
        ({"vmin": 5.0, "vmax": 2.0}, "--vmin 5.0 is not below --vmax 2.0"),
        ({"vmin": 5.0, "vmax": 0.0}, "--vmin 5.0 is not below --vmax 0.0"),
        ({"vmin": 5.0, "vmax": 9.0}, "--vmin 5.0 to --vmax 9.0 lacks 0"),
        ({"vmin": -9.0, "vmax": -1.0}, "--vmin -9.0 to --vmax -1.0 lacks 0"),
        ({"robots": 0}, "--robots is 0; expected a number from 1 to 10000"),
        ({"updates_per_step": -0.5}, "--updates_per_step is -0.5; expected"),
        ({"sigma_min": 0.0}, "--sigma_min is 0.0; expected"),
        ({"atoms": 1}, "--atoms is 1; expected a number from 2"),
        ({"vmin": float("nan")}, "--vmin is nan; expected a number"),
        ({"seed": -1}, "--seed is -1; expected a number from 0 to 4.29"),
        ({"batch": 3.5}, "--batch is 3.5; expected a whole number"),
        ({"round": 7}, "--round is 7; it must divide --target_period"),
        ({"capacity": 50}, "--capacity is 50"),
        ({"device": "cuda"}, "--device is cuda, and torch finds no GPU here"),
        ({"warmup": 3}, "--warmup is 3; 28 are needed for a batch"),
        ({"steps": 101}, "--steps is 101: after --warmup, no --round of updates is due"),
        ({"network": "resnet"}, "--network is 'resnet'; it is one of impala, large"),
        ({"fd": 5, "task": "lift"}, "--fd needs --env stack --task stack"),
        (
            {"fd": 5, "task": "stack", "demos": "nowhere"},
            "make some with: python train.py demos --horizon 20 --count 5 --demos nowhere",
        ),
        ({"env": "gymnasium:Pendulum-v1", "obs": "pixels"}, "--obs pixels needs --env stack"),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(changes, message):
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        d4pg.make_run(make_config(**changes)).start()


def test_parameters_are_counted_alike_by_networks_and_by_what_actors_get():
    run = d4pg.make_run(make_config())
    encoder, policy, _ = run.learners[0].agent.online
    assert len(run.board.weights) == networks.count(encoder, policy)
