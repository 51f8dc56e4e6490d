"""Means of a metric over two windows of runs, and what changes between them, paired by seed and beside a fresh network.

python results/windows.py results/levels/norm squared_error 0.05:0.25 0.75:1
python results/windows.py results/abruptness online_accuracy 0.02:0.15 0.75:1
"""

import sys

import numpy as np

from launch.analysis.curves import Curve, curves, read
from launch.analysis.long_table import of_metric
from launch.analysis.statistics import Difference, paired_difference
from launch.analysis.text import Table, printed

HEADINGS = ("run", "first", "last", "last - first", "last - fresh network's", "rise - fresh network's")


def mean(curve: Curve, metric: str, window: str) -> np.ndarray:
    """The mean over a window `FROM:TO`, shares of the run, by lane."""
    table = of_metric(curve, metric)
    low, high = (float(end) * curve.run.step[-1] for end in window.split(":"))
    inside = table[(table["step"] > low) & (table["step"] <= high)]
    return inside.groupby("lane")["value"].mean().to_numpy()


def text(found: Difference) -> str:
    return f"{found.mean:+.3f} [{found.low:.3f}, {found.high:.3f}]"


def main(folder: str, metric: str, first: str, last: str) -> None:
    found = {}
    for curve in curves(read(folder, "table")):
        which = curve.run.meta["settings"].get("task.abruptness"), curve.own
        found[curve.run.meta["method"], which] = curve.name, mean(curve, metric, first), mean(curve, metric, last)
    rows = []
    for (_, which), (name, before, after) in found.items():
        _, fresh_before, fresh_after = found["fresh_network", which]
        pairs = (after, before), (after, fresh_after), (after - before, fresh_after - fresh_before)
        rows.append(
            (name, f"{before.mean():.3f}", f"{after.mean():.3f}", *(text(paired_difference(*p)) for p in pairs))
        )
    print(printed(Table([HEADINGS, *rows]), "markdown"))


if __name__ == "__main__":
    main(*sys.argv[1:])
