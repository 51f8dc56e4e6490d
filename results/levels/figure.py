"""Draws the figure and prints the table of this page.

python results/levels/figure.py          from the runs beside it, into `figure.png`
python results/levels/figure.py DIR      from those in DIR, into `DIR/levels.png`
"""

import sys
from pathlib import Path

import numpy as np

from launch.analysis.comparison import LATE
from launch.analysis.curves import curves, read
from launch.analysis.long_table import late_mean
from launch.analysis.statistics import interval, paired_difference
from launch.analysis.text import Table, printed
from launch.figures import figure
from launch.figures.style import GREY, INK

HERE = Path(__file__).parent
METRIC = "squared_error"
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "smd": "SMD", "metaoptimize": "MetaOptimize", "autostep": "Autostep"}
LEVELS = {"backprop": "nothing", "cbp": "continual backprop", "swr": "weights reset (SWR)", "sparse": "connections"}
NEW = {"": ("o", INK), "reset": ("o", "#0072B2"), "inherited": ("^", "#D55E00"), "raised": ("s", "#009E73")}
"""Marker and colour by what a new weight's step size is."""
HEADINGS = ("optimizer", "level", "new step size", "error", "less than fresh (%)", "less than the optimizer alone")


def main() -> None:
    runs, out = HERE / "regression", HERE / "figure.png"
    if len(sys.argv) > 1:
        runs, out = Path(sys.argv[1]), Path(sys.argv[1]) / "levels.png"
    late = {curve.run.label: late_mean(curve, METRIC, LATE) for curve in curves(read(runs))}
    fresh = min((late[f"{name}_fresh"] for name in ("sgd", "adam")), key=lambda values: values.mean())
    rows, drawing, axes = [], *figure.new_figure(len(OPTIMIZERS), width=12.5, height=2.9)
    for ax, (optimizer, title) in zip(axes, OPTIMIZERS.items(), strict=True):
        ax.axvline(0, color=GREY, linewidth=1.0)
        ax.axvline(100 * (1 - late[f"{optimizer}_backprop"].mean() / fresh.mean()), color=GREY, linestyle=":")
        for place, (level, name) in enumerate(LEVELS.items()):
            for shift, (new, (marker, colour)) in zip((0, -0.22, 0, 0.22), NEW.items(), strict=True):
                values = late.get("_".join(filter(None, (optimizer, level, new))))
                if values is None:
                    continue
                gain = paired_difference(fresh.to_numpy(), values.to_numpy(), "higher")
                over = paired_difference(late[f"{optimizer}_backprop"].to_numpy(), values.to_numpy(), "higher")
                point, low, high = 100 * np.array([gain.mean, gain.low, gain.high]) / fresh.mean()
                ax.plot([low, high], [place + shift] * 2, color=colour, linewidth=1.3)
                ax.plot(point, place + shift, marker=marker, markersize=4, color=colour, linestyle="")
                error = interval(values.to_numpy())
                rows.append(
                    (title, name, new or "-", f"{error.mean:.3f} [{error.low:.3f}, {error.high:.3f}]",
                     f"{point:+.0f} [{low:.0f}, {high:.0f}]", f"{over.mean:+.3f} [{over.low:.3f}, {over.high:.3f}]")
                )  # fmt: skip
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_yticks(range(len(LEVELS)), list(LEVELS.values()) if ax in axes[::3] else [], fontsize=8)
        ax.set_ylim(len(LEVELS) - 0.5, -0.5)
        ax.set_xlabel("less error than a fresh network (%)", fontsize=8, color=INK)
    low, high = min(ax.get_xlim()[0] for ax in axes), max(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(low, high)
    figure.add_caption(
        drawing,
        f"Mean squared error over the last quarter of the run, {len(fresh)} seeds; bars: 95% interval of the "
        "difference, paired by seed. The step size of a new weight: blue circle, reset; orange triangle, inherited; "
        "green square, raised; black, the optimizer has none of its own. Dotted: the optimizer alone.",
    )
    figure.save(drawing, out)
    print(printed(Table([HEADINGS, *rows], left=3), "markdown"))


if __name__ == "__main__":
    main()
