"""What a training run survives: kills, cuts, full disks and NaN, injected into real tiny runs.

    python -m benchmarks.faults             --small: a short version; --only CLASS: one class of it

Every fault is followed by checks of what the run promises.  Prints what was lost, if anything was,
and, last, one JSON line; the exit status is 1 if anything was lost.
"""

import argparse
import contextlib
import csv
import functools
import io
import itertools
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from time import monotonic, perf_counter, sleep
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import replay
import train

ROOT = Path(train.__file__).parent
INTERVAL = 0.12  # seconds between checkpoints
FOREVER = ("--steps", "1000000000", "--eval_every", "1000000000")
OFTEN = ("--save_minutes", str(INTERVAL / 60))
ACTOR, ADAM_STEP, TARGETS = d4pg.Actor, torch.optim.Adam.step, d4pg.Agent.targets


# --------------------------------------------------------------------------------------------
# Training processes, and what they leave
# --------------------------------------------------------------------------------------------


def start(*words):
    """A Python process that leads a group of its own; what it says is kept in `said`."""
    said = tempfile.TemporaryFile("w+", errors="replace")
    words = [sys.executable, *map(str, words)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    process.said = said
    return process


def launch(run, *flags):
    """Train in the folder `run`; if there is a run, it goes on."""
    if (run / "config.json").exists():
        return start("train.py", "d4pg", "--resume", run)
    return start("train.py", "d4pg", "--preset", "tiny", "--out", run, *FOREVER, *OFTEN, *flags)


def said(process):
    process.said.seek(0)
    return process.said.read()


def kill(process):
    """Leave nothing of a process and its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(what, seconds, pause=0.005):
    """Seconds until `what()` is true, or None if it never is in all that time."""
    begin = monotonic()
    while monotonic() < begin + seconds:
        if what():
            return monotonic() - begin
        sleep(pause)
    return None


def checkpoints(run):
    return sorted(run.glob("step*.pt"))


def unfinished(run):
    return list(run.glob(".step*.part"))


def step_of(path):
    return int(path.stem.removeprefix("step"))


def read(path):
    """What a checkpoint holds, or None if it is not whole."""
    try:
        if zipfile.ZipFile(path).testzip():  # every byte, by its checksum
            return None
        state = torch.load(path, weights_only=True)
    except Exception:
        return None
    return state if int(state["board"]["steps"].sum()) == step_of(path) else None


def wait_for_new_checkpoint(run, old, process):
    """Is there one, other than the `old` ones, in a minute, while the process lives?"""
    new = lambda: set(checkpoints(run)[-1:]) - set(old)
    wait_for(lambda: new() or process.poll() is not None, 60)
    return bool(new())


def group(leader):
    """Processes of a group that still run."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rsplit(") ", 1)[1].split()[:3]
            if int(its_group) == leader and state != "Z":
                alive.append(int(path.parent.name))
    return alive


def shared_memory(pids=None):
    """Files in shared memory, by inode, that processes hold (all if not told) or that have names.

    What is held, not how much of it is in use: others on this machine may use it meanwhile.
    """
    held = set() if pids else {entry.inode() for entry in os.scandir(replay.SHM)}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if pids is None or int(maps.parent.name) in pids:
            with contextlib.suppress(OSError):
                lines = [line.split() for line in maps.read_text().splitlines()]
                held |= {int(x[4]) for x in lines if len(x) > 5 and x[5].startswith(replay.SHM)}
    return held


# --------------------------------------------------------------------------------------------
# Each class of faults yields, for each fault injected, what went wrong [] and numbers {}
# --------------------------------------------------------------------------------------------


def learner_killed(folder, rng, count):
    """SIGKILL a run, every other time while it saves, and go on with it."""
    run, left = folder / "run", []
    for k in range(count):
        old, wrong = checkpoints(run), []
        process = launch(run, "--actors", 0, "--log_every", 4)
        if k % 10 == 9:
            sleep(rng.uniform(0, 3))  # at any moment of its start
        elif not wait_for_new_checkpoint(run, old, process):
            wrong.append(f"did not go on from {old[-1:]}: {said(process)[-300:]}")
        elif any(path.exists() for path in left):
            wrong.append(f"the next run left {left}")
        elif k % 2 == 0:
            wait_for(lambda: unfinished(run), 10, 0)
            sleep(rng.choice([0, rng.uniform(0, 0.005)]))
        else:
            sleep(rng.uniform(0, 3 * INTERVAL))
        seen = checkpoints(run)[-1:]
        kill(process)
        left = unfinished(run)
        more, numbers = check_after_kill(run, seen)
        yield wrong + more, numbers | {"in_a_save": len(left)}


