"""Streams to which classes keep coming: every run beside the one that begins afresh, by increment and age of class.

An increment is a task that shows more than the one before, for so many epochs; all curves hold the same number of them.
A run whose network begins afresh and is trained with as many updates as one that goes on (`task.cumulative=True`) lies
in a folder of its own, since its increments are longer; it is drawn beside the others, by number of classes.

Accuracy of an increment: the metric's last value within it. With `task.accuracy=best_epoch` the accuracy on test
pictures is the highest of the increment's epochs, as in the published figures (Dohare et al. 2024). That epoch is
chosen on the test pictures, so the accuracy is too high, for every method. An increment at the end without a value is
not over, and left out.

"Relative" is the difference to the run labelled `reference`, of the same seed and increment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from launch.analysis.comparison import LATE, verdict_lines
from launch.analysis.curves import Curve, baseline, beside, curves, matched, named, place
from launch.analysis.long_table import STARTS, by_task, long_table, of_metric, task_starts, waits
from launch.analysis.metrics import IN_TASK, MetricStyle, checked_metrics, metric_style
from launch.analysis.statistics import Estimate, late_bins
from launch.analysis.survival import Survival, kaplan_meier, never
from launch.analysis.tasks import shown
from launch.analysis.text import Table, estimate_text, mean_text, span_text
from launch.errors import InputError, unknown
from launch.storage.run_folder import RUN, Run

METRIC = "test_accuracy"
BASES = ("base", "l2", "backprop")
AGES = {f"accuracy_{age}_classes": age for age in ("newest", "middle", "oldest")}
WAITED = 0.5
"""Share of the increments, at the end, for which the wait is told."""
CUMULATIVE, _EPOCHS, _SOME = "task.cumulative", "task.epochs", "task.classes_per_increment"
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


class Question(NamedTuple):
    """What is asked of every run: the accuracy, the label to compare with, the label that may lose plasticity."""

    metric: str = METRIC
    reference: str | None = None
    base: str | None = None

    @property
    def style(self) -> MetricStyle:
        """Label, direction and scale of the accuracy."""
        return metric_style(self.metric)


ASKED = Question()


@dataclass(frozen=True)
class Increments:
    """A curve by increment.

    `run` is as it was read. The run of `curve` has one bin per increment, which ends at the step that is the number of
    classes seen (of increments, where the task does not say), and every metric's last value within the increment.
    `relative` [seed, increment] is the accuracy minus that of `partner`, the reference, in the unit of the metric's
    axis, NaN where no lane of the same seed is. `epochs` and `updates` int64 [increment]: passes of each, and updates
    until the end of each. `waited`, for `survival.kaplan_meier`: epochs until the partner's accuracy of the same
    increment (the one at its end, or the highest where that counts), over the last half of the increments; `None`
    where it was not measured on the way.
    """

    run: Run
    curve: Curve
    partner: Curve
    relative: pd.DataFrame
    epochs: np.ndarray
    updates: np.ndarray
    waited: pd.DataFrame | None

    @property
    def classes(self) -> np.ndarray:
        """Classes seen by the end of every increment, int64 [increment]."""
        return self.curve.run.step

    @property
    def is_reference(self) -> bool:
        """Whether it is compared with itself."""
        return self.partner is self.curve

    @property
    def restarts(self) -> bool:
        """Whether every increment begins with a new network."""
        return baseline(self.run) == "fresh_network"

    @property
    def presentations(self) -> tuple[int, int]:
        """How often the network there is in the end was shown a picture of the newest and of the oldest classes."""
        newest = int(self.epochs[-1])
        return newest, newest if self.restarts else int(self.epochs.sum())

    @property
    def late(self) -> slice:
        """The increments that `waited` is about."""
        return late_bins(len(self.epochs), WAITED)

    @property
    def wait(self) -> Survival | None:
        """Survival of the increments until the partner's accuracy."""
        return None if self.waited is None else kaplan_meier(self.waited)


