"""The command line.

python train.py                          make demonstrations of both people and show them
python train.py demos --world kitchen    make demonstration files
python train.py look --out look.gif      show a world: A beside B, or each family of tasks
python train.py d4pg --task reach        train D4PG; --help after any command shows its flags
python train.py d4pg --resume runs/reach go on with a run that was stopped, or killed

A run is a folder: config.json, metrics.csv, and the last two checkpoints, memory included.
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

if __name__ == "__main__":  # while the rest is imported, Ctrl-C ends the process without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import env


def demos(args):
    """Demonstration files: in the stack world A's and B's, in the kitchen those of each split."""
    for by in env.PEOPLE if args.world == "stack" else env.SPLITS:
        folder = env.demo_folder(args.demos, args.world, by, args.horizon)
        count = args.count or (500 if args.world == "stack" else 4)
        env.make_demos(folder, args.world, by, count, args.seed, args.horizon, args.processes)
        if args.world == "stack":
            made = env.load_demos(folder, "stack", ("rewards",), count)
            rewards = np.stack([demo["rewards"] for demo in made])  # [demos, T]
            stacked = rewards[:, -1] == 1
            frame = [np.flatnonzero(r != 1)[-1] + 2 for r in rewards[stacked]]  # and so it stays
            print(
                f"{by}: {len(made)} demonstrations in {folder}, "
                f"return {rewards.sum(1).mean():.1f} +- {rewards.sum(1).std():.1f}, "
                f"stacked {100 * stacked.mean():.1f} %, "
                f"at frame {np.mean(frame or [np.nan]):.1f} +- {np.std(frame or [np.nan]):.1f}"
            )
        else:
            print(f"{by}: {len(list(folder.glob('*.npz')))} demonstrations in {folder}")


def look(args):
    """A moving picture (.gif) or a sheet of moments (.png) of a world and its demonstrators."""
    out = Path(args.out)
    env.check(out.suffix in (".gif", ".png"), f"--out is {out}; it ends in .gif or .png")
    if args.world == "stack":
        films = [film_stack(by, args) for by in env.PEOPLE]
    else:
        films = film_kitchen(args)
    length = max(map(len, films))
    films = [np.concatenate([f, np.repeat(f[-1:], length - len(f), 0)]) for f in films]
    save_picture(out, np.stack(films))
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
    """A film for each family, of a test task."""
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


def save_picture(path, films):
    """Films side by side, [films, frames, size, size, 3], as a .gif, or eight moments as a .png."""
    try:
        from PIL import Image
    except ImportError:
        message = "pictures need Pillow, which matplotlib brings: pip install matplotlib"
        raise ImportError(message) from None
    if path.suffix == ".gif":
        frames = [
            Image.fromarray(np.concatenate(list(moment), 1)) for moment in films.swapaxes(0, 1)
        ]
        rest = {"save_all": True, "append_images": frames[1:], "duration": 100, "loop": 0}
        env.write_atomically(path, lambda file: frames[0].save(file, "gif", **rest))
    else:
        moments = np.linspace(0, films.shape[1] - 1, 8).astype(int)
        sheet = np.concatenate([np.concatenate(list(film[moments]), 1) for film in films])
        env.write_atomically(path, lambda file: Image.fromarray(sheet).save(file, "png"))


# --------------------------------------------------------------------------------------------
# Runs: their folders, checkpoints and logs
# --------------------------------------------------------------------------------------------


def train(args):
    """Train until all steps are taken, --minutes are over, or Ctrl-C: then save."""
    config, folder = open_run(args)
    tensorboard = summary_writer() if args.tensorboard else None
    for name in RUN_FLAGS:
        value = getattr(config, name)
        env.check(0 <= value < 1e9, f"--{name} is {value}; expected a number from 0")
    clock, run = time.monotonic(), ALGORITHMS[config.algorithm](config)  # bad input ends here
    size, count = run.items.bytes / 1e9, config.capacity
    tqdm.write(f"{folder}: {count:,} items will take {size:.2f} GB of shared memory")
    run.take()
    with only_user(folder), Stop() as stop:
        try:
            state = load_newest(folder) if args.resume else None
            if state and int(state["board"]["steps"].sum()) >= config.steps:
                raise ValueError(f"--steps {config.steps} are taken; raise --steps to go on")
            text = json.dumps(vars(config), indent=1)
            env.write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
            log = Log(folder, tensorboard, state)
            run.start(state)
            log.latest = {"steps": run.steps, "updates": run.updates}
            loop(run, folder, log, config, stop, clock)
        finally:
            run.close()
    print(f"{folder}: {run.steps:,} steps, {run.updates:,} updates, {final(folder)}")


def loop(run, folder, log, config, stop, clock):
    """Rounds of acting and learning, with a row, an evaluation or a checkpoint when it is time."""
    bar = tqdm(total=config.steps, initial=run.steps, unit="step", smoothing=0.05, mininterval=0.5)
    saved, minutes = time.monotonic(), config.minutes
    with bar:
        while True:
            now = time.monotonic()
            ended = run.finished() or 0 < minutes < (now - clock) / 60
            if run.steps >= log.next_row or (ended and run.steps > log.last):
                row = log.row(run, config, now - clock, ended, stop)
                shown = {k: row[k] for k in ("return", "eval_return", "updates_per_s") if k in row}
                bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items() if v == v})
            if ended or stop.asked:
                break
            run.round()
            bar.update(run.steps - bar.n)
            if now - saved > 60 * config.save_minutes:
                save(folder, run, log)
                saved = time.monotonic()
    save(folder, run, log)


def final(folder):
    with open(folder / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["eval_return"] not in ("", "nan")]
    return f"return {float(rows[-1]['eval_return']):.4g}" if rows else "never evaluated"


OURS = ("config.json", "metrics.csv", "lock")  # what a run has before its first checkpoint


def open_run(args):
    """The configuration, of a new folder or of the run that is to go on."""
    names = {**d4pg.FLAGS, **RUN_FLAGS}
    if args.resume is None:
        config = {"algorithm": args.command} | {name: getattr(args, name) for name in names}
        name = config["env"].split(":")[-1].replace("/", "-")
        name = config["task"] if name == "stack" else name
        folder = Path(args.out or f"runs/{args.command}-{name}-{config['seed']}")
        env.check(folder.is_dir() or not folder.exists(), f"--out {folder} is no folder")
        there = list(folder.iterdir()) if folder.exists() else []
        taken = any(p.name not in OURS and p.suffix != ".part" for p in there)
        env.check(
            not taken, f"{folder} is not empty: --resume {folder} goes on, --out takes another"
        )
        return SimpleNamespace(**config), folder
    folder = Path(args.resume)
    path = folder / "config.json"
    env.check(args.out is None, "--resume goes on in its own folder; leave out --out")
    env.check(args.resume and path.exists(), f"--resume {folder}: there is no run")
    try:
        config = json.loads(path.read_text())
        good = config["algorithm"] in ALGORITHMS
        good = good and all(type(config[n]) is type(getattr(args, n)) for n in names)
    except (ValueError, KeyError, TypeError):
        good = False
    env.check(good, f"{path} is damaged, or of another version")
    env.check(config["algorithm"] == args.command, f"{folder} is a run of {config['algorithm']}")
    for name in args.given & set(names):
        good = name in MAY_CHANGE or config[name] == getattr(args, name)
        env.check(good, f"--{name} is {config[name]} in {folder}; begin a new run instead")
        config[name] = getattr(args, name)
    return SimpleNamespace(**config), folder


@contextlib.contextmanager
def only_user(folder):
    """A run has one user; the lock goes with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder} is in use by another process") from None
        yield


