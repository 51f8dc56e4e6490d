"""Numbers of `launch.learning`: how much is learned in a task, how soon, and how far below the peak."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from launch.analysis.by_task import after_tasks, steps_until, task_starts, within_tasks
from launch.analysis.statistics import interval, late_bins, paired_difference
from launch.analysis.survival import Pooled, Ranged, kaplan_meier, pooled
from launch.compare import Row, by_seed, comparable, matched, paired_row, with_diverged
from launch.errors import InputError, unknown
from launch.figures.curves import Curve, MetricStyle, checked_metrics, curves, metric_style
from launch.storage.run_folder import Run

METRIC, SUFFIX = "test_accuracy_in_task", "_in_task"
PUBLISHED_BIN, BINS = 50, 20
SHOWN, NOT_SHOWN = "shown", "not shown at this scale"
_DECAY = "weight_decay"


@dataclass(frozen=True)
class Question:
    """What is asked of every run; the fields are the command's flags."""

    metric: str = METRIC
    window: float = 0.25
    threshold: str = "first"
    tasks_per_bin: int | None = None
    interval: str = "se"

    @property
    def style(self) -> MetricStyle:
        """Label, direction and scale of the accuracy."""
        return metric_style(self.metric.removesuffix(SUFFIX))

    @property
    def share(self) -> str:
        """The window in words."""
        return f"{100 * self.window:g}%"


@dataclass(frozen=True)
class Tasks:
    """A run by task: `after`, `within`, `steps` float64 and `reached` bool, all [lane, task]; `starts` [task + 1]."""

    run: Run
    starts: np.ndarray
    after: np.ndarray
    within: np.ndarray
    steps: np.ndarray
    reached: np.ndarray

    def late(self, share: float) -> slice:
        """The last `share` of the tasks."""
        return late_bins(len(self.starts) - 1, share)


class Quantity(NamedTuple):
    """A number for every lane of a curve [lane]; which direction is better; where it is told.

    `tabled` with the accuracies of every curve, `compared` between curves.
    """

    values: np.ndarray
    better: str
    tabled: bool = True
    compared: bool = True


@dataclass(frozen=True)
class Learned:
    """What a curve's lanes learned: quantities by name, and the wait for the threshold early and late in the run.

    `spans` are the early and the late tasks that `early` and `late` are about.
    """

    curve: Curve
    quantities: dict[str, Quantity]
    tasks_per_bin: int
    spans: tuple[slice, slice]
    horizons: tuple[float, float]
    early: Pooled
    late: Pooled


class Shown(NamedTuple):
    """Accuracy late in a run minus the fresh network's, paired by seed, in the unit of its axis, and the verdict."""

    difference: float
    low: float
    high: float
    verdict: str


def learning(runs: Sequence[Run], question: Question = Question()) -> list[Learned]:
    """One answer per curve whose run holds the metric.

    Raises:
        InputError: no run holds the metric, or lower values of it are better; a run of a single task, or that does not
            say where its tasks begin; a threshold, window or bin that cannot be.
    """
    return [_learned(curve, tasks, question) for curve, tasks in _by_curve(runs, question)]


def _by_curve(runs: Sequence[Run], question: Question) -> list[tuple[Curve, Tasks]]:
    checked_metrics(runs, [question.metric])
    if question.style.better != "higher":
        raise InputError(f"--metric: of {question.metric} lower values are better; an accuracy is needed")
    late_bins(1, question.window)
    found = {id(run): _tasks(run, question, runs) for run in runs if question.metric in run.metrics}
    return [(curve, found[id(curve.run)]) for curve in curves(runs) if id(curve.run) in found]


def _after(run: Run, metric: str) -> np.ndarray:
    plain = metric.removesuffix(SUFFIX)
    return after_tasks(run, plain if plain in run.metrics else metric)


