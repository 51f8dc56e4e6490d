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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from launch.by_task import STARTS, after_tasks, steps_until, task_starts, values_of
from launch.cli import run_cli
from launch.compare import FORMATS, matched, rendered, with_diverged
from launch.curves import INK, Curve, MetricStyle, baseline, caption, checked_metrics, curves, metric_style
from launch.errors import InputError, unknown
from launch.learned import SUFFIX, beside, numbers, shown
from launch.plot import target
from launch.run_folder import RUN, Run, read_runs
from launch.selection import warn_of_tuning
from launch.statistics import INTERVALS, interval, late_bins
from launch.survival import Pooled, Ranged, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = "test_accuracy"
BASES = ("base", "backprop", "l2")
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
_DIAGNOSTICS = ("dormant_units", "dormant_units_old_classes", "stable_rank", "stable_rank_old_classes")


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


@dataclass(frozen=True)
class Increments:
    """A curve by increment.

    `run` is as it was read. The run of `curve` has one bin per increment, which ends at the step that is the number of
    classes seen (of increments, where the task does not say), and every metric's last value within the increment.
    `relative` float64 [lane, increment] is the accuracy minus that of `partner`, the reference, in the unit of the
    metric's axis, NaN where no lane of the same seed is. `epochs` and `updates` int64 [increment]: passes of each, and
    updates until the end of each. `wait`: epochs until the partner's accuracy at the end of the same increment, over
    the last half of the increments; `None` where it was not measured on the way.
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


# Numbers --------------------------------------------------------------------------------------------------------


def increments(runs: Sequence[Run], question: Question = Question()) -> list[Increments]:
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
    if _best_epoch(run, metric):
        metrics[metric] = best_in_tasks(run, metric + SUFFIX)[:, :number]
    some = _some(run) or 1
    classes = some * np.arange(1, number + 1)
    # Lengths in steps tell no two curves apart here; that a network is trained for longer is told in words.
    hidden = ("steps", "bin") if _is_longer(run) else ("steps", "bin", _CUMULATIVE)
    settings = {name: value for name, value in run.meta["settings"].items() if name not in hidden}
    meta = run.meta | {"settings": settings, STARTS: [0, *classes.tolist()]}
    return replace(run, meta=meta, step=classes, count=np.full(number, some), metrics=metrics)


def _place(run: Run) -> str:
    return str(run.meta.get("folder", run.label))


def _some(run: Run) -> int | None:
    """How many classes come at a time; `None` where the task does not say."""
    some: Any = run.meta["settings"].get(_SOME)
    if some is not None and (type(some) is not int or some < 1):
        raise InputError(f"{_place(run)}: {_SOME} in {RUN} is {some!r}, not a whole number from 1 up")
    return some


def _is_longer(run: Run) -> bool:
    return bool(run.meta["settings"].get(_CUMULATIVE))


def _best_epoch(run: Run, metric: str) -> bool:
    return metric == METRIC and run.meta["settings"].get("task.accuracy") == "best_epoch"


def best_in_tasks(run: Run, metric: str) -> np.ndarray:
    """The highest measurement within each task, float64 [lane, task]; NaN where the task holds none."""
    firsts = np.searchsorted(run.step, task_starts(run)[:-1], side="right")
    return np.fmax.reduceat(values_of(run, metric), firsts, axis=1)


def _named(found: Sequence[Curve]) -> list[Curve]:
    """The curves, with words for the setting that makes increments longer, and a line of its own."""
    named = []
    for curve in found:
        if _is_longer(curve.run):
            text = curve.distinction.replace(f"{_CUMULATIVE}=True", _LONGER)
            curve = replace(curve, distinction=text, line=(0, (5, 1.2, 1, 1.2)))
        named.append(curve)
    return named


def _references(runs: Sequence[Run], label: str | None) -> list[Run]:
    """The runs that others are compared with; those trained for longer only where there is no other."""
    fresh = [run.label for run in sorted(runs, key=_is_longer) if baseline(run) == "fresh_network"]
    chosen = label or (fresh[0] if fresh else "fresh_network")
    named = [run for run in runs if run.label == chosen]
    if not named:
        raise unknown("--reference", chosen, {run.label for run in runs})
    return [run for run in named if not _is_longer(run)] or named


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
    found = epochs * np.arange(2, number + 2) // 2 if _is_longer(run) else np.full(number, epochs)
    lengths = np.diff(task_starts(run))[:number]
    odd = np.flatnonzero(lengths % found)
    if len(odd):
        raise InputError(
            f"{_place(run)}: increment {odd[0] + 1} of {lengths[odd[0]]} steps holds no {found[odd[0]]} whole epochs"
        )
    return found


def _wait(run: Run, curve: Curve, reference: Run, partner: Curve, metric: str, epochs: np.ndarray) -> Pooled | None:
    """Epochs within an increment until the reference's own value at its end, of the same seed."""
    if metric not in run.metrics or metric not in reference.metrics:
        return None
    lengths, number = np.diff(task_starts(run)), len(epochs)
    wanted = np.full((len(run.lanes), len(lengths)), np.nan)
    theirs = after_tasks(reference, metric)[partner.lanes, :number]
    wanted[curve.lanes, :number] = _of_same_seed(curve, partner, theirs)
    late = late_bins(number, WAITED)
    steps, reached = (each[curve.lanes, late] for each in steps_until(run, metric, wanted))
    if not np.isfinite(steps).any():
        return None
    passed = steps * epochs[late] / lengths[late]
    return pooled(passed, reached, float(epochs[late].max()))


# Text -----------------------------------------------------------------------------------------------------------


