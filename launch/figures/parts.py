"""The figures of a report: curves, waits for a threshold, increments, sensitivity, the replacement log."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.analysis import increments as by_increment
from launch.analysis import tasks
from launch.analysis.curves import Curve, baseline, caption, interval_words, runs_of, tuned_on
from launch.analysis.increments import AGES, DIAGNOSTICS, Increments
from launch.analysis.metrics import metric_style
from launch.analysis.replacements import chosen_groups, group_names, lifetimes, log_of, logged, useful_share
from launch.analysis.statistics import FEW
from launch.analysis.survival import Survival, kaplan_meier
from launch.analysis.text import percent, span_text
from launch.analysis.tuning import Setting, Winner, by_value, counts_text, settings, values_tried, winners
from launch.errors import InputError
from launch.figures import figure
from launch.figures.style import BASELINES, GREY, INK, Line, label_colours, lines
from launch.storage.run_folder import Run, number_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GROUPS = 6
MARKS = ("o", "s", "D", "^", "v", "P", "X")
STAR: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 13, "markeredgecolor": "white", "zorder": 6}


def _finished(drawing: "Figure", axes: Sequence["Axes"], text: str) -> tuple["Figure", list["Axes"]]:
    figure.legend_below(drawing, axes)
    figure.add_caption(drawing, text)
    return drawing, list(axes)


def draw_curves(
    found: Sequence[Curve], metrics: Sequence[str], about: Sequence[str] = ()
) -> tuple["Figure", list["Axes"]]:
    """A panel per metric; where there are more lines than a panel holds, several, with the baselines in each."""
    groups = _panels(lines(found))
    drawing, axes = figure.new_figure(len(metrics) * len(groups))
    drawn = []
    for i, metric in enumerate(metrics):
        beside = axes[i * len(groups) : (i + 1) * len(groups)]
        for ax, group in zip(beside, groups, strict=True):
            drawn += figure.draw_metric(ax, group, metric)
        _share_limits(beside)
    runs = runs_of(found)
    told = caption(runs, [line.curve for line in drawn])
    return _finished(drawing, axes, " ".join([told, *about, *tuned_on(runs)]))


def _panels(drawn: Sequence[Line]) -> list[list[Line]]:
    """The lines in groups of at most `MOST_LINES`, baselines in every group."""
    if len(drawn) <= figure.MOST_LINES:
        return [list(drawn)]
    base = [line for line in drawn if baseline(line.curve.run)][:2]
    others = [line for line in drawn if not any(line is each for each in base)]
    number = -(-len(others) // (figure.MOST_LINES - len(base)))
    size = -(-len(others) // number)
    return [[*others[i : i + size], *base] for i in range(0, len(others), size)]


def _share_limits(axes: Sequence["Axes"]) -> None:
    """One range for all, so that heights can be compared."""
    limits = [end for ax in axes for end in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(limits), max(limits))


# Waits --------------------------------------------------------------------------------------------------------------


def draw_waits(found: Sequence[tasks.Learned], question: tasks.Question) -> tuple["Figure", list["Axes"]]:
    """The share of tasks that have not yet reached the threshold against updates, early and late side by side."""
    drawing, axes = figure.new_figure(2, width=7.6)
    looks = lines([each.curve for each in found])
    for ax, word in zip(axes, ("early", "late"), strict=True):
        asked = [getattr(each, word) for each in found]
        for wait, line in zip(asked, looks, strict=True):
            _draw_survival(ax, wait.survival, line, 0.0, wait.horizon)
        spans = {span_text(wait.span) for wait in asked}
        counted = f" ({', '.join(spans)})" if len(spans) == 1 else ""
        which = {"early": "first", "late": "last"}[word]
        ax.set_title(f"{which} {question.share} of tasks{counted}", fontsize=10, color=INK)
        ax.set_xlabel("updates within the task", fontsize=10, color=INK)
        ax.set_xlim(0, 1.02 * max(wait.horizon for wait in asked))  # a last drop is seen
        ax.set_ylim(0, 102)
    axes[0].set_ylabel("tasks not yet there (%)", fontsize=10, color=INK)
    runs = runs_of(each.curve for each in found)
    told = f"Share of tasks that have not yet reached {question.threshold_words}, by Kaplan and Meier over all seeds"
    return _finished(drawing, axes, f"{told}{_band_words([line.curve for line in looks])}. {caption(runs)}")


def _band_words(found: Sequence[Curve]) -> str:
    few = f"no interval for fewer than {FEW} seeds"
    drawn = "with 95% jackknife intervals over seeds"
    numbers = [len(curve.lanes) >= FEW for curve in found]
    return f", {drawn}" if all(numbers) else f", {few}" if not any(numbers) else f", {drawn}; {few}"


def _draw_survival(ax: "Axes", found: Survival, line: Line, start: float, end: float) -> None:
    """Steps of the share left in per cent, from all at `start` to `end`; from `FEW` seeds on with its band."""
    time = np.concatenate([[start], found.time, [end]])
    share, low, high = (
        100 * np.concatenate([[1.0], each, each[-1:] if len(each) else [1.0]]) for each in (found.share, *found.band)
    )
    ax.step(
        time, share, where="post", label=line.label, zorder=line.above, color=line.colour, linestyle=line.style,
        linewidth=1.6,
    )  # fmt: skip
    if len(line.curve.lanes) >= FEW:
        ax.fill_between(
            time, low, high, step="post", color=line.colour, alpha=0.18, linewidth=0, zorder=line.above - 1.5
        )


# Increments ---------------------------------------------------------------------------------------------------------


def draw_increments(
    found: Sequence[Increments], question: by_increment.Question = by_increment.ASKED
) -> tuple["Figure", list["Axes"]]:
    """Relative and raw accuracy, accuracy by age of class, dormant units and stable rank, against classes seen.

    The diagnostics look as an increment begins, before a network begins afresh, so they stand at the classes seen
    before. What no run holds has no panel.
    """
    axis = f"{by_increment.axis_name(found)} seen".replace("increment seen", "increment")
    held = {name for each in found for name in each.curve.run.metrics}
    ages = [name for name in AGES if name in held]
    diagnostics = [name for name in DIAGNOSTICS if name in held]
    names = [question.metric, *diagnostics[:1], *ages, *diagnostics[1:]]  # the ages are a row of their own
    drawing, axes = figure.new_figure(1 + len(names), height=2.9)
    # Of the increments themselves steps are classes, which no clock of tasks counts.
    looks = [line._replace(curve=_without_clock(line.curve)) for line in lines([each.curve for each in found])]
    _draw_relative(axes[0], found, looks)
    axes[0].set_xlabel(axis, fontsize=9, color=INK)
    for ax, name in zip(axes[1:], names, strict=True):
        early = name in diagnostics
        figure.draw_metric(ax, [_before(line) for line in looks] if early else looks, name)
        ax.set_ylabel(f"{AGES[name]} classes (%)" if name in AGES else metric_style(name).label, fontsize=9, color=INK)
        ax.set_xlabel(f"{axis} before" if early else axis, fontsize=9, color=INK)
    _share_limits([ax for ax, name in zip(axes[1:], names, strict=True) if name in ages])
    return _finished(drawing, axes, _about_increments(found, question))


def _without_clock(curve: Curve) -> Curve:
    return replace(curve, run=replace(curve.run, meta=curve.run.meta | {"task_starts": None}))


def _before(line: Line) -> Line:
    """The line with what was measured as an increment began at the classes seen before."""
    run = line.curve.run
    return line._replace(curve=replace(line.curve, run=replace(run, step=run.step - run.count)))


def _draw_relative(ax: "Axes", found: Sequence[Increments], looks: Sequence[Line]) -> None:
    name, shown = "relative", []
    for each, line in zip(found, looks, strict=True):
        if not each.is_reference:
            values = np.full((len(each.run.lanes), len(each.classes)), np.nan)
            values[each.curve.lanes] = each.relative
            run = replace(line.curve.run, metrics={name: values})
            shown.append(line._replace(curve=replace(line.curve, run=run)))
    if shown:
        figure.draw_metric(ax, shown, name)
    ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
    ax.set_ylabel("relative accuracy (points)", fontsize=9, color=INK)


def _about_increments(found: Sequence[Increments], question: by_increment.Question) -> str:
    runs = list({id(each.run): each.run for each in found}.values())
    plain = [run for run in runs if not by_increment.is_longer(run)] or runs
    longer = [e.curve.name for e in found if by_increment.is_longer(e.run) and len(plain) < len(runs)]
    names = " and ".join(dict.fromkeys(each.partner.name for each in found))
    parts = [
        f"{by_increment.accuracy_words(found, question)} and relative to {names}, paired by seed.",
        "Diagnostics look as an increment begins, on pictures of the classes to come and of the old ones."
        * any(name in each.curve.run.metrics for each in found for name in DIAGNOSTICS),
        *(f"{name}: increment t is (t + 1) / 2 times as long." for name in dict.fromkeys(longer)),
        caption(plain, [each.curve for each in found]),
    ]
    return " ".join(filter(None, parts))


# Sensitivity --------------------------------------------------------------------------------------------------------


def draw_sensitivity(runs: Mapping[str, Run], metric: str, window: float = 1.0) -> tuple["Figure", list["Axes"]]:
    """The score against each swept number, one panel a number.

    A point is the best setting among those with that value: its mean and interval over the tuning seeds, or the seeds
    themselves where they are few. A star is the setting that won. Labels with one setting are dashed lines.

    Raises:
        InputError: nothing was swept; a window outside (0, 1].
    """
    found = {label: settings(run, metric, window) for label, run in runs.items()}
    names = list(dict.fromkeys(name for each in found.values() for name in values_tried(each)))
    if not names:
        folders = {str(run.meta.get("folder", label)).removesuffix(f"/{label}") for label, run in runs.items()}
        raise InputError(f"{', '.join(folders)}: nothing was swept; {', '.join(runs)} have one setting each")
    won = {winner.label: winner for winner in winners(runs, metric, window)}
    looks = _sensitivity_looks(runs, won)
    drawing, axes = figure.new_figure(len(names), height=3.3)
    ends = score_range([mine for each in found.values() for mine in each], metric)
    for place, (ax, name) in enumerate(zip(axes, names, strict=True)):
        shown = {label: by_value(each, metric, name) for label, each in found.items()}
        _number_axis(ax, name, [value for each in shown.values() for value in each])
        ax.set_ylim(*ends)
        for label, each in shown.items():
            if each:
                _draw_values(ax, each, won[label].setting[name], looks[label], metric)
            elif not values_tried(found[label]):
                _draw_level(ax, found[label][0], looks[label], metric)
        if place % 3 == 0:
            span = "whole run" if window == 1 else f"last {percent(window)} of the run"
            ax.set_ylabel(f"{metric_style(metric).label}, {span}", fontsize=10, color=INK)
    axes[0].plot([], [], label="the setting that won", **STAR, color="#777777")
    counts = counts_text(list(won.values()))
    curves = [Curve(runs[label], each[0].lanes) for label, each in found.items()]
    words = interval_words(curves).replace("each seed as a thin line", "each seed as a dot")
    told = f"{counts[:1].upper()}{counts[1:]}; at each value the best of the other numbers, {words}."
    return _finished(drawing, axes, f"{caption(runs)} {told}")


def _sensitivity_looks(runs: Mapping[str, Run], won: Mapping[str, Winner]) -> dict[str, dict[str, Any]]:
    """Per label its colour and mark, and what the legend says of it."""
    colours = label_colours((run.label, run.meta["method"]) for run in runs.values() if baseline(run) is None)
    looks = {}
    for place, (label, run) in enumerate(runs.items()):
        tried, lost = won[label].tried, won[label].diverged_tried
        notes = [f"{tried} setting{'s' * (tried != 1)}"] + [f"{lost} lane{'s' * (lost != 1)} diverged"] * bool(lost)
        looks[label] = {
            "color": (colours.get(label) or BASELINES[baseline(run) or "linear"])[0],
            "marker": MARKS[place % len(MARKS)],
            "label": f"{label.replace('_', ' ')} ({', '.join(notes)})",
        }
    return looks


def score_range(found: Sequence[Setting], metric: str) -> tuple[float, float]:
    """Ends of the score's axis: all points and seeds, save settings beside which the others would lie flat."""
    sign = 1 if metric_style(metric).better == "lower" else -1
    cost = sign * np.array([each.score for each in found])
    far = figure.reach(cost)
    kept = np.concatenate([each.scores for each, one in zip(found, cost, strict=True) if one <= far])
    low, high = float(np.nanmin(kept)), float(np.nanmax(kept))
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room


