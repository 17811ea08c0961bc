"""MILI's table and figures: train what they need, draw them, and gather the claims.

python -m figures.mili seeds          every run of every seed, one after the other: hours
python -m figures.mili seeds --seed 0        those of one seed; --run mili_64: one of them
python -m figures.mili draw           the figures, results/summary.json, the README's table

A seed is one run of MILI and, from its first policy and its trials, what it is compared with.
Fewer trials are the first of a second run, of 40,000.  `round_1` and the nine after it, of
newer code, are to take the place of those before.
What is in results/mili already is not trained again.  A run leaves its curve (.csv) and its
evaluation on the 40 test tasks, looked at once, with flags, commit, hardware and minutes (.json);
`classroom` that on the validation tasks.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import env
import mili
from figures.common import cell, claim, gather, read, run_once, save, table

RESULTS = Path("results/mili")
SEEDS = 5
ONE_CORE = "--save_minutes 5 --threads 1 --actors 1"
LEARN = f"--updates 6000 --retrain 6000 {ONE_CORE}"
FULL = f"mili --trials 60000 {LEARN}"
THEIRS = "--start runs/mili-{seed}"
SIZES = (10_000, 20_000, 40_000)
SAME = "--start runs/trials_40000-{seed}"
FIRST = {"meta": "mili", "first": "trials_40000"}  # policies, and the runs that begin with them
SHORT, SHARPER = "--updates 5000 --retrain 5000", "--size 64 --memory_gb 7"
ROUND = "--updates 5000 --retrain 3000 --memory_gb 8 --save_minutes 5"
FIRST_ROUND = "--start runs/round_1-{seed}"
BESIDE = f"{SHARPER} {ONE_CORE} --start runs/mili_64-{{seed}}"  # two at a time
RUNS = {
    # images of 64 pixels; MILI with both cores
    "mili_64": f"mili --trials 60000 {SHORT} {SHARPER} --save_minutes 5",
    "oracle_64": f"mili --method oracle --trials 60000 {SHORT} {BESIDE}",
    "random_64": f"mili --method random --trials 60000 {SHORT} {BESIDE}",
    "bc_64": f"mili --method bc {SHORT} {SHARPER} {ONE_CORE}",
    # as many updates more, from the same first policy, of demonstrations alone:
    "longer_64": f"mili --share 0 {SHORT} {BESIDE}",
    # images of 48 pixels
    "mili": FULL,
    "bc": f"{FULL} --method bc",
    # from MILI's first policy and trials:
    "oracle": f"{FULL} --method oracle {THEIRS}",
    "random": f"{FULL} --method random {THEIRS}",
    "trials_40000": f"mili --trials 40000 {LEARN}",
    # the first of those, from the first policy that tried them:
    "trials_20000": f"mili --trials 20000 {LEARN} {SAME}",
    "trials_10000": f"mili --trials 10000 {LEARN} {SAME}",
    # another 20,000 by the policy that these have made, and another by that one:
    "rounds_2": f"mili --trials 20000 --rounds 2 {LEARN} {SAME}",
    "rounds_3": f"mili --trials 20000 --rounds 3 {LEARN} {SAME}",
    # is it the trials?  As many updates more, from the same first policy, of demonstrations alone:
    "longer": f"mili --trials 10000 --share 0 {LEARN} {SAME}",
    # one round of 20,000 trials; what it is compared with; and two more such rounds
    "round_1": f"mili --trials 20000 {ROUND}",
    "oracle_1": f"mili --method oracle --trials 20000 {ROUND} {FIRST_ROUND}",
    "random_1": f"mili --method random --trials 20000 {ROUND} {FIRST_ROUND}",
    "half_1": f"mili --trials 10000 {ROUND} {FIRST_ROUND}",
    "updates_1": f"mili --share 0 {ROUND} {FIRST_ROUND}",  # of demonstrations alone
    "cloning": f"mili --method bc {ROUND}",
    "round_2": "mili --resume runs/round_1-{seed} --rounds 2",
    "round_3": "mili --resume runs/round_1-{seed} --rounds 3",
    "updates_2": "mili --resume runs/updates_1-{seed} --rounds 2",
    "updates_3": "mili --resume runs/updates_1-{seed} --rounds 3",
    # what a class sees, judged on validation tasks
    "classroom": "mili --save_minutes 5",
    # what could trials teach at most (were they of all tasks, and perfect), and how much has
    # departure 9 taught already?
    "all_tasks": f"mili --method meta --tasks 520 --per_task 40 --updates 12000 {ONE_CORE}",
    "plain": f"{FULL} --augment no",
}
NAMES = {"bc": "behaviour cloning", "meta": "meta-imitation", "random": "random pairs",
         "mili": "MILI", "oracle": "oracle pairs", "longer": "no trials, as many updates",
         "all_tasks": "20,800 demonstrations, no trials"}  # fmt: skip
ROUNDS = ("rounds_2", "rounds_3")
PAPER = {f"{name}_success": mili.PAPER[name] for name in ("meta", "mili", "oracle")}
PAPER |= {"mili_relative_gain": "0.368", "mili_over_oracle": "0.97"}


def pairing(folder, _):
    """What became of a run's trials and pairs, if it had any: the last row of its curve."""
    with open(folder / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(last[name]) for name in mili.FACTS if last[name] not in ("", "nan")}


