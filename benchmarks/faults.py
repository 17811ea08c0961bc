"""What a training run survives: kills, cuts, full disks and NaN, injected into real tiny runs.

    python -m benchmarks.faults            --small: a few of each class;  --only CLASS: one of them

Each fault is followed by checks of what a run promises.  Prints what was lost, if anything was,
and, last, one JSON line; the exit status is 1 if anything was lost.
"""

import argparse
import atexit
import contextlib
import csv
import functools
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from signal import SIGINT, SIGKILL
from time import monotonic, perf_counter, sleep
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import replay
import train

INTERVAL = 0.12  # seconds between checkpoints
SOON = 5  # seconds: for actors to be back, for a run to be gone
TINY = ("d4pg", "--preset", "tiny", "--steps", 10**9, "--eval_every", 10**9)
OFTEN = (*TINY, "--save_minutes", INTERVAL / 60, "--log_every", 4)  # a row for every step
ACTOR = d4pg.Actor


# --------------------------------------------------------------------------------------------
# Training processes, and what they leave
# --------------------------------------------------------------------------------------------


def start(*words):
    """A Python process that leads a group of its own; what it says goes to the file `said`."""
    said, root = tempfile.TemporaryFile(), Path(train.__file__).parent  # noqa: SIM115
    words = [sys.executable, *map(str, words)]
    process = subprocess.Popen(words, cwd=root, stdout=said, stderr=said, process_group=0)
    process.said = said
    atexit.register(lambda: process.poll() is None and end(process))  # if this one is stopped
    return process


def launch(run, *flags):
    """Train in the folder `run`; if there is a run, it goes on."""
    if (run / "config.json").exists():
        return start("train.py", "d4pg", "--resume", run)
    return start("train.py", *OFTEN, *flags, "--out", run)


def end(process, seconds=0):
    """Wait so long, then kill what is left of the group; returns what the process said."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    process.wait()
    return said(process)


def said(process):
    return os.pread(process.said.fileno(), 10**8, 0).decode(errors="replace")  # it may yet write


def wait_for(seconds, what, *args, pause=0.005):
    """Seconds until what(*args) is true, or None if it never is in all that time."""
    begin = monotonic()
    while not what(*args):
        if monotonic() > begin + seconds:
            return None
        sleep(pause)
    return monotonic() - begin


def checkpoints(run):
    return sorted(run.glob("step*.pt"))


def unfinished(run):
    return list(run.glob(".step*.part"))


def step_of(path):
    return int(path.stem.removeprefix("step"))


def steps_in(state):
    return int(state["board"]["steps"].sum())


def read(path):
    """What a checkpoint holds, or None if it is not whole."""
    with contextlib.suppress(Exception):
        state = torch.load(path, weights_only=True)
        if zipfile.ZipFile(path).testzip() is None and steps_in(state) == step_of(path):
            return state
    return None


def rows(run):
    """Steps and seconds of all rows of metrics.csv."""
    with open(run / "metrics.csv") as file:
        table = [(int(row["steps"]), float(row["seconds"])) for row in csv.DictReader(file)]
    return np.array(table or [(0, 0.0)]).T


def saves(process, run, old=()):
    """Wait for a checkpoint other than the old ones: what went wrong, if it never comes."""
    new = lambda: set(checkpoints(run)[-1:]) - set(old)
    wait_for(60, lambda: new() or process.poll() is not None)
    return [] if new() else [f"after {old}, the run saved no more: {said(process)[-300:]}"]


def living(group):
    """Processes of a group that still run."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rsplit(") ", 1)[1].split()[:3]
            if int(its_group) == group and state != "Z":
                alive.append(int(path.parent.name))
    return alive


