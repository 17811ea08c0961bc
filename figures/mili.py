"""MILI's table and figures: train what they need, draw them, and gather the claims.

python -m figures.mili seeds          every run of every seed, one after the other: hours
python -m figures.mili seeds --seed 0        those of one seed
python -m figures.mili draw           the figures, results/summary.json, the README's table

A seed is one run of MILI and, from its first policy and its trials, what it is compared with.
What is in results/mili already is not trained again.  A run leaves its curve (.csv) and its
evaluation on the 40 test tasks, looked at once, with flags, commit, hardware and minutes (.json).
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import env
import mili
from figures.common import claim, gather, read, run_once, save

RESULTS = Path("results/mili")
SEEDS = 5
LEARN = "--updates 6000 --retrain 6000 --save_minutes 5 --threads 1 --actors 1"
FULL = f"mili --trials 60000 {LEARN}"
THEIRS = "--start runs/mili-{seed}"
SIZES = (10_000, 20_000, 40_000)
RUNS = {  # in this order: all but the first two begin where MILI's trials end
    "mili": FULL,
    "bc": f"{FULL} --method bc",
    "oracle": f"{FULL} --method oracle {THEIRS}",
    "random": f"{FULL} --method random {THEIRS}",
    **{f"trials_{size}": f"mili --trials {size} {LEARN} {THEIRS}" for size in SIZES},
    "rounds_3": f"mili --trials 20000 --rounds 3 {LEARN} {THEIRS}",  # as many trials as one of 60
}
NAMES = {"bc": "behaviour cloning", "meta": "meta-imitation", "random": "random pairs",
         "mili": "MILI", "oracle": "oracle pairs"}  # fmt: skip
PAPER = {"mili_success": "0.327", "meta_success": "0.239", "oracle_success": "0.337"}
PAPER |= {"mili_relative_gain": "0.368", "mili_over_oracle": "0.97"}


def pairing(folder, _):
    """What became of a run's trials and pairs: the last row of its curve."""
    with open(folder / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(last[name]) for name in mili.FACTS}


def values(name, column):
    """Of each seed of a run, meta-imitation being what MILI's is before its trials."""
    run, prefix = ("mili", "meta_") if name == "meta" else (name, "")
    return np.array([fact[prefix + column] for fact in read(RESULTS, run)[0]])


def claims():
    """What is measured, beside the paper; each with how to measure it again."""
    found, seeds = [], {run: read(RESULTS, run)[0] for run in RUNS}
    if any(len(facts) < 3 for facts in seeds.values()):  # no claim by chance
        return found
    own = lambda name: seeds["mili" if name == "meta" else name]

    def add(name, run, each, ours=None):
        found.append(claim(name, PAPER.get(name), own(run), each, ours))

    for name in NAMES:
        title = "random_pairing" if name == "random" else name
        add(f"{title}_success", name, values(name, "success"))
        for family in env.FAMILIES:
            add(f"{title}_success_{family}", name, values(name, family))
    for column in ("success", *env.FAMILIES):
        ours, meta, oracle = (values(name, column) for name in ("mili", "meta", "oracle"))
        end = "" if column == "success" else f"_{column}"
        if (meta > 0).all() and (oracle > 0).all():
            add(f"mili_relative_gain{end}", "mili", ours / meta - 1, ours.mean() / meta.mean() - 1)
            add(f"mili_over_oracle{end}", "oracle", ours / oracle, ours.mean() / oracle.mean())
    for size in (*SIZES, 60_000):
        run = f"trials_{size}" if size in SIZES else "mili"
        add(f"mili_trials_{size}", run, values(run, "success"))
    add("mili_rounds_3", "rounds_3", values("rounds_3", "success"))
    for column in ("precision", "recall", "kept_precision"):
        add(f"pairing_{column}", "mili", values("mili", column))
    add("mili_minutes_two_cores", "mili", values("mili", "minutes"))
    return found


def draw_methods():
    """The paper's figure 5: success by family, with standard errors of the mean."""
    figure, axis = plt.subplots(figsize=(9, 3.6))
    columns, width = ("success", *env.FAMILIES), 0.16
    for k, (name, label) in enumerate(NAMES.items()):
        each = np.array([values(name, column) for column in columns])  # [columns, seeds]
        error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
        place = np.arange(len(columns)) + (k - 2) * width
        axis.bar(place, each.mean(1), width, yerr=error, label=label, capsize=2)
    axis.set(ylabel="success on unseen test tasks", xticks=range(len(columns)))
    axis.set_xticklabels(["all", *env.FAMILIES])
    axis.grid(axis="y", alpha=0.3)
    axis.legend(ncols=5, fontsize=8)
    save(figure, "mili")


def draw_trials():
    """The paper's figure 6: more trials are better."""
    figure, axis = plt.subplots(figsize=(5, 3.4))
    runs = ["meta", *(f"trials_{size}" for size in SIZES), "mili"]
    each = np.array([values(run, "success") for run in runs])  # [sizes, seeds]
    error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
    sizes = [0, *(size / 1000 for size in SIZES), 60]
    axis.errorbar(sizes, each.mean(1), error, capsize=3, label="one round")
    each = values("rounds_3", "success")
    error = each.std(ddof=1) / np.sqrt(len(each))
    axis.errorbar([60], each.mean(), error, capsize=3, fmt="o", label="three rounds of 20")
    axis.legend()
    axis.set(xlabel="trials, thousands", ylabel="success on unseen test tasks", ylim=(0, None))
    axis.grid(alpha=0.3)
    save(figure, "mili_trials")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["seeds", "draw"])
    parser.add_argument("--seed", type=int, help="one seed alone")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    Path("runs").mkdir(exist_ok=True)
    if args.what == "draw":
        found = claims()
        gather(found, "MILI")
        if found:
            draw_methods()
            draw_trials()
        return
    for seed in range(SEEDS) if args.seed is None else [args.seed]:
        for name, command in RUNS.items():
            command = command.format(seed=seed)
            run_once(RESULTS, name, command, seed, "--split test", pairing)


if __name__ == "__main__":
    main()
