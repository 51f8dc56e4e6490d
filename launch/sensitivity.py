"""Draw how much the numbers of a sweep matter: the score against each swept number, one panel a number.

python -m launch.sensitivity DIR [--metric=squared_error] [--window=1.0] [--interval=bootstrap|se] [--format=png]

A point is the best setting among those with that value: mean and 95 percent interval over the tuning seeds. A star is
the setting that won. Methods with one setting are dashed lines. The file is `DIR/sensitivity.<format>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from launch.analysis.selection import Setting, Winner, counts_text, ranked, settings, values_tried, winners
from launch.analysis.statistics import INTERVALS, interval
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.figures import figure
from launch.figures.curves import INK, baseline, caption, checked_metrics, label_colours, metric_style
from launch.storage.run_folder import Run, number_texts, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACH = 5.0  # a point this many times further from the best than the median point is named at the edge, not shown
NEAR = 0.75  # of the best score: what is no further from it always lies on the axis
MARKS = ("o", "s", "D", "^", "v", "P", "X")
STAR: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 13, "markeredgecolor": "white", "zorder": 6}
BASELINE_COLOURS = {"fresh_network": "#555555", "linear": "#111111"}


@dataclass(frozen=True)
class Line:
    """A label against one number: the values [value], the best score at each with its interval, the value that won.

    A label with one setting is a line with the single value NaN.
    """

    label: str
    values: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: float


def lines(label: str, found: Sequence[Setting], metric: str, kind: str = "bootstrap") -> dict[str, Line]:
    """Per swept number its line, the others being the best at each value; a label with one setting has the name "".

    A value at which nothing was measured is left out.
    """
    order = ranked(found, metric)
    drawn = {}
    for name in values_tried(found) or ("",):
        best: dict[float, Setting] = {}
        for setting in order:
            best.setdefault(setting.hyper.get(name, np.nan), setting)
        values = sorted(best)
        mean, low, high = np.array([interval(best[value].scores, kind) for value in values]).T
        drawn[name] = Line(label, np.array(values), mean, low, high, order[0].hyper.get(name, np.nan))
    return drawn


def sensitivity(
    directory: Path | str, metric: str | None = None, window: float = 1.0, kind: str = "bootstrap", format: str = "png"
) -> Path:
    """Draw every number that a run of `directory` swept; returns the figure's path.

    Raises:
        InputError: no run, an unknown metric or format, a window outside (0, 1], or nothing swept.
    """
    if format not in figure.FORMATS:
        raise unknown("--format", format, figure.FORMATS)
    if kind not in INTERVALS:
        raise unknown("--interval", kind, INTERVALS)
    runs = read_runs(directory)
    (metric,) = checked_metrics(list(runs.values()), [metric] if metric else None)
    drawn = {label: lines(label, settings(run, metric, window), metric, kind) for label, run in runs.items()}
    names = list(dict.fromkeys(name for found in drawn.values() for name in found if name))
    if not names:
        raise InputError(f"{directory}: nothing was swept; {', '.join(runs)} have one setting each")
    won = {winner.label: winner for winner in winners(runs, metric, window)}
    looks = _looks(runs, won)
    drawing, axes = figure.new_figure(len(names), height=3.3)
    ends = score_range([line for found in drawn.values() for line in found.values()], metric)
    for place, (ax, name) in enumerate(zip(axes, names, strict=True)):
        shown = [found[key] for found in drawn.values() for key in (name, "") if key in found]
        _number_axis(ax, name, shown)
        ax.set_ylim(*ends)
        for line in shown:
            _draw(ax, line, looks[line.label], metric)
        if place % 3 == 0:
            ax.set_ylabel(f"{metric_style(metric).label}, {_span(window)}", fontsize=10, color=INK)
    axes[0].plot([], [], label="the setting that won", **STAR, color="#777777")
    figure.legend_below(drawing, axes)
    figure.add_caption(drawing, _caption(runs, list(won.values()), kind))
    return figure.save(drawing, Path(directory) / f"sensitivity.{format}")


def _looks(runs: Mapping[str, Run], won: Mapping[str, Winner]) -> dict[str, dict[str, Any]]:
    """Per label its colour and mark, and what the legend says of it."""
    colours = label_colours(label for label, run in runs.items() if baseline(run) is None)
    looks = {}
    for place, (label, run) in enumerate(runs.items()):
        tried, lost = won[label].tried, won[label].diverged_tried
        notes = [f"{tried} setting{'s' * (tried != 1)}"] + [f"{lost} lane{'s' * (lost != 1)} diverged"] * bool(lost)
        looks[label] = {
            "color": colours.get(label) or BASELINE_COLOURS[baseline(run) or "linear"],
            "marker": MARKS[place % len(MARKS)],
            "label": f"{label.replace('_', ' ')} ({', '.join(notes)})",
        }
    return looks


def score_range(found: Sequence[Line], metric: str) -> tuple[float, float]:
    """Ends of the score's axis: all points and intervals, save points beside which the others would lie flat."""
    sign = 1 if metric_style(metric).better == "lower" else -1
    cost = sign * np.concatenate([line.mean for line in found])
    reach = cost.min() + max(REACH * (np.median(cost) - cost.min()), NEAR * abs(cost.min()))
    reach = reach if reach > cost.min() else cost.max()
    ends = np.concatenate(
        [np.array([line.mean, line.low, line.high])[:, sign * line.mean <= reach] for line in found], 1
    )
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room


