"""The command line.

python train.py                          MetaMimic: demonstrations, training, table and pictures
python train.py metamimic --minutes 10   the same, with flags; --help after any command shows them
python train.py d4pg --task reach        train D4PG alone, or with demonstrations
python train.py mili                     MILI: demonstrations, training, trials, table, pictures
python train.py d4pg --resume runs/NAME  go on with a run that was stopped, or killed
python train.py eval runs/NAME           measure a run again; --demo FILE imitates one file
python train.py demos --world kitchen    make demonstration files
python train.py look --out look.gif      show a world: A beside B, or each family of tasks

A run is a folder: config.json, metrics.csv, the last two checkpoints (with replay memory), and at
the end results.json, curves.png and films; MILI's also holds all useful trials and their pairs.
"""

import argparse
import contextlib
import csv
import fcntl
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":  # Ctrl-C during imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import env
import metamimic
import mili


def demos(args):
    """Demonstration files: in the stack world A's and B's, in the kitchen those of each split."""
    for flag, value in (("count", args.count), ("processes", args.processes)):
        env.check(value is None or value >= 1, f"--{flag} is {value}; expected 1 or more")
    for by in env.PEOPLE if args.world == "stack" else env.SPLITS:
        folder = env.demo_folder(args.demos, args.world, by, args.horizon)
        count = args.count or (500 if args.world == "stack" else 4)
        env.make_demos(folder, args.world, by, count, args.seed, args.horizon, args.processes)
        if args.world == "stack":
            made = env.load_demos(folder, "stack", ("rewards",), count)
            rewards = np.stack([demo["rewards"] for demo in made])  # [demos, T]
            stacked = rewards[:, -1] == 1
            frame = [np.flatnonzero(r != 1)[-1] + 2 for r in rewards[stacked]]  # for good
            print(
                f"{by}: {len(made)} demonstrations in {folder}, "
                f"return {rewards.sum(1).mean():.1f} +- {rewards.sum(1).std():.1f}, "
                f"stacked {100 * stacked.mean():.1f} %, "
                f"at frame {np.mean(frame or [np.nan]):.1f} +- {np.std(frame or [np.nan]):.1f}"
            )
        else:
            print(f"{by}: {len(list(folder.glob('*.npz')))} demonstrations in {folder}")


def look(args):
    """An animation (.gif) or a sheet of frames (.png) of a world and its demonstrators."""
    out = Path(args.out)
    env.check(out.suffix in (".gif", ".png"), f"--out is {out}; it ends in .gif or .png")
    if args.world == "stack":
        films = [film_stack(by, args) for by in env.PEOPLE]
    else:
        films = film_kitchen(args)
    save_picture(out, padded(films))
    print(f"{out}: " + ("A beside B" if args.world == "stack" else ", ".join(env.FAMILIES)))


