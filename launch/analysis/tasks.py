"""Streams of tasks: how much is learned in a task, how soon, and how far from the peak, late in a run.

The metric is measured several times within a task. Accuracy after a task is the metric of that name without `_in_task`
where a run holds it, else the task's last measurement. Where lower values are better, as of bits per byte, the peak is
the lowest value, and a threshold is reached from above.

Read the peak with care: it is the best of several noisy means, so it lies above what it estimates, and with it the drop
from it; more so the smaller the bins, the fewer the seeds and the longer the run. The bin is that in which the mean
over seeds is highest, the same for every seed; a last bin of fewer tasks than the others is no candidate.

Read the steps until a threshold with care: a noisy accuracy (of 200 pictures, say, with a standard error of 3 points)
reaches a threshold the earlier by chance, the more often it is measured. Compare only runs measured equally often on as
many pictures. `first` is itself one noisy measurement of each lane. Steps are rounded up to the next measurement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from launch.analysis.comparison import (
    LATE,
    Row,
    Verdict,
    comparable,
    difference_table,
    differences,
    late_text,
    paired,
    verdict_lines,
)
from launch.analysis.curves import Curve, baseline, beside, curves, matched, place, runs_of
from launch.analysis.long_table import by_task, of_metric, task_starts, waits
from launch.analysis.metrics import IN_TASK, MetricStyle, checked_metrics, metric_style
from launch.analysis.statistics import Estimate, late_bins
from launch.analysis.survival import Survival, kaplan_meier, never
from launch.analysis.text import Table, estimate_text, mean_text, percent, span_text
from launch.errors import InputError, unknown
from launch.storage.run_folder import Run

METRIC = "test_accuracy_in_task"
IN_TASK_METRICS = (METRIC, "bits_per_byte_in_task")
PUBLISHED_BIN, BINS = 50, 20
NEVER, WAIT = "never at the threshold (% of tasks)", "updates to the threshold"
BETTER = {NEVER: "lower", WAIT: "lower", "drop from peak": "lower"}
"""Quantities of which less is better; of all others, more."""


@dataclass(frozen=True)
class Question:
    """What is asked of every run: metric, share of the tasks that is early and late, threshold, bins of the peak."""

    metric: str = METRIC
    window: float = LATE
    threshold: str = "first"
    tasks_per_bin: int | None = None

    @property
    def style(self) -> MetricStyle:
        """Label, direction and scale of the accuracy."""
        return metric_style(self.metric.removesuffix(IN_TASK))

    @property
    def sign(self) -> int:
        """1 where higher values are better, -1 where lower ones are."""
        return 1 if self.style.better == "higher" else -1

    @property
    def word(self) -> str:
        """What a value is called."""
        return "accuracy" if "accuracy" in self.metric else "value"

    @property
    def share(self) -> str:
        """The window in words."""
        return percent(self.window)

    @property
    def threshold_words(self) -> str:
        """What has to be reached."""
        if self.threshold == "first":
            return f"the first task's {self.word}"
        try:
            return f"a {self.style.label} of {float(self.threshold) * self.style.scale:g}"
        except ValueError:
            return f"{self.threshold.replace('_', ' ')}'s {self.word} after the same task"


@dataclass(frozen=True)
class Wait:
    """How long tasks `span` take until the threshold, at most `horizon`: the tasks themselves, and their survival."""

    span: slice
    horizon: float
    tasks: pd.DataFrame
    survival: Survival

    @property
    def never(self) -> Estimate:
        """Per cent of the tasks that do not reach it."""
        return Estimate(*(100 * value for value in never(self.tasks)))


@dataclass(frozen=True)
class Learned:
    """What a curve's lanes learned: a value by seed for every quantity, and the wait early and late in the run."""

    curve: Curve
    quantities: dict[str, pd.Series]
    tasks_per_bin: int
    early: Wait
    late: Wait


ASKED = Question()


def learned(runs: Sequence[Run], question: Question = ASKED) -> list[Learned]:
    """One answer per curve whose run holds the metric.

    Raises:
        InputError: no run holds the metric; a run of a single task, or that does not say where its tasks begin; a
            threshold, window or bin that cannot be.
    """
    checked_metrics(runs, [question.metric])
    late_bins(1, question.window)
    held = [run for run in runs if question.metric in run.metrics]
    return [_learned(curve, question, runs) for curve in curves(runs) if any(curve.run is run for run in held)]


