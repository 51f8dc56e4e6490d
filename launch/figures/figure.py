"""The parts that figures are made of: axes, a metric's curves with their intervals, legend, caption, the file."""

import logging
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.analysis.curves import Curve
from launch.analysis.long_table import STARTS, late_mean
from launch.analysis.metrics import MetricStyle, default_metric, metric_style
from launch.analysis.statistics import FEW, interval
from launch.config.experiment import task_ending
from launch.errors import InputError, unknown
from launch.figures.style import GREY, INK, PALE, STYLES, Line, label_colours, shades_of
from launch.storage.run_folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
CONDITION = "condition"
MOST_LINES = 8
"""Lines in a panel; more go into further panels."""
FEW_POINTS = 12
FEWEST_LETTERS = 20
MOST_VALUES = 12
REACH = 5.0  # what lies this many times further from the best than the median is marked at the edge, not shown
FLAT = 20  # a line is far off where all others would share less than one part of so many
NEAR = 0.75  # of the best: what is no further from it always lies on the axis


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


def draw_metric(ax: "Axes", found: Sequence[Line], metric: str) -> list[Line]:
    """Draw the mean over seeds of every line that holds `metric`, and how far seeds are apart; returns those drawn.

    From `FEW` seeds on the band is the 95% interval of the mean; with fewer the seeds themselves are thin lines. A
    point stands at the end of its bin; a bin without a measurement is passed over. Nothing is drawn beyond the metric's
    bounds, and what lies far from all else does not set the scale: it is marked at the edge with its value. The axis
    counts tasks where an accuracy is the headline, else steps.
    """
    style = metric_style(metric)
    drawn = [line for line in found if metric in line.curve.run.metrics]
    by_task = counts_tasks([line.curve.run for line in drawn])
    spread = []
    for line in drawn:
        values = line.curve.values(metric)
        known = np.isfinite(values).any(axis=0)
        x, values = _positions(line.curve.run, by_task)[known], values[:, known]
        spread.append((line, x, *_draw_seeds(ax, line, x, values, metric)))
    ax.set_ylabel(_axis_label(metric, drawn), fontsize=10, color=INK)
    _fit_scale(ax, spread, style)
    if by_task:
        ax.set_xlabel("task", fontsize=10, color=INK)
        ax.set_xlim(left=0)
    else:
        _mark_changes(ax, drawn)
        _step_axis(ax, max((int(e.curve.run.step[-1]) for e in drawn if len(e.curve.run.step)), default=1))
    return drawn


def _draw_seeds(ax: "Axes", line: Line, x: np.ndarray, values: np.ndarray, metric: str) -> list[np.ndarray]:
    """Mean of `values` [lane, point], and band or seeds; the mean and the ends of what is drawn, [point] each."""
    look = {"color": line.colour, "linestyle": line.style}
    mean, low, high = interval(values)
    mark = "o" if len(x) <= FEW_POINTS else None
    # Every seed has conditions of its own, and their mean is none that any has met.
    shown = np.full_like(mean, np.nan) if metric == CONDITION and len(values) > 1 else mean
    ax.plot(x, shown, label=line.label, zorder=line.above, linewidth=1.6, marker=mark, markersize=3, **look)
    if len(values) < FEW or metric == CONDITION:
        for seed in values if len(values) > 1 else ():
            ax.plot(x, seed, linewidth=0.6, alpha=0.55, marker=mark, markersize=1.5, zorder=line.above - 1.5, **look)
        present = np.where(np.isfinite(values), values, mean)
        return [mean, present.min(axis=0, initial=np.inf), present.max(axis=0, initial=-np.inf)]
    low, high = (np.clip(end, *metric_style(metric).bounds) for end in (low, high))
    if len(x) == 1:
        ax.errorbar(x, mean, np.abs([mean - low, high - mean]), color=line.colour, capsize=3, linewidth=1.2)
    ax.fill_between(x, low, high, color=line.colour, alpha=0.18, linewidth=0, zorder=line.above - 1.5)
    return [mean, low, high]