def film_stack(by, args):
    """[frames, size, size, 3]: one person's first episode."""
    world = env.Stack(1, args.seed, size=args.size, shadows=True, horizon=args.horizon)
    person, frames = env.Person(world, by, args.seed), []
    for t in tqdm(range(args.horizon), f"{by} stacks", unit="frame"):
        world.step(person.act())
        if t % (args.horizon // 50 or 1) == 0:
            frames.append(world.pixels()[0])
    return np.stack(frames)


def film_kitchen(args):
    """For each task family, a film of one test task."""
    tasks = env.tasks_of("test")
    mine = [[t for t in tasks if t.family == family][args.seed % 10] for family in env.FAMILIES]
    world = env.Kitchen(4, args.seed, "features", args.size, shadows=True, tasks=mine)
    operator, films = env.Operator(world, args.seed), [[] for _ in mine]
    for _ in tqdm(range(world.horizon), "kitchen", unit="frame"):
        actions = operator.act()
        for i in np.flatnonzero(~operator.ended):
            films[i].append(world.pixels([i])[0])
        world.step(actions)
    return [np.stack(film) for film in films]


def padded(films):
    """All as long as the longest, their last frame repeated.  [films, frames, H, W, 3]"""
    most = max(map(len, films))
    return np.stack([np.concatenate([f, np.repeat(f[-1:], most - len(f), 0)]) for f in films])


def save_picture(path, films):
    """Films [films, frames, H, W, 3]: side by side as a .gif, or eight frames of each as a .png."""
    advice = "pictures need Pillow, which matplotlib brings: pip install matplotlib"
    Image = env.need("PIL.Image", advice)
    if path.suffix == ".gif":
        frames = [Image.fromarray(np.concatenate(row, 1)) for row in films.swapaxes(0, 1)]
        rest = {"save_all": True, "append_images": frames[1:], "duration": 100, "loop": 0}
        env.write_atomically(path, lambda file: frames[0].save(file, "gif", **rest))
    else:
        moments = np.linspace(0, films.shape[1] - 1, 8).astype(int)
        sheet = np.concatenate([np.concatenate(film[moments], 1) for film in films])
        env.write_atomically(path, lambda file: Image.fromarray(sheet).save(file, "png"))


# --------------------------------------------------------------------------------------------
# Runs: their folders, checkpoints and logs
# --------------------------------------------------------------------------------------------


def train(args):
    """Train until all steps are taken, --minutes have passed, or Ctrl-C; then save."""
    config, folder = open_run(args)
    tensorboard = summary_writer() if args.tensorboard else None
    for name in RUN_FLAGS:
        value = getattr(config, name)
        env.check(0 <= value < 1e9, f"--{name} is {value}; expected a number from 0")
    if config.algorithm != "d4pg" and not args.resume:
        ALGORITHMS[config.algorithm].make_missing(config)
    run = ALGORITHMS[config.algorithm].make_run(config)  # bad input raises an error here
    run.folder = folder
    what = "images" if config.algorithm == "mili" else "replay, and as much again while it is saved"
    tqdm.write(f"{folder}: up to {run.bytes / 1e9:.2f} GB of memory for {what}")
    run.allocate()
    with only_user(folder):
        with Stop() as stop:
            log = work(run, folder, config, args.resume, tensorboard, stop)
        minutes = log.seconds / 60
        print(f"{folder}: {run.steps:,} steps, {run.updates:,} updates, {minutes:.1f} minutes")
        if not stop.asked:
            report(folder, config, run, getattr(config, "validation", config.eval_episodes))


def work(run, folder, config, resume, tensorboard, stop):
    """Start or resume a run and train it; stop its actors in any case."""
    clock = time.monotonic()
    try:
        new = resume or not any(folder.glob("step*.pt"))  # none began it since open_run looked
        env.check(new, f"{folder} has a run by now: --resume {folder} goes on, --out takes another")
        state = load_newest(folder) if resume else None
        if resume and not state:
            tqdm.write(f"{folder} has no checkpoint yet: it begins anew")
        taken = int(state["board"]["steps"].sum()) if state else -1
        if taken >= run.config.steps and (folder / "results.json").exists():  # else: killed before
            once = getattr(config, "method", "") in ("meta", "bc")
            env.check(not once, f"all updates are taken: python train.py eval {folder}")
            flag = "rounds" if config.algorithm == "mili" else "steps"
            advice = f"raise --{flag} to go on, or: python train.py eval {folder}"
            raise ValueError(f"--{flag} {getattr(config, flag)} are taken; {advice}")
        run.start(state)  # what fails until here leaves an earlier end as it is
        text = json.dumps(vars(config), indent=1)
        env.write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
        (folder / "results.json").unlink(missing_ok=True)
        log = Log(folder, tensorboard, state)
        log.latest = {"steps": run.steps, "updates": run.updates}
        loop(run, folder, log, config, stop, clock)
    finally:
        run.close()
    return log


def loop(run, folder, log, config, stop, clock):
    """Rounds of acting and learning, with rows, evaluations and checkpoints when due."""
    saved, minutes, shown = time.monotonic(), config.minutes, {}
    names = ALGORITHMS[config.algorithm].SHOWN | {"updates_per_s": "updates/s"}

    def keep():
        log.seconds = log.before + time.monotonic() - clock
        save(folder, run, log)

    with contextlib.closing(Bar(run)) as bar:
        while True:
            now = time.monotonic()
            ended = run.finished() or 0 < minutes < (now - clock) / 60
            if run.steps >= log.next_row or (ended and run.steps > log.last):
                row = log.row(run, config, now - clock, ended, stop)
                shown |= {names[k]: f"{v:.3g}" for k, v in row.items() if k in names and v == v}
                bar.bar.set_postfix(shown)
            if ended or stop.asked:
                break
            taken = log.before + now - clock  # before it was resumed, too
            run.elapsed = taken / (log.before + 60 * minutes) if minutes else 0.0
            told, phase = run.round(), bar.phase
            bar.show(run)
            if told:
                tqdm.write(told)
            if bar.phase != phase or now - saved > 60 * config.save_minutes:
                keep()
                saved = time.monotonic()
    keep()
    if log.writer:
        log.writer.close()


class Bar:
    """A progress bar, a new one for each phase of a run."""

    def __init__(self, run):
        self.phase, self.bar = None, None
        self.show(run)

    def show(self, run):
        phase, done, total = run.progress()
        if phase != self.phase:
            if self.bar:
                self.bar.update(self.bar.total - self.bar.n)
                self.bar.close()
            self.phase, rest = phase, {"smoothing": 0.05, "mininterval": 0.5}
            self.bar = tqdm(desc=phase or None, total=total, initial=done, unit="step", **rest)
        self.bar.update(done - self.bar.n)

    def close(self):
        self.bar.close()


def report(folder, config, run, episodes, name="results"):
    """Evaluate a run; print its table, write its results, draw its curves and films."""
    results = run.evaluate(episodes)
    text = json.dumps(rounded(results))
    env.write_atomically(folder / f"{name}.json", lambda file: file.write(text.encode()))
    if config.algorithm == "mili":
        print("", *mili.table(folder, config, results), sep="\n")
    else:
        print_table(ALGORITHMS[config.algorithm].TABLE, results, episodes)
    try:
        draw_curves(folder, config)
        if config.algorithm == "metamimic":
            save_picture(folder / "imitation.gif", film_imitation(config, run))
            print(f"{folder}/imitation.gif: B's demonstrations, never seen, above the copies")
        if config.algorithm == "mili":
            draw_embedding(folder, run)
            save_picture(folder / "rollouts.gif", film_rollouts(run))
            print(f"{folder}/rollouts.gif: demonstrations of tasks never seen, above the robot's")
            if run.partners is not None:
                save_picture(folder / "pairs.gif", film_pairs(run))
                print(f"{folder}/pairs.gif: trials, above what each was paired with")
    except (ImportError, OSError) as error:
        print(f"no pictures: {error}")
    return results


def print_table(table, results, episodes):
    """Print rows of (label, column, the paper's value) with our results."""
    width = max(len(what) for what, _, _ in table) + 2
    title = f"{results.get('val_episodes', episodes)} episodes"
    print(f"\n{title:{width}}{'here':<12}paper")
    for what, name, paper in table:
        print(f"{what:{width}}{results[name]:<12.3g}{paper}")


def draw_curves(folder, config):
    """Plot what the progress bar shows, over minutes."""
    plt = env.need("matplotlib.pyplot", "curves need matplotlib: pip install matplotlib")
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    names = ALGORITHMS[config.algorithm].SHOWN
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 2.6))
    for axis, name in zip(axes, names):
        points = [(float(r["seconds"]) / 60, float(r[name])) for r in rows if r[name]]
        axis.plot(*zip(*points))
        axis.set(title=name.replace("_", " "), xlabel="minutes")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    env.write_atomically(folder / "curves.png", lambda file: figure.savefig(file, dpi=100))
    plt.close(figure)


