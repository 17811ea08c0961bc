"""MetaMimic's figures: train what they need, draw them, and gather the claims.

python -m figures.metamimic default   three seeds of `python train.py`, one after the other: minutes
python -m figures.metamimic fig5      10 to 500 demonstrations
python -m figures.metamimic fig6      networks that look at images: reach, from pixels
python -m figures.metamimic fig8      the task policy beside D4PG's
python -m figures.metamimic pixels    reach from pixels, beside features
python -m figures.metamimic lift      lift likewise, one seed: an hour and a half
python -m figures.metamimic draw      the figures, results/summary.json, the README's table

What is in results/metamimic already is not trained again. A run leaves its curve (.csv) and its
evaluation with flags, commit, hardware and minutes (.json).
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

import env
import metamimic
import train as cli
from figures.common import cell, claim, gather, plot, run_once, save, table
from figures.common import read as read_from

RESULTS = Path("results/metamimic")
SEEDS = 3
IN_TURN = "--actors 0"  # acting and learning in turn: two such runs fill two cores best
# figure 8: as many steps for each, and as many updates of D4PG as MetaMimic's task policy has
STEPS = f"{IN_TURN} --steps 1500000 --eval_every 150000"
LIKE_TASK = (
    "--robots 64 --sigma_min 0.02 --sigma_max 0.25 --gamma 0.98 --capacity 1000000 "
    "--updates_per_step 0.049 --lr_end 0.1"
)
IMITATE = f"{IN_TURN} --task_share 0 --task_robots 0 --steps 400000 --eval_every 40000"
SMALL = (  # what images need on two cores, and features likewise, to compare: results/LOG.md
    f"{IN_TURN} --task_share 0 --task_robots 0 --robots 16 --batch 64 --warmup 2000 --amid 0.7 "
    "--updates_per_step 0.1 --capacity 100000 --ahead 4 --beta_body 0.1 --cutoff 0.4 "
    "--deviation 0.1"
)
REACH = f"{SMALL} --task reach --horizon 60 --curriculum 50"
LIFT = f"{SMALL} --task lift --horizon 100 --curriculum 80"
SHORT = "--steps 60000 --eval_every 6000"
MIDDLING = "--steps 150000 --eval_every 15000"
LONG = "--steps 300000 --eval_every 30000"
LONGER = "--steps 800000 --eval_every 40000"
EYES = "--obs pixels --size 48 --dial"
NETWORKS = {"impala": "small (IMPALA)", "large_without_norm": "large",
            "large": "large, instance normalisation"}  # fmt: skip
POLICIES = {"d4pg": ("D4PG", "C2"), "d4pg_curriculum": ("D4PG + curriculum", "C4"),
            "d4pgfd": ("D4PGfD", "C3"), "metamimic": ("MetaMimic", "C0"),
            "metamimic_curriculum": ("MetaMimic + curriculum", "C1")}  # fmt: skip
RUNS = {  # figure: {name: command of train.py}
    "default": {"default": "metamimic"},
    "fig5": {
        f"fig5_{count}": f"metamimic {IMITATE} --demonstrations {count}"
        for count in (10, 50, 100, 500)
    },
    "fig6": {
        f"fig6_{network}": f"metamimic {REACH} {SHORT} {EYES} 0.125 --network {network}"
        for network in NETWORKS
    },
    "fig8": {
        "metamimic": f"metamimic {STEPS} --amid 0",
        "metamimic_curriculum": f"metamimic {STEPS}",
        "d4pg": f"d4pg {STEPS} {LIKE_TASK}",
        "d4pg_curriculum": f"d4pg {STEPS} {LIKE_TASK} --curriculum 135",
        "d4pgfd": f"d4pg {STEPS} {LIKE_TASK} --fd 500",
    },
    "pixels": {
        "pixels_reach": f"metamimic {REACH} {LONG} {EYES} 0.25",
        "features_reach": f"metamimic {REACH} {MIDDLING}",
    },
    "lift": {
        "pixels_lift": f"metamimic {LIFT} {LONGER} {EYES} 0.25",
        "features_lift": f"metamimic {LIFT} {LONGER}",
    },
}


def read(name):
    return read_from(RESULTS, name)


def frames_to_stack(folder, seed, count=200):
    """Figure 7: the task policy and the demonstrator, from the same initial states."""
    config = SimpleNamespace(**cli.read_config(folder))
    run, _ = cli.read_run(folder, config)
    demos = run.aids[0]
    rewards, _ = metamimic.rollout(run.config, run.nets(), demos, 0, count)
    theirs = metamimic.task_rewards(run.config, demos, count)
    frames = np.stack([metamimic.first_solved(r) for r in (rewards, theirs)], 1)
    path = RESULTS / f"fig7-{seed}.csv"
    np.savetxt(path, frames, "%g", ",", header="task policy,demonstration", comments="")
    if seed == 0:
        cli.save_picture(Path("results/fig7.gif"), cli.film(run, demos, 0, 4))
        cli.save_picture(Path("results/imitation.gif"), cli.film_imitation(config, run))


def draw_default():
    """The run of the README: minutes from nothing to better than the demonstrators."""
    _, curves = read("default")
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    labels = {"train": "A (training)", "val": "B (never seen)", "policy": "task policy"}
    titles = {
        "ratio": "one-shot imitation, part of their reward",
        "reward": "imitation reward a step (eq. 2)",
        "task": "task policy, part of A's reward",
    }
    for axis, (what, title) in zip(axes, titles.items()):
        both = [f"imitation_{people}_{what}" for people in ("train", "val")]
        columns = ["task_policy_ratio"] if what == "task" else both
        for colour, column in enumerate(columns):
            label = labels[column.split("_")[1]]
            plot(axis, curves, "seconds", column, label, f"C{colour}")
        axis.set(title=title, xlabel="minutes on two cores", ylim=(0, None))
        axis.title.set_fontsize(10)
        axis.legend(loc="lower right")
    axes[0].axhline(0.52, color="C1", linestyle=":", linewidth=1)  # the paper's
    axes[2].axhline(1.5, color="C0", linestyle=":", linewidth=1)
    save(figure, "metamimic")


def draw_fig5(_):
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), sharex=True, sharey="row")
    for j, people in enumerate(("train", "val")):
        for i, what in enumerate(("ratio", "reward")):
            for colour, count in enumerate((10, 50, 100, 500)):
                _, curves = read(f"fig5_{count}")
                column = f"imitation_{people}_{what}"
                plot(axes[i, j], curves, "steps", column, f"{count}", f"C{colour}")
        axes[0, j].set_title(f"{people}: demonstrations of {'A' if people == 'train' else 'B'}")
        axes[1, j].set_xlabel("environment steps, millions")
    axes[0, 0].set_ylabel("task reward, part of theirs")
    axes[1, 0].set_ylabel("imitation reward a step")
    axes[0, 0].legend(title="demonstrations", loc="lower right")
    save(figure, "fig5")


def draw_fig6(_):
    """Networks that look at images, on demonstrations never seen."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    titles = {"imitation_val_ratio": "task reward, part of B's",
              "tracking_seen_val": "tracking of pixels (eq. 2)",
              "tracking_body_val": "tracking of the body (eq. 2)"}  # fmt: skip
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for colour, (network, label) in enumerate(NETWORKS.items()):
            _, curves = read(f"fig6_{network}")
            plot(axis, curves, "steps", column, label, f"C{colour}")
        axis.set(title=title, xlabel="environment steps, millions", ylim=(0, None))
        axis.title.set_fontsize(10)
    axes[0].legend(loc="upper left")
    save(figure, "fig6")


