"""The numbers of `launch.increments`: every run beside the one that begins afresh, by increment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from launch.analysis.by_task import STARTS, after_tasks, steps_until, task_starts, values_of
from launch.analysis.learned import SUFFIX, beside
from launch.analysis.statistics import INTERVALS, late_bins
from launch.analysis.survival import Pooled, pooled
from launch.compare import matched, with_diverged
from launch.errors import InputError, unknown
from launch.figures.curves import Curve, MetricStyle, baseline, checked_metrics, curves, metric_style
from launch.storage.run_folder import RUN, Run

METRIC = "test_accuracy"
BASES = ("base", "l2", "backprop")
AGES = {f"accuracy_{age}_classes": age for age in ("newest", "middle", "oldest")}
LATE, WAITED = 0.25, 0.5
"""Shares of the increments, at the end: for which loss of plasticity is judged, and for which the wait is told."""
_CUMULATIVE, _EPOCHS, _SOME = "task.cumulative", "task.epochs", "task.classes_per_increment"
_ALIKE = (
    "dataset",
    "classes",
    "classes_per_increment",
    "train_per_class",
    "test_per_class",
    "augment_test",
    "accuracy",
)
_LONGER = "as many updates"
DIAGNOSTICS = ("dormant_units", "dormant_units_old_classes", "stable_rank", "stable_rank_old_classes")


@dataclass(frozen=True)
class Question:
    """What is asked of every run; the fields are the command's flags."""

    metric: str = METRIC
    reference: str | None = None
    base: str | None = None
    interval: str = "se"

    @property
    def style(self) -> MetricStyle:
        """Label, direction and scale of the accuracy."""
        return metric_style(self.metric)


ASKED = Question()
"""What is asked where nothing is said."""


@dataclass(frozen=True)
class Increments:
    """A curve by increment.

    `run` is as it was read. The run of `curve` has one bin per increment, which ends at the step that is the number of
    classes seen (of increments, where the task does not say), and every metric's last value within the increment.
    `relative` float64 [lane, increment] is the accuracy minus that of `partner`, the reference, in the unit of the
    metric's axis, NaN where no lane of the same seed is. `epochs` and `updates` int64 [increment]: passes of each, and
    updates until the end of each. `wait`: epochs until the partner's accuracy of the same increment (the one at its
    end, or the highest where that counts), over the last half of the increments; `None` where it was not measured on
    the way.
    """

    run: Run
    curve: Curve
    partner: Curve
    relative: np.ndarray
    epochs: np.ndarray
    updates: np.ndarray
    wait: Pooled | None

    @property
    def classes(self) -> np.ndarray:
        """Classes seen by the end of every increment, int64 [increment]."""
        return self.curve.run.step

    @property
    def restarts(self) -> bool:
        """Whether every increment begins with a new network."""
        return baseline(self.run) == "fresh_network"

    def values(self, metric: str) -> np.ndarray:
        """A metric [lane, increment] in the unit of its axis; NaN where it was not measured."""
        held = self.curve.run.metrics.get(metric)
        if held is None:
            return np.full(self.relative.shape, np.nan)
        return held[self.curve.lanes] * metric_style(metric).scale

    @property
    def presentations(self) -> tuple[int, int]:
        """How often the network there is in the end was shown a picture of the newest and of the oldest classes."""
        newest = int(self.epochs[-1])
        return newest, newest if self.restarts else int(self.epochs.sum())

    @property
    def late(self) -> slice:
        """The increments that `wait` is about."""
        return late_bins(len(self.epochs), WAITED)


def increments(runs: Sequence[Run], question: Question = ASKED) -> list[Increments]:
    """One answer per curve whose run holds the metric.

    Raises:
        InputError: no run holds the metric, or lower values of it are better; a run that is no stream of growing tasks,
            that cannot be compared with the reference, or without a seed in common with it; no such reference.
    """
    checked_metrics(runs, [question.metric])
    if question.style.better != "higher":
        raise InputError(f"--metric: of {question.metric} lower values are better; an accuracy is needed")
    if question.interval not in INTERVALS:
        raise unknown("--interval", question.interval, INTERVALS)
    held = [(by_increment(run, question.metric), run) for run in runs if question.metric in run.metrics]
    references = _references([run for run, _ in held], question.reference)
    originals = {id(made): run for made, run in held}
    return [
        _increments(curve, _partner(curve, references), originals, question.metric)
        for curve in _named(curves(run for run, _ in held))
    ]