def counts_tasks(runs: Sequence[Run]) -> bool:
    """Whether the axis counts tasks: an accuracy is the headline of every run, and all say where their tasks begin."""
    return bool(runs) and all(
        run.metrics and metric_style(default_metric([run])).scale == 100 and len(run.meta.get(STARTS) or ()) > 2
        for run in runs
    )


def _positions(run: Run, by_task: bool) -> np.ndarray:
    """Where the bins end on the axis: in steps, or in tasks."""
    starts = run.meta[STARTS] if by_task else ()
    return np.interp(run.step, starts, np.arange(len(starts))) if by_task else run.step


def reach(cost: np.ndarray) -> float:
    """How far from the least cost something may lie and still set the scale."""
    cost = cost[np.isfinite(cost)]
    if not len(cost):
        return np.inf
    far = float(cost.min() + max(REACH * (np.median(cost) - cost.min()), NEAR * abs(cost.min())))
    return far if far > cost.min() else float(cost.max())


def _fit_scale(ax: "Axes", spread: Sequence[tuple[Any, ...]], style: MetricStyle) -> None:
    """Limits of the axis that hold all but what lies far off, which is marked at the edge; none beyond the bounds.

    A line lies far off where it would press all others into a twentieth of the axis; a point, where it is further from
    the middle 98 % of what is drawn than these are wide.
    """
    spread = [each for each in spread if len(each[1])]
    if not spread:
        return
    sign = 1 if style.better == "lower" else -1
    levels = np.array([sign * np.nanmedian(mean) for _, _, mean, _, _ in spread])
    kept = [ends for ends, level in zip(spread, levels, strict=True) if level <= reach(levels)]
    if np.ptp(_drawn(spread)) <= FLAT * np.ptp(_drawn(kept)):
        kept = spread
    values = _drawn(kept)
    least, most = np.percentile(values, [1, 99])
    low, high = max(values.min(), least - (most - least)), min(values.max(), most + (most - least))
    if values.min() < low or values.max() > high or len(kept) < len(spread):
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - room, high + room)
    bottom, top = ax.get_ylim()
    floor, ceiling = style.bounds
    edge = 0.02 * (top - bottom)
    ax.set_ylim(max(bottom, floor - edge), min(top, ceiling + edge))
    for line, x, mean, _, _ in spread:
        for where, above in ((np.nanargmax(mean), True), (np.nanargmin(mean), False)):
            if (mean[where] > ax.get_ylim()[1]) if above else (mean[where] < ax.get_ylim()[0]):
                mark_beyond(ax, float(x[where]), float(mean[where]), line.colour)