def _learned(curve: Curve, question: Question, runs: Sequence[Run]) -> Learned:
    starts = task_starts(curve.run)
    number = len(starts) - 1
    if number < 2:
        raise InputError(f"{place(curve.run)}: holds a single task; at least two are needed")
    size = question.tasks_per_bin or max(1, min(PUBLISHED_BIN, number // BINS))
    if question.tasks_per_bin is not None and not 1 <= question.tasks_per_bin <= number:
        raise InputError(f"--tasks_per_bin: {question.tasks_per_bin} is not in 1...{number}, the tasks of {curve.name}")
    table = of_metric(curve, question.metric)
    tasks = waits(table, _thresholds(curve, by_task(table), question, runs), question.style.better)
    late, skipped = late_bins(number, question.window), int(question.threshold == "first")
    width = late.stop - late.start
    # The first task reaches its own accuracy, and is left out where that is the threshold.
    spans = slice(skipped, min(width + skipped, late.stop)), slice(max(late.start, skipped), late.stop)
    early, last = (_wait(curve, tasks, span, np.diff(starts), question) for span in spans)
    scale = question.style.scale
    after, within = after_tasks(curve, question.metric) * scale, by_task(table, "mean") * scale
    peak = _peak(after * question.sign, size) * question.sign
    found = {
        "first task": after.iloc[:, 0],
        "peak": peak,
        f"last {question.share}": after.iloc[:, late].mean(axis=1),
        "drop from peak": (peak - after.iloc[:, late].mean(axis=1)) * question.sign,
        f"within a task, first {question.share}": within.iloc[:, :width].mean(axis=1),
        f"within a task, last {question.share}": within.iloc[:, late].mean(axis=1),
    }
    by_lane = last.tasks.groupby("lane")
    found[NEVER] = 100 - 100 * by_lane["happened"].mean()
    found[WAIT] = pd.Series(
        {lane: kaplan_meier(mine).restricted_mean(last.horizon).value for lane, mine in by_lane}, dtype=float
    )
    values = {name: pd.Series(each.reindex(curve.lanes).to_numpy(), curve.seeds) for name, each in found.items()}
    return Learned(curve, values, size, early, last)


def after_tasks(curve: Curve, metric: str) -> pd.DataFrame:
    """Accuracy after every task [lane, task], as a share."""
    plain = metric.removesuffix(IN_TASK)
    return by_task(of_metric(curve, plain if plain in curve.run.metrics else metric))


def _thresholds(curve: Curve, own: pd.DataFrame, question: Question, runs: Sequence[Run]) -> pd.DataFrame:
    """What the metric has to reach, [lane, task]; NaN where it is not known."""
    text = question.threshold
    if text == "first":
        return own.apply(lambda column: own.iloc[:, 0])
    try:
        number = float(text)
    except ValueError:
        return _thresholds_of_another(curve, own, question, runs)
    if not np.isfinite(number) or (question.style.scale == 100 and not 0 < number <= 1):
        raise InputError(f"--threshold: {text} is not in (0, 1]; an accuracy is a share, such as 0.85")
    return own * 0 + number


def _thresholds_of_another(curve: Curve, own: pd.DataFrame, question: Question, runs: Sequence[Run]) -> pd.DataFrame:
    """The accuracy of the run with the label `question.threshold`, of the same seed, after the same task."""
    label = question.threshold
    held = [run for run in runs if run.label == label and question.metric in run.metrics]
    if not held:
        raise unknown("--threshold", label, ["first", "a number", *{run.label for run in runs}])
    others = [other for run in beside(curve.run, held) for other in curves([run])]
    if len(others) > 1:
        raise InputError(f"--threshold: {label} names several runs or settings, one is needed")
    same_tasks(curve.run, others[0].run)
    theirs = by_task(of_metric(others[0], question.metric)).set_axis(others[0].seeds)
    return theirs.reindex(curve.run.seeds[own.index]).set_axis(own.index)


def same_tasks(one: Run, other: Run) -> None:
    """Refuse with an InputError runs on different streams, of different lengths, or whose tasks begin elsewhere."""
    comparable(one, other)
    if not np.array_equal(task_starts(one), task_starts(other)):
        raise InputError(f"{one.label} and {other.label}: their tasks begin at different steps")


def _wait(curve: Curve, tasks: pd.DataFrame, span: slice, lengths: np.ndarray, question: Question) -> Wait:
    mine = tasks[tasks["task"].between(span.start + 1, span.stop)]
    if mine.empty:
        raise InputError(
            f"{place(curve.run)}: {question.metric} of tasks {span_text(span)}, or the threshold "
            f"({question.threshold}) for them, was not measured"
        )
    return Wait(span, float(lengths[span].max()), mine, kaplan_meier(mine))


def _peak(after: pd.DataFrame, size: int) -> pd.Series:
    """Every lane's mean in that bin of `size` tasks in which the mean over lanes is highest, [lane]."""
    whole = after.iloc[:, : after.shape[1] // size * size]
    binned = whole.T.groupby(np.arange(whole.shape[1]) // size).mean().T
    means = binned.mean()
    return binned[means.idxmax()] if means.notna().any() else binned.iloc[:, 0]


def compared(found: Sequence[Learned], question: Question, reference: str) -> list[Row]:
    """Every other curve minus that of the run labelled `reference`, paired by seed."""
    names = [f"last {question.share}", "drop from peak", f"within a task, last {question.share}", NEVER, WAIT]
    values = [(each.curve, each.quantities) for each in found]
    return differences(values, reference, {name: BETTER.get(name, question.style.better) for name in names}, same_tasks)


def shown(one: Curve, fresh: Curve, metric: str = "test_accuracy", window: float = LATE, of: str = "tasks") -> Verdict:
    """Whether `one` loses plasticity: after a task, late in the run, it is worse than the fresh network.

    The mean over the last `window` of the tasks, paired by seed.

    Raises:
        InputError: runs that cannot be compared.
    """
    same_tasks(one.run, fresh.run)
    style = metric_style(metric.removesuffix(IN_TASK))
    late = late_bins(len(task_starts(one.run)) - 1, window)
    x, y = (after_tasks(each, metric).iloc[:, late].mean(axis=1) * style.scale for each in (one, fresh))
    x, y = (pd.Series(each.to_numpy(), curve.seeds) for each, curve in ((x, one), (y, fresh)))
    row = paired(metric.removesuffix(IN_TASK), one, fresh, x, y, style.better)
    return Verdict(one, fresh, late_text(window, of), row)


def report(
    runs: Sequence[Run], question: Question = ASKED, reference: str | None = None
) -> tuple[list[Table], list[str]]:
    """Tables by curve, of the wait for the threshold, and of differences; and what is shown."""
    found = learned(runs, question)
    labels = list(dict.fromkeys(each.curve.run.label for each in found))
    chosen = reference or ("backprop" if "backprop" in labels else labels[0])
    rows = compared(found, question, chosen)
    tables = [_accuracies(found, question), _waiting(found, question)]
    if rows:
        about = f"Threshold: {question.threshold_words}, in the last {question.share} of tasks"
        tables.append(difference_table(rows, about))
    return tables, verdict_lines(_verdicts(found, question))


def _accuracies(found: Sequence[Learned], question: Question) -> Table:
    names = [name for name in found[0].quantities if name not in (NEVER, WAIT)]
    rows = [("method", *names, "seeds")]
    rows += [(e.curve.name, *(mean_text(e.quantities[n]) for n in names), e.curve.short_note) for e in found]
    sizes = ", ".join(map(str, sorted({each.tasks_per_bin for each in found})))
    ends = "highest" if question.sign > 0 else "lowest"
    remark = (
        f"{question.style.label} after a task, and within it as the mean of its evaluations (learning-curve area); "
        f"mean and 95% interval over seeds. Peak: the bin of {sizes} task{'s' * (sizes != '1')} in which the mean over "
        f"seeds is {ends}; the best of noisy means lies too {ends[:-3]}, and the drop too high: how much worse the "
        f"last {question.share} of tasks are than the peak."
    )
    return Table(rows, [remark])


def _waiting(found: Sequence[Learned], question: Question) -> Table:
    rows = [("method", "tasks", "never (%)", "median updates", "mean updates", "at most", "seeds")]
    for each in found:
        for wait in (each.early, each.late):
            numbers = wait.never, wait.survival.median(), wait.survival.restricted_mean(wait.horizon)
            cells = map(estimate_text, numbers)
            rows.append((each.curve.name, span_text(wait.span), *cells, f"{wait.horizon:g}", each.curve.short_note))
    first = " The first task, which reaches its own, is left out." * (question.threshold == "first")
    return Table(rows, [
        f"Updates within a task until {question.metric.replace('_', ' ')} first reaches {question.threshold_words}, "
        f"rounded up to the next measurement; a task that never does is censored at its length.{first}",
        "Median and mean by Kaplan and Meier over all tasks of all seeds, the mean of the updates or, where less, of "
        "'at most'; 95% jackknife intervals over seeds. Noise reaches a threshold earlier the more often one looks.",
    ])  # fmt: skip


def metric_of(runs: Sequence[Run]) -> str:
    """The metric that tells of tasks: the first of `IN_TASK_METRICS` that all runs hold, or that any would."""
    return next((name for name in IN_TASK_METRICS if all(name in run.metrics for run in runs)), METRIC)


def _verdicts(found: Sequence[Learned], question: Question) -> list[Verdict]:
    """One for every setting of backprop beside a fresh network."""
    told = [each.curve for each in found]
    runs = runs_of(told)
    fresh = [run for run in runs if baseline(run) == "fresh_network"]
    plain = [run for run in runs if run.meta["method"] == "backprop" and baseline(run) is None]
    pairs = [pair for run in plain for other in beside(run, fresh) for pair in matched(run, other, told)]
    return [shown(one, two, question.metric, question.window) for one, two in pairs]