def increments(runs: Sequence[Run], question: Question = ASKED) -> list[Increments]:
    """One answer per curve whose run holds the metric.

    Raises:
        InputError: no run holds the metric, or lower values of it are better; a run that is no stream of growing tasks,
            that cannot be compared with the reference, or without a seed in common with it; no such reference.
    """
    checked_metrics(runs, [question.metric])
    if question.style.better != "higher":
        raise InputError(f"--metric: of {question.metric} lower values are better; an accuracy is needed")
    held = [(by_increment(run, question.metric), run) for run in runs if question.metric in run.metrics]
    references = _references([run for run, _ in held], question.reference)
    originals = {id(made): run for made, run in held}
    told = _worded(curves(run for run, _ in held))
    return [_increments(curve, _partner(curve, references, told), originals, question.metric) for curve in told]


def grows(run: Run) -> bool:
    """Whether a run is a stream of growing tasks."""
    starts = run.meta.get(STARTS) or ()
    return len(starts) >= 3 and len(set(np.diff(starts).tolist())) > 1


def by_increment(run: Run, metric: str = METRIC) -> Run:
    """The run in one bin per increment that is over, each ending at the number of classes seen: see `Increments`.

    Raises:
        InputError: `run.json` does not say where tasks begin, or all are of one length; none is over.
    """
    task_starts(run)
    if not grows(run):
        raise InputError(f"{place(run)}: its tasks do not grow; a stream of class increments is needed")
    whole = long_table([Curve(run, np.arange(len(run.lanes)))])
    ends = {name: by_task(whole[whole["metric"] == name]) for name in run.metrics}
    over = np.flatnonzero(ends[metric].notna().any(axis=0))
    if not len(over):
        raise InputError(f"{place(run)}: no increment holds {metric}")
    number = int(over[-1]) + 1
    if takes_best_epoch(run, metric):
        ends[metric] = by_task(whole[whole["metric"] == metric + IN_TASK], "max")
    some = classes_each(run) or 1
    classes = some * np.arange(1, number + 1)
    # Lengths in steps tell no two curves apart here; that a network is trained for longer is told in words.
    hidden = ("steps", "bin") if is_longer(run) else ("steps", "bin", CUMULATIVE)
    settings = {name: value for name, value in run.meta["settings"].items() if name not in hidden}
    metrics = {name: values.to_numpy(float)[:, :number] for name, values in ends.items()}
    meta = run.meta | {"settings": settings, STARTS: [0, *classes.tolist()]}
    return replace(run, meta=meta, step=classes, count=np.full(number, some), metrics=metrics, progress=None)


def classes_each(run: Run) -> int | None:
    """How many classes come at a time; `None` where the task does not say."""
    some: Any = run.meta["settings"].get(_SOME)
    if some is not None and (type(some) is not int or some < 1):
        raise InputError(f"{place(run)}: {_SOME} in {RUN} is {some!r}, not a whole number from 1 up")
    return some


def is_longer(run: Run) -> bool:
    """Whether increments last the longer the more classes there are."""
    return bool(run.meta["settings"].get(CUMULATIVE))


def takes_best_epoch(run: Run, metric: str) -> bool:
    """Whether the highest of an increment's epochs counts."""
    return metric == METRIC and run.meta["settings"].get("task.accuracy") == "best_epoch"


def _worded(found: Sequence[Curve]) -> list[Curve]:
    """The curves, with words for the setting that makes increments longer."""
    return [
        replace(
            curve,
            setting=curve.setting.replace("cumulative", _LONGER),
            own=", ".join(dict.fromkeys([*filter(None, [curve.own.replace("cumulative", _LONGER)]), _LONGER])),
        )
        if is_longer(curve.run)
        else curve
        for curve in found
    ]


def _references(runs: Sequence[Run], label: str | None) -> list[Run]:
    """The runs that others are compared with; those trained for longer only where there is no other."""
    fresh = [run.label for run in sorted(runs, key=is_longer) if baseline(run) == "fresh_network"]
    found = named("--reference", label or (fresh[0] if fresh else "fresh_network"), runs)
    return [run for run in found if not is_longer(run)] or found


def _partner(curve: Curve, references: Sequence[Run], told: Sequence[Curve]) -> Curve:
    """The reference's settings that a curve is compared with; of a reference, the curve itself."""
    if any(curve.run is each for each in references):
        return curve
    others = beside(curve.run, references)
    found = [two for other in others for one, two in matched(curve.run, other, told) if one is curve]
    if len(found) != 1:
        several = "several runs or settings" if found else "no run with its settings"
        raise InputError(f"{curve.marked}: --reference={references[0].label} names {several}, one is needed")
    _check_same_stream(curve.run, found[0].run)
    return found[0]