def film(run, demos, copies, tasks=0, every=4):
    """Demonstrations, each above its imitation, or above the task policy from its initial state.

    [films, frames, 2 size, size, 3]
    """
    states, keep = [], lambda world: states.append(world.get_state())
    metamimic.rollout(run.config, run.nets(), demos, copies, tasks, watch=keep)
    world, films = env.Stack(1, size=128, shadows=True), []
    for robot in tqdm(range(copies + tasks), "filming", unit="film"):
        i = robot if robot < copies else robot - copies
        mine = np.stack(states[::every])[:, robot]
        t = np.minimum(demos.first[i] + np.arange(len(states))[::every], demos.end[i])
        pair = world.render(demos.states[t]), world.render(mine)
        films.append(np.concatenate(pair, 1))
    return np.stack(films)


def film_imitation(config, run):
    """Some of B's demonstrations, above their imitations."""
    source = env.demo_folder(config.demos, "stack", "B", config.horizon)
    count = min(3, config.validation)
    return film(run, metamimic.load_demos(run.config, source, count), count)


def draw_embedding(folder, run):
    """Demonstrations never seen: who is near whom, and how alike those of a task are."""
    import matplotlib.pyplot as plt

    f, library = run.look_at(run.split)
    tasks = [env.Task(e["scene"], int(e["achieved"].argmax())) for e in library.episodes]
    family = np.array([env.FAMILIES.index(task.family) for task in tasks])
    x, y = neighbours(f).T
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2))
    for k, name in enumerate(env.FAMILIES):
        axes[0].scatter(x[family == k], y[family == k], s=12, label=name)
    axes[1].scatter(x, y, s=12, c=library.tasks.argmax(1), cmap="nipy_spectral")
    upper = np.triu_indices(len(f), 1)
    same, cosine = (library.tasks @ library.tasks.T > 0)[upper], (f @ f.T)[upper]
    for which, label in ((~same, "two tasks"), (same, "one task")):
        bins = np.linspace(-1, 1, 81)
        axes[2].hist(cosine[which], bins, density=True, alpha=0.6, label=label)
    axes[2].set_xticks(np.linspace(-1, 1, 5))
    if np.isfinite(run.facts["alpha"]):
        axes[2].axvline(run.facts["alpha"], color="black", label="α")
    titles = ("neighbours by f, by family", "by task", "f(d_m)ᵀ f(d_n) of demonstrations of")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
    axes[0].legend(fontsize=8)
    axes[2].legend(fontsize=8)
    figure.tight_layout()
    env.write_atomically(folder / "embedding.png", lambda file: figure.savefig(file, dpi=100))
    plt.close(figure)


