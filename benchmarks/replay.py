"""How fast the replay takes in items and gives samples: python -m benchmarks.replay --vs cpprb

Items a second, for the learner's one thread: uniform and prioritised replay of a million items of
60 floats, and uniform replay of 64 x 64 x 3 frames, fewer of them to fit into the memory.  What is
measured: batches drawn and gathered, with priorities also updated; items inserted a thousand at a
time into a full replay; both at once, while two actor processes write as fast as they are let.
--vs measures the same, without those actors, of other libraries: torchrl, cpprb and sb3 (which has
no priorities).  All rows take turns.  Prints medians and, last, one JSON line.
"""

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import time
from collections import defaultdict, namedtuple
from time import perf_counter

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl's

import numpy as np
import torch
from tqdm import tqdm

import replay

CHUNK = 1000  # items of one insertion
STEP = 32  # items that an actor writes at once: a step of that many robots
SECONDS = 0.2  # of a row at a time
WRITERS = (1, 2)  # actor 0 is the learner itself
ALPHA, BETA = replay.Prioritised.ALPHA, replay.Prioritised.BETA
KINDS = {
    "prioritized": ((60,), np.float32),
    "uniform": ((60,), np.float32),
    "frames": ((64, 64, 3), np.uint8),
}

# insert(x: [CHUNK, ...]), sample(count) -> (x: [count, ...], slots), update(slots, priority)
Buffer = namedtuple("Buffer", "insert sample update memory", defaults=(None,))


# --------------------------------------------------------------------------------------------
# One buffer of each library: the same items, handed over in the way that it is fastest at
# --------------------------------------------------------------------------------------------


def ours(kind, size):
    items = replay.Items({"x": KINDS[kind]}, size, 1 + len(WRITERS))
    memory = replay.Replay(items, "prioritised" if kind == "prioritized" else "uniform")

    def insert(x):
        items.write(0, {"x": x})
        memory.collect()

    def sample(count):  # into a buffer that the next sample overwrites; the others make a new one
        slots, _, batch = memory.sample(count)
        return batch["x"], slots

    return Buffer(insert, sample, memory.update, memory)


def of_torchrl(kind, size):
    data = load("torchrl.data", "torchrl")
    sampler = data.RandomSampler()
    if kind == "prioritized":
        try:
            sampler = data.PrioritizedSampler(size, ALPHA, BETA)
        except RuntimeError as error:
            advice = "the compiled part of torchrl works with the torch it was built for only"
            raise SystemExit(f"torchrl: {error} ({advice})") from None
    # Bare tensors: with a TensorDict for every item, all of this takes longer.
    memory = data.ReplayBuffer(storage=data.LazyTensorStorage(size), sampler=sampler)

    def sample(count):
        x, info = memory.sample(count, return_info=True)
        return x, info["index"]

    def update(slots, priority):
        memory.update_priority(slots, torch.from_numpy(priority))

    return Buffer(lambda x: memory.extend(torch.from_numpy(x)), sample, update)


def of_cpprb(kind, size):
    library = load("cpprb", "cpprb")
    fields = {"x": dict(zip(("shape", "dtype"), KINDS[kind]))}
    if kind == "prioritized":
        memory = library.PrioritizedReplayBuffer(size, fields, alpha=ALPHA)
    else:
        memory = library.ReplayBuffer(size, fields)
    options = {"beta": BETA} if kind == "prioritized" else {}

    def sample(count):  # numpy arrays, as they come
        batch = memory.sample(count, **options)
        return batch["x"], batch.get("indexes")

    def update(slots, priority):
        memory.update_priorities(slots, priority)

    return Buffer(lambda x: memory.add(x=x), sample, update)


def of_sb3(kind, size):
    """Its items have five parts: 60 floats are o (29), o' (29), a (1), r (1), and one more, done.

    A frame is halved into o and o'; a, r and done come on top.
    """
    if kind == "prioritized":
        return None
    library = load("stable_baselines3.common.buffers", "stable-baselines3")
    box = importlib.import_module("gymnasium").spaces.Box
    shape = (29,) if kind == "uniform" else (32, 64, 3)
    memory = library.ReplayBuffer(
        size,
        box(0, 255, shape, KINDS[kind][1]),
        box(-1, 1, (1,), np.float32),
        "cpu",
        n_envs=CHUNK,  # the way to insert many at once
        handle_timeout_termination=False,
    )
    done, half = np.zeros(CHUNK, np.float32), shape[0]

    def insert(x):
        a, r = (x[:, 58], x[:, 59]) if kind == "uniform" else (done, done)
        memory.add(x[:, :half], x[:, half : 2 * half], a, r, done, [])

    return Buffer(insert, lambda count: (memory.sample(count).observations, None), None)


LIBRARIES = {"ours": ours, "torchrl": of_torchrl, "cpprb": of_cpprb, "sb3": of_sb3}


def load(module, package):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SystemExit(f"{package} is missing: pip install {package}") from None


# --------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------


def check(name, kind):
    """No number for a buffer that gives back what was not put in, or not as often as it should."""
    buffer = LIBRARIES[name](kind, CHUNK)
    if buffer is None:
        return
    shape, dtype = KINDS[kind]
    x, marked, draws, share = np.zeros((CHUNK, *shape), dtype), CHUNK // 10, 100, 0.0
    x[:marked] = 255
    buffer.insert(x)
    for k in range(2 * draws):
        drawn, slots = buffer.sample(256)
        drawn = np.asarray(drawn).reshape(256, -1)
        if not np.isin(drawn[:, 0], (0, 255)).all() or (drawn != drawn[:, :1]).any():
            raise SystemExit(f"{name}: a sample of {kind} is not what was put in")
        if kind == "prioritized":  # after the first half of the draws, all of them are set
            buffer.update(slots, np.where(drawn[:, 0] == 255, 10, 1).astype(np.float32))
        share += (drawn[:, 0] == 255).mean() / draws * (k >= draws)
    weight = marked * (10**ALPHA if kind == "prioritized" else 1)
    expected = weight / (weight + CHUNK - marked)
    if abs(share - expected) > 0.02:  # six standard deviations
        raise SystemExit(f"{name}: {kind} draws have a share {share:.3f}, not {expected:.3f}")