def _check_same_stream(run: Run, other: Run) -> None:
    told = [(each.meta["task"], {n: each.meta["settings"].get(f"task.{n}") for n in _ALIKE}) for each in (run, other)]
    compared = [("tasks", *(name for name, _ in told))]
    compared += [(f"task.{name}", *(settings[name] for _, settings in told)) for name in _ALIKE]
    compared += [("numbers of increments", len(run.step), len(other.step))]
    for what, one, two in compared:
        if one != two:
            raise InputError(f"{place(run)} and {place(other)}: different {what}, {one} and {two}")


def _increments(curve: Curve, partner: Curve, originals: dict[int, Run], metric: str) -> Increments:
    run = originals[id(curve.run)]
    mine, theirs = (pd.DataFrame(each.values(metric), each.seeds) for each in (curve, partner))
    relative = mine - theirs.reindex(mine.index)
    if not np.isfinite(relative).any(axis=None):
        raise InputError(f"{curve.name} and {partner.name}: no seed in common on which both hold {metric}")
    epochs = _epochs(run, len(curve.run.step))
    updates = task_starts(run)[1 : len(epochs) + 1]
    waited = _waited(run, curve, originals[id(partner.run)], partner, metric + IN_TASK, epochs)
    return Increments(run, curve, partner, relative, epochs, updates, waited)


def _epochs(run: Run, number: int) -> np.ndarray:
    """Epochs of each of the first `number` increments, int64, as `tasks.incremental_cifar100` lays them out."""
    epochs: Any = run.meta["settings"].get(_EPOCHS)
    if type(epochs) is not int or epochs < 1:
        raise InputError(f"{place(run)}: settings of {RUN} lack {_EPOCHS}, a whole number of epochs in an increment")
    found = epochs * np.arange(2, number + 2) // 2 if is_longer(run) else np.full(number, epochs)
    lengths = np.diff(task_starts(run))[:number]
    odd = np.flatnonzero(lengths % found)
    if len(odd):
        raise InputError(
            f"{place(run)}: increment {odd[0] + 1} of {lengths[odd[0]]} steps holds no {found[odd[0]]} whole epochs"
        )
    return found


def _waited(
    run: Run, curve: Curve, reference: Run, partner: Curve, metric: str, epochs: np.ndarray
) -> pd.DataFrame | None:
    """Epochs within an increment until the reference's own accuracy of it, of the same seed."""
    if metric not in run.metrics or metric not in reference.metrics:
        return None
    best = takes_best_epoch(reference, metric.removesuffix(IN_TASK))
    theirs = by_task(of_metric(replace(partner, run=reference), metric), "max" if best else "last")
    late = late_bins(len(epochs), WAITED)
    wanted = theirs.set_axis(partner.seeds).reindex(curve.seeds).set_axis(curve.lanes).iloc[:, late]
    found = waits(of_metric(replace(curve, run=run), metric), wanted)
    if found.empty:
        return None
    each = pd.Series(epochs / np.diff(task_starts(run))[: len(epochs)], np.arange(1, len(epochs) + 1))
    return found.assign(time=found["time"] * found["task"].map(each))


# Tables -------------------------------------------------------------------------------------------------------------


def report(runs: Sequence[Run], question: Question = ASKED) -> tuple[list[Table], list[str]]:
    """Tables of accuracies, of classes by age and pictures shown, of the wait, of every increment; what is shown."""
    found = increments(runs, question)
    tables = [_accuracies(found, question), _ages(found), _waits(found), _by_increment(found, question)]
    return tables, _verdicts(found, question)


