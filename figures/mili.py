"""MILI's table and figures: train what they need, draw them, and gather the claims.

python -m figures.mili seeds          every run of seeds 0 to 4, one after the other: hours
python -m figures.mili seeds --seed 0        those of one seed; --run round_1: one of them
python -m figures.mili draw           the figures, results/summary.json, the README's table

A seed is one run of MILI and, from its first policy and its trials, what it is compared with.
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
ROUND = "--updates 5000 --retrain 3000 --memory_gb 8 --save_minutes 5"
FIRST_ROUND = "--start runs/round_1-{seed}"  # its first policy and its trials
RUNS = {
    # 20,000 trials, then as many more by the policy that these have made, and again
    "round_1": f"mili --trials 20000 {ROUND}",
    "round_2": "mili --resume runs/round_1-{seed} --rounds 2",
    "round_3": "mili --resume runs/round_1-{seed} --rounds 3",
    # other partners, fewer trials
    "oracle_1": f"mili --method oracle --trials 20000 {ROUND} {FIRST_ROUND}",
    "random_1": f"mili --method random --trials 20000 {ROUND} {FIRST_ROUND}",
    "half_1": f"mili --trials 10000 {ROUND} {FIRST_ROUND}",
    # as many updates of demonstrations alone, from the same first policy: is it the trials?
    "updates_1": f"mili --share 0 {ROUND} {FIRST_ROUND}",
    "updates_2": "mili --resume runs/updates_1-{seed} --rounds 2",
    "updates_3": "mili --resume runs/updates_1-{seed} --rounds 3",
    # neither trials nor f(d)
    "cloning": f"mili --method bc {ROUND}",
    # what a class sees, judged on validation tasks
    "classroom": "mili --save_minutes 5",
}
FIRST = {"meta": "round_1"}  # policies, and the runs that begin with them
NAMES = {  # run, or first policy: (title of its claims, what tables call it)
    "cloning": ("bc", "behaviour cloning"),
    "meta": ("meta", "meta-imitation"),
    "updates_1": ("updates", "no trials, as many updates"),
    "random_1": ("random_pairing", "random pairs"),
    "oracle_1": ("oracle", "oracle pairs"),
    "round_1": ("mili", "MILI"),
    "round_3": ("mili_three_rounds", "MILI, three rounds"),
}
RATIOS = {  # claim: (above, below, less, what tables call it), over the seeds that both have
    "mili_relative_gain": ("round_1", "meta", 1, "MILI ÷ its first policies - 1"),
    "mili_three_rounds_relative_gain": ("round_3", "meta", 1,
                                        "MILI, three rounds ÷ their first policies - 1"),
    "updates_relative_gain": ("updates_1", "meta", 1,
                              "no trials, as many updates ÷ their first policies - 1"),
    "mili_over_updates": ("round_1", "updates_1", 0, "MILI ÷ no trials, as many updates"),
    "mili_over_oracle": ("round_1", "oracle_1", 0, "MILI ÷ oracle pairs"),
}  # fmt: skip
TRIALS = {0: "meta", 10: "half_1", 20: "round_1", 40: "round_2", 60: "round_3"}  # thousands: run
UPDATES = {20: "updates_1", 40: "updates_2", 60: "updates_3"}  # as many as with these, without
PAIRS = {  # claim: (run, column, what the table calls it)
    "pairing_precision": ("round_1", "precision",
                          "precision: of pairs more alike than α, those of the same task"),
    "pairing_recall": ("round_1", "recall",
                       "recall: of pairs of the same task, those more alike than α"),
    "pairing_kept_precision": ("round_1", "kept_precision",
                               "precision of each trial and its eight most alike"),
    "random_pairing_precision": ("random_1", "precision", "precision at random"),
}  # fmt: skip
PAPER = {f"{name}_success": mili.PAPER[name] for name in ("meta", "mili", "oracle")}
PAPER |= {"mili_relative_gain": "0.368", "mili_over_oracle": "0.97"}
COLUMNS = {"": "success"} | {f"_{family}": family for family in env.FAMILIES}  # by end of claim


def pairing(folder, _):
    """What became of a run's trials and pairs, if it had any: the last row of its curve."""
    with open(folder / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(last[name]) for name in mili.FACTS if last[name] not in ("", "nan")}


def facts_of(name):
    """Of each seed; a first policy's are those of the run that goes on from it."""
    if name not in FIRST:
        return {fact["seed"]: fact for fact in read(RESULTS, name)[0]}
    first = lambda fact: {column: fact["meta_" + column] for column in COLUMNS.values()}
    return {seed: fact | first(fact) for seed, fact in facts_of(FIRST[name]).items()}


def seeds_of(*names):
    """Those that all of these have."""
    return sorted(set.intersection(*(set(facts_of(name)) for name in names)))


def values(name, column, seeds=None):
    facts = facts_of(name)
    return np.array([facts[seed][column] for seed in seeds or facts])


def ready(*names):
    """Three seeds at least that each has: no claim by chance."""
    return len(seeds_of(*names)) >= 3


def sizes():
    """How many trials, and as many updates without, as three seeds have all of."""
    kept = []
    for run in [*TRIALS.values(), *UPDATES.values()]:
        kept += [run] if ready(*kept, run) else []
    of_kept = lambda runs: {k: run for k, run in runs.items() if run in kept}
    return of_kept(TRIALS), of_kept(UPDATES), seeds_of(*kept) if kept else []