def _number_axis(ax: "Axes", name: str, found: Sequence[Line]) -> None:
    """Log where the values are spaced so, with 0 a decade below the least; few values are ticks themselves."""
    from matplotlib.ticker import NullLocator

    values = sorted({float(value) for line in found for value in line.values if np.isfinite(value)})
    positive = [value for value in values if value > 0]
    ax.set_xlabel(name.replace("_", " "), fontsize=10, color=INK)
    ax.tick_params(which="minor", length=2, color=figure.GREY)
    if log_spaced(values):
        if len(positive) == len(values):
            ax.set_xscale("log")
        else:
            ax.set_xscale("symlog", linthresh=positive[0], linscale=1.0)
        if positive[-1] >= 100 * positive[0]:
            return
        ax.xaxis.set_minor_locator(NullLocator())
    if len(values) <= 6:
        ax.set_xticks(values, number_texts(values))


def log_spaced(values: Sequence[float]) -> bool:
    """Whether the values, 0 aside, are spaced more evenly by their ratios than by their differences."""
    positive = np.array(sorted(value for value in values if value > 0))
    if len(positive) < 2 or min(values) < 0:
        return False
    if len(positive) == 2:
        return bool(positive[1] >= 3 * positive[0])
    ratios, differences = np.diff(np.log(positive)), np.diff(positive)
    return bool(ratios.std() / ratios.mean() < differences.std() / differences.mean())


def _draw(ax: "Axes", line: Line, look: Mapping[str, Any], metric: str) -> None:
    colour, (bottom, top) = look["color"], ax.get_ylim()
    if not np.isfinite(line.values).all():
        mean, low, high = (float(end[0]) for end in (line.mean, line.low, line.high))
        ax.axhline(mean, color=colour, label=look["label"], linestyle=(0, (5, 2)), linewidth=1.4, zorder=2)
        if np.isfinite(low):
            ax.axhspan(low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
        return
    ax.plot(line.values, line.mean, linewidth=1.6, markersize=4, zorder=4, **look)
    ax.fill_between(line.values, line.low, line.high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    won = line.values == line.best
    ax.plot(line.values[won], line.mean[won], color=colour, **STAR)
    for value, mean in zip(line.values, line.mean, strict=True):
        if not bottom <= mean <= top:
            _name_at_edge(ax, value, mean, colour)


def _name_at_edge(ax: "Axes", value: float, mean: float, colour: Any) -> None:
    """A caret and the number itself for a point beyond the axis; neighbours' numbers stand at different heights."""
    above, transform = mean > ax.get_ylim()[1], ax.get_xaxis_transform()
    end = float(above)
    ax.plot([value], [end], marker=6 if above else 7, color=colour, transform=transform, clip_on=False, zorder=6)
    text = f"{mean:,.0f}" if 1000 <= abs(mean) < 1e6 else f"{mean:.3g}"
    # Above the axis there is room outside; below it stand the ticks.
    lift = (4 if above else 8) + 10 * (len(ax.texts) % 2)
    ax.annotate(
        text, (value, end), xycoords=transform, xytext=(0, lift), textcoords="offset points",
        ha="center", fontsize=8, color=colour, annotation_clip=False,
    )  # fmt: skip


def _span(window: float) -> str:
    return "whole run" if window == 1 else f"last {100 * window:g}% of the run"


def _caption(runs: Mapping[str, Run], won: Sequence[Winner], kind: str) -> str:
    counts = counts_text(won)
    return f"{caption(runs, kind)} {counts[0].upper()}{counts[1:]}; at each value the best of the other numbers."


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `sensitivity` brings none."""
    flags.DEFINE_string("metric", None, "What is the score; default: the runs' headline.", flag_values=values)
    flags.DEFINE_float(
        "window", 1.0, "Share of the run, at its end, that the score is the mean of.", flag_values=values
    )
    flags.DEFINE_enum("interval", "bootstrap", INTERVALS, "95% interval of the mean over seeds.", flag_values=values)
    flags.DEFINE_enum("format", "png", figure.FORMATS, "Format of the figure.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: draws and prints where."""
    if len(arguments) != 1:
        raise InputError(f"launch.sensitivity: {len(arguments)} folders given, one is needed: DIR")
    print(sensitivity(arguments[0], values.metric, values.window, values.interval, values.format))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