def _accuracies(found: Sequence[Increments], question: Question) -> Table:
    rows = [("method", "after the last", "mean of all", "last, relative", "mean, relative", "pairs", "seeds")]
    for each in found:
        accuracy, relative = each.curve.values(question.metric), each.relative.to_numpy()
        cells = [mean_text(values) for values in (accuracy[:, -1], accuracy.mean(axis=1))]
        beside_it = [mean_text(relative[:, -1]), mean_text(relative.mean(axis=1)), _pairs(relative[:, -1])]
        cells += ["", "", ""] if each.is_reference else beside_it
        rows.append((each.curve.name, *cells, each.curve.short_note))
    names = " and ".join(dict.fromkeys(each.partner.name for each in found))
    return Table(rows, [
        f"{accuracy_words(found, question)} after the last of {len(found[0].classes)} increments and as the mean over "
        f"all; mean and 95% interval over seeds. Relative: minus {names}, paired by seed, in points."
    ])  # fmt: skip


def _pairs(values: np.ndarray) -> str:
    return str(int(np.isfinite(values).sum()))


def accuracy_words(found: Sequence[Increments], question: Question) -> str:
    """What the accuracy of an increment is."""
    name = question.style.label[:1].upper() + question.style.label[1:]
    if takes_best_epoch(found[0].run, question.metric):
        return f"{name}, the highest of an increment's epochs, chosen on the test pictures as published,"
    return f"{name} at the end of an increment,"


def _ages(found: Sequence[Increments]) -> Table:
    rows = [("method", *AGES.values(), "updates", "of the last network", "newest shown", "oldest shown")]
    for each in found:
        cells = [mean_text(each.curve.values(name)[:, -1]) for name in AGES]
        before = int(each.updates[-2]) if each.restarts and len(each.updates) > 1 else 0
        total, (newest, oldest) = int(each.updates[-1]), each.presentations
        rows.append((each.curve.name, *cells, f"{total:,}", f"{total - before:,}", f"{newest:,}", f"{oldest:,}"))
    return Table(rows, [
        "Accuracy (%) on the newest classes, those in the middle and the oldest after the last increment, of the "
        "network that goes on from there. Updates in all, and those of the network there is in the end; how often it "
        "has been shown a training picture of the newest and of the oldest classes."
    ])  # fmt: skip


def _waits(found: Sequence[Increments]) -> Table:
    rows = [("method", "never (%)", "median epochs", "mean epochs", "epochs there are")]
    for each in found:
        if each.waited is not None and each.wait is not None:
            horizon = float(each.epochs[each.late].max())
            missed = Estimate(*(100 * value for value in never(each.waited)))
            cells = map(estimate_text, (missed, each.wait.median(), each.wait.restricted_mean(horizon)))
            there = sorted({int(each.epochs[each.late][0]), int(each.epochs[-1])})
            rows.append((each.curve.name, *cells, "–".join(map(str, there))))
    names = " or ".join(dict.fromkeys(each.partner.name for each in found))
    when = "in the best epoch" if takes_best_epoch(found[0].partner.run, METRIC) else "at the end"
    return Table(rows, [
        f"Epochs within increments {span_text(found[0].late)} until the test accuracy on the way first reaches that of "
        f"{names} {when} of the same increment, of the same seed. Median and mean by Kaplan and Meier over increments "
        "and seeds, an increment that never reaches it censored; 95% jackknife intervals over seeds. Noise reaches an "
        "accuracy early."
    ])  # fmt: skip


def _by_increment(found: Sequence[Increments], question: Question) -> Table:
    rows = [("method", axis_name(found), "accuracy", "relative", "pairs")]
    for each in found:
        accuracy, relative = each.curve.values(question.metric), each.relative.to_numpy()
        for i, classes in enumerate(each.classes.tolist()):
            cells = ("", "") if each.is_reference else (mean_text(relative[:, i]), _pairs(relative[:, i]))
            rows.append((each.curve.name, str(classes), mean_text(accuracy[:, i]), *cells))
    return Table(rows)


def axis_name(found: Sequence[Increments]) -> str:
    """What increments are counted in."""
    return "classes" if classes_each(found[0].run) else "increment"


def _verdicts(found: Sequence[Increments], question: Question) -> list[str]:
    """One for every setting of the base beside its reference."""
    plain = [each for each in found if not is_longer(each.run) and not each.is_reference]
    labels = {each.run.label for each in plain}
    if question.base is not None and question.base not in labels:
        raise unknown("--base", question.base, labels)
    base = question.base or next((label for label in BASES if label in labels), None)
    judged = [each for each in plain if each.run.label == base]
    return verdict_lines([shown(e.curve, e.partner, question.metric, LATE, "increments") for e in judged])