def facts_of(name):
    """Of each seed; a first policy's are those of the run that goes on from it."""
    columns, found = ("success", *env.FAMILIES) if name in FIRST else (), {}
    for fact in read(RESULTS, FIRST.get(name, name))[0]:
        found[fact["seed"]] = fact | {column: fact["meta_" + column] for column in columns}
    return found


def seeds_of(*names):
    """Those that all of these have."""
    return sorted(set.intersection(*(set(facts_of(name)) for name in names)))


def values(name, column, seeds=None):
    facts = facts_of(name)
    return np.array([facts[seed][column] for seed in seeds or facts])


def ready(*names):
    """Three seeds at least that each has: no claim by chance."""
    return len(seeds_of(*names)) >= 3


def title(name):
    """Of a run's claims."""
    return "random_pairing" if name == "random" else name


def claims():
    """What is measured, beside the paper; each with how to measure it again."""
    found = []

    def add(name, run, each, ours=None, seeds=None):
        facts = facts_of(run)
        facts = [facts[seed] for seed in seeds or facts]
        found.append(claim(name, PAPER.get(name), facts, each, ours))

    columns = {"": "success"} | {f"_{family}": family for family in env.FAMILIES}
    for name in filter(ready, NAMES):
        for end, column in columns.items():
            add(f"{title(name)}_success{end}", name, values(name, column))
    for ratio, above, below, less in (
        ("mili_relative_gain", "mili", "meta", 1),
        ("mili_over_oracle", "mili", "oracle", 0),
        ("all_tasks_relative_gain", "all_tasks", "meta", 1),
        ("longer_relative_gain", "longer", "first", 1),
        ("mili_over_longer", "trials_40000", "longer", 0),
    ):
        for end, column in columns.items() if ready(above, below) else ():
            seeds = seeds_of(above, below)
            ours, theirs = (values(name, column, seeds) for name in (above, below))
            if (theirs > 0).all():
                of_means = ours.mean() / theirs.mean() - less
                add(ratio + end, above, ours / theirs - less, of_means, seeds)
    for size in (*SIZES, 60_000):
        run = f"trials_{size}" if size in SIZES else "mili"
        if ready(run):
            add(f"mili_trials_{size}", run, values(run, "success"))
    if ready("plain"):
        after, before = values("plain", "success"), values("plain", "meta_success")
        add("plain_mili_success", "plain", after)
        add("plain_meta_success", "plain", before)
        add("plain_relative_gain", "plain", after / before - 1, after.mean() / before.mean() - 1)
    if ready("classroom"):
        after, before = (values("classroom", k) for k in ("success", "meta_success"))
        add("classroom_meta_success", "classroom", before)
        add("classroom_success", "classroom", after)
        add("classroom_gain", "classroom", after - before)
    for run in filter(ready, ROUNDS):
        add(f"mili_{run}", run, values(run, "success"))
    for column in ("precision", "recall", "kept_precision") if ready("mili") else ():
        add(f"pairing_{column}", "mili", values("mili", column))
    if ready("random"):
        add("random_pairing_precision", "random", values("random", "precision"))
    if ready("mili"):
        add("mili_minutes_two_cores", "mili", values("mili", "minutes"))
    return found


def percent(x):
    return f"{100 * x:.2g} %"


def tables(found):
    """The README's: successes and ratios by family, then the rest."""
    every, ends = {c["claim"]: c for c in found}, ["", *(f"_{name}" for name in env.FAMILIES)]
    head = ["", "paper", "all four", *env.FAMILIES]

    def lines(texts, end=""):
        names = {name + end: text for name, text in texts.items() if name + end in every}
        return [[text, every[name]["paper"] or "", *(cell(every.get(name + e)) for e in ends)]
                for name, text in names.items()]  # fmt: skip

    sizes = [size for size in (*SIZES, 60_000) if f"mili_trials_{size}" in every]
    trials = [cell(every[f"mili_trials_{size}"]) for size in sizes]
    pairs = [[text, cell(every.get(name), percent)] for name, text in PAIRS.items()]
    names = {title(name): text for name, text in NAMES.items()}
    inclass = [["first policy (meta)", cell(every.get("classroom_meta_success")), ""]]
    gained = [cell(every.get(f"classroom_{end}")) for end in ("success", "gain")]
    inclass += [["MILI, 6,000 trials", *gained]]
    return {
        "MILI": table(head, lines(names, "_success") + lines(MORE)),
        "MILI's gain": table(head, lines(RATIOS)),
        "Trials": table(["trials", *(f"{size:,}" for size in sizes)], [["success", *trials]]),
        "Pairs": table(["pairs of trials", ""], pairs),
        "Classroom": table(["", "success", "gain"], inclass),
    }