def shared_memory(pids=None):
    """Blocks of shared memory, by inode, that processes hold (all if not told) or that have names.

    Which blocks, not how many bytes: others on this machine may take some meanwhile.
    """
    held = set() if pids else {entry.inode() for entry in os.scandir(replay.SHM)}
    for pid in pids or [path.name for path in Path("/proc").glob("[0-9]*")]:
        with contextlib.suppress(OSError):
            maps = [x.split() for x in Path(f"/proc/{pid}/maps").read_text().splitlines()]
            held |= {int(x[4]) for x in maps if len(x) > 5 and x[5].startswith(replay.SHM)}
    return held


# --------------------------------------------------------------------------------------------
# Classes of faults: each yields, fault by fault, what went wrong [] and some numbers {}
# --------------------------------------------------------------------------------------------


def learner_killed(folder, rng, count):
    """SIGKILL a run, every other time while it saves, and go on with it."""
    run, left = folder / "run", []
    for k in range(count):
        old, process, wrong = checkpoints(run), launch(run, "--actors", 0), []
        if k % 10 == 9:
            sleep(rng.uniform(0, 3))  # at any moment of its start
        else:
            wrong += saves(process, run, old)
            wrong += [f"the next run left {path}" for path in left if path.exists()]
            if k % 2 == 0:
                wait_for(10, unfinished, run, pause=0)
                sleep(rng.choice([0, rng.uniform(0, 0.005)]))
            else:
                sleep(rng.uniform(0, 3 * INTERVAL))
        seen = checkpoints(run)[-1:]
        end(process)
        left = unfinished(run)
        more, numbers = check_after_kill(run, seen)
        yield wrong + more, numbers | {"in_a_save": len(left)}


def check_after_kill(run, seen):
    """The newest checkpoint or the one before loads, and an interval of work is lost at most."""
    last = checkpoints(run)[:-3:-1]
    whole = [path for path in last if read(path)]
    numbers = {"damaged": len(last) - len(whole)}
    if not whole:
        return ([f"none of {last} loads"] if seen else []), numbers
    step, (steps, seconds), wrong = step_of(whole[0]), rows(run), []
    if seen and step < step_of(seen[0]):
        wrong.append(f"{whole[0]} is behind {seen[0]}")
    if (np.diff(steps) != 4).any():  # four robots
        wrong.append(f"rows are missing or twice in metrics.csv before step {steps[-1]}")
    seconds = seconds[steps > step]
    if len(seconds):  # the first row that is late begins a save: it may be lost, too
        numbers["worst_steps_lost"] = int(steps[-1]) - step
        numbers["worst_seconds_lost"] = seconds[-1] - seconds[0]
        if (seconds[:-1] - seconds[0]).max(initial=0) > INTERVAL:
            wrong.append(f"{seconds[-1] - seconds[0]:.3f} s of work are lost after {whole[0]}")
    return wrong, numbers