def report(runs: Sequence[Run], question: Question = Question(), format: str = "text") -> str:
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
        cells = [_cell(values, question.interval) for values in wanted]
        pairs = str(_pairs(each.relative[:, -1]))
        if each.partner is each.curve:
            cells[2:], pairs = ["", ""], ""
        lines.append((each.curve.name, *cells, pairs, _note(each.curve)))
    return lines


def _over_increments(values: np.ndarray) -> np.ndarray:
    """Mean over all increments [lane]; NaN where one is missing."""
    return values.mean(axis=1)


def _pairs(values: np.ndarray) -> int:
    return int(np.isfinite(values).sum())


def _note(curve: Curve) -> str:
    return curve.note.replace(" seeds", "").replace(" seed", "")


def _cell(values: np.ndarray, kind: str) -> str:
    """Mean and interval over lanes [lane]; empty where nothing was measured."""
    return _text(Ranged(*(float(end) for end in interval(values, kind)))) if np.isfinite(values).any() else ""


def _text(found: Ranged) -> str:
    """`mean [low, high]`, without ends that do not exist; what is infinite was not reached."""
    value, low, high = ("not reached" if np.isinf(each) else f"{each:.4g}" for each in found)
    return value if np.isnan(found.low) or np.isinf(found.low) else f"{value} [{low}, {high}]"


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
    if _best_epoch(found[0].run, question.metric):
        return f"{name}, the highest of an increment's epochs, chosen on the test pictures as published,"
    return f"{name} at the end of an increment,"


_ABOUT_AGES = (
    "Accuracy (%) on the newest classes, those in the middle and the oldest after the last increment. Updates in all, "
    "and those of the network there is in the end; how often it has been shown a training picture of the newest and of "
    "the oldest classes."
)


def _ages(found: Sequence[Increments], question: Question) -> list[tuple[str, ...]]:
    lines = [("method", *AGES.values(), "updates", "of the last network", "newest shown", "oldest shown")]
    for each in found:
        cells = [_cell(each.values(name)[:, -1], question.interval) for name in AGES]
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
            cells = (_text(one) for one in (never, each.wait.median, each.wait.mean))
            lines.append((each.curve.name, *cells, "–".join(map(str, there))))
    return lines


def _about_waits(found: Sequence[Increments]) -> str:
    late = found[0].late
    names = " or ".join(dict.fromkeys(each.partner.name for each in found))
    return (
        f"Epochs within increments {numbers(late)} until the test accuracy on the way first reaches that of {names} at "
        f"the end of the same increment, of the same seed. Median and mean by Kaplan and Meier over "
        "increments and seeds, an increment that never reaches it censored; 95% bootstrap intervals over seeds, too "
        "narrow for fewer than ten. Noise reaches an accuracy early."
    )


def _by_increment(found: Sequence[Increments], question: Question) -> list[tuple[str, ...]]:
    lines = [("method", _axis(found), "accuracy", "relative", "pairs")]
    for each in found:
        for place, classes in enumerate(each.classes.tolist()):
            accuracy = _cell(each.values(question.metric)[:, place], question.interval)
            relative = ("", "")
            if each.partner is not each.curve:
                values = each.relative[:, place]
                relative = (_cell(values, question.interval), str(_pairs(values)))
            lines.append((each.curve.name, str(classes), accuracy, *relative))
    return lines


def _axis(found: Sequence[Increments]) -> str:
    return "classes" if _some(found[0].run) else "increment"


def _verdicts(found: Sequence[Increments], question: Question) -> list[str]:
    """A line for every setting of the base beside its reference."""
    plain = [each for each in found if not _is_longer(each.run) and each.partner is not each.curve]
    labels = {each.run.label for each in plain}
    if question.base is not None and question.base not in labels:
        raise unknown("--base", question.base, labels)
    base = question.base or next((label for label in BASES if label in labels), None)
    lines = []
    for each in plain:
        if each.run.label == base:
            verdict = shown(each.curve, each.partner, question.metric, LATE)
            ends = f" [{verdict.low:.4g}, {verdict.high:.4g}]" if np.isfinite(verdict.low) else ""
            names = f"{with_diverged(each.curve)} minus {with_diverged(each.partner)}"
            lines.append(
                f"Loss of plasticity {verdict.verdict}: {names}, "
                f"{question.style.label} over the last {100 * LATE:g}% of increments: {verdict.difference:.4g}{ends}."
            )
    return lines


# Figure ---------------------------------------------------------------------------------------------------------


def draw(found: Sequence[Increments], question: Question = Question()) -> tuple["Figure", list["Axes"]]:
    """Relative and raw accuracy, accuracy by age of class, dormant units and stable rank, against classes seen.

    The diagnostics look as an increment begins, before a network begins afresh, so they stand at the classes seen
    before. What no run holds has no panel.
    """
    from launch import figure

    axis = f"{_axis(found)} seen".replace("increment seen", "increment")
    held = {name for each in found for name in each.curve.run.metrics}
    ages = [name for name in AGES if name in held]
    diagnostics = [name for name in _DIAGNOSTICS if name in held]
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
    from launch import figure

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
    plain = [run for run in runs if not _is_longer(run)] or runs
    longer = dict.fromkeys(each.curve.name for each in found if _is_longer(each.run) and len(plain) < len(runs))
    names = " and ".join(dict.fromkeys(each.partner.name for each in found))
    parts = [
        f"{_meaning(found, question)} and relative to {names}, paired by seed.",
        "Diagnostics look as an increment begins, on pictures of the classes to come and of the old ones."
        * any(name in each.curve.run.metrics for each in found for name in _DIAGNOSTICS),
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
        from launch import figure

        print("", figure.save(draw(increments(runs, question), question)[0], path), sep="\n")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
