"""What all figures share: runs and what is kept of them, curves, claims and the README's tables."""

import csv
import json
import platform
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def commit():
    """The last that changed the code that runs; refused if there are changes since."""
    code = [":(glob)*.py", "assets"]
    git = lambda *words: subprocess.check_output(["git", *words, "--", *code], text=True).strip()
    changed = git("status", "--porcelain", "--untracked-files=no")
    if changed:
        raise SystemExit(f"commit these first, for results to say of what they are:\n{changed}")
    return git("log", "-1", "--format=%h")


def hardware():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{len(models)} cores of {models[0]}" if models else platform.processor()


def run_once(results, name, command, seed, options="", after=None):
    """One run, from its command to its two files in results/; `options` are those of eval.

    One that was stopped goes on, if the code is still what it was begun with.  A command with
    --resume goes on from a run that was judged, in its folder.
    """
    out = results / f"{name}-{seed}"
    if out.with_suffix(".json").exists():
        return
    folder, words = Path(f"runs/{out.name}"), [sys.executable, "train.py", *command.split()]
    further = "--resume" in words
    judged = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    if further:
        folder = Path(words[words.index("--resume") + 1])
    else:
        rare = [] if "--save_minutes" in command else ["--save_minutes", "1000"]
        words = [*words, "--seed", str(seed), "--out", str(folder), *rare]
    facts = {"command": " ".join(["python", *words[1:]]), "seed": seed, "commit": commit(),
             "hardware": hardware()}  # fmt: skip
    begun = Path(f"{folder}.json")  # as what, most lately
    before = json.loads(begun.read_text()) if begun.exists() and folder.exists() else {}
    if before == facts:
        words = words if further else [*words[:3], "--resume", str(folder)]
    elif further:
        if not before or before["command"] not in [one.get("command") for one in judged]:
            raise SystemExit(f"{out.name} goes on from {folder}, which is not here, or not judged")
        (folder / "results.json").unlink(missing_ok=True)
    elif folder.exists():
        raise SystemExit(f"{folder} was begun by other code or flags: delete it first")
    begun.write_text(json.dumps(facts, indent=1) + "\n")
    with open(f"runs/{out.name}.log", "a") as log:
        if not (folder / "results.json").exists():
            subprocess.run(words, check=True, stdout=log, stderr=log)
        if not (folder / "results.json").exists():
            raise SystemExit(f"{folder} was stopped before its end; the same command goes on")
        words = [sys.executable, "train.py", "eval", str(folder), *options.split()]
        told = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=log, text=True)
    curve = (folder / "metrics.csv").read_text()
    earlier = [one["commit"] for one in judged if further and one.get("run") == str(folder)]
    commits = ", ".join([*earlier, facts["commit"]]).split(", ")  # a run that went on has several
    facts["commit"] = ", ".join(dict.fromkeys(commits))
    facts["minutes"] = round(float(list(csv.DictReader(curve.splitlines()))[-1]["seconds"]) / 60, 1)
    out.with_suffix(".csv").write_text(curve)
    if after:
        facts |= after(folder, seed) or {}
    facts |= json.loads(told.stdout.splitlines()[-1])
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{out}: {facts['minutes']} minutes", flush=True)


def read(results, name):
    """What each seed of a run has come to: its facts, and its curve as columns of numbers."""
    facts, curves = [], []
    for path in sorted(results.glob(f"{name}-*.json")):
        facts.append(json.loads(path.read_text()))
        with open(path.with_suffix(".csv")) as file:
            rows = [row for row in csv.DictReader(file) if list(row.values())[-1] != ""]
        number = lambda text: float(text) if text else np.nan
        curves.append({key: np.array([number(row[key]) for row in rows]) for key in rows[0]})
    return facts, curves


def plot(axis, curves, x, y, label, colour, scale=1.0):
    """Mean and range of seeds, if there are any yet."""
    if not curves:
        return
    shortest = min((curve[x] for curve in curves), key=lambda steps: steps[-1])
    values = scale * np.array([np.interp(shortest, curve[x], curve[y]) for curve in curves])
    units = shortest / (60 if x == "seconds" else 1e6)
    axis.plot(units, values.mean(0), label=label, color=colour)
    axis.fill_between(units, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.grid(alpha=0.3)


def save(figure, name):
    figure.tight_layout()
    figure.savefig(f"results/{name}.png", dpi=80)
    plt.close(figure)


def claim(name, paper, facts, values, ours=None):
    """A row of summary.json: what each seed has come to, and how to measure it again."""
    ours = np.mean(values) if ours is None else ours
    # six digits: what tables round to two is then rounded once
    low, ours, high = (float(f"{x:.6g}") for x in (min(values), ours, max(values)))
    commits = ", ".join(fact["commit"] for fact in facts)
    same = {"command": facts[0]["command"], "commit": ", ".join(dict.fromkeys(commits.split(", "))),
            "hardware": "; ".join(dict.fromkeys(fact["hardware"] for fact in facts))}  # fmt: skip
    minutes = round(float(np.mean([fact["minutes"] for fact in facts])), 1)
    return {"claim": name, "paper": paper, "ours": ours, "spread": [low, high],
            "seeds": len(facts), **same, "minutes": minutes}  # fmt: skip


def number(x):
    return f"{round(x, 2) + 0.0:.2f}" if abs(x) < 10 else f"{x:.3g}"  # never -0.00


def cell(claim, show=number):
    """Mean of seeds, and from the lowest to the highest of them; empty if there is no claim."""
    if not claim:
        return ""
    low, high = map(show, claim["spread"])
    to = "–" if low[0] != "-" else " to "
    return show(claim["ours"]) + (f" ({low}{to}{high})" if low != high else "")


def table(head, lines):
    """Of the README's."""
    lines = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def gather(found, tables):
    """Put claims into summary.json, among those of others, and tables of them into the README."""
    path, readme = Path("results/summary.json"), Path("README.md")
    others = json.loads(path.read_text()) if path.exists() else []
    names = {c["claim"] for c in found}
    every = [c for c in others if c["claim"] not in names] + found
    path.write_text("[\n" + ",\n".join(json.dumps(c) for c in every) + "\n]\n")
    text = readme.read_text()
    for name, lines in tables.items():
        before, rest = text.split(mark := f"<!-- {name}, of summary.json -->\n")
        text = before + mark + lines + rest[rest.index("<!-- end -->") :]
    readme.write_text(text)
