"""Streams to which classes keep coming: accuracy beside a network that begins afresh, by increment and age of class.

python -m launch.increments DIR... [--reference=fresh_network] [--base=LABEL] [--metric=test_accuracy]
    [--interval=se|bootstrap] [--format=text|markdown|latex] [--out=FIGURE]

An increment is a task that shows more than the one before, for so many epochs; all curves hold the same number of them.
A run whose network begins afresh and is trained with as many updates as one that goes on (`task.cumulative=True`) lies
in a folder of its own, since its increments are longer; it is drawn beside the others, by number of classes.

Accuracy of an increment: the metric's last value within it. With `task.accuracy=best_epoch` the accuracy on test
pictures is the highest of the increment's epochs, as in the published figures (Dohare et al. 2024). That epoch is
chosen on the test pictures, so the accuracy is too high, for every method. An increment at the end without a value is
not over, and left out.

"Relative" is the difference to the run labelled `--reference`, of the same seed and increment.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from launch.analysis.incremented import (
    AGES,
    ASKED,
    BASES,
    DIAGNOSTICS,
    LATE,
    METRIC,
    Increments,
    Question,
    classes_each,
    increments,
    is_longer,
    takes_best_epoch,
)
from launch.analysis.learned import note_of, numbers, range_of, range_text, shown, verdict_text
from launch.analysis.selection import warn_of_tuning
from launch.analysis.statistics import INTERVALS
from launch.analysis.survival import Ranged
from launch.cli import run_cli
from launch.compare import FORMATS, rendered
from launch.errors import InputError, unknown
from launch.figures.curves import INK, Curve, caption, metric_style
from launch.plot import target
from launch.storage.run_folder import Run, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Text -----------------------------------------------------------------------------------------------------------


def report(runs: Sequence[Run], question: Question = ASKED, format: str = "text") -> str:
    """The tables: accuracies, classes by age and pictures shown, the wait, every increment; then what is shown."""
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    found = increments(runs, question)
    told = _verdicts(found, question)
    tables = (
        (_accuracies(found, question), [_about_accuracies(found, question)]),
        (_ages(found, question), [_ABOUT_AGES]),
        (_waits(found), [_about_waits(found)]),
        (_by_increment(found, question), []),
    )
    parts = [rendered(table, remarks, format).rstrip() for table, remarks in tables if len(table) > 1]
    mark = "% " if format == "latex" else ""
    return "\n\n".join([*parts, *(["\n".join(mark + line for line in told)] if told else [])])


def _accuracies(found: Sequence[Increments], question: Question) -> list[tuple[str, ...]]:
    lines = [("method", "after the last", "mean of all", "last, relative", "mean, relative", "pairs", "seeds")]
    for each in found:
        accuracy = each.values(question.metric)
        wanted = (accuracy[:, -1], _over_increments(accuracy), each.relative[:, -1], _over_increments(each.relative))
        cells = [range_of(values, question.interval) for values in wanted]
        pairs = str(_pairs(each.relative[:, -1]))
        if each.partner is each.curve:
            cells[2:], pairs = ["", ""], ""
        lines.append((each.curve.name, *cells, pairs, note_of(each.curve)))
    return lines


def _over_increments(values: np.ndarray) -> np.ndarray:
    """Mean over all increments [lane]; NaN where one is missing."""
    return values.mean(axis=1)


def _pairs(values: np.ndarray) -> int:
    return int(np.isfinite(values).sum())


def _about_accuracies(found: Sequence[Increments], question: Question) -> str:
    kind = {"se": "Student", "bootstrap": "bootstrap"}[question.interval]
    names = " and ".join(dict.fromkeys(each.partner.name for each in found))
    return (
        f"{_meaning(found, question)} after the last of {len(found[0].classes)} increments and as the mean over all; "
        f"mean and 95% {kind} interval over seeds. Relative: minus {names}, paired by seed, in points."
    )


def _meaning(found: Sequence[Increments], question: Question) -> str:
    """What the accuracy of an increment is."""
    name = question.style.label[:1].upper() + question.style.label[1:]
    if takes_best_epoch(found[0].run, question.metric):
        return f"{name}, the highest of an increment's epochs, chosen on the test pictures as published,"
    return f"{name} at the end of an increment,"


_ABOUT_AGES = (
    "Accuracy (%) on the newest classes, those in the middle and the oldest after the last increment, of the network "
    "that goes on from there. Updates in all, "
    "and those of the network there is in the end; how often it has been shown a training picture of the newest and of "
    "the oldest classes."
)


def _ages(found: Sequence[Increments], question: Question) -> list[tuple[str, ...]]:
    lines = [("method", *AGES.values(), "updates", "of the last network", "newest shown", "oldest shown")]
    for each in found:
        cells = [range_of(each.values(name)[:, -1], question.interval) for name in AGES]
        before = int(each.updates[-2]) if each.restarts and len(each.updates) > 1 else 0
        total = int(each.updates[-1])
        newest, oldest = each.presentations
        lines.append((each.curve.name, *cells, f"{total:,}", f"{total - before:,}", f"{newest:,}", f"{oldest:,}"))
    return lines


def _waits(found: Sequence[Increments]) -> list[tuple[str, ...]]:
    lines = [("method", "never (%)", "median epochs", "mean epochs", "epochs there are")]
    for each in found:
        if each.wait is not None:
            never = Ranged(*(100 * value for value in each.wait.never))
            there = sorted({int(each.epochs[each.late][0]), int(each.epochs[-1])})
            cells = (range_text(one) for one in (never, each.wait.median, each.wait.mean))
            lines.append((each.curve.name, *cells, "–".join(map(str, there))))
    return lines


def _about_waits(found: Sequence[Increments]) -> str:
    late = found[0].late
    names = " or ".join(dict.fromkeys(each.partner.name for each in found))
    return (
        f"Epochs within increments {numbers(late)} until the test accuracy on the way first reaches that of {names} "
        f"{_end(found)} of the same increment, of the same seed. Median and mean by Kaplan and Meier over "
        "increments and seeds, an increment that never reaches it censored; 95% bootstrap intervals over seeds, too "
        "narrow for fewer than ten. Noise reaches an accuracy early."
    )


def _end(found: Sequence[Increments]) -> str:
    return "in the best epoch" if takes_best_epoch(found[0].partner.run, METRIC) else "at the end"


def _by_increment(found: Sequence[Increments], question: Question) -> list[tuple[str, ...]]:
    lines = [("method", _axis(found), "accuracy", "relative", "pairs")]
    for each in found:
        for place, classes in enumerate(each.classes.tolist()):
            accuracy = range_of(each.values(question.metric)[:, place], question.interval)
            relative = ("", "")
            if each.partner is not each.curve:
                values = each.relative[:, place]
                relative = (range_of(values, question.interval), str(_pairs(values)))
            lines.append((each.curve.name, str(classes), accuracy, *relative))
    return lines


def _axis(found: Sequence[Increments]) -> str:
    return "classes" if classes_each(found[0].run) else "increment"


def _verdicts(found: Sequence[Increments], question: Question) -> list[str]:
    """A line for every setting of the base beside its reference."""
    plain = [each for each in found if not is_longer(each.run) and each.partner is not each.curve]
    labels = {each.run.label for each in plain}
    if question.base is not None and question.base not in labels:
        raise unknown("--base", question.base, labels)
    base = question.base or next((label for label in BASES if label in labels), None)
    lines = []
    for each in plain:
        if each.run.label == base:
            judged = shown(each.curve, each.partner, question.metric, LATE)
            span = f"last {100 * LATE:g}% of increments"
            lines.append(verdict_text(judged, each.curve, each.partner, question.style.label, span))
    return lines


# Figure ---------------------------------------------------------------------------------------------------------


def draw(found: Sequence[Increments], question: Question = ASKED) -> tuple["Figure", list["Axes"]]:
    """Relative and raw accuracy, accuracy by age of class, dormant units and stable rank, against classes seen.

    The diagnostics look as an increment begins, before a network begins afresh, so they stand at the classes seen
    before. What no run holds has no panel.
    """
    from launch.figures import figure

    axis = f"{_axis(found)} seen".replace("increment seen", "increment")
    held = {name for each in found for name in each.curve.run.metrics}
    ages = [name for name in AGES if name in held]
    diagnostics = [name for name in DIAGNOSTICS if name in held]
    names = [question.metric, *diagnostics[:1], *ages, *diagnostics[1:]]  # the ages are a row of their own
    drawing, axes = figure.new_figure(1 + len(names), height=2.9)
    _draw_relative(axes[0], found, question)
    axes[0].set_xlabel(axis, fontsize=9, color=INK)
    for ax, name in zip(axes[1:], names, strict=True):
        early = name in diagnostics
        shifted = [_before(each.curve) if early else each.curve for each in found]
        figure.draw_metric(ax, shifted, name, question.interval)
        ax.set_ylabel(_short(name), fontsize=9, color=INK)
        ax.set_xlabel(f"{axis} before" if early else axis, fontsize=9, color=INK)
    _share_limits([ax for ax, name in zip(axes[1:], names, strict=True) if name in ages])
    figure.legend_below(drawing, axes)
    figure.add_caption(drawing, _caption(found, question))
    return drawing, axes


def _short(metric: str) -> str:
    """What a panel is called; the ages of classes have short names."""
    return f"{AGES[metric]} classes (%)" if metric in AGES else metric_style(metric).label


def _before(curve: Curve) -> Curve:
    """The curve with what was measured as an increment began at the classes seen before."""
    return replace(curve, run=replace(curve.run, step=curve.run.step - curve.run.count))


def _draw_relative(ax: "Axes", found: Sequence[Increments], question: Question) -> None:
    from launch.figures import figure

    name = "relative"
    others = [each for each in found if each.partner is not each.curve]
    for each in others:
        values = np.full((len(each.run.lanes), len(each.classes)), np.nan)
        values[each.curve.lanes] = each.relative
        curve = replace(each.curve, run=replace(each.curve.run, metrics={name: values}))
        figure.draw_metric(ax, [curve], name, question.interval)
    ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
    ax.set_ylabel("relative accuracy (points)", fontsize=9, color=INK)


def _share_limits(axes: Sequence["Axes"]) -> None:
    """One range for all, so that heights can be compared."""
    limits = [end for ax in axes for end in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(limits), max(limits))


def _caption(found: Sequence[Increments], question: Question) -> str:
    runs = list({id(each.run): each.run for each in found}.values())
    plain = [run for run in runs if not is_longer(run)] or runs
    longer = dict.fromkeys(each.curve.name for each in found if is_longer(each.run) and len(plain) < len(runs))
    names = " and ".join(dict.fromkeys(each.partner.name for each in found))
    parts = [
        f"{_meaning(found, question)} and relative to {names}, paired by seed.",
        "Diagnostics look as an increment begins, on pictures of the classes to come and of the old ones."
        * any(name in each.curve.run.metrics for each in found for name in DIAGNOSTICS),
        *(f"{name}: increment t is (t + 1) / 2 times as long." for name in longer),
        caption(plain, question.interval),
    ]
    return " ".join(filter(None, parts))


# Command --------------------------------------------------------------------------------------------------------


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `increments` brings none."""
    plain = {"flag_values": values}
    flags.DEFINE_string("metric", METRIC, "An accuracy, measured at the end of every increment.", **plain)
    flags.DEFINE_string("reference", None, "Label that others are compared with; default: the fresh network.", **plain)
    flags.DEFINE_string("base", None, f"Label that may lose plasticity; default: first of {', '.join(BASES)}.", **plain)
    flags.DEFINE_enum("interval", "se", INTERVALS, "95% interval of means and differences over seeds.", **plain)
    flags.DEFINE_enum("format", "text", FORMATS, "How the tables are written.", **plain)
    flags.DEFINE_string("out", None, "Where the figure goes; without it none is drawn.", **plain)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the tables, and draws the figure where `--out` asks for one."""
    if not arguments:
        raise InputError("launch.increments: no run folder given; usage: python -m launch.increments DIR...")
    path = target(arguments[0], values.out, None) if values.out is not None else None
    question = Question(**{name: values[name].value for name in ("metric", "reference", "base", "interval")})
    runs = [run for directory in arguments for run in read_runs(directory).values()]
    warn_of_tuning(runs)
    print(report(runs, question, values.format))
    if path is not None:
        from launch.figures import figure

        print("", figure.save(draw(increments(runs, question), question)[0], path), sep="\n")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