def by_increment(run: Run, metric: str = METRIC) -> Run:
    """The run in one bin per increment that is over, each ending at the number of classes seen: see `Increments`.

    Raises:
        InputError: `run.json` does not say where tasks begin, or all are of one length; none is over.
    """
    starts = task_starts(run)
    if len(starts) < 3 or len(set(np.diff(starts))) == 1:
        raise InputError(f"{_place(run)}: its tasks do not grow; a stream of class increments is needed")
    over = np.flatnonzero(np.isfinite(after_tasks(run, metric)).any(axis=0))
    if not len(over):
        raise InputError(f"{_place(run)}: no increment holds {metric}")
    number = int(over[-1]) + 1
    metrics = {name: after_tasks(run, name)[:, :number] for name in run.metrics}
    if takes_best_epoch(run, metric):
        metrics[metric] = best_in_tasks(run, metric + SUFFIX)[:, :number]
    some = classes_each(run) or 1
    classes = some * np.arange(1, number + 1)
    # Lengths in steps tell no two curves apart here; that a network is trained for longer is told in words.
    hidden = ("steps", "bin") if is_longer(run) else ("steps", "bin", _CUMULATIVE)
    settings = {name: value for name, value in run.meta["settings"].items() if name not in hidden}
    meta = run.meta | {"settings": settings, STARTS: [0, *classes.tolist()]}
    return replace(run, meta=meta, step=classes, count=np.full(number, some), metrics=metrics)


def _place(run: Run) -> str:
    return str(run.meta.get("folder", run.label))


def classes_each(run: Run) -> int | None:
    """How many classes come at a time; `None` where the task does not say."""
    some: Any = run.meta["settings"].get(_SOME)
    if some is not None and (type(some) is not int or some < 1):
        raise InputError(f"{_place(run)}: {_SOME} in {RUN} is {some!r}, not a whole number from 1 up")
    return some


def is_longer(run: Run) -> bool:
    return bool(run.meta["settings"].get(_CUMULATIVE))


def takes_best_epoch(run: Run, metric: str) -> bool:
    return metric == METRIC and run.meta["settings"].get("task.accuracy") == "best_epoch"


def best_in_tasks(run: Run, metric: str) -> np.ndarray:
    """The highest measurement within each task, float64 [lane, task]; NaN where the task holds none."""
    firsts = np.searchsorted(run.step, task_starts(run)[:-1], side="right")
    return np.fmax.reduceat(values_of(run, metric), firsts, axis=1)


def _named(found: Sequence[Curve]) -> list[Curve]:
    """The curves, with words for the setting that makes increments longer, and a line of its own."""
    named = []
    for curve in found:
        if is_longer(curve.run):
            text = curve.distinction.replace(f"{_CUMULATIVE}=True", _LONGER)
            curve = replace(curve, distinction=text, line=(0, (5, 1.2, 1, 1.2)))
        named.append(curve)
    return named


def _references(runs: Sequence[Run], label: str | None) -> list[Run]:
    """The runs that others are compared with; those trained for longer only where there is no other."""
    fresh = [run.label for run in sorted(runs, key=is_longer) if baseline(run) == "fresh_network"]
    chosen = label or (fresh[0] if fresh else "fresh_network")
    named = [run for run in runs if run.label == chosen]
    if not named:
        raise unknown("--reference", chosen, {run.label for run in runs})
    return [run for run in named if not is_longer(run)] or named