def actor_killed(folder, rng, count):
    """SIGKILL processes that write items without pause, and real actors."""
    yield from writer_killed(folder, rng, count)
    yield from real_actor_killed(folder, rng, -(-count // 10))


FIELDS = {"obs": ((12,), np.float32), "image": ((48, 48, 3), np.uint8)}
IMAGES = np.random.default_rng(0).integers(0, 255, (997, 48, 48, 3), np.uint8)


def content(actor, serial):
    """An actor's items: every number in them follows from whose they are, and which."""
    obs = (serial[:, None] * 31 + np.arange(12) * 977 + actor * 101) % 65521
    obs[:, 0] = actor
    return {"obs": np.float32(obs), "image": IMAGES[(serial + actor) % len(IMAGES)]}


def write_items(items, actor, parent, write):
    """Write without pause, until killed."""
    rng = np.random.default_rng()
    while os.getppid() == parent:
        count = min(items.room(actor), rng.integers(1, 30))
        write(items, actor, content(actor, int(items.shared.filled[actor]) + np.arange(count)))


def writer_killed(folder, rng, count, write=replay.Items.write):
    """Two writers; whoever is killed has a successor, which goes on where it was."""
    items = replay.Items(FIELDS, 4000, actors=2, ring=1024)
    memory, filled = replay.Replay(items), items.shared.filled
    began, expected, wrong, last = np.full(2, -1), np.zeros(2, np.int64), [], monotonic()
    writers = [start_writer(items, k, write) for k in (0, 1)]
    while (count or (filled <= began).any()) and monotonic() < last + 60:
        wrong += check_collected(memory, expected)
        for k in np.flatnonzero((filled > began.clip(0)) & (rng.random(2) < 0.1))[:count]:
            wrong += check_collected(memory, expected)
            moment = perf_counter() + rng.uniform(0, 0.001)
            while perf_counter() < moment:  # it has room again, and so it writes
                pass
            writers[k].kill()
            writers[k].join()
            next_slot = items.shared.numbers[k, filled[k] % items.ring]
            same = items.shared.rows[next_slot] == content(k, filled[k:][:1])["obs"][0]
            began[k], last, count = filled[k], monotonic(), count - 1
            writers[k] = start_writer(items, k, write)
            yield wrong, {"half_written": int(same.all() and items.room(k) > 0)}
            wrong = []
    for writer in writers:
        writer.kill()
        writer.join()
    wrong += check_collected(memory, expected)
    wrong += [f"no successor went on at {began}"] if count or (filled <= began).any() else []
    yield wrong, {"items": int(expected.sum()), "injected": 0}


def start_writer(items, actor, write):
    """Forked, as that takes no time: what is killed here is not how an actor begins."""
    args, context = (items, actor, os.getpid(), write), multiprocessing.get_context("fork")
    process = context.Process(target=write_items, args=args, daemon=True)
    process.start()
    return process


def check_collected(memory, expected):
    """Collect; is every new item whole, and the next of its actor?"""
    try:
        new = memory.collect()
    except RuntimeError as error:
        return [str(error)]
    items, wrong = memory.items.shared, []
    slots = memory.index.live()[memory.index.count - new :]
    for actor in (0, 1):
        mine = slots[items.rows[slots, 0] == actor]
        serial = expected[actor] + np.arange(len(mine))
        right = content(actor, serial)
        for found, wanted in ((items.serial, serial), (items.rows, right["obs"]),
                              (items.image, right["image"])):  # fmt: skip
            if not np.array_equal(found[mine], wanted):
                wrong.append(f"items of {actor} are torn, missing or twice after {serial[0]}")
        expected[actor] += len(mine)
        new -= len(mine)
    return wrong + ([f"{new} items are of nobody"] if new else [])


def real_actor_killed(folder, rng, count, actors=2):
    """SIGKILL actors of a run: they are back, and learning goes on."""
    args = train.parse([*map(str, TINY), "--actors", str(actors), "--out", str(folder / "none")])
    run, times = d4pg.make_run(train.open_run(args)[0]).start(), []

    def turn(seconds, until):
        begin = now = perf_counter()
        while not until() and now < begin + seconds:
            before = now
            run.round()
            times.append((now := perf_counter()) - before)
        return now - begin

    try:
        turn(60, lambda: (run.board.steps > 0).all())
        for k in rng.integers(actors, size=count):
            times.clear()
            turn(rng.uniform(0, 0.5), lambda: False)
            old = run.crew.processes[k]
            old.kill()
            old.join()
            now = run.board.steps[k], run.updates
            seconds = turn(30, lambda k=k, now=now: run.board.steps[k] > now[0])
            turn(30, lambda now=now: run.updates > now[1])
            wrong = [f"actor {k} was away for {seconds:.1f} s"] if seconds > SOON else []
            wrong += [f"a round took {max(times):.1f} s"] if max(times) > 1 else []
            wrong += ["learning does not go on"] if run.updates == now[1] else []
            yield wrong, {"worst_restart_s": seconds, "worst_round_s": max(times), "real": 1}
    finally:
        run.close()


def parent_killed(folder, rng, count, actors=2):
    """SIGKILL a run's learner: its actors and its shared memory go, too."""
    for k in range(count):
        process = launch(folder / f"run{k}", "--actors", actors)
        wrong = saves(process, folder / f"run{k}")
        acting = lambda run=folder / f"run{k}": rows(run)[0][-1] > 100  # more than one alone may
        if k % 4 < 3:
            wait_for(30, acting)
            sleep(rng.uniform(0, 1))
        family = living(process.pid)
        held = shared_memory(family)
        if len(family) <= actors or not held:
            wrong.append(f"the run has no actors or no shared memory: {said(process)[-300:]}")
        process.kill()
        process.wait()
        left = lambda pid=process.pid, held=held: (living(pid), held & shared_memory())
        most = SOON if k % 4 < 3 else 30  # actors that still import see it once they have
        seconds = wait_for(most, lambda left=left: not any(left()), pause=0.05)
        wrong += [f"{most} s later {left()} live and are held"] if seconds is None else []
        end(process)
        yield wrong, {f"worst_gone{'' if k % 4 < 3 else '_importing'}_s": seconds or most}


def ctrl_c(folder, rng, count, kinds=("start", "middle", "saving", "twice")):
    """SIGINT to all of a run: it saves and ends within 5 s, without a traceback."""
    for k, (_, kind) in enumerate(itertools.product(range(count), kinds)):
        run, actors = folder / f"run{k}", 2 * ((k + k // len(kinds)) % 2)
        process, wrong = launch(run, "--actors", actors), []
        if kind == "start":
            sleep(rng.uniform(0.3, 2.5))  # before that, it is Python itself that begins
        else:
            wrong += saves(process, run)
            if kind == "saving":
                wait_for(10, unfinished, run, pause=0)
            else:
                sleep(rng.uniform(0, 4 if actors else 1))  # actors import for some 2 s
        begin = monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, SIGINT)
            if kind == "twice":
                wait_for(5, lambda process=process: "stopping" in said(process))
                os.killpg(process.pid, SIGINT)
        wait_for(20, lambda process=process: process.poll() is not None)
        seconds = monotonic() - begin
        wrong += [f"{seconds:.1f} s"] if seconds > SOON else []
        if wait_for(20, lambda process=process: not living(process.pid), pause=0.05) is None:
            wrong.append(f"{living(process.pid)} live on")
        text = end(process)
        wrong += check_stopped(run, process.returncode, text, kind)
        at_once = int(kind == "twice" and process.returncode == 130)
        yield [f"{kind}: {x}" for x in wrong], {f"worst_{kind}_s": seconds, "at_once": at_once}


def check_stopped(run, status, text, kind):
    """Only a second Ctrl-C, or one at the start, may end a run without a checkpoint."""
    wrong, hurried = [], kind in ("start", "twice")
    for word in ("Traceback", "KeyboardInterrupt", "Exception ignored"):
        if word in text:
            wrong.append(f"it printed {word}: ...{text[-200:]}")
    if status != 0 and not hurried:
        wrong.append(f"exit status {status}: {text[-300:]}")
    if any(read(path) is None for path in checkpoints(run)):
        wrong.append("a checkpoint is damaged")
    if unfinished(run) and kind != "twice":
        wrong.append("a checkpoint is half made")
    if status == 0 and step_of(checkpoints(run)[-1]) < rows(run)[0][-1]:
        wrong.append(f"no checkpoint was saved at step {rows(run)[0][-1]}")
    return wrong


def checkpoint_cut(folder, rng, count):
    """Cut a checkpoint at `count` places (0: at every 4 KB), and turn bits of it."""
    run = folder / "run"
    train_here("--steps", 400, "--save_minutes", 0.0003, "--out", run)
    older, newest = checkpoints(run)
    whole, right = newest.read_bytes(), train.load_newest(run)
    places = range(0, len(whole), len(whole) // count if count else 4096)
    trials = [(f"cut at {place}", whole[:place]) for place in places]
    for bit in rng.integers(0, 8 * len(whole), 20):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        trials.append((f"bit {bit} turned", turned))
    for name, damaged in trials:
        newest.write_bytes(damaged)
        out, state = io.StringIO(), None
        with contextlib.redirect_stdout(out):
            try:
                state = train.load_newest(run)
            except Exception as error:
                print(f"it raised {type(error).__name__}: {error}")
        harmless = len(damaged) == len(whole) and same(state, right)  # a bit of padding
        refused = f"{newest} is damaged" in out.getvalue()
        good = harmless or (refused and state and steps_in(state) == step_of(older))
        wrong = [] if good else [f"{name}: it was not refused {out.getvalue()}"]
        yield wrong, {"refused": int(refused), "harmless": int(harmless)}


def same(a, b):
    """Do two checkpoints hold the same?"""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and np.array_equal(a, b)


def disk_full(folder, rng, count):
    """Let the disk, or the file that may be written, be too small for a checkpoint, in turn."""
    for k in range(count):
        with small_disk(folder / f"disk{k}", rng.integers(500, 1700), k % 2 == 1) as disk:
            run = (disk or folder) / f"run{k}"
            process = launch(run, "--actors", 0)
            if not disk:
                saves(process, run)
                most = int(rng.integers(120_000, 200_000))
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
            words = rf"{run}/step\d+.pt could not be written .*; those before it are whole$"
            wrong = check_one_line(process, words)
            if unfinished(run) or not all(map(read, checkpoints(run))):
                wrong.append(f"not whole: {unfinished(run) + checkpoints(run)}")
        yield wrong, {"on_a_small_disk": int(disk is not None)}


@contextlib.contextmanager
def small_disk(folder, kilobytes, wanted=True):
    """A disk of so many kilobytes, or None if not wanted, or where only others may have one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if not wanted or subprocess.run(words, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def check_one_line(process, words):
    """Does it end with one line that tells what is wrong, in these words?"""
    text = end(process, 60)
    lines = [x for x in re.split(r"[\r\n]", text) if x.strip() and "step/s" not in x]
    told = [x for x in lines if re.search(f"^train.py: .*{words}", x)]
    good = process.returncode == 1 and len(told) == 1 and told == lines[-1:]
    return [] if good and "Traceback" not in text else [f"{process.returncode}: {text[-500:]}"]


BLIND = """
import sys, replay, train
replay.SHM = sys.argv[1]
if sys.argv[2] == "blind":  # as if others had taken the memory since it was looked at
    replay.Shared._check_room = lambda *_: None
train.main(sys.argv[3:])
"""


def small_shm(folder, rng, count):
    """Ask for more shared memory than there is."""
    with small_disk(folder / "memory", 16_000) as disk:
        words = (*TINY, "--out", folder / "run", "--capacity")
        trials = [("train.py", *words, 2 * 10**9)]
        trials += [("-c", BLIND, disk, eyes, *words, 10**5) for eyes in ("blind", "seeing") if disk]
        for trial in trials[:count]:
            yield check_one_line(start(*trial), "--capacity"), {}


NANS = {  # whence it comes: the number of actors, and how it is told
    "reward": (0, "^train.py: the reward of robot 1 "),
    "observation": (0, "^train.py: the observation of robot 1 "),
    "loss": (0, "^train.py: critic_loss.*: not finite after"),
    "gradient": (0, "^train.py: .*gradient: not finite after"),
    "reward of an actor": (1, "actor 0 gave up: .*the reward of robot 1 "),
    "observation of an actor": (1, "actor 0 gave up: .*the observation of robot 1 "),
}


def nan(folder, rng, count):
    """A NaN from the world, in one process and in an actor's, in the loss and in the gradient."""
    for kind, (actors, words) in list(NANS.items())[:count]:
        run, message = folder / kind, "nothing"
        flags = ("--actors", actors, "--save_minutes", 0.001, "--minutes", 0.5, "--out", run)
        try:
            with poison(kind, int(rng.integers(20, 100))):
                train_here(*TINY[3:], *flags)
        except SystemExit as error:
            message = str(error)
        wrong = [] if re.search(words, message) else [f"NaN, {kind}: {message} was told"]
        states = list(map(read, checkpoints(run)))
        good = states and all(map(finite, states))
        yield wrong + ([] if good else [f"NaN, {kind}: the checkpoints have it or are gone"]), {}


def train_here(*flags):
    """Train in this process, silently."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train.main([*map(str, (*TINY[:3], *flags))])


def poison(kind, after):
    """Let the so-manieth number of a kind be NaN."""
    calls, adam_step, targets = itertools.count(), torch.optim.Adam.step, d4pg.Agent.targets

    def poisoned_step(adam):
        if next(calls) == after:
            adam.param_groups[-1]["params"][0].grad[0] = np.nan
        return adam_step(adam)

    def poisoned_targets(agent, batch):
        return targets(agent, batch) * (np.nan if next(calls) == after else 1)

    if kind == "gradient":
        return mock.patch.object(torch.optim.Adam, "step", poisoned_step)
    if kind == "loss":
        return mock.patch.object(d4pg.Agent, "targets", poisoned_targets)
    return mock.patch.object(d4pg, "Actor", functools.partial(poisoned_actor, kind, after))


def poisoned_actor(kind, after, *args):
    """An actor, in whatever process, whose world tells one NaN."""
    actor, calls = ACTOR(*args), itertools.count()
    step = actor.world.step

    def poisoned(action):
        obs, reward, discount, last = step(action)
        if next(calls) == after:
            (obs if kind.startswith("observation") else reward)[1] = np.nan
        return obs, reward, discount, last

    actor.world.step = poisoned
    return actor


def finite(tree):
    """Is a checkpoint whole, and free of NaN?"""
    if isinstance(tree, (dict, list, tuple)):
        return all(map(finite, tree.values() if isinstance(tree, dict) else tree))
    return tree is not None and (not isinstance(tree, torch.Tensor) or bool(tree.isfinite().all()))


# --------------------------------------------------------------------------------------------
# All classes
# --------------------------------------------------------------------------------------------

CLASSES = {  # how many of each: of all, and of --small
    learner_killed: (200, 6),
    actor_killed: (100, 10),
    parent_killed: (20, 2),
    ctrl_c: (10, 1),
    checkpoint_cut: (0, 16),
    disk_full: (10, 2),
    small_shm: (3, 3),
    nan: (6, 6),
}


def inject(name, injections):
    """Count what one class of faults has lost; of its numbers, the worst or the sum."""
    result = {"injected": 0, "lost": 0}
    for wrong, numbers in tqdm(injections, name, unit="fault"):
        for key, value in ({"injected": 1, "lost": int(bool(wrong))} | numbers).items():
            old = result.get(key, 0)
            result[key] = max(old, round(value, 3)) if key.startswith("worst") else old + value
        for text in wrong:
            tqdm.write(f"{name}: {text}", file=sys.stderr)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    names = {function.__name__: function for function in CLASSES}
    parser.add_argument("--small", action="store_true", help="a few of each class")
    parser.add_argument("--seed", type=int, default=0, help="of what is injected, and when")
    parser.add_argument("--only", choices=names, metavar="CLASS", help=", ".join(names))
    args, classes = parser.parse_args(argv), {}
    for name in [args.only] if args.only else names:
        rng, count = np.random.default_rng(args.seed), CLASSES[names[name]][args.small]
        with tempfile.TemporaryDirectory() as folder:
            classes[name] = inject(name, names[name](Path(folder), rng, count))
    total = {key: sum(x[key] for x in classes.values()) for key in ("injected", "lost")}
    print(json.dumps(total | {"classes": classes}))
    return int(total["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