MORE = {  # not of each family
    "plain_meta_success": "meta-imitation, without augmentation",
    "plain_mili_success": "MILI, without augmentation",
    "mili_rounds_2": "MILI, two rounds of 20,000 trials",
    "mili_rounds_3": "MILI, three rounds of 20,000 trials",
}
RATIOS = {
    "mili_relative_gain": "MILI ÷ its first policies - 1",
    "mili_over_oracle": "MILI ÷ oracle pairs",
    "longer_relative_gain": "no trials, as many updates ÷ their first policies - 1",
    "all_tasks_relative_gain": "20,800 demonstrations ÷ first policies - 1",
    "plain_relative_gain": "MILI ÷ its first policies - 1, without augmentation",
    "mili_over_longer": "MILI, 40,000 trials ÷ no trials, as many updates",
}
PAIRS = {
    "pairing_precision": "more alike than α: show the same task",
    "pairing_recall": "of the same task: more alike than α",
    "pairing_kept_precision": "a trial and one of its eight most alike: show the same task",
    "random_pairing_precision": "at random: show the same task",
}


def standard_error(each):
    return each.std(ddof=1) / np.sqrt(len(each))


def draw_methods():
    """The paper's figure 5: success by family, with standard errors of the mean."""
    figure, axis = plt.subplots(figsize=(9, 3.6))
    columns, names = ("success", *env.FAMILIES), list(filter(ready, NAMES))
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        each = np.array([values(name, column) for column in columns])  # [columns, seeds]
        error = [standard_error(one) for one in each]
        place = np.arange(len(columns)) + (k - (len(names) - 1) / 2) * width
        axis.bar(place, each.mean(1), width, yerr=error, label=NAMES[name], capsize=2)
    axis.set(ylabel="success on unseen test tasks", xticks=range(len(columns)))
    axis.set_xticklabels(["all", *env.FAMILIES])
    axis.grid(axis="y", alpha=0.3)
    axis.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    save(figure, "mili")


def draw_trials():
    """The paper's figure 6: success by how many trials, in one round and in several.

    None: the first policies of those with 40,000, from which all but those with 60,000 come.
    """
    figure, axis = plt.subplots(figsize=(5, 3.4))
    sizes = {size // 1000: f"trials_{size}" for size in SIZES}
    for label, runs in (
        ("one round", {0: "first", **sizes, 60: "mili"}),
        ("rounds of 20,000", {20: "trials_20000", 40: "rounds_2", 60: "rounds_3"}),
    ):
        runs = {thousands: run for thousands, run in runs.items() if ready(run)}
        if len(runs) > 1:
            each = [values(run, "success") for run in runs.values()]
            mean, error = np.transpose([(one.mean(), standard_error(one)) for one in each])
            axis.errorbar(list(runs), mean, error, capsize=3, label=label)
    if ready("longer"):
        label = "none, learned for as long"
        axis.axhline(values("longer", "success").mean(), color="grey", ls=":", label=label)
    axis.set(xlabel="trials, thousands", ylabel="success on unseen test tasks", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, "mili_trials")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["seeds", "draw"])
    parser.add_argument("--run", choices=RUNS, help="of this name alone; default: all")
    parser.add_argument("--seed", type=int, help="one seed alone")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    Path("runs").mkdir(exist_ok=True)
    if args.what == "draw":
        found = claims()
        gather(found, tables(found))
        if found:
            draw_methods()
        if ready(*(f"trials_{size}" for size in SIZES), "mili"):
            draw_trials()
        return
    if not env.demo_folder("demos", "kitchen", "test").exists():
        subprocess.run([sys.executable, "train.py", "demos", "--world", "kitchen"], check=True)
    for seed in range(SEEDS) if args.seed is None else [args.seed]:
        for name in [args.run] if args.run else RUNS:
            command = RUNS[name].format(seed=seed)
            start = command.partition("--start ")[2]
            trained = (RESULTS / f"{name}-{seed}.json").exists()
            if start and not trained and not Path(start, "meta.npy").exists():
                raise SystemExit(
                    f"{name}-{seed} goes on from {start}, which is not here: move "
                    f"results/{RESULTS.name}/{Path(start).name}.* away to train it"
                )
            split = "val" if name == "classroom" else "test"
            run_once(RESULTS, name, command, seed, f"--split {split}", pairing)


if __name__ == "__main__":
    main()