def _number_axis(ax: "Axes", name: str, tried: Sequence[float]) -> None:
    """Log where the values are spaced so, with 0 a decade below the least; few values are ticks themselves."""
    from matplotlib.ticker import NullLocator

    values = sorted(set(tried))
    positive = [value for value in values if value > 0]
    ax.set_xlabel(name.replace("_", " "), fontsize=10, color=INK)
    ax.tick_params(which="minor", length=2, color=GREY)
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


def _draw_values(ax: "Axes", shown: Mapping[float, Setting], best: float, look: Mapping[str, Any], metric: str) -> None:
    figure.draw_points(ax, [(value, each.scores) for value, each in shown.items()], metric_style(metric), **look)
    ax.plot([best], [shown[best].score], color=look["color"], **STAR)
    bottom, top = ax.get_ylim()
    for value, each in shown.items():
        if not bottom <= each.score <= top:
            figure.mark_beyond(ax, value, each.score, look["color"])


def _draw_level(ax: "Axes", one: Setting, look: Mapping[str, Any], metric: str) -> None:
    ax.axhline(one.score, color=look["color"], label=look["label"], linestyle=(0, (5, 2)), linewidth=1.4, zorder=2)
    if len(one.scores) >= FEW:
        ax.axhspan(*np.clip(one.ends, *metric_style(metric).bounds), color=look["color"], alpha=0.12, linewidth=0)


