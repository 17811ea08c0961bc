"""The command line.

python train.py                          make demonstrations of both people and show them
python train.py demos --world kitchen    make demonstration files
python train.py look --out look.gif      show a world: A beside B, or each family of tasks
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

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


COMMANDS = {"demos": demos, "look": look}


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description="MetaMimic and MILI in seven readable files.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "command",
        nargs="?",
        choices=list(COMMANDS),
        help="demos: make files; look: draw a picture; nothing: both",
    )
    add(
        "--world",
        choices=list(env.WORLDS),
        default="stack",
        help="stack: MetaMimic's; kitchen: MILI's",
    )
    add("--demos", default="demos", metavar="DIR", help="folder of demonstration files")
    add(
        "--count",
        type=int,
        metavar="N",
        help="demonstrations of each person (500) or kitchen task (paper: 4)",
    )
    add(
        "--horizon",
        type=int,
        default=200,
        metavar="T",
        help="steps of a stacking episode (paper: some 600)",
    )
    add("--seed", type=int, default=0, help="of everything that is drawn at random")
    add("--processes", type=int, default=2, metavar="P", help="that make demonstrations")
    add("--size", type=int, default=128, help="of pictures, in pixels (papers: 128 and 100)")
    add("--out", default="look.gif", metavar="FILE", help="picture to write, .gif or .png")
    args = parser.parse_args(argv)
    for flag in ("count", "processes"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            parser.error(f"--{flag} is {value}; expected 1 or more")
    return args


def main(argv=None):
    args = parse(argv)
    try:
        for command in [args.command] if args.command else COMMANDS:
            COMMANDS[command](args)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"train.py: {error}") from None


if __name__ == "__main__":
    main()
