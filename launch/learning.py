"""What learning is like late in a run: how much is learned in a task, how soon, and how far below the peak.

python -m launch.learning DIR... [--metric=test_accuracy_in_task] [--window=0.25] [--threshold=first|NUMBER|LABEL]
    [--reference=LABEL] [--tasks_per_bin=N] [--interval=se|bootstrap] [--format=text|markdown|latex] [--out=FIGURE]

`--metric` is measured several times within a task. Accuracy after a task is the metric of that name without `_in_task`
where a run holds it, else the task's last measurement.

Read the peak with care: it is the best of several noisy means, so it lies above what it estimates, and with it the drop
from it; more so the smaller the bins, the fewer the seeds and the longer the run. The bin is that in which the mean
over seeds is highest, the same for every seed; a last bin of fewer tasks than the others is no candidate.

Read the steps until a threshold with care: a noisy accuracy (of 200 pictures, say, with a standard error of 3 points)
reaches a threshold the earlier by chance, the more often it is measured. Compare only runs measured equally often on as
many pictures. `first` is itself one noisy measurement of each lane. Steps are rounded up to the next measurement.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from launch.analysis.learned import (
    METRIC,
    Learned,
    Question,
    Shown,
    beside,
    differences,
    learning,
    note_of,
    numbers,
    pairs,
    range_of,
    range_text,
    shown,
    verdict_text,
)
from launch.analysis.selection import warn_of_tuning
from launch.analysis.statistics import INTERVALS
from launch.analysis.survival import Pooled, Ranged
from launch.cli import run_cli
from launch.compare import FORMATS, HEADINGS, rendered
from launch.errors import InputError, unknown
from launch.figures.curves import INK, Curve, baseline, caption, curves
from launch.plot import target
from launch.storage.run_folder import Run, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Learned", "Question", "Shown", "differences", "draw", "learning", "report", "shown"]

# Text -----------------------------------------------------------------------------------------------------------


def report(runs: Sequence[Run], question: Question, reference: str | None = None, format: str = "text") -> str:
    """The tables: by curve, the wait for the threshold, differences, what has to be known, and what is shown."""
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    found = learning(runs, question)
    labels = list(dict.fromkeys(each.curve.run.label for each in found))
    chosen = reference or ("backprop" if "backprop" in labels else labels[0])
    rows = differences(runs, question, chosen)
    parts = [
        rendered(_accuracies(found, question), [_about_accuracies(found, question)], format),
        rendered(_waiting(found, question), _about_waiting(question), format),
    ]
    if rows:
        parts.append(rendered([HEADINGS, *(row.cells() for row in rows)], [_about_differences(question)], format, 3))
    mark = "% " if format == "latex" else ""
    verdicts = "\n".join(mark + line for line in _verdicts(runs, question))
    return "\n\n".join([*parts, *([verdicts] if verdicts else [])])


def _accuracies(found: Sequence[Learned], question: Question) -> list[tuple[str, ...]]:
    names = [name for name, quantity in found[0].quantities.items() if quantity.tabled]
    lines = [("method", *names, "seeds")]
    for each in found:
        cells = (range_of(each.quantities[name].values, question.interval) for name in names)
        lines.append((each.curve.name, *cells, note_of(each.curve)))
    return lines


def _waiting(found: Sequence[Learned], question: Question) -> list[tuple[str, ...]]:
    lines = [("method", "tasks", "never (%)", "median updates", "mean updates", "at most", "seeds")]
    for each in found:
        for span, end, wait in zip(each.spans, each.horizons, (each.early, each.late), strict=True):
            never = Ranged(*(100 * value for value in wait.never))
            cells = (range_text(one) for one in (never, wait.median, wait.mean))
            lines.append((each.curve.name, numbers(span), *cells, f"{end:g}", note_of(each.curve)))
    return lines


def _threshold_words(question: Question) -> str:
    if question.threshold == "first":
        return "the first task's accuracy"
    try:
        return f"a {question.style.label} of {float(question.threshold) * question.style.scale:g}"
    except ValueError:
        return f"{question.threshold.replace('_', ' ')}'s accuracy after the same task"


def _about_accuracies(found: Sequence[Learned], question: Question) -> str:
    kind = {"se": "Student", "bootstrap": "bootstrap"}[question.interval]
    sizes = ", ".join(map(str, sorted({each.tasks_per_bin for each in found})))
    plural = "s" * (sizes != "1")
    return (
        f"{question.style.label} after a task, and within it as the mean of its evaluations (learning-curve area); "
        f"mean and 95% {kind} interval over seeds. Peak: the bin of {sizes} task{plural} in which the mean over seeds "
        "is highest; the best of noisy means lies too high, and so does the drop, the peak minus the last "
        f"{question.share} of tasks."
    )


def _about_waiting(question: Question) -> list[str]:
    first = " The first task, which reaches its own, is left out." * (question.threshold == "first")
    return [
        f"Updates within a task until {question.metric.replace('_', ' ')} first reaches {_threshold_words(question)}, "
        f"rounded up to the next measurement; a task that never does is censored at its length.{first}",
        "Median and mean by Kaplan and Meier over all tasks of all seeds, the mean of the updates or, where less, of "
        "'at most'; 95% bootstrap intervals over seeds, too narrow for fewer than ten. Noise reaches a threshold "
        "earlier the more often one looks.",
    ]


def _about_differences(question: Question) -> str:
    kind = {"se": "Student's interval", "bootstrap": "bootstrap interval"}[question.interval]
    return (
        f"Differences A - B paired by seed, {kind} over seeds, not widened for the number of comparisons; threshold: "
        f"{_threshold_words(question)}, in the last {question.share} of tasks."
    )


def _verdicts(runs: Sequence[Run], question: Question) -> list[str]:
    """A line for every setting of backprop beside a fresh network."""
    held = [run for run in runs if question.metric in run.metrics]
    fresh = [run for run in held if baseline(run) == "fresh_network"]
    plain = [run for run in held if run.meta["method"] == "backprop" and baseline(run) is None]
    lines = []
    for run in plain:
        for other in beside(run, fresh):
            for one, two in pairs(run, other, curves(runs)):
                found = shown(one, two, question.metric, question.window)
                lines.append(verdict_text(found, one, two, question.style.label, f"last {question.share} of tasks"))
    return lines


# Figure ---------------------------------------------------------------------------------------------------------


def draw(found: Sequence[Learned], question: Question) -> tuple["Figure", list["Axes"]]:
    """The share of tasks that have not yet reached the threshold against updates, early and late side by side."""
    from launch.figures import figure

    drawing, axes = figure.new_figure(2, width=7.6)
    for place, (ax, word) in enumerate(zip(axes, ("first", "last"), strict=True)):
        for each in found:
            _draw_wait(ax, each.curve, (each.early, each.late)[place], each.horizons[place])
        spans = {numbers(each.spans[place]) for each in found}
        counted = f" ({', '.join(spans)})" if len(spans) == 1 else ""
        ax.set_title(f"{word} {question.share} of tasks{counted}", fontsize=10, color=INK)
        ax.set_xlabel("updates within the task", fontsize=10, color=INK)
        ax.set_xlim(0, 1.02 * max(each.horizons[place] for each in found))  # a last drop is seen
        ax.set_ylim(0, 102)
    axes[0].set_ylabel("tasks not yet there (%)", fontsize=10, color=INK)
    figure.legend_below(drawing, axes)
    runs = list({id(each.curve.run): each.curve.run for each in found}.values())
    told = (
        f"Share of tasks that have not yet reached {_threshold_words(question)} (Kaplan-Meier over all seeds, 95% "
        "bootstrap interval over seeds)."
    )
    figure.add_caption(drawing, f"{told} {caption(runs)}")
    return drawing, axes


def _draw_wait(ax: "Axes", curve: Curve, wait: Pooled, end: float) -> None:
    time = np.concatenate([[0.0], wait.curve.time, [end]])
    share, low, high = (
        100 * np.concatenate([[1.0], each, each[-1:] if len(each) else [1.0]])
        for each in (wait.curve.share, wait.low, wait.high)
    )
    above = 3 if baseline(curve.run) is None else 2
    look = {"color": curve.colour, "linestyle": curve.line, "linewidth": 1.6}
    ax.step(time, share, where="post", label=f"{curve.name} ({curve.note})", zorder=above, **look)
    ax.fill_between(time, low, high, step="post", color=curve.colour, alpha=0.18, linewidth=0, zorder=above - 1.5)


# Command --------------------------------------------------------------------------------------------------------


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `learning` brings none."""
    plain = {"flag_values": values}
    flags.DEFINE_string("metric", METRIC, "An accuracy that is measured several times within a task.", **plain)
    flags.DEFINE_float("window", 0.25, "Share of the tasks that counts as early and late.", **plain)
    flags.DEFINE_string(
        "threshold", "first", "first (the lane's first task), a share, or another run's label.", **plain
    )
    flags.DEFINE_string("reference", None, "The label others are compared with; default: backprop.", **plain)
    flags.DEFINE_integer("tasks_per_bin", None, "Bins of the peak; default: 20 bins, of at most 50 tasks.", **plain)
    flags.DEFINE_enum("interval", "se", INTERVALS, "95% interval of means and differences over seeds.", **plain)
    flags.DEFINE_enum("format", "text", FORMATS, "How the tables are written.", **plain)
    flags.DEFINE_string("out", None, "Where the figure goes; without it none is drawn.", **plain)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the tables, and draws the figure where `--out` asks for one."""
    if not arguments:
        raise InputError("launch.learning: no run folder given; usage: python -m launch.learning DIR...")
    path = target(arguments[0], values.out, None) if values.out is not None else None
    asked = ("metric", "window", "threshold", "tasks_per_bin", "interval")
    question = Question(**{name: values[name].value for name in asked})
    runs = [run for directory in arguments for run in read_runs(directory).values()]
    warn_of_tuning(runs)
    print(report(runs, question, values.reference, values.format))
    if path is not None:
        from launch.figures import figure

        print("", figure.save(draw(learning(runs, question), question)[0], path), sep="\n")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
