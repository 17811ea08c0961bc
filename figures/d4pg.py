"""Learning curves of D4PG, every seed and their mean: results/d4pg/NAME-SEED.csv to a picture.

python figures/d4pg.py --out results/d4pg.png
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def read(path):
    """Steps and returns without noise of one run."""
    with open(path) as file:
        rows = [row for row in csv.DictReader(file) if row["eval_return"]]
    return np.array([[float(row[k]) for k in ("steps", "eval_return")] for row in rows]).T


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="results/d4pg", help="folder of NAME-SEED.csv")
    parser.add_argument("--out", default="results/d4pg.png", help="picture to write")
    args = parser.parse_args()
    runs = {}
    for path in sorted(Path(args.runs).glob("*.csv")):
        runs.setdefault(path.stem.rsplit("-", 1)[0], []).append(read(path))
    figure, axes = plt.subplots(2, -(-len(runs) // 2), figsize=(11, 5.5), squeeze=False)
    for axis, (name, curves) in zip(axes.flat, runs.items()):
        for steps, returns in curves:
            axis.plot(steps / 1000, returns, color="tab:blue", alpha=0.35, linewidth=1)
        shortest = min(curves, key=lambda curve: len(curve[0]))[0]
        mean = np.mean([np.interp(shortest, *curve) for curve in curves], 0)
        axis.plot(shortest / 1000, mean, color="tab:blue", linewidth=2)
        axis.set_title(f"{name}, {len(curves)} seeds")
        axis.set_xlabel("environment steps, thousands")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(runs) :]:
        axis.remove()
    axes[0, 0].set_ylabel("return without noise")
    axes[1, 0].set_ylabel("return without noise")
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