class Stop:
    """Ctrl-C: the first asks to stop and save, the second leaves at once."""

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
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("--tensorboard needs: pip install tensorboard") from None
    return SummaryWriter


class Log:
    """metrics.csv, and TensorBoard if asked for."""

    NAMES = ("steps", "updates", "ratio", "episodes", "return", *d4pg.METRICS, "eval_return",
             "eval_std", "steps_per_s", "updates_per_s", "seconds")  # fmt: skip

    def __init__(self, folder, tensorboard, state=None):
        self.path, state = folder / "metrics.csv", (state or {}).get("log", {})
        self.rows, self.seconds = state.get("rows", 0), state.get("seconds", 0.0)
        self.before = self.seconds  # of training, in earlier parts of the run
        self.next_row, self.next_eval = state.get("next_row", 0), state.get("next_eval", 0)
        self.last = state.get("last", -1)  # steps at the last row
        there = self.rows and self.path.exists()
        lines = self.path.read_text().splitlines()[1 : 1 + self.rows] if there else []
        text = "\n".join([",".join(self.NAMES), *lines, ""])  # without rows after the checkpoint
        env.write_atomically(self.path, lambda file: file.write(text.encode()))
        self.then, self.latest, self.board = 0.0, {"steps": 0, "updates": 0}, None
        if tensorboard:
            self.board = tensorboard(folder)

    def state(self):
        return {k: getattr(self, k) for k in ("rows", "seconds", "next_row", "next_eval", "last")}

    def row(self, run, config, seconds, ended, stop):
        """Write what has been since the last row, with an evaluation if it is time."""
        returns = None
        if run.steps >= self.next_eval or ended:
            returns = run.evaluate(config.eval_episodes, stop)
            if returns is None:  # Ctrl-C: this row is written when the run goes on
                return {}
        row = run.row()
        self.last, self.next_row = (
            row["steps"],
            (run.steps // config.log_every + 1) * config.log_every,
        )
        for name, before in self.latest.items():
            row[f"{name}_per_s"] = (row[name] - before) / (seconds - self.then)
        self.then, self.latest = seconds, {name: row[name] for name in self.latest}
        if returns is not None:
            self.next_eval = (run.steps // config.eval_every + 1) * config.eval_every
            row |= {"eval_return": returns.mean(), "eval_std": returns.std()}
        row["seconds"] = self.seconds = self.before + seconds
        try:
            with open(self.path, "a") as file:
                csv.DictWriter(file, self.NAMES, lineterminator="\n").writerow(row)
        except OSError as error:
            raise OSError(f"{self.path} could not be written: {error.strerror}") from None
        self.rows += 1
        for name, value in row.items() if self.board else ():
            self.board.add_scalar(name, value, row["steps"])
        return row


def save(folder, run, log):
    """A checkpoint, whole or not at all; the last two stay."""
    state = tensors(run.state() | {"log": log.state(), "version": VERSION})
    path = folder / f"step{run.steps:012d}.pt"
    try:
        env.write_atomically(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when the disk is full
        raise OSError(f"{path} could not be written ({error}); those before it are whole") from None
    for old in sorted(folder.glob("step*.pt"))[:-2]:
        old.unlink()


def load_newest(folder):
    """The newest checkpoint that is whole; those that are not are named, and set aside."""
    for left in folder.glob(".*.part"):  # of a save that was killed
        left.unlink()
    paths = sorted(folder.glob("step*.pt"), reverse=True)
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load looks at no checksum
                env.check(archive.testzip() is None, "a checksum is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
            env.check(set(state) >= {"version", "agent", "board", "log"}, "it is no checkpoint")
        except (MemoryError, PermissionError) as error:  # not the file's fault
            raise OSError(f"{path} could not be read: {error}") from None
        except Exception as error:  # whatever a damaged file makes the readers stumble over
            fault = " ".join(str(error).split())[:120] or type(error).__name__
            tqdm.write(f"{path} is damaged, the one before it is used: {fault}")
            path.rename(path.with_suffix(".damaged"))
        else:
            good = state["version"] == VERSION
            env.check(good, f"{path} is of version {state['version']}; here it is {VERSION}")
            return {k: v if k == "agent" else arrays(v) for k, v in state.items()}
    env.check(not paths, f"no checkpoint of {folder} could be read; --out begins a new run")
    tqdm.write(f"{folder} has no checkpoint yet: it begins anew")
    return None


def tensors(tree):
    """Arrays as tensors, which torch saves and loads without executing anything."""
    if isinstance(tree, dict):
        return {key: tensors(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(tree))
    return tree.item() if isinstance(tree, np.generic) else tree


def arrays(tree):
    """The other way."""
    if isinstance(tree, dict):
        return {key: arrays(value) for key, value in tree.items()}
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree


VERSION = 1  # of checkpoints
RUN_FLAGS = {  # name: (what it is, default)
    "minutes": ("of training at most; 0: until all steps are taken", 0.0),
    "save_minutes": ("between checkpoints", 5.0),
}
MAY_CHANGE = ("steps", "minutes", "save_minutes", "device", "log_every", "eval_every")
PRESETS = ("tiny", "classroom", "paper")
ALGORITHMS = {"d4pg": d4pg.Run}


# --------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------


def add_algorithm(commands, name, text, flags):
    """A command with one typed flag for each of an algorithm's numbers."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="classroom", help="values of the rest")
    parser.add_argument("--out", metavar="RUN", help="folder of the run; runs/NAME if not told")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    parser.add_argument("--tensorboard", action="store_true", help="write for TensorBoard, too")
    for flag, (what, *values) in flags.items():
        kind = type(values[1])
        parser.add_argument(
            f"--{flag}", type=kind, choices=d4pg.CHOICES.get(flag),
            metavar=None if flag in d4pg.CHOICES else kind.__name__.upper(),
            help=f"{what} (tiny {values[0]}, classroom {values[1]}, paper {values[2]})",
        )  # fmt: skip
    for flag, (what, value) in RUN_FLAGS.items():
        parser.add_argument(f"--{flag}", type=type(value), metavar="M", help=f"{what} ({value})")


def fill(args, flags):
    """What was not given comes from the preset."""
    args.given = {name for name, value in vars(args).items() if value is not None}
    for flag, (_, *values) in flags.items():
        if flag not in args.given:
            setattr(args, flag, values[PRESETS.index(args.preset)])
    for flag, (_, value) in RUN_FLAGS.items():
        if flag not in args.given:
            setattr(args, flag, value)
    if args.env != "stack" and "horizon" not in args.given:
        args.horizon = 0  # an environment of another library has a limit of its own


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description="MetaMimic and MILI in seven readable files.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    worlds = argparse.ArgumentParser(add_help=False)
    add = worlds.add_argument
    choices = list(env.WORLDS)
    add("--world", choices=choices, default="stack", help="stack: MetaMimic's; kitchen: MILI's")
    add("--demos", default="demos", metavar="DIR", help="folder of demonstration files")
    add("--count", type=int, metavar="N",
        help="demonstrations of each person (500) or kitchen task (paper: 4)")  # fmt: skip
    add("--horizon", type=int, default=200, metavar="T",
        help="steps of a stacking episode (paper: some 600)")  # fmt: skip
    add("--seed", type=int, default=0, help="of everything that is drawn at random")
    add("--processes", type=int, default=2, metavar="P", help="that make demonstrations")
    add("--size", type=int, default=128, help="of pictures, in pixels (papers: 128 and 100)")
    add("--out", default="look.gif", metavar="FILE", help="picture to write, .gif or .png")
    for name, text in (("demos", "make demonstration files"), ("look", "draw a picture")):
        commands.add_parser(name, help=text, parents=[worlds], allow_abbrev=False)
    add_algorithm(
        commands, "d4pg", "train D4PG, D4PGfD (--fd), either with --curriculum", d4pg.FLAGS
    )
    argv = sys.argv[1:] if argv is None else list(argv)
    alone = not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help"))
    args = parser.parse_args(["look", *argv] if alone else argv)
    args.command = None if alone else args.command
    if args.command in ALGORITHMS:
        fill(args, d4pg.FLAGS)
    for flag in ("count", "processes"):
        value = getattr(args, flag, None)
        if value is not None and value < 1:
            parser.error(f"--{flag} is {value}; expected 1 or more")
    return args


COMMANDS = {"demos": demos, "look": look, "d4pg": train}


def main(argv=None):
    args = parse(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for command in [args.command] if args.command else ("demos", "look"):
            COMMANDS[command](args)
    except (ValueError, ImportError, OSError, RuntimeError, MemoryError, ArithmeticError) as error:
        raise SystemExit(f"train.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an impatient Ctrl-C ends the cleaning-up