def check_after_kill(run, seen):
    """The newest checkpoint or the one before loads, and an interval of work is lost at most."""
    whole, numbers = [], {"damaged": 0}
    for path in reversed(checkpoints(run)):
        if read(path):
            whole.append(path)
            break
        numbers["damaged"] += 1
    if not whole:
        return ([f"no checkpoint of {checkpoints(run)} loads"] if seen else []), numbers
    wrong, step = [], step_of(whole[0])
    if seen and step < step_of(seen[0]):
        wrong.append(f"{whole[0]} is behind {seen[0]}")
    with open(run / "metrics.csv") as file:
        rows = [(int(row["steps"]), float(row["seconds"])) for row in csv.DictReader(file)]
    steps, seconds = np.array(rows or [(0, 0.0)]).T
    if (np.diff(steps) != 4).any():  # a row for each step of four robots, through all kills
        wrong.append(f"rows are missing or twice in metrics.csv near {steps[-1]}")
    seconds, steps = seconds[steps > step], steps[steps > step]
    if len(steps):  # the save begins after the first row that is late: that one may be lost, too
        numbers["worst_steps_lost"] = int(steps[-1]) - step
        numbers["worst_seconds_lost"] = seconds[-1] - seconds[0]
        if (seconds[:-1] - seconds[0]).max(initial=0) > INTERVAL:
            wrong.append(f"{seconds[-1] - seconds[0]:.3f} s of work are lost after {whole[0]}")
    return wrong, numbers