# Replacements -------------------------------------------------------------------------------------------------------


def draw_replacements(found: Sequence[Curve], groups: Sequence[str] | None = None) -> tuple["Figure", list["Axes"]]:
    """Survival and usefulness by age, two panels a group; by default at most six groups evenly chosen."""
    told = logged(found)
    chosen = chosen_groups(told, groups, MOST_GROUPS)
    rows, columns = (1, 2) if len(chosen) == 1 else (2, len(chosen))
    drawing, (whole,) = figure.new_figure(1, width=3.6 * columns, height=2.9 * rows)
    whole.remove()
    looks = lines(told)
    for place, group in enumerate(chosen):
        upper, lower = (drawing.add_subplot(rows, columns, 1 + place + i * len(chosen)) for i in (0, 1))
        those = [line for line in looks if group in group_names(log_of(line.curve))]
        for ax, draw in ((upper, _draw_lives), (lower, _draw_usefulness)):
            figure.bare(ax)
            ax.set_title(group, fontsize=10, color=INK)
            draw(ax, those, group)
    total = len(chosen_groups(told))
    some = "" if len(chosen) == total else f" {len(chosen)} of {total} groups."
    text = f"{caption([curve.run for curve in told])}{some} Survival by Kaplan and Meier{_band_words(told)}."
    return _finished(drawing, drawing.axes, text)


def _draw_lives(ax: "Axes", found: Sequence[Line], group: str) -> None:
    for line in found:
        seen = kaplan_meier(lifetimes(line.curve, group))
        _draw_survival(ax, seen, line, 0.7 * seen.time[0] if len(seen.time) else 1.0, seen.longest)
    _age_axis(ax, "still there (%)")


def _draw_usefulness(ax: "Axes", found: Sequence[Line], group: str) -> None:
    for line in found:
        share = useful_share(line.curve, group).dropna()
        ax.plot(share.index, 100 * share, color=line.colour, linestyle=line.style, marker="o", markersize=3)
    if not any(len(each.get_xdata()) for each in ax.get_lines()):
        ax.text(0.5, 0.55, "too few seen", transform=ax.transAxes, ha="center", fontsize=9, color=INK)
        ax.set_xlim(1, 10)
    ax.axhline(50, color=GREY, linewidth=0.8, zorder=0)
    _age_axis(ax, "above the median utility (%)")


def _age_axis(ax: "Axes", label: str) -> None:
    ax.set_xscale("log")
    ax.set_ylim(0, 102)
    ax.set_xlabel("age (steps)", fontsize=10, color=INK)
    ax.set_ylabel(label, fontsize=10, color=INK)
