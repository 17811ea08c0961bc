"""How fast the learner is: D4PG updates a second, where their time goes, and what acting costs.

    python -m benchmarks.learner                      one JSON line last
    python -m benchmarks.learner --vs sb3             beside Stable-Baselines3's TD3.train()

One update, its sampling included: features 60, actions 9, two layers of 256, 101 atoms, batches of
64 and 256, one thread and two.  Rows take turns in one process; medians.  With --vs sb3: the same
features, actions and layers, as the library comes, and once more with our setting of torch
(matrices by oneDNN); `d4pg.tune`'s others, for denormals and malloc, hold in the whole process.
"""

import argparse
import json
import time
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import replay

FEATURES, ACTIONS, ITEMS = 60, 9, 20_000


def make_config(**changes):
    classroom = {name: values[1] for name, (_, *values) in d4pg.FLAGS.items()}
    return d4pg.complete(SimpleNamespace(**classroom | changes))


def make_learner(batch, sampling="uniform"):
    """A function that makes so many updates, and the agent and memory it works on."""
    config = make_config(batch=batch, hidden=256, atoms=101, sampling=sampling)
    agent, obs = d4pg.Agent(config, (FEATURES,), ACTIONS), ((FEATURES,), np.float32)
    number = ((1,), np.float32)
    fields = {"obs": obs, "action": ((ACTIONS,), np.float32), "next_obs": obs,
              "reward": number, "discount": number}  # fmt: skip
    items = replay.Items(fields, ITEMS)
    memory, rng = replay.Replay(items, sampling), np.random.default_rng(0)
    while len(memory) < ITEMS:
        count = items.room(0)
        new = {k: rng.normal(size=(count, *s)).astype(t) for k, (s, t) in fields.items()}
        items.write(0, new | {"discount": np.full((count, 1), 0.95)})
        memory.collect()

    def learn(count):
        for _ in range(count // config.round):
            agent.learn(memory, config.round)

    return learn, agent, memory


def make_sb3(batch):
    try:
        import gymnasium
        from stable_baselines3 import TD3
    except ImportError:
        raise SystemExit("--vs sb3 needs: pip install stable-baselines3") from None

    class Empty(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(FEATURES, np.float32), {}

    layers = {"net_arch": [256, 256]}
    model = TD3("MlpPolicy", Empty(), policy_kwargs=layers, buffer_size=ITEMS, device="cpu")
    model._setup_learn(1)
    rng = np.random.default_rng(0)
    for _ in range(ITEMS):
        obs, after = rng.normal(size=(2, 1, FEATURES)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, ACTIONS))
        model.replay_buffer.add(obs, after, action, rng.random(1), np.zeros(1), [{}])
    return lambda count: model.train(count, batch)


def rate(learn, count):
    begun = time.perf_counter()
    learn(count)
    return count / (time.perf_counter() - begun)


def shares(agent, memory, repeats=30):
    """Part of an update's time spent in each of its parts."""
    round, size = agent.config.round, agent.config.batch
    _, weights, batch = memory.sample(round * size)
    one = {name: value[:size] for name, value in batch.items()}
    m = agent.targets(batch)
    parts = {
        "sample": (lambda: memory.sample(round * size), round),
        "targets": (lambda: agent.targets(batch), round),
        "adam": (agent.adam.step, 1),
        "update": (lambda: agent.update(one, m[:size], weights), 1),
        "all": (lambda: agent.learn(memory, round), round),
    }
    took = {}
    for name, (part, updates) in parts.items():
        part()
        times = [rate(lambda n: [part() for _ in range(n)], 10) for _ in range(repeats // 10 * 2)]
        took[name] = 1 / median(times) / updates
    took["losses_and_gradients"] = took.pop("update") - took["adam"]
    total = took.pop("all")
    took["rest"] = max(0.0, total - sum(took.values()))
    return {name: round_to(seconds / total, 3) for name, seconds in took.items()}


def round_to(x, digits):
    return float(f"{x:.{digits}g}")


def together(seconds=6):
    """One actor process beside the learner, neither waiting: their rates, over those alone."""
    still = {"policy_lr": 0.0, "critic_lr": 0.0}  # robots go on to do what they do alone: noise
    config = make_config(actors=1, warmup=2000, capacity=50_000, **still)
    world = d4pg.make_world(config, config.robots, 0)
    sigma = d4pg.ladder(config, 0, config.robots, config.sigma_min, config.sigma_max)
    rng = np.random.default_rng(0)
    actions = (sigma * rng.standard_normal((config.horizon, config.robots, 9))).clip(-1, 1)

    def play(episodes):  # what a new policy does: its noise
        for _ in range(episodes):
            for action in actions:
                world.step(action)
            world.reset()

    steps = config.horizon * config.robots
    alone = [rate(play, 1) * steps for _ in range(5)]
    run = d4pg.make_run(config)
    run.set_limits = lambda: run.board.limit.fill(10**9)
    due, run.due = run.due, lambda: 0
    run.start()
    try:
        while due() < config.round:
            run.round()
        run.board.limit[:] = 0  # the actor pauses
        run.set_limits = lambda: None
        run.due = lambda: config.round
        learner = [rate(lambda n: [run.round() for _ in range(n)], 20) * 10 for _ in range(7)]
        run.board.limit[:] = 10**9
        time.sleep(0.5)
        both, begun, steps = [], time.perf_counter(), run.steps
        while time.perf_counter() < begun + seconds:
            both.append(rate(lambda n: [run.round() for _ in range(n)], 20) * 10)
        actor = (run.steps - steps) / (time.perf_counter() - begun)
    finally:
        run.close()
    return {"learner_alone": median(learner), "learner_together": median(both),
            "world_alone": median(alone), "actor_together": actor,
            "learner_ratio": median(both) / median(learner),
            "actor_ratio": actor / median(alone)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vs", choices=["sb3"], help="compare with Stable-Baselines3")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each row")
    args = parser.parse_args()
    default = torch.backends.mkldnn.matmul.fp32_precision
    d4pg.tune(threads=1)
    ours = torch.backends.mkldnn.matmul.fp32_precision
    rows, learners = {}, {}
    for b in (64, 256):
        learners[b] = make_learner(b)
        for threads in (1, 2):
            rows[f"updates_per_s_b{b}" + ("_threads2" if threads == 2 else "")] = (
                learners[b][0], ours, threads)  # fmt: skip
        if args.vs:
            sb3 = make_sb3(b)
            rows[f"sb3_b{b}"] = sb3, default, 1
            rows[f"sb3_onednn_b{b}"] = sb3, ours, 1
    times = {name: [] for name in rows}
    for repeat in tqdm(range(args.repeats + 1), "learner", unit="turn"):
        for name, (learn, precision, threads) in rows.items():
            torch.backends.mkldnn.matmul.fp32_precision = precision
            torch.set_num_threads(threads)
            speed = rate(learn, 100 if "64" in name else 50)
            if repeat:  # the first turn warms up
                times[name].append(speed)
    result = {name: round_to(median(values), 4) for name, values in times.items()}
    torch.backends.mkldnn.matmul.fp32_precision = ours
    torch.set_num_threads(1)
    for b in (64, 256):
        if args.vs:
            mine = np.array(times[f"updates_per_s_b{b}"])
            result[f"ratio_b{b}"] = round_to(np.median(mine / times[f"sb3_b{b}"]), 3)
            ratios = mine / times[f"sb3_onednn_b{b}"]
            result[f"ratio_onednn_b{b}"] = round_to(np.median(ratios), 3)
        result[f"shares_b{b}"] = shares(*learners[b][1:])
    result |= {name: round_to(value, 4) for name, value in together().items()}
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