def actor_killed(folder, rng, count):
    """SIGKILL processes that write items without pause, and real actors."""
    yield from writer_killed(rng, count)
    yield from real_actor_killed(folder, rng, -(-count // 10))


FIELDS = {"obs": ((12,), np.float32), "image": ((48, 48, 3), np.uint8)}
IMAGES = np.random.default_rng(0).integers(0, 255, (997, *FIELDS["image"][0]), np.uint8)


def content(actor, serial):
    """An actor's items: every number in them follows from whose they are, and which."""
    obs = (serial[:, None] * 31 + np.arange(12) * 977 + actor * 101) % 65521
    obs[:, 0] = actor
    return {"obs": np.float32(obs), "image": IMAGES[(serial + actor) % len(IMAGES)]}


def write_items(items, actor, parent, write=replay.Items.write):
    """Write without pause, until killed."""
    rng = np.random.default_rng()
    while os.getppid() == parent:
        count = min(items.room(actor), rng.integers(1, 30))
        write(items, actor, content(actor, int(items.shared.filled[actor]) + np.arange(count)))


def writer_killed(rng, count, **write):
    """Two writers; whoever is killed has a successor, which goes on where it was."""
    items = replay.Items(FIELDS, 2000, actors=2, ring=256)
    memory, context = replay.Replay(items), multiprocessing.get_context("spawn")
    begin = lambda k: context.Process(target=write_items, args=(items, k, os.getpid()),
                                      kwargs=write, daemon=True)  # fmt: skip
    writers, filled = [begin(0), begin(1)], items.shared.filled
    began, expected, wrong = filled.copy(), np.zeros(2, np.int64), []
    for writer in writers:
        writer.start()
    last = monotonic()
    while count and monotonic() < last + 60:
        wrong += check_collected(memory, expected)
        for k in np.flatnonzero((filled > began) & (rng.random(2) < 0.1))[:count]:
            wrong += check_collected(memory, expected)
            end = perf_counter() + rng.uniform(0, 0.001)
            while perf_counter() < end:  # it has room now, and so is writing
                pass
            os.kill(writers[k].pid, signal.SIGKILL)
            writers[k].join()
            slot = items.shared.numbers[k, filled[k] % items.ring]
            half = np.array_equal(items.shared.rows[slot], content(k, filled[k:][:1])["obs"][0])
            began[k], writers[k], count, last = filled[k], begin(k), count - 1, monotonic()
            writers[k].start()
            yield wrong, {"half_written": int(half and items.room(k) > 0)}
            wrong = []
    end = monotonic() + 60
    while (filled <= began).any() and monotonic() < end:  # the last successors
        wrong += check_collected(memory, expected)
    if (filled <= began).any() or count:
        wrong.append(f"a successor did not go on at {began}")
    for writer in writers:
        writer.kill()
        writer.join()
    yield wrong + check_collected(memory, expected), {"items": int(expected.sum()), "injected": 0}


def check_collected(memory, expected):
    """Collect; is every new item whole, and the next of its actor?"""
    try:
        new = memory.collect()
    except RuntimeError as error:
        return [str(error)]
    slots, items = memory.index.live()[memory.index.count - new :], memory.items
    whose = items.shared.rows[slots, 0]
    wrong = ["an item of nobody"] if new and not np.isin(whose, (0, 1)).all() else []
    for actor in (0, 1):
        mine = slots[whose == actor]
        serial = expected[actor] + np.arange(len(mine))
        right = content(actor, serial)
        if not np.array_equal(items.shared.serial[mine], serial):
            wrong.append(f"items of actor {actor} are missing or twice near {expected[actor]}")
        if not (
            np.array_equal(items.shared.rows[mine], right["obs"])
            and np.array_equal(items.shared.image[mine], right["image"])
        ):
            wrong.append(f"torn items of actor {actor} near {expected[actor]}")
        expected[actor] += len(mine)
    return wrong


def real_actor_killed(folder, rng, count, actors=2):
    """SIGKILL actors of a run: they are back, and learning goes on."""
    run = d4pg.Run(configuration(folder / "none", "--actors", actors, *FOREVER)).start()
    rounds, steps = [], run.board.steps

    def turn(until):
        begin = monotonic()
        while not until() and monotonic() < begin + 30:
            before = perf_counter()
            run.round()
            rounds.append(perf_counter() - before)
        return monotonic() - begin

    try:
        turn(lambda: (steps > 0).all())
        for _ in range(count):
            k, pause, rounds[:] = rng.integers(actors), monotonic() + rng.uniform(0, 0.5), []
            turn(lambda pause=pause: monotonic() > pause)
            pid = run.processes[k].pid
            os.kill(pid, signal.SIGKILL)
            run.processes[k].join()
            old = int(steps[k])
            back = lambda k=k, pid=pid, old=old: run.processes[k].pid != pid and steps[k] > old
            seconds, updates = turn(back), run.updates
            wrong = [f"actor {k} was away for {seconds:.1f} s"] if seconds > 5 else []
            turn(lambda updates=updates: run.updates > updates)
            wrong += [f"a round took {max(rounds):.1f} s"] if max(rounds) > 1 else []
            wrong += ["learning does not go on"] if run.updates == updates else []
            yield wrong, {"worst_restart_s": seconds, "worst_round_s": max(rounds), "actors": 1}
    finally:
        run.close()


def configuration(out, *flags):
    words = ["d4pg", "--preset", "tiny", "--out", str(out), *map(str, flags)]
    return train.open_run(train.parse(words))[0]


def parent_killed(folder, rng, count, actors=2):
    """SIGKILL a run's learner: its actors and its shared memory go, too."""
    for k in range(count):
        run, wrong = folder / f"run{k}", []
        process = launch(run, "--actors", actors)
        wait_for(lambda: len(group(process.pid)) > actors, 60)
        wait_for_new_checkpoint(run, [], process)
        sleep(rng.uniform(0, 4) if k % 4 else 0)  # at 0, the actors still import
        held = shared_memory(group(process.pid))
        if len(group(process.pid)) <= actors or not held:
            wrong.append(f"the run has no actors or no shared memory: {said(process)[-300:]}")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        gone = lambda: not group(process.pid) and not held & shared_memory()
        seconds = wait_for(gone, 5, 0.05)
        if seconds is None:
            left = len(held & shared_memory())
            wrong.append(f"after 5 s, {group(process.pid)} live and {left} blocks are held")
        kill(process)
        yield wrong, {"worst_gone_s": seconds or 5.0}


def ctrl_c(folder, rng, count, kinds=("start", "middle", "saving", "twice")):
    """SIGINT to all of a run: it saves and ends within 5 s, without a traceback."""
    for k, (kind, _) in enumerate(itertools.product(kinds, range(count))):
        run, actors, wrong = folder / f"run{k}", k % 2 * 2, []
        process = launch(run, "--actors", actors, "--log_every", 4)
        if kind == "start":
            sleep(rng.uniform(0.3, 2.5))  # before that, Python itself begins
        elif not wait_for_new_checkpoint(run, [], process):
            wrong.append("never began")
        elif kind == "saving":
            wait_for(lambda: unfinished(run), 10, 0)
        else:
            sleep(rng.uniform(0, 4 if actors else 1))  # actors need some 2 s to begin
        begin = monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
            if kind == "twice":
                wait_for(lambda: "stopping" in said(process), 5, 0.001)
                os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        wait_for(lambda: not group(process.pid), begin + 30 - monotonic())
        seconds = monotonic() - begin
        kill(process)
        wrong += [f"{kind}: {text}" for text in check_stopped(run, process, kind, seconds)]
        at_once = int(process.returncode == 130 and kind == "twice")
        yield wrong, {f"worst_{kind}_s": seconds, "at_once": at_once}


def check_stopped(run, process, kind, seconds):
    wrong, text = [], said(process)
    if seconds > (1 if kind == "twice" and process.returncode == 130 else 5):
        wrong.append(f"it took {seconds:.1f} s")
    for word in ("Traceback", "KeyboardInterrupt", "Exception ignored"):
        if word in text:
            wrong.append(f"it printed: ...{text[text.index(word) :][:500]}")
            break
    if kind != "start" and process.returncode not in ((0, 130) if kind == "twice" else (0,)):
        wrong.append(f"exit status {process.returncode}: {text[-300:]}")
    if any(read(path) is None for path in checkpoints(run)):
        wrong.append("a checkpoint is damaged")
    if process.returncode == 0:
        with open(run / "metrics.csv") as file:
            last = int(list(csv.DictReader(file))[-1]["steps"])
        if not checkpoints(run) or step_of(checkpoints(run)[-1]) < last or unfinished(run):
            wrong.append(f"no checkpoint was saved at {last} steps")
    elif kind == "start" and unfinished(run):
        wrong.append("a checkpoint is half made")
    return wrong


def checkpoint_cut(folder, rng, count):
    """Cut a checkpoint at `count` places (0: every 4 KB), and turn bits of it."""
    run, flags = folder / "run", ("--steps", "400", "--save_minutes", "0.0003")
    train_here(run, *flags)
    older, newest = checkpoints(run)
    whole, bytes_, right = newest.read_bytes(), {}, train.load_newest(run, None)
    places = range(0, len(whole), 4096 if not count else len(whole) // count)
    bytes_ |= {f"cut at {place}": whole[:place] for place in places}
    for place in rng.integers(0, 8 * len(whole), 20):
        bytes_[f"bit {place} turned"] = turned = bytearray(whole)
        turned[place // 8] ^= 1 << place % 8
    for name, damaged in bytes_.items():
        newest.write_bytes(damaged)
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                state = train.load_newest(run, None)
        except Exception as error:
            yield [f"{name}: {type(error).__name__}: {error}"], {}
            continue
        harmless = "turned" in name and same(state, right)  # a bit of padding, say
        refused = str(newest) in out.getvalue() and "damaged" in out.getvalue()
        used = state is not None and int(state["board"]["steps"].sum()) == step_of(older)
        wrong = [] if harmless or (refused and used) else [f"{name}: it was taken for whole"]
        yield wrong, {"refused": int(refused), "harmless": int(harmless)}


def same(a, b):
    """Do two checkpoints hold the same?"""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b, equal_nan=isinstance(a, float)))


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A disk of so many kilobytes, or None where only the administrator may have one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(words, capture_output=True).returncode == 0:
            try:
                yield folder
            finally:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    yield None


def disk_full(folder, rng, count):
    """Let the disk be full in the middle of a save, or files be too large, in turn."""
    for k in range(count):
        with small_disk(folder / f"disk{k}", int(rng.integers(500, 1700))) as disk:
            run = (folder if k % 2 == 0 or disk is None else disk) / f"run{k}"
            process = launch(run, "--actors", 0)
            if disk not in run.parents:  # not even the administrator may write a larger file
                wait_for_new_checkpoint(run, [], process)
                most = int(rng.integers(50_000, 150_000))
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            kill(process)
            wrong, text = check_one_line(process, "could not be written"), said(process)
            line = text.strip().splitlines()[-1]
            if f"{run}/step" not in line or "those before it are whole" not in line:
                wrong.append(f"the checkpoint is not named: {line}")
            if unfinished(run) or any(read(path) is None for path in checkpoints(run)):
                wrong.append(f"not whole: {unfinished(run) + checkpoints(run)}")
        yield wrong, {"on_a_small_disk": int(run.parent != folder)}


def check_one_line(process, words):
    """Did it end with an error of one line, which has these words?"""
    text = said(process)
    last = (text.strip().splitlines() or ["nothing"])[-1]
    good = process.returncode == 1 and last.startswith("train.py: ") and words in last
    good = good and text.count("train.py: ") == 1 and "Traceback" not in text
    return [] if good else [f"exit status {process.returncode}: {text[-500:]}"]


SMALL_MEMORY = """
import sys, replay, train
replay.SHM = sys.argv[1]
if sys.argv[2] == "blind":  # as if others had taken the memory since it was looked at
    replay.Shared._check_room = lambda *_: None
train.main(sys.argv[3:])
"""


def small_shm(folder, rng, count):
    """Ask for more shared memory than there is."""
    with small_disk(folder / "memory", 16_000) as disk:
        words = ("d4pg", "--preset", "tiny", "--actors", 0, *FOREVER, "--out", folder / "run")
        trials = [("train.py", *words, "--capacity", 2_000_000_000)]
        for eyes in ("seeing", "blind") if disk else ():
            trials.append(("-c", SMALL_MEMORY, disk, eyes, *words, "--capacity", 100_000))
        for trial in trials[:count]:
            process = start(*trial)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            kill(process)
            yield check_one_line(process, "--capacity"), {}


def nan(folder, rng, count):
    """A NaN from the world, in one process and in an actor's, in the loss and in the gradient."""
    kinds = (("reward", 0), ("observation", 0), ("critic_loss", 0), ("gradient", 0),
             ("reward", 1), ("observation", 1))  # fmt: skip
    for k, (kind, actors) in enumerate(kinds[:count]):
        run, wrong, message = folder / f"run{k}", [], "nothing"
        try:
            with poison(kind, int(rng.integers(20, 200))):
                train_here(run, "--actors", actors, "--save_minutes", "0.0003", *FOREVER)
        except SystemExit as error:
            message = str(error)
        if kind not in message or ("actor 0 gave up" in message) != (actors > 0):
            wrong.append(f"NaN in the {kind} is told as: {message}")
        states = [read(path) for path in checkpoints(run)]
        if not states or not all(map(finite, states)):
            wrong.append(f"{kind}: the checkpoints are missing or poisoned")
        yield wrong, {}


def train_here(run, *flags):
    """Train in this process, silently."""
    words = ["d4pg", "--preset", "tiny", "--out", str(run), *map(str, flags)]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train.main(words)


def poison(kind, after):
    """Let the `after`-th number of a kind be NaN."""
    if kind in ("reward", "observation"):
        return mock.patch.object(d4pg, "Actor", functools.partial(poisoned_actor, kind, after))
    calls = itertools.count()

    def poisoned_targets(agent, batch):
        return TARGETS(agent, batch) * (np.nan if next(calls) == after else 1)

    def poisoned_step(adam):
        if next(calls) == after:
            adam.param_groups[1]["params"][0].grad[0] = np.nan
        return ADAM_STEP(adam)

    if kind == "gradient":
        return mock.patch.object(torch.optim.Adam, "step", poisoned_step)
    return mock.patch.object(d4pg.Agent, "targets", poisoned_targets)


def poisoned_actor(kind, after, *args):
    """An actor, in whatever process, whose world tells one NaN."""
    actor, calls = ACTOR(*args), itertools.count()
    step = actor.world.step

    def poisoned(action):
        obs, reward, discount, last = step(action)
        if next(calls) == after:
            (obs if kind == "observation" else reward)[1] = np.nan
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

CLASSES = {  # name: (what injects it, counts of the full and of the small version)
    "learner_killed": (learner_killed, 200, 6),
    "actor_killed": (actor_killed, 50, 4),
    "parent_killed": (parent_killed, 20, 1),
    "ctrl_c": (ctrl_c, 10, 1),
    "checkpoint_cut": (checkpoint_cut, 0, 16),
    "disk_full": (disk_full, 10, 2),
    "small_shm": (small_shm, 3, 3),
    "nan": (nan, 6, 6),
}


def inject(name, injections):
    """Count what one class of faults has lost: the worst of its numbers, or their sum."""
    result = {"injected": 0, "lost": 0}
    for wrong, numbers in tqdm(injections, name, unit="fault"):
        numbers = {"injected": 1} | numbers
        for key, value in numbers.items():
            add = max if key.startswith("worst_") else lambda x, y: x + y
            result[key] = round(add(result.get(key, 0), value), 3)
        result["lost"] += bool(wrong)
        for text in wrong:
            tqdm.write(f"{name}: {text}", file=sys.stderr)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--small", action="store_true", help="a few of each class")
    parser.add_argument("--seed", type=int, default=0, help="of what is injected, and when")
    parser.add_argument("--only", choices=CLASSES, metavar="CLASS", help=", ".join(CLASSES))
    args = parser.parse_args(argv)
    classes = {}
    for name, (function, full, small) in CLASSES.items():
        if args.only in (None, name):
            rng = np.random.default_rng(args.seed)
            with tempfile.TemporaryDirectory() as folder:
                injections = function(Path(folder), rng, small if args.small else full)
                classes[name] = inject(name, injections)
    total = {key: sum(result[key] for result in classes.values()) for key in ("injected", "lost")}
    print(json.dumps(total | {"classes": classes}))
    return int(total["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