def _tasks(run: Run, question: Question, runs: Sequence[Run]) -> Tasks:
    starts = task_starts(run)
    if len(starts) < 3:
        raise InputError(f"{run.meta.get('folder', run.label)}: holds a single task; at least two are needed")
    found = _thresholds(run, question, runs)
    steps, reached = steps_until(run, question.metric, found)
    return Tasks(run, starts, _after(run, question.metric), within_tasks(run, question.metric), steps, reached)


def _thresholds(run: Run, question: Question, runs: Sequence[Run]) -> np.ndarray:
    """What the metric has to reach, [lane, task]; NaN where it is not known."""
    own, text = after_tasks(run, question.metric), question.threshold
    if text == "first":
        return np.repeat(own[:, :1], own.shape[1], axis=1)
    try:
        number = float(text)
    except ValueError:
        return _thresholds_of_another(run, question, runs)
    if not np.isfinite(number) or (question.style.scale == 100 and not 0 < number <= 1):
        raise InputError(f"--threshold: {text} is not in (0, 1]; an accuracy is a share, such as 0.85")
    return np.full(own.shape, number)


def _thresholds_of_another(run: Run, question: Question, runs: Sequence[Run]) -> np.ndarray:
    """The accuracy of the run with the label `question.threshold`, of the same seed, after the same task."""
    label = question.threshold
    named = [each for each in runs if each.label == label and question.metric in each.metrics]
    if not named:
        raise unknown("--threshold", label, ["first", "a number", *{each.label for each in runs}])
    others = beside(run, named)
    if len(others) > 1 or len(others[0].settings_groups()) > 1:
        raise InputError(f"--threshold: {label} names several runs or settings, one is needed")
    _same_tasks(run, others[0])
    values = dict(zip(others[0].seeds.tolist(), after_tasks(others[0], question.metric), strict=True))
    missing = np.full(len(task_starts(run)) - 1, np.nan)
    return np.array([values.get(seed, missing) for seed in run.seeds.tolist()])


def beside(run: Run, others: Sequence[Run]) -> list[Run]:
    """Those of `others` that lie in the same folder as `run`; all of them where none does."""
    folder = Path(run.meta.get("folder", "")).parent
    return [each for each in others if Path(each.meta.get("folder", "")).parent == folder] or list(others)


def _same_tasks(one: Run, other: Run) -> None:
    comparable(one, other)
    if not np.array_equal(task_starts(one), task_starts(other)):
        raise InputError(f"{one.label} and {other.label}: their tasks begin at different steps")


def _learned(curve: Curve, tasks: Tasks, question: Question) -> Learned:
    spans = _spans(tasks, question)
    lengths = np.diff(tasks.starts)
    horizons = tuple(float(lengths[span].max()) for span in spans)
    steps, reached = tasks.steps[curve.lanes], tasks.reached[curve.lanes]
    for span in spans:
        if not np.isfinite(steps[:, span]).any():
            raise InputError(
                f"{tasks.run.meta.get('folder', tasks.run.label)}: {question.metric} of tasks {numbers(span)}, or the "
                f"threshold ({question.threshold}) for them, was not measured"
            )
    waits = [pooled(steps[:, span], reached[:, span], end) for span, end in zip(spans, horizons, strict=True)]
    size = _tasks_per_bin(tasks, question)
    return Learned(curve, quantities(curve, tasks, question), size, spans, (horizons[0], horizons[1]), *waits)


def _spans(tasks: Tasks, question: Question) -> tuple[slice, slice]:
    """The tasks early and late for which the wait is told, without the first where that reaches its own accuracy."""
    late, skipped = tasks.late(question.window), int(question.threshold == "first")
    number = late.stop - late.start
    return slice(skipped, min(number + skipped, late.stop)), slice(max(late.start, skipped), late.stop)


