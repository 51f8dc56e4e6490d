"""The parts that figures are made of: axes, a metric's curves with their intervals, legend, caption, the file."""

import logging
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.analysis.statistics import interval as interval_over_lanes
from launch.analysis.statistics import late_mean
from launch.errors import InputError, unknown
from launch.figures.curves import INK, METRICS, Curve, baseline, caption, curves, label_colours, metric_style
from launch.storage.run_folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FORMATS", "METRICS", "add_caption", "caption", "curves", "draw_against", "draw_metric", "label_colours",
    "legend_below",
    "metric_style", "new_figure", "save",
]  # fmt: skip
FORMATS = ("png", "pdf", "svg")
FEW_POINTS = 12
FEWEST_LETTERS = 20
MOST_VALUES = 12
PALE, GREY = "#E6E6E6", "#999999"


def new_figure(panels: int = 1, width: float | None = None, height: float = 3.1) -> tuple["Figure", list["Axes"]]:
    """A figure with `panels` axes, three to a row, drawn without a display; sizes in inches, `height` that of a row.

    With 0 panels the caller adds its own axes and gives each its look with `bare`.
    """
    import matplotlib

    matplotlib.use("Agg")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of the fonts it finds
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(panels, 3))
    rows = -(-panels // columns)
    figure = Figure(figsize=(width or (5.6 if panels == 1 else 3.6 * columns), height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)  # measures the legend
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    for ax in axes:
        bare(ax)
    return figure, axes


def bare(ax: "Axes") -> None:
    """Give axes the look of `new_figure`: light grid, two spines, 9-point ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.grid(color=PALE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, colors=INK, length=3, color=GREY)
    ax.margins(x=0.02)


def draw_metric(
    ax: "Axes",
    runs: Mapping[str, Run] | Iterable[Run] | Sequence[Curve],
    metric: str,
    interval: str = "bootstrap",
    level: float = 0.95,
) -> list[Curve]:
    """Draw mean and shaded interval over lanes of every curve that holds `metric`; returns the curves drawn.

    A point stands at the end of its bin; a bin without a measurement is passed over. `runs` may be `curves(runs)`.
    """
    given = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    found = [each for each in given if isinstance(each, Curve)]
    found = found or curves(each for each in given if isinstance(each, Run))
    style, drawn = metric_style(metric), []
    for curve in found:
        if metric not in curve.run.metrics:
            continue
        values = curve.run.metrics[metric][curve.lanes] * style.scale
        mean, low, high = interval_over_lanes(values, interval, level)
        known = np.isfinite(mean)
        step, mark = curve.run.step[known], "o" if known.sum() <= FEW_POINTS else None
        above = 3 if baseline(curve.run) is None else 2
        label = f"{curve.name} ({curve.note})"
        look = {"color": curve.colour, "linestyle": curve.line, "linewidth": 1.6, "marker": mark, "markersize": 3}
        ax.plot(step, mean[known], label=label, zorder=above, **look)
        ax.fill_between(step, low[known], high[known], color=curve.colour, alpha=0.18, linewidth=0, zorder=above - 1.5)
        drawn.append(curve)
    ax.set_ylabel(_axis_label(metric, drawn), fontsize=10, color=INK)
    _mark_changes(ax, drawn)
    _step_axis(ax, max((int(curve.run.step[-1]) for curve in drawn if len(curve.run.step)), default=1))
    return drawn


def _axis_label(metric: str, drawn: Sequence[Curve]) -> str:
    """The metric's; of what changes, what that is where all curves agree."""
    changes = {curve.run.meta["settings"].get("task.change") for curve in drawn}
    if metric == "condition" and len(changes) == 1 and None not in changes:
        return str(changes.pop()).replace("_", " ")
    return metric_style(metric).label


def _mark_changes(ax: "Axes", drawn: Sequence[Curve]) -> None:
    """A thin line at every change of the environment, with the value it brings where all curves share one seed."""
    changes = {seed: made for curve in drawn for seed, made in curve.run.meta.get("changes", {}).items()}
    for step in sorted({step for made in changes.values() for step, _ in made if step}):
        ax.axvline(step, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
    if len(changes) == 1 and len(next(iter(changes.values()))) <= MOST_VALUES:
        for step, value in next(iter(changes.values())):
            place = {"xy": (step, 1), "xycoords": ("data", "axes fraction"), "xytext": (2, 1)}
            ax.annotate(f"{value:.2g}", **place, textcoords="offset points", fontsize=7, color=INK)


def _step_axis(ax: "Axes", last: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit, word = (
        (1_000_000, " (millions)") if last >= 1_000_000 else (1000, " (thousands)") if last >= 10_000 else (1, "")
    )
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=unit == 1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    ax.set_xlabel(f"step{word}", fontsize=10, color=INK)
    ax.set_xlim(left=0)


def draw_against(ax: "Axes", found: Sequence[Curve], metric: str, name: str, interval: str = "bootstrap") -> None:
    """Draw the mean over the last tenth of the run, with its interval over lanes, against the swept number `name`.

    Curves that differ in nothing else share a line. InputError where no curve has the number.
    """
    style, lines = metric_style(metric), {}
    for curve in found:
        hyper = curve.run.lanes[curve.lanes[0]]["hyper"]
        if metric in curve.run.metrics and name in hyper:
            rest = [part for part in curve.distinction.split(", ") if part and not part.startswith(f"{name}=")]
            late = late_mean(curve.run, metric)[curve.lanes] * style.scale
            label = ", ".join([curve.run.label.replace("_", " "), *rest])
            lines.setdefault(label, []).append((hyper[name], *map(float, interval_over_lanes(late, interval))))
    if not lines:
        swept = {key for curve in found for key in curve.run.lanes[curve.lanes[0]]["hyper"]}
        raise unknown("--against", name, swept)
    for (label, points), colour in zip(lines.items(), label_colours(lines).values(), strict=True):
        x, mean, low, high = np.array(sorted(points)).T
        ax.plot(x, mean, label=label, color=colour, marker="o", markersize=3, linewidth=1.6)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if min(point[0] for points in lines.values() for point in points) > 0:
        ax.set_xscale("log")
    ax.set_xlabel(name.replace("_", " "), fontsize=10, color=INK)
    ax.set_ylabel(f"{style.label}, last tenth of the run", fontsize=10, color=INK)


def legend_below(figure: "Figure", axes: Sequence["Axes"]) -> None:
    """One legend for all axes under them, where it covers no data, in as many columns as fit; the figure grows.

    What is too wide for one column is broken into lines.
    """
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    width, height = figure.get_size_inches()
    place = {"loc": "upper center", "bbox_to_anchor": (width / 2, -height), "bbox_transform": _inches_from_top(figure)}
    look = {"fontsize": 9, "frameon": False, "labelcolor": INK, "handlelength": 2.4, "columnspacing": 1.6}
    columns, letters = min(4, len(entries)), max(map(len, entries), default=0)
    while columns:
        labels = [textwrap.fill(label, letters, subsequent_indent="    ") for label in entries]
        legend = figure.legend(list(entries.values()), labels, ncols=columns, **place, **look)  # type: ignore[arg-type]
        legend.set_in_layout(False)
        extent = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        if extent.width <= width * figure.dpi or letters < FEWEST_LETTERS:
            _grow(figure, extent.height / figure.dpi + 0.08)
            return
        legend.remove()
        columns, letters = (columns - 1, letters) if columns > 1 else (1, letters * 9 // 10)


def add_caption(figure: "Figure", text: str) -> None:
    """Set `text` in small type under everything else, wrapped to the figure's width; the figure grows to hold it."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, int(width * 15.5), break_long_words=False, break_on_hyphens=False)
    place = {"x": 0.12, "y": -height - 0.06, "transform": _inches_from_top(figure), "in_layout": False}
    figure.text(**place, s="\n".join(lines), fontsize=8, color="#666666", va="top", linespacing=1.25)
    _grow(figure, 0.145 * len(lines) + 0.12)


def _inches_from_top(figure: "Figure") -> Any:
    """Coordinates in inches from the upper left corner, which stay where they are when the figure grows."""
    from matplotlib.transforms import ScaledTranslation

    return figure.dpi_scale_trans + ScaledTranslation(0, 1, figure.transFigure)


def _grow(figure: "Figure", inches: float) -> None:
    """Make the figure taller at its lower end, and keep the axes out of what was added."""
    engine = figure.get_layout_engine()
    width, height = figure.get_size_inches()
    below = engine.get()["rect"][1] * height + inches  # type: ignore[union-attr]
    figure.set_size_inches(width, height + inches)
    share = below / (height + inches)
    engine.set(rect=(0, share, 1, 1 - share))  # type: ignore[union-attr]


def save(figure: "Figure", path: Path | str, format: str | None = None) -> Path:
    """Write the figure to `path` whole or not at all; the format is that of the suffix unless given."""
    path = Path(path)
    format = format or path.suffix.removeprefix(".")
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    import matplotlib

    # Dates and random ids left out: the same data give the same file.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[format]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "plastic_jax", "pdf.fonttype": 42}):
            figure.savefig(temporary, format=format, dpi=200, metadata=metadata)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