def neighbours(f, perplexity=6.0, steps=600):
    """Points of a plane that are near each other where vectors of length 1 are: t-SNE.

    https://jmlr.org/papers/v9/vandermaaten08a.html, from the plane in which they vary most.
    """
    distance = np.maximum(2 - 2 * f @ f.T, 0)
    np.fill_diagonal(distance, np.inf)
    distance -= distance.min(1, keepdims=True)
    low, high = np.zeros((len(f), 1)), np.full((len(f), 1), 1e4)
    for _ in range(50):  # each point's 1 / 2σ², for it to have so many neighbours
        β = (low + high) / 2
        p = np.exp(-β * distance)
        p /= p.sum(1, keepdims=True)
        wide = -(p * np.log(np.maximum(p, 1e-12))).sum(1, keepdims=True) > np.log(perplexity)
        low, high = np.where(wide, β, low), np.where(wide, high, β)
    p, off = (p + p.T) / (2 * len(f)), f - f.mean(0)
    points = 0.01 * off @ np.linalg.svd(off, full_matrices=False)[2][:2].T
    speed = np.zeros_like(points)
    for step in range(steps):
        early = step < steps // 4  # attraction is exaggerated at first
        way = points[:, None] - points
        near = 1 / (1 + np.square(way).sum(2))
        np.fill_diagonal(near, 0)
        force = (12 * p if early else p) - near / near.sum()
        force = 4 * ((force * near)[..., None] * way).sum(1)
        speed = (0.5 if early else 0.8) * speed - len(f) / 8 * force
        points = points + speed
    return points


def film_pairs(run, count=4):
    """Trials, above what they were paired with."""
    mine = np.flatnonzero(run.partners[:, 0] >= 0)
    mine = mine[np.linspace(0, len(mine) - 1, count).astype(int)]
    every = run.trials.episodes
    return film_both([every[i] for i in mine], [every[i] for i in run.partners[mine, 0]])