def draw_fig7(_):
    """Frames until the blocks are stacked, from the same initial states."""
    tables = [np.loadtxt(p, delimiter=",", skiprows=1) for p in sorted(RESULTS.glob("fig7-*.csv"))]
    figure, axis = plt.subplots(figsize=(6, 3.2))
    for k, label in enumerate(("task policy", "demonstrations (A)")):
        frames = np.concatenate([table[:, k] for table in tables])
        axis.hist(frames[np.isfinite(frames)], np.arange(0, 201, 5), alpha=0.6, label=label,
                  weights=np.full(np.isfinite(frames).sum(), 100 / len(frames)))  # fmt: skip
    axis.set(xlabel="frames until stacked", ylabel="episodes, %")
    axis.legend()
    save(figure, "fig7")


def draw_fig8(reward):
    figure, axis = plt.subplots(figsize=(7, 4.5))
    axis.axhline(1, color="gray", label="demonstrations (A)")
    for name, (label, colour) in POLICIES.items():
        _, column, _ = CLAIMS[f"{name}_ratio"]
        scale = 1 / reward if column == "eval_return" else 1
        plot(axis, read(name)[1], "steps", column, label, colour, scale)
    axis.set(
        xlabel="environment steps, millions", ylabel="task reward, part of A's", ylim=(0, None)
    )
    axis.legend()
    save(figure, "fig8")


