"""The figure of a suite: every method's performance relative to a fresh network's, a panel a task."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from launch.analysis.comparison import FRESH, LATE
from launch.analysis.metrics import metric_style
from launch.analysis.suite import Standing, shown
from launch.analysis.text import percent
from launch.errors import InputError
from launch.figures import figure
from launch.figures.style import GREY, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETTER, WORSE = "#0072B2", "#D55E00"
ROW = 0.19
"""Inches a method."""


def draw_relative(found: Mapping[str, Sequence[Standing]]) -> "Figure":
    """A point and its interval for every method, in the order given from above; the fresh network is 0.

    Raises:
        InputError: no task has a method to draw.
    """
    told = {name: [each for each in standing if each.label != FRESH] for name, standing in found.items() if standing}
    labels = list(dict.fromkeys(each.label for standing in told.values() for each in standing))
    if not labels:
        raise InputError("--workdir: no method is over on any task; there is nothing to draw")
    drawing, axes = figure.new_figure(len(told), width=3.0 * min(len(told), 3) + 1.6, height=0.9 + ROW * len(labels))
    for place, (ax, (name, standing)) in enumerate(zip(axes, told.items(), strict=True)):
        _draw(ax, standing, labels)
        ax.set_title(name.replace("_", " "), fontsize=10, color=INK)
        ax.set_yticks(range(len(labels)), [n.replace("_", " ") for n in labels] if place % 3 == 0 else [])
        ax.set_ylim(len(labels) - 0.4, -0.6)
        metric = metric_style(standing[0].metric).label.removesuffix(" (%)")
        ax.set_xlabel(f"{metric} beside a fresh network's (%)", fontsize=8, color=INK)
    figure.add_caption(
        drawing,
        f"Mean over the last {percent(LATE)} of the run minus the fresh network's, in percent of it; more is better, "
        "also where less error is. Bars: 95% Student interval of the difference, paired by seed, not widened for the "
        "number of methods; blue: wholly above 0, orange: wholly below. An arrow: beyond the axis.",
    )
    return drawing


def _draw(ax: "Axes", standing: Sequence[Standing], labels: Sequence[str]) -> None:
    relative = np.array([each.relative for each in standing])
    # What is far worse than all else does not set the scale.
    least = -figure.reach(-relative[:, 0])
    kept = relative[relative[:, 0] >= least]
    ends = kept[np.isfinite(kept)]
    low, high = min(ends.min(), 0.0), max(ends.max(), 0.0)
    room = 0.06 * (high - low) or 1.0
    ax.set_xlim(low - room, high + room)
    ax.axvline(0, color=GREY, linewidth=1.0, zorder=1)
    for each in standing:
        row, (value, lower, upper) = labels.index(each.label), each.relative
        colour = {1: BETTER, -1: WORSE, 0: INK}[shown(each.fresh)]
        if value < ax.get_xlim()[0]:
            ax.plot([0.01], [row], marker="<", markersize=4, color=colour, transform=ax.get_yaxis_transform())
            continue
        if np.isfinite(lower):
            ax.plot([lower, upper], [row, row], color=colour, linewidth=1.4, zorder=2)
        ax.plot([value], [row], marker="o", markersize=3.5, color=colour, zorder=3)