def film_rollouts(run):
    """A task of each family, never seen: a demonstration, and what the robot makes of it."""
    f, library = run.look_at(run.split)
    tasks = env.tasks_of(run.split)
    mine = [next(k for k, t in enumerate(tasks) if t.family == name) for name in env.FAMILIES]
    size = run.config.size
    world = env.Kitchen(4, 1_000_003, "features", size, tasks=[tasks[k] for k in mine])
    first = np.array(mine) * (len(f) // len(tasks))
    trials = mili.rollout(run.agent, world, f[first], np.random.default_rng(0))
    return film_both([library.episodes[k] for k in first], trials)


def film_both(above, below):
    """Episodes above others: [films, frames, 2 size, size, 3]."""
    world = env.Kitchen(1, obs="features", size=128, shadows=True)
    films = padded([world.render(episode["states"]) for episode in [*above, *below]])
    return np.concatenate([films[: len(above)], films[len(above) :]], 2)


def measure(args):
    """Evaluate a run's newest checkpoint with fixed seeds; the last line printed is JSON."""
    good = args.episodes is None or 1 <= args.episodes <= 10_000
    env.check(good, f"--episodes is {args.episodes}; expected 1 to 10000")
    folder, config = Path(args.run), SimpleNamespace(**read_config(args.run))
    for flag, algorithm in (("demo", "metamimic"), ("split", "mili")):
        good = config.algorithm == algorithm or not getattr(args, flag)
        env.check(good, f"--{flag} needs a run of {algorithm}; {folder} is another")
    env.check(args.demo or not args.out, "--out is the picture of a --demo")
    if args.episodes is None:
        args.episodes = getattr(config, "validation", EPISODES)
    elif config.algorithm == "metamimic":
        config.validation = args.episodes
    with only_user(folder):
        run, steps = read_run(folder, config, alone=bool(args.demo))
        run.split = args.split or "val"
        if args.demo:
            results = imitate_file(args, run)
        else:
            name = "eval" if run.split == "val" else f"eval-{run.split}"
            results = report(folder, config, run, args.episodes, name)
    print(json.dumps({"run": str(folder), "steps": steps} | rounded(results)))


def read_run(folder, config, alone=False):
    """A run with the networks of its newest checkpoint, on the CPU for evaluation; and its steps.

    `alone`: without loading demonstrations.
    """
    config.device = "cpu"
    if config.algorithm == "d4pg":
        config.fd = config.curriculum = 0  # demonstrations are for training alone
    rest = {"alone": True} if alone else {}
    run, state = ALGORITHMS[config.algorithm].make_run(config, **rest), load_newest(folder)
    advice = f"train first: python train.py {config.algorithm} --resume {folder}"
    env.check(state is not None, f"{folder} has no checkpoint yet; {advice}")
    run.load_policies(state)
    return run, int(state["board"]["steps"].sum())


def imitate_file(args, run):
    """One demonstration, imitated in one shot."""
    path = Path(args.demo)
    out = Path(args.out or f"{args.run}/{path.absolute().parent.name}-{path.stem}.gif")
    env.check(out.suffix in (".gif", ".png"), f"--out is {out}; it ends in .gif or .png")
    good = path.is_file() and path.suffix == ".npz"
    env.check(good, f"--demo {path}: there is no such demonstration (.npz)")
    demos = metamimic.load_demos(run.config, path, 1)
    results = metamimic.imitate(run.config, run.nets(), demos)
    try:
        save_picture(out, film(run, demos, 1))
        print(f"{out}: the demonstration, and below it the copy")
    except (ImportError, OSError) as error:
        print(f"no picture: {error}")
    return results


def rounded(results):
    """Results rounded for JSON, with None for NaN."""
    short = lambda v: int(v) if isinstance(v, int) else round(float(v), 4)
    return {k: short(v) if np.isfinite(v) else None for k, v in results.items()}


EPISODES = 200  # default of eval --episodes for d4pg
OURS = ("config.json", "metrics.csv", "lock")  # what a run has before its first checkpoint


def open_run(args):
    """Configuration and folder of a new run, or of the one to resume."""
    names = {**ALGORITHMS[args.command].FLAGS, **RUN_FLAGS}
    if args.resume is None:
        config = {"algorithm": args.command} | {name: getattr(args, name) for name in names}
        name = config.get("env", "stack").split(":")[-1].replace("/", "-")
        name = config.get("task", config.get("method")) if name == "stack" else name
        folder = Path(args.out or f"runs/{args.command}-{name}-{config['seed']}")
        env.check(folder.is_dir() or not folder.exists(), f"--out {folder} is no folder")
        there = list(folder.iterdir()) if folder.exists() else []
        ours = lambda p: p.name in OURS or p.suffix == ".part" or p.name.startswith("events.out")
        taken = not all(map(ours, there))
        env.check(
            not taken, f"{folder} is not empty: --resume {folder} goes on, --out takes another"
        )
        return SimpleNamespace(**config), folder
    folder = Path(args.resume)
    env.check(args.out is None, "--resume goes on in its own folder; leave out --out")
    env.check(args.preset is None, "--resume goes on with the run's flags; leave out --preset")
    config, other = read_config(folder, "--resume "), vars(args)
    algorithm = config["algorithm"]
    advice = f"go on with: python train.py {algorithm} --resume {folder}"
    env.check(algorithm == args.command, f"{folder} is a run of {algorithm}; {advice}")
    for name in args.given & set(names):
        good = name in MAY_CHANGE or config[name] == other[name]
        env.check(good, f"--{name} is {config[name]} in {folder}; leave it out, or begin a new run")
        config[name] = other[name]
    return SimpleNamespace(**config), folder


def read_config(folder, flag=""):
    """A run's config.json; raises an error if it is damaged or of another version."""
    path = Path(folder) / "config.json"
    env.check(str(folder) and path.exists(), f"{flag}{folder}: there is no run")
    try:
        config = json.loads(path.read_text())
        flags = {**ALGORITHMS[config["algorithm"]].FLAGS, **RUN_FLAGS}
        good = all(type(config[name]) is type(values[-1]) for name, (_, *values) in flags.items())
    except (ValueError, KeyError, TypeError):
        good = False
    env.check(good, f"{path} is damaged, or of another version: {OTHER_CODE}")
    return config


@contextlib.contextmanager
def only_user(folder):
    """Lock a run's folder for one process; the lock is released when that ends, in any way."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another process: wait, or end it") from None
        yield


class Stop:
    """Ctrl-C: the first asks the run to save and stop, the second exits at once."""

    def __enter__(self):
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self.ask)
        return self

    def ask(self, *_):
        if self.asked:
            os._exit(130)
        self.asked = True
        os.write(2, b"\nstopping: saving a checkpoint (Ctrl-C again: at once)\n")

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.before)


def summary_writer():
    advice = "--tensorboard needs: pip install tensorboard"
    return env.need("torch.utils.tensorboard", advice).SummaryWriter


class Log:
    """metrics.csv, and TensorBoard if asked for."""

    def __init__(self, folder, tensorboard, state=None):
        self.path, state = folder / "metrics.csv", (state or {}).get("log", {})
        self.rows, self.seconds = state.get("rows", 0), state.get("seconds", 0.0)
        self.before = self.seconds  # training time before the run was resumed
        self.next_row, self.next_eval = state.get("next_row", 0), state.get("next_eval", 0)
        self.last = state.get("last", -1)  # steps at the last row
        there = self.rows and self.path.exists()
        lines = self.path.read_text().splitlines()[: 1 + self.rows] if there else []
        text = "".join(line + "\n" for line in lines)  # drops rows after the checkpoint
        env.write_atomically(self.path, lambda file: file.write(text.encode()))
        self.names = lines[0].split(",") if lines else None
        self.rows = max(0, len(lines) - 1)
        if not lines:  # lost or new: a first row has an evaluation, and so all columns
            self.next_eval = 0
        self.then, self.latest = 0.0, {"steps": 0, "updates": 0}
        self.writer = tensorboard(folder) if tensorboard else None

    def state(self):
        return {k: getattr(self, k) for k in ("rows", "seconds", "next_row", "next_eval", "last")}

    def row(self, run, config, seconds, ended, stop):
        """Write metrics since the last row, with an evaluation if one is due."""
        results = {}
        if run.steps >= self.next_eval or ended:
            results = run.evaluate(config.eval_episodes, stop)
            if results is None:  # Ctrl-C: the row is written after resuming
                return {}
        row = run.row()
        self.last = row["steps"]
        self.next_row = (run.steps // config.log_every + 1) * config.log_every
        for name, before in self.latest.items():
            row[f"{name}_per_s"] = (row[name] - before) / (seconds - self.then)
        self.then, self.latest = seconds, {name: row[name] for name in self.latest}
        if results:
            self.next_eval = (run.steps // config.eval_every + 1) * config.eval_every
        row["seconds"] = self.seconds = self.before + seconds
        row |= results
        try:
            with open(self.path, "a") as file:
                if self.names is None:  # the first row has an evaluation, and so all columns
                    self.names = list(row)
                    file.write(",".join(self.names) + "\n")
                csv.DictWriter(file, self.names, lineterminator="\n").writerow(row)
        except OSError as error:
            raise OSError(f"{self.path} could not be written: {error.strerror}") from None
        self.rows += 1
        for name, value in row.items() if self.writer else ():
            self.writer.add_scalar(name, value, row["steps"])
        return row


def save(folder, run, log):
    """Write a checkpoint atomically; keep the last two."""
    state = tensors(run.state() | {"log": log.state(), "version": VERSION})
    path = folder / f"step{run.steps:012d}.pt"
    try:
        env.write_atomically(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when the disk is full
        raise OSError(f"{path} could not be written ({error}); those before it are whole") from None
    for old in sorted(folder.glob("step*.pt"))[:-2]:
        old.unlink()


def load_newest(folder):
    """The newest undamaged checkpoint; damaged ones are reported and renamed."""
    for left in [*folder.glob(".*.part"), *folder.glob("trials/*/.*.part")]:  # a save was killed
        left.unlink()
    paths = sorted(folder.glob("step*.pt"), reverse=True)
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load looks at no checksum
                env.check(archive.testzip() is None, "a checksum is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
            env.check(set(state) >= {"version", "learners", "board", "log"}, "it is no checkpoint")
        except Exception as error:  # whatever a damaged file makes the readers stumble over
            if env.blameless(error):
                raise OSError(f"{path} could not be read: {error}") from None
            fault = " ".join(str(error).split())[:120] or type(error).__name__
            tqdm.write(f"{path} is damaged, the one before it is used: {fault}")
            path.rename(path.with_suffix(".damaged"))
        else:
            good = state["version"] == VERSION
            it = f"{path} is of version {state['version']}, not {VERSION}"
            env.check(good, f"{it}: {OTHER_CODE}")
            return arrays(state)
    lost = list(folder.glob("step*.damaged"))  # renamed now, or before
    env.check(not lost, f"no checkpoint of {folder} could be read; --out begins a new run")
    return None


def tensors(tree):
    """Arrays as tensors, which torch saves and loads without executing anything."""
    if isinstance(tree, dict):
        return {key: tensors(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [tensors(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(tree))
    return tree.item() if isinstance(tree, np.generic) else tree


def arrays(tree):
    """Tensors as arrays again, except in agents."""
    if isinstance(tree, dict):
        return {key: v if key == "agent" else arrays(v) for key, v in tree.items()}
    if isinstance(tree, list):
        return [arrays(value) for value in tree]
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree


VERSION = 5  # of checkpoints
OTHER_CODE = "use the code that began the run, or begin another with --out"
RUN_FLAGS = {  # name: (what it is, default)
    "minutes": ("minutes of training at most, in each call; 0: until all steps are taken", 0.0),
    "save_minutes": ("minutes between checkpoints", 5.0),
}
MAY_CHANGE = ("steps", "rounds", "minutes", "save_minutes", "device", "threads", "memory_gb",
              "log_every", "eval_every")  # fmt: skip
PRESETS = ("tiny", "classroom", "paper")
ALGORITHMS = {"d4pg": d4pg, "metamimic": metamimic, "mili": mili}


# --------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------


def add_algorithm(commands, name, text):
    """A command with a typed flag for each entry of an algorithm's FLAGS."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    text = "all defaults below (classroom)"
    parser.add_argument("--preset", choices=PRESETS, help=text)
    parser.add_argument("--out", metavar="RUN", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", metavar="RUN", help="continue this run")
    parser.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    for flag, (what, *values) in ALGORITHMS[name].FLAGS.items():
        kind = type(values[1])
        parser.add_argument(
            f"--{flag}", type=kind, choices=d4pg.CHOICES.get(flag),
            metavar=None if flag in d4pg.CHOICES else kind.__name__.upper(),
            help=f"{what} (tiny {values[0]}, classroom {values[1]}, paper {values[2]})",
        )  # fmt: skip
    for flag, (what, value) in RUN_FLAGS.items():
        parser.add_argument(f"--{flag}", type=type(value), metavar="M", help=f"{what} ({value})")


def fill(args, flags):
    """Fill in flags that were not given from the preset."""
    args.given = {name for name, value in vars(args).items() if value is not None}
    for flag, (_, *values) in flags.items():
        if flag not in args.given:
            setattr(args, flag, values[PRESETS.index(args.preset or "classroom")])
    for flag, (_, value) in RUN_FLAGS.items():
        if flag not in args.given:
            setattr(args, flag, value)
    if getattr(args, "env", "stack") != "stack" and "horizon" not in args.given:
        args.horizon = 0  # gymnasium environments have their own limit


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description="MetaMimic and MILI in seven readable files.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in (("demos", "make demonstration files"), ("look", "draw a picture")):
        add = commands.add_parser(name, help=text, allow_abbrev=False).add_argument
        choices, text = env.WORLDS, "stack: MetaMimic's; kitchen: MILI's"
        add("--world", choices=choices, default="stack", help=text)
        text = "steps of a stacking episode (paper: some 600)"
        add("--horizon", type=int, default=200, metavar="T", help=text)
        add("--seed", type=int, default=0, help="random seed")
        if name == "demos":
            add("--demos", default="demos", metavar="DIR", help="folder of demonstration files")
            text = "demonstrations of each person (500) or kitchen task (paper: 4)"
            add("--count", type=int, metavar="N", help=text)
            text = "processes that make demonstrations"
            add("--processes", type=int, default=2, metavar="P", help=text)
        else:
            text = "side of pictures, in pixels (papers: 128, 100)"
            add("--size", type=int, default=128, help=text)
            add("--out", default="look.gif", metavar="FILE", help="picture to write, .gif or .png")
    add_algorithm(commands, "metamimic", "train MetaMimic (what happens with no command)")
    add_algorithm(commands, "d4pg", "train D4PG, D4PGfD (--fd), either with --curriculum")
    add_algorithm(commands, "mili", "train MILI, and what it is compared with (--method)")
    text = "measure a run's newest checkpoint; the last line is JSON"
    add = commands.add_parser("eval", help=text, description=text, allow_abbrev=False).add_argument
    add("run", metavar="RUN", help="folder of the run")
    add("--episodes", type=int, metavar="N",
        help=f"of each person or task (d4pg: {EPISODES}; else the run's --validation)")  # fmt: skip
    add("--split", choices=env.SPLITS, help="MILI's tasks (val; test is for final tables alone)")
    add("--demo", metavar="FILE", help="only imitate this demonstration, in one shot")
    add("--out", metavar="FILE", help="its picture, .gif or .png (default: RUN/FOLDER-NAME.gif)")
    argv = sys.argv[1:] if argv is None else list(argv)
    alone = not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help"))
    args = parser.parse_args(["metamimic", *argv] if alone else argv)
    if args.command in ALGORITHMS:
        fill(args, ALGORITHMS[args.command].FLAGS)
    return args


COMMANDS = {"demos": demos, "look": look, "eval": measure} | dict.fromkeys(ALGORITHMS, train)


def main(argv=None):
    args = parse(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        COMMANDS[args.command](args)
    except (ValueError, ImportError, OSError, RuntimeError, MemoryError, ArithmeticError) as error:
        raise SystemExit(f"train.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during clean-up: no traceback