def _drawn(spread: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """Everything finite that is drawn: means, and ends of bands or of seeds."""
    values = np.concatenate([np.concatenate(each[2:]) for each in spread])
    return values[np.isfinite(values)]


def mark_beyond(ax: "Axes", x: float, value: float, colour: Any) -> None:
    """A caret and the number itself for a point beyond the axis; neighbours' numbers stand at different heights."""
    above, transform = value > ax.get_ylim()[1], ax.get_xaxis_transform()
    end = float(above)
    ax.plot([x], [end], marker=6 if above else 7, color=colour, transform=transform, clip_on=False, zorder=6)
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    # Above the axis there is room outside; below it stand the ticks.
    lift = (4 if above else 8) + 10 * (len(ax.texts) % 2)
    ax.annotate(
        text, (x, end), xycoords=transform, xytext=(0, lift), textcoords="offset points",
        ha="center", fontsize=8, color=colour, annotation_clip=False,
    )  # fmt: skip


def _axis_label(metric: str, drawn: Sequence[Line]) -> str:
    """The metric's; of what changes, what that is where all curves agree."""
    changes = {line.curve.run.meta["settings"].get("task.change") for line in drawn}
    if metric == CONDITION and len(changes) == 1 and None not in changes:
        return str(changes.pop()).replace("_", " ")
    return metric_style(metric).label


def _mark_changes(ax: "Axes", drawn: Sequence[Line]) -> None:
    """A thin line at every change of the environment, with the value it brings where all curves share one seed."""
    changes = {seed: made for line in drawn for seed, made in line.curve.run.meta.get("changes", {}).items()}
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


def draw_against(ax: "Axes", found: Sequence[Curve], metric: str, name: str, reference: str | None = None) -> None:
    """Draw the mean over the last tenth of the run against a swept number, with its interval over seeds.

    The number is a method's, or a setting of the task. With fewer than `FEW` seeds the seeds are dots in place of the
    interval. Curves that differ in nothing else share a line. With `reference`, a label, what is drawn is the
    difference to it at the same number, paired by seed. InputError where no curve has the number, or none is of that
    label.
    """
    style, points, methods = metric_style(metric), {}, {}
    for curve in found:
        value = curve.number(name)
        if metric in curve.run.metrics and value is not None:
            named, own = f"{name.replace('_', ' ')} ", curve.run.label.removesuffix(task_ending(name, value))
            rest = [part for part in curve.setting.split(", ") if part and not part.startswith(named)]
            label = ", ".join([own.replace("_", " "), *rest])
            methods.setdefault(label, (own, curve.run.meta["method"]))
            points.setdefault(label, []).append((value, late_mean(curve, metric)))
    if not points:
        raise unknown("--against", name, {key for curve in found for key in curve.numbers})
    what = f"{style.label}, last tenth of the run"
    if reference is not None:
        points = _differences(points, methods, reference)
        style, what = style._replace(scale=1.0, least=-np.inf), f"{what}, minus {reference.replace('_', ' ')}'s"
        ax.axhline(0, color=GREY, linewidth=1.0, zorder=1)
    for own, (colour, _) in label_colours(methods.values()).items():
        labels = [label for label, (name, _) in methods.items() if name == own and label in points]
        for i, (label, shade) in enumerate(zip(labels, shades_of(colour, len(labels)), strict=True)):
            look = {"color": shade, "linestyle": STYLES[i % len(STYLES)], "label": label}
            line = [(x, values.to_numpy()) for x, values in sorted(points[label], key=lambda point: point[0])]
            draw_points(ax, line, style, **look)
    if min(x for each in points.values() for x, _ in each) > 0 and any(name in curve.hyper for curve in found):
        ax.set_xscale("log")
    ax.set_xlabel(name.replace("_", " "), fontsize=10, color=INK)
    ax.set_ylabel(textwrap.fill(what, 40), fontsize=10, color=INK)


def _differences(
    points: dict[str, list[tuple[float, Any]]], methods: dict[str, tuple[str, str]], reference: str
) -> dict[str, list[tuple[float, Any]]]:
    """Every point minus that of the reference at the same place, of the seeds that both have."""
    labels = [label for label, (own, _) in methods.items() if own == reference]
    if not labels:
        raise unknown("--reference", reference, {own for own, _ in methods.values()})
    if len(labels) > 1:
        raise InputError(f"--reference: {reference} has several settings ({'; '.join(labels)}), one is needed")
    base = dict(points[labels[0]])
    found = {
        label: [(x, (values - base[x]).dropna()) for x, values in each if x in base]
        for label, each in points.items()
        if label != labels[0]
    }
    found = {label: [(x, values) for x, values in each if len(values)] for label, each in found.items()}
    if not any(found.values()):
        raise InputError(f"--reference: {reference} has no seed in common with any other method at the same value")
    return {label: each for label, each in found.items() if each}


def draw_points(ax: "Axes", points: Sequence[tuple[float, np.ndarray]], style: MetricStyle, **look: Any) -> None:
    """Means of values [seed] at some x, with their intervals; of fewer than `FEW` seeds the values as dots."""
    x = [each for each, _ in points]
    ends = np.array([[float(end) for end in interval(values)] for _, values in points]).T
    ax.plot(x, ends[0], linewidth=1.6, **{"marker": "o", "markersize": 4, "zorder": 4} | look)
    if all(len(values) >= FEW for _, values in points):
        low, high = np.clip(ends[1:], *style.bounds)
        ax.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0, zorder=2)
        return
    for each, values in points:
        if len(values) > 1:
            ax.plot([each] * len(values), values, ".", markersize=3, alpha=0.6, color=look["color"], zorder=3)


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