def claims():
    """What is measured, beside the paper; each with how to measure it again."""
    found = []

    def add(name, run, each, ours=None, seeds=None):
        facts = facts_of(run)
        facts = [facts[seed] for seed in seeds or facts]
        found.append(claim(name, PAPER.get(name), facts, each, ours))

    for run in filter(ready, NAMES):
        for end, column in COLUMNS.items():
            add(f"{NAMES[run][0]}_success{end}", run, values(run, column))
    for name, (above, below, less, _) in RATIOS.items():
        for end, column in COLUMNS.items() if ready(above, below) else ():
            seeds = seeds_of(above, below)
            ours, theirs = (values(run, column, seeds) for run in (above, below))
            of_means = ours.mean() / theirs.mean() - less
            add(name + end, above, ours / theirs - less, of_means, seeds)
    *runs, seeds = sizes()
    for title, of_size in zip(("mili_trials", "no_trials"), runs):
        for k, run in of_size.items():
            add(f"{title}_{1000 * k}", run, values(run, "success", seeds), seeds=seeds)
    for name, (run, column, _) in PAIRS.items():
        if ready(run):
            add(name, run, values(run, column))
    if ready("classroom"):
        after, before = (values("classroom", k) for k in ("success", "meta_success"))
        add("classroom_meta_success", "classroom", before)
        add("classroom_success", "classroom", after)
        add("classroom_gain", "classroom", after - before)
    if ready("round_3"):  # 60,000 trials, as the paper has
        add("mili_minutes_two_cores", "round_3", values("round_3", "minutes"))
    return found


def percent(x):
    return f"{100 * x:.2g} %"


def tables(found):
    """The README's: successes and ratios by family, then the rest."""
    every = {c["claim"]: c for c in found}
    head = ["", "paper", "seeds", "all four", *env.FAMILIES]

    def lines(texts):
        return [
            [text, every[name]["paper"] or "", every[name]["seeds"],
             *(cell(every.get(name + end)) for end in COLUMNS)]
            for name, text in texts.items() if name in every
        ]  # fmt: skip

    shown = [k for k in TRIALS if f"mili_trials_{1000 * k}" in every]
    of_size = lambda title: [cell(every.get(f"{title}_{1000 * k}")) for k in shown]
    trials = [["MILI", *of_size("mili_trials")]]
    trials += [["none, as many updates", *of_size("no_trials")]]
    pairs = [[text, cell(every.get(name), percent)] for name, (*_, text) in PAIRS.items()]
    inclass = [["first policy (meta)", cell(every.get("classroom_meta_success")), ""]]
    gained = [cell(every.get(f"classroom_{end}")) for end in ("success", "gain")]
    inclass += [["MILI, 6,000 trials", *gained]]
    return {
        "MILI": table(head, lines({f"{title}_success": text for title, text in NAMES.values()})),
        "MILI's gain": table(head, lines({name: text for name, (*_, text) in RATIOS.items()})),
        "Trials": table(["trials", *(f"{k},000" if k else "none" for k in shown)], trials),
        "Pairs": table(["pairs of trials", ""], pairs),
        "Classroom": table(["", "success", "gain"], inclass),
    }  # fmt: skip


def standard_error(each):
    return each.std(ddof=1) / np.sqrt(len(each))


def draw_methods():
    """The paper's figure 5: success by family, with standard errors of the mean."""
    figure, axis = plt.subplots(figsize=(9, 3.6))
    names, place = list(filter(ready, NAMES)), np.arange(len(COLUMNS))
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        each = np.array([values(name, column) for column in COLUMNS.values()])  # [columns, seeds]
        error = [standard_error(one) for one in each]
        at = place + (k - (len(names) - 1) / 2) * width
        axis.bar(at, each.mean(1), width, yerr=error, label=NAMES[name][1], capsize=2)
    axis.set(ylabel="success on unseen test tasks", xticks=place)
    axis.set_xticklabels(["all", *env.FAMILIES])
    axis.grid(axis="y", alpha=0.3)
    axis.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    save(figure, "mili")


def draw_trials():
    """The paper's figure 6: success by how many trials."""
    figure, axis = plt.subplots(figsize=(5, 3.4))
    *runs, seeds = sizes()
    for of_size, label in zip(runs, ("MILI", "no trials, as many updates")):
        of_size = {0: TRIALS[0]} | of_size
        each = [values(run, "success", seeds) for run in of_size.values()]
        mean, error = np.transpose([(one.mean(), standard_error(one)) for one in each])
        axis.errorbar(list(of_size), mean, error, capsize=3, label=label)
    axis.set(xlabel="trials, thousands", ylabel="success on unseen test tasks", ylim=(0, 1))
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
        if ready("round_1"):
            draw_methods()
            draw_trials()
        return
    if not env.demo_folder("demos", "kitchen", "test").exists():
        subprocess.run([sys.executable, "train.py", "demos", "--world", "kitchen"], check=True)
    for seed in range(SEEDS) if args.seed is None else [args.seed]:
        for name in [args.run] if args.run else RUNS:
            command = RUNS[name].format(seed=seed)
            source = command.replace("--resume ", "--start ").partition("--start ")[2].split()
            trained = (RESULTS / f"{name}-{seed}.json").exists()
            has = "config.json" if "--resume" in command else "meta.npy"  # its first policy
            if source and not trained and not Path(source[0], has).exists():
                lacks = f"{name}-{seed} goes on from {source[0]}, which is not here: train that "
                lacks += f"first (move results/mili/{Path(source[0]).name}.* away, if they exist)"
                if args.run:
                    raise SystemExit(lacks)
                print(lacks)
                continue
            split = "val" if name == "classroom" else "test"
            run_once(RESULTS, name, command, seed, f"--split {split}", pairing)


if __name__ == "__main__":
    main()