def rate(step, count):
    """Items a second, if a step is `count` of them."""
    step()  # brings back into the cache what the row before drove out
    calls, begin = 0, perf_counter()
    while (now := perf_counter()) - begin < SECONDS:
        step()
        calls += 1
    return calls * count / (now - begin)


def learn(buffer, kind, count):
    """A step of the learner: a batch, and its new priorities."""
    some = np.random.default_rng(0).random((97, count), np.float32)
    priorities = itertools.cycle(some)

    def step():
        _, slots = buffer.sample(count)
        if kind == "prioritized":
            buffer.update(slots, next(priorities))

    return step


def rows(buffer, kind):
    """Functions, each of which measures something: {key: items a second}."""
    for count in (256,) if kind == "frames" else (64, 256):
        step = learn(buffer, kind, count)
        yield lambda step=step, count=count: {f"{kind}_b{count}": rate(step, count)}
    x = chunk(kind, CHUNK)
    yield lambda: {f"{kind}_inserts": rate(lambda: buffer.insert(x), CHUNK)}


def chunk(kind, count):
    shape, dtype = KINDS[kind]
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(dtype)


def filled(name, kind, size):
    """A full buffer, or None for what the library lacks."""
    buffer = LIBRARIES[name](kind, size)
    if buffer is not None:
        x = chunk(kind, CHUNK)
        for _ in range(size // CHUNK):
            buffer.insert(x)
    return buffer


def writer(items, actor, kind, go, parent):
    """An actor that only writes, while told to."""
    x = chunk(kind, STEP)
    go.up[actor] = 1
    while os.getppid() == parent:
        if go.on[0] and items.room(actor) >= STEP:
            items.write(actor, {"x": x})
        else:
            time.sleep(0.0005 if go.on[0] else 0.02)  # does not disturb the other rows


def with_writers(buffer, kind):
    """A function that measures the learner while actors write: samples and inserts a second."""
    memory = buffer.memory
    go = replay.Shared(on=((1,), np.int64), up=((1 + len(WRITERS),), np.int64))
    context, draw = multiprocessing.get_context("spawn"), learn(buffer, kind, 256)
    for actor in WRITERS:
        args = (memory.items, actor, kind, go, os.getpid())
        process = context.Process(target=writer, args=args, daemon=True)
        process.start()
        while not go.up[actor]:  # it imports torch first
            if process.exitcode is not None:
                raise SystemExit(f"an actor ended with exit code {process.exitcode}")
            time.sleep(0.05)

    def step():
        memory.collect()
        draw()

    def row():
        go.on[0] = 1
        time.sleep(0.05)  # until the actors are awake
        memory.collect()  # what they have written by now does not count
        before, begin = memory.collected.sum(), perf_counter()
        samples = rate(step, 256)
        go.on[0], inserts = 0, (memory.collected.sum() - before) / (perf_counter() - begin)
        return {f"{kind}_b256_two_writers": samples, f"{kind}_inserts_two_writers": inserts}

    return row


def measure(names, sizes, repeats):
    """{library: {key: median}}; the rows take turns, so that a noisy machine disturbs all."""
    for name, kind in itertools.product(names, KINDS):
        check(name, kind)
    results, turns = {name: defaultdict(list) for name in names}, []
    for kind, name in tqdm(list(itertools.product(KINDS, names)), "filling"):
        buffer = filled(name, kind, sizes[kind])
        if buffer is not None:
            turns += [(name, row) for row in rows(buffer, kind)]
            turns += [(name, with_writers(buffer, kind))] if name == "ours" else []
    for _, (name, row) in tqdm(list(itertools.product(range(repeats), turns)), "measuring"):
        for key, value in row().items():
            results[name][key].append(value)
    return {n: {k: round(np.median(v)) for k, v in r.items()} for n, r in results.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="of 60 floats")
    parser.add_argument("--frames", type=int, default=20_000, help="of 64 x 64 x 3 bytes")
    parser.add_argument("--repeats", type=int, default=9, help="turns of every row")
    parser.add_argument("--vs", default="", help="torchrl, cpprb, sb3: any of them, with commas")
    args = parser.parse_args()
    names = ["ours", *filter(None, args.vs.split(","))]
    if unknown := set(names) - set(LIBRARIES):
        parser.error(f"--vs knows torchrl, cpprb and sb3, not {', '.join(unknown)}")
    torch.set_num_threads(1)
    few, many = (max(n // CHUNK, 1) * CHUNK for n in (args.frames, args.items))
    results = measure(names, {"prioritized": many, "uniform": many, "frames": few}, args.repeats)

    print(f"items a second ({many:,} items of 60 floats, {few:,} frames of 64 x 64 x 3)")
    print(f"{'':32}" + "".join(f"{name:>12}" for name in names))
    for key in results["ours"]:
        values = [results[name].get(key) for name in names]
        print(f"{key:32}" + "".join(f"{'-' if v is None else f'{v:,}':>12}" for v in values))
    print(json.dumps({"items": many, "frames": few} | results.pop("ours") | results))


if __name__ == "__main__":
    main()