def _tasks_per_bin(tasks: Tasks, question: Question) -> int:
    number, size = len(tasks.starts) - 1, question.tasks_per_bin
    if size is None:
        return max(1, min(PUBLISHED_BIN, number // BINS))
    if not 1 <= size <= number:
        raise InputError(f"--tasks_per_bin: {size} is not in 1...{number}, the tasks of {tasks.run.label}")
    return size


def quantities(curve: Curve, tasks: Tasks, question: Question) -> dict[str, Quantity]:
    """What is told of every lane of a curve, by name; accuracies in the unit of the metric's axis."""
    after, within = (values[curve.lanes] * question.style.scale for values in (tasks.after, tasks.within))
    late, size = tasks.late(question.window), _tasks_per_bin(tasks, question)
    early = slice(0, late.stop - late.start)
    last, peak = _mean(after[:, late]), _peak(after, size)
    _, span = _spans(tasks, question)
    steps, reached = tasks.steps[curve.lanes, span], tasks.reached[curve.lanes, span]
    horizon = float(np.diff(tasks.starts)[span].max())
    return {
        "first task": Quantity(after[:, 0], "higher", compared=False),
        "peak": Quantity(peak, "higher", compared=False),
        f"last {question.share}": Quantity(last, "higher"),
        "drop from peak": Quantity(peak - last, "lower"),
        f"within a task, first {question.share}": Quantity(_mean(within[:, early]), "higher", compared=False),
        f"within a task, last {question.share}": Quantity(_mean(within[:, late]), "higher"),
        "never at the threshold (% of tasks)": Quantity(_never(steps, reached), "lower", tabled=False),
        "updates to the threshold": Quantity(_waits(steps, reached, horizon), "lower", tabled=False),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over tasks [lane, task] -> [lane], of those measured; NaN where none is."""
    present = np.isfinite(values)
    number = present.sum(axis=1)
    total = np.where(present, values, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _peak(after: np.ndarray, size: int) -> np.ndarray:
    """Every lane's mean in that bin of `size` tasks in which the mean over lanes is highest, [lane]."""
    whole = after.shape[1] // size
    binned = np.stack([_mean(after[:, i * size : (i + 1) * size]) for i in range(whole)], axis=1)
    curve = _mean(binned.T)
    return binned[:, np.nanargmax(curve)] if np.isfinite(curve).any() else np.full(len(after), np.nan)


def _never(steps: np.ndarray, reached: np.ndarray) -> np.ndarray:
    return 100 * _mean(np.where(np.isfinite(steps), ~reached, np.nan))


def _waits(steps: np.ndarray, reached: np.ndarray, horizon: float) -> np.ndarray:
    """Restricted mean of every lane's own Kaplan-Meier curve, [lane]."""
    known = np.isfinite(steps)
    return np.array([
        kaplan_meier(mine[mark], hit[mark]).restricted_mean(horizon) if mark.any() else np.nan
        for mine, hit, mark in zip(steps, reached, known, strict=True)
    ])  # fmt: skip


def differences(runs: Sequence[Run], question: Question, reference: str) -> list[Row]:
    """Every other curve minus that of the run labelled `reference`, paired by seed.

    Raises:
        InputError: no such label, or runs on different streams, of different lengths, without a seed in common.
    """
    found = _by_curve(runs, question)
    by_run = {id(curve.run): tasks for curve, tasks in found}
    held = [tasks.run for tasks in by_run.values()]
    references = [run for run in held if run.label == reference]
    if not references:
        raise unknown("--reference", reference, {run.label for run in held})
    rows = []
    for run in held:
        for other in beside(run, references) if run.label != reference else []:
            _same_tasks(run, other)
            for pair in pairs(run, other, [curve for curve, _ in found]):
                one, two = (quantities(curve, by_run[id(curve.run)], question) for curve in pair)
                rows += [
                    paired_row(name, *pair, one[name].values, two[name].values, one[name].better, question.interval)
                    for name in one
                    if one[name].compared
                ]
    return rows


def pairs(run: Run, other: Run, told: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """The settings of two runs to compare, each named as among all curves that are `told`."""
    names = {(id(curve.run), *curve.lanes.tolist()): curve for curve in told}
    return [
        (names[id(run), *one.lanes.tolist()], names[id(other), *two.lanes.tolist()]) for one, two in matched(run, other)
    ]


def shown(run: Run | Curve, fresh: Run | Curve, metric: str = "test_accuracy", window: float = 0.25) -> Shown:
    """Whether `run` loses plasticity: its accuracy after a task, late in the run, lies below the fresh network's.

    The mean over the last `window` of the tasks, paired by seed; "shown" where the whole 95% Student interval lies
    below 0. With fewer than two seeds nothing is shown.

    Raises:
        InputError: runs that cannot be compared, or that hold several settings (give a `Curve` then).
    """
    one, other = (_one_curve(each) for each in (run, fresh))
    _same_tasks(one.run, other.run)
    style = metric_style(metric.removesuffix(SUFFIX))
    if style.better != "higher":
        raise InputError(f"shown: of {metric} lower values are better; an accuracy is needed")
    late = late_bins(len(task_starts(one.run)) - 1, window)
    a, b = (_mean(_after(curve.run, metric)[curve.lanes, late]) * style.scale for curve in (one, other))
    found = paired_difference(*by_seed(one, other, a, b), style.better, "se")
    return Shown(found.mean, found.low, found.high, SHOWN if found.high < 0 else NOT_SHOWN)


def _one_curve(run: Run | Curve) -> Curve:
    found = [run] if isinstance(run, Curve) else curves([run])
    if len(found) != 1:
        raise InputError(f"{found[0].run.label}: holds {len(found)} settings, one is needed")
    return found[0]


def numbers(span: slice) -> str:
    """Tasks as people count them, from 1."""
    return f"{span.start + 1}–{span.stop}" if span.stop - span.start > 1 else f"{span.stop}"


def verdict_text(found: Shown, one: Curve, two: Curve, label: str, span: str) -> str:
    """A line that says whether `one` loses plasticity beside `two`; `span` is what of the run it is about."""
    ends = f" [{found.low:.4g}, {found.high:.4g}]" if np.isfinite(found.low) else ""
    names = f"{with_diverged(one)} minus {with_diverged(two)}"
    told = f"Loss of plasticity {found.verdict}: {names}, {label} over the {span}: {found.difference:.4g}{ends}."
    unequal = unequal_numbers(one, two)
    return told + f" They differ in more than the past: {', '.join(unequal)}." * bool(unequal)


def unequal_numbers(one: Curve, two: Curve) -> list[str]:
    """The numbers that both methods have and that differ, as text; a method without weight decay has 0 of it."""
    mine, theirs = (curve.run.lanes[curve.lanes[0]]["hyper"] for curve in (one, two))
    shared = [name for name in mine | theirs if name == _DECAY or (name in mine and name in theirs)]
    values = [(name, mine.get(name, 0.0), theirs.get(name, 0.0)) for name in shared]
    return [f"{name} {a:g} and {b:g}" for name, a, b in values if a != b]


def range_of(values: np.ndarray, kind: str) -> str:
    """Mean and interval over lanes [lane] as text; empty where nothing was measured."""
    return range_text(Ranged(*(float(value) for value in interval(values, kind)))) if np.isfinite(values).any() else ""


def range_text(found: Ranged) -> str:
    """`mean [low, high]`, without ends that do not exist; what is infinite was not reached."""
    if np.isnan(found.value):
        return ""
    value, low, high = ("not reached" if np.isinf(each) else f"{each:.4g}" for each in found)
    return value if np.isnan(found.low) or np.isinf(found.low) else f"{value} [{low}, {high}]"


def note_of(curve: Curve) -> str:
    """The number of seeds and what else the legend says, for a column that is headed by seeds."""
    return curve.note.replace(" seeds", "").replace(" seed", "")