def draw_pixels(_):
    """Reach, three seeds, and lift, one, from images, beside features."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 6.4))
    titles = {"imitation_val_ratio": "task reward, part of B's",
              "imitation_val_reward": "imitation reward a step (eq. 2)"}  # fmt: skip
    for row, task in zip(axes, ("reach", "lift"), strict=True):
        for axis, (column, title) in zip(row, titles.items(), strict=True):
            for colour, eyes in enumerate(("features", "pixels")):
                plot(axis, read(f"{eyes}_{task}")[1], "steps", column, eyes, f"C{colour}")
            axis.set(title=f"{task}: {title}", ylim=(0, None))
            axis.title.set_fontsize(10)
        row[0].legend(loc="lower right")
    for axis in axes[1]:
        axis.set_xlabel("environment steps, millions")
    save(figure, "pixels")


DEFAULT = "default"
CLAIMS = {  # claim: (run, number of its evaluation, the paper's)
    "imitation_train_ratio": (DEFAULT, "imitation_train_ratio", "0.67 to 0.81"),
    "imitation_val_ratio": (DEFAULT, "imitation_val_ratio", "0.52"),
    "imitation_val_reward": (DEFAULT, "imitation_val_reward", None),
    "stack_success_val": (DEFAULT, "stack_success_val", None),
    "task_policy_ratio": (DEFAULT, "task_policy_ratio", "1.5"),
    "task_policy_frames_to_stack": (DEFAULT, "task_policy_frames_to_stack", "50"),
    "demo_frames_to_stack": (DEFAULT, "demo_frames_to_stack", "200"),
    **{
        f"fig5_{count}_{people}": (f"fig5_{count}", f"imitation_{people}_ratio", paper)
        for count in (10, 50, 100, 500)
        for people, paper in (("train", "0.67 to 0.81"), ("val", "0.52" if count == 500 else None))
    },
    "d4pg_ratio": ("d4pg", "eval_return", "far below 1"),
    "d4pg_curriculum_ratio": ("d4pg_curriculum", "eval_return", "as MetaMimic"),
    "d4pgfd_ratio": ("d4pgfd", "eval_return", "as MetaMimic"),
    "metamimic_ratio": ("metamimic", "task_policy_ratio", "1.5"),
    "metamimic_curriculum_ratio": ("metamimic_curriculum", "task_policy_ratio", "best of all"),
    **{
        f"fig6_{network}_{what}": (f"fig6_{network}", column, None)
        for network in NETWORKS
        for what, column in (
            ("val", "imitation_val_ratio"),
            ("seen", "tracking_seen_val"),
            ("body", "tracking_body_val"),
        )
    },
    **{
        f"pixels_reach_{what}": ("pixels_reach", f"imitation_{what}", None)
        for what in ("train_ratio", "val_ratio", "val_reward")
    },
    "pixels_reach_from_features_val_ratio": ("features_reach", "imitation_val_ratio", None),
}


TEXTS = {  # of the README's first table
    "imitation_train_ratio": "copies of A's demonstrations (training): task reward ÷ theirs",
    "imitation_val_ratio": "copies of B's (unseen): task reward ÷ theirs",
    "imitation_val_reward": "copies of B's: imitation reward (eq. 2) a step, of 1",
    "stack_success_val": "copies of B's that stack",
    "task_policy_ratio": "task policy, from A's initial states: task reward ÷ A's",
    "task_policy_frames_to_stack": "task policy: frames until stacked",
    "demo_frames_to_stack": "A's demonstrations: frames until stacked",
}


def claims(reward):
    """What is measured, beside the paper; each with how to measure it again."""
    found = []
    for name, (run, column, paper) in CLAIMS.items():
        facts, _ = read(run)
        if len(facts) < SEEDS:  # no claim by chance
            continue
        scale = 1 / reward if column == "eval_return" else 1
        values = scale * np.array([fact[column] for fact in facts], float)
        found.append(claim(name, paper, facts, values))
    return found


def tables(found):
    """The README's."""
    every = {c["claim"]: c for c in found}
    cells = lambda *names: [cell(every.get(name)) for name in names]
    paper = lambda name: CLAIMS[name][2] or ""
    lines = [[text, paper(name), *cells(name)] for name, text in TEXTS.items()]
    sizes = [[n, *cells(f"fig5_{n}_train", f"fig5_{n}_val")] for n in (10, 50, 100, 500)]
    sizes.append(["the paper", paper("fig5_500_train"), paper("fig5_500_val")])
    networks = [[text, *cells(*(f"fig6_{name}_{what}" for what in ("val", "seen", "body")))]
                for name, text in NETWORKS.items()]  # fmt: skip
    ratios = {f"{name}_ratio": text for name, (text, _) in POLICIES.items()}
    policies = [[text, paper(name), *cells(name)] for name, text in ratios.items()]
    reach = [f"pixels_reach_{what}" for what in ("train_ratio", "val_ratio", "val_reward")]
    eyes = [["images", *cells(*reach)],
            ["features", "", *cells("pixels_reach_from_features_val_ratio"), ""]]  # fmt: skip
    copies = ["copies of A's (training)", "copies of B's (unseen)"]
    return {
        "MetaMimic": table(["", "paper", "here"], lines),
        "Figure 5": table(["demonstrations", *copies], sizes),
        "Figure 6": table(["network", "task reward ÷ B's", "eq. 2, image", "body"], networks),
        "Figure 8": table(["", "paper", "task reward ÷ A's"], policies),
        "Reach": table(["policies see", *copies, "imitation reward, B's"], eyes),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*RUNS, "draw"])
    what = parser.parse_args().what
    RESULTS.mkdir(parents=True, exist_ok=True)
    Path("runs").mkdir(exist_ok=True)
    folder = env.demo_folder("demos", "stack", "A")
    if not folder.exists():
        subprocess.run([sys.executable, "train.py", "demos"], check=True)
    if what == "draw":
        made = env.load_demos(folder, "stack", ("rewards",))
        theirs = np.mean([demo["rewards"].sum() for demo in made])
        found = claims(theirs)
        gather(found, tables(found))
        draw_default()
        last = {
            draw_fig5: "fig5_500",
            draw_fig6: "fig6_large",
            draw_fig7: "fig7",
            draw_fig8: "d4pgfd",
            draw_pixels: "pixels_reach",
        }
        for draw, run in last.items():
            if len(list(RESULTS.glob(f"{run}-*.csv"))) >= SEEDS:
                draw(theirs)
        return
    seeds = range(1 if what == "lift" else SEEDS)
    jobs = [(name, command, seed) for seed in seeds for name, command in RUNS[what].items()]
    after = frames_to_stack if what == "default" else None
    with ThreadPoolExecutor(1 if what == "default" else 2) as pool:
        list(pool.map(lambda job: run_once(RESULTS, *job, after=after), jobs))


if __name__ == "__main__":
    main()