def _partner(curve: Curve, references: Sequence[Run]) -> Curve:
    """The reference's settings that a curve is compared with; of a reference, the curve itself."""
    if any(curve.run is each for each in references):
        return curve
    found = [
        two
        for other in beside(curve.run, references)
        for one, two in matched(curve.run, other)
        if np.array_equal(one.lanes, curve.lanes)
    ]
    if len(found) != 1:
        several = "several runs or settings" if found else "no run with its settings"
        raise InputError(f"{with_diverged(curve)}: --reference={references[0].label} names {several}, one is needed")
    _check_same_stream(curve.run, found[0].run)
    return found[0]


def _check_same_stream(run: Run, other: Run) -> None:
    told = [(each.meta["task"], {n: each.meta["settings"].get(f"task.{n}") for n in _ALIKE}) for each in (run, other)]
    compared = [("tasks", *(name for name, _ in told))]
    compared += [(f"task.{name}", *(settings[name] for _, settings in told)) for name in _ALIKE]
    compared += [("numbers of increments", len(run.step), len(other.step))]
    for what, one, two in compared:
        if one != two:
            raise InputError(f"{_place(run)} and {_place(other)}: different {what}, {one} and {two}")


def _increments(curve: Curve, partner: Curve, originals: dict[int, Run], metric: str) -> Increments:
    run, scale = originals[id(curve.run)], metric_style(metric).scale
    accuracy, theirs = (each.run.metrics[metric][each.lanes] * scale for each in (curve, partner))
    relative = accuracy - _of_same_seed(curve, partner, theirs)
    if not np.isfinite(relative).any():
        raise InputError(f"{curve.name} and {partner.name}: no seed in common on which both hold {metric}")
    epochs = _epochs(run, len(curve.run.step))
    updates = task_starts(run)[1 : len(epochs) + 1]
    wait = _wait(run, curve, originals[id(partner.run)], partner, metric + SUFFIX, epochs)
    return Increments(run, curve, partner, relative, epochs, updates, wait)


def _of_same_seed(curve: Curve, partner: Curve, values: np.ndarray) -> np.ndarray:
    """Of every lane of `curve`, the partner's values [lane, increment] of the same seed; NaN where it has none."""
    held = dict(zip(partner.run.seeds[partner.lanes].tolist(), values, strict=True))
    missing = np.full(values.shape[1], np.nan)
    return np.array([held.get(seed, missing) for seed in curve.run.seeds[curve.lanes].tolist()])


def _epochs(run: Run, number: int) -> np.ndarray:
    """Epochs of each of the first `number` increments, int64, as `tasks.incremental_cifar100` lays them out."""
    epochs: Any = run.meta["settings"].get(_EPOCHS)
    if type(epochs) is not int or epochs < 1:
        raise InputError(f"{_place(run)}: settings of {RUN} lack {_EPOCHS}, a whole number of epochs in an increment")
    found = epochs * np.arange(2, number + 2) // 2 if is_longer(run) else np.full(number, epochs)
    lengths = np.diff(task_starts(run))[:number]
    odd = np.flatnonzero(lengths % found)
    if len(odd):
        raise InputError(
            f"{_place(run)}: increment {odd[0] + 1} of {lengths[odd[0]]} steps holds no {found[odd[0]]} whole epochs"
        )
    return found


def _wait(run: Run, curve: Curve, reference: Run, partner: Curve, metric: str, epochs: np.ndarray) -> Pooled | None:
    """Epochs within an increment until the reference's own accuracy of it, of the same seed."""
    if metric not in run.metrics or metric not in reference.metrics:
        return None
    lengths, number = np.diff(task_starts(run)), len(epochs)
    wanted = np.full((len(run.lanes), len(lengths)), np.nan)
    best = takes_best_epoch(reference, metric.removesuffix(SUFFIX))
    theirs = (best_in_tasks if best else after_tasks)(reference, metric)[partner.lanes, :number]
    wanted[curve.lanes, :number] = _of_same_seed(curve, partner, theirs)
    late = late_bins(number, WAITED)
    steps, reached = (each[curve.lanes, late] for each in steps_until(run, metric, wanted))
    if not np.isfinite(steps).any():
        return None
    passed = steps * epochs[late] / lengths[late]
    return pooled(passed, reached, float(epochs[late].max()))
