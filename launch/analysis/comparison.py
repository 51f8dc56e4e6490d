"""Differences between curves, paired by seed; early, late and overall means; verdicts beside a fresh network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from launch.analysis.curves import Curve, baseline, beside, matched, named, runs_of, unequal_numbers
from launch.analysis.long_table import late_mean
from launch.analysis.metrics import HEADLINES, check_presets, checked_metrics, metric_style
from launch.analysis.statistics import Difference, interval, late_bins, paired_difference
from launch.analysis.text import NOT_WIDENED, Table, percent
from launch.errors import InputError
from launch.storage.run_folder import Run

HEADINGS = ("metric", "A", "B", "mean A", "mean B", "A - B", "95% interval", "pairs", "A better")
SHOWN, NOT_SHOWN = "shown", "not shown at this scale"
PLAIN, FRESH = ("backprop", "standard", "base"), "fresh_network"
LATE = 0.25
"""Share of the run that verdicts are about, at its end: fixed for all studies."""


class Row(NamedTuple):
    """One comparison: names of A and B, their means over the common seeds, and the paired difference A - B.

    Means and difference are in the unit of the metric's axis (accuracies in percent).
    """

    metric: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    difference: Difference
    better: str

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADINGS`."""
        d = self.difference
        ends = f"[{d.low:.4g}, {d.high:.4g}]" if d.n > 1 else f"n={d.n}"
        means = (f"{self.mean_a:.4g}", f"{self.mean_b:.4g}", f"{d.mean:.4g}")
        return (metric_style(self.metric).label, self.a, self.b, *means, ends, str(d.n), f"{d.wins}/{d.n}")


def paired(metric: str, one: Curve, other: Curve, x: pd.Series, y: pd.Series, better: str) -> Row:
    """The comparison of two curves, given a value by seed for each; InputError without a seed on which both have one.

    Pairs follow from the index: the seeds that both hold, rising.
    """
    both = pd.concat({"a": x, "b": y}, axis=1, join="inner").sort_index()
    if both.empty:
        raise InputError(f"{one.name} and {other.name}: no seed in common")
    known = both[np.isfinite(both).all(axis=1)]
    if known.empty:
        raise InputError(f"{one.name} and {other.name}: {metric} was measured on no common seed; widen --window")
    found = paired_difference(known["a"].to_numpy(), known["b"].to_numpy(), better)
    return Row(metric, one.marked, other.marked, float(known["a"].mean()), float(known["b"].mean()), found, better)


def comparable(one: Run, other: Run) -> None:
    """Refuse with an InputError what would not be the same stream for as long, or shares no axis."""
    check_presets([one, other])
    for what, values in (
        ("tasks", [run.meta["task"] for run in (one, other)]),
        ("numbers of steps", [int(run.step[-1]) if len(run.step) else 0 for run in (one, other)]),
    ):
        if values[0] != values[1]:
            raise InputError(f"{one.label} and {other.label}: different {what}, {values[0]} and {values[1]}")


def compare_pairs(
    pairs: Iterable[tuple[Run, Run]], metrics: Sequence[str] | None = None, window: float = 0.1
) -> list[Row]:
    """Paired differences between runs over the last `window` of the run; InputError where two are unlike."""
    rows = []
    for one, other in pairs:
        comparable(one, other)
        curves = matched(one, other)
        for metric in list(dict.fromkeys(metrics)) if metrics else [_shared_headline(one, other)]:
            better = metric_style(metric).better
            rows += [paired(metric, a, b, *(late_mean(c, metric, window) for c in (a, b)), better) for a, b in curves]
    return rows


def _shared_headline(one: Run, other: Run) -> str:
    shared = [name for name in (*HEADLINES, *one.metrics) if name in one.metrics and name in other.metrics]
    if not shared:
        raise InputError(f"{one.label} and {other.label}: no metric in common")
    return shared[0]


def differences(
    found: Sequence[tuple[Curve, Mapping[str, pd.Series]]],
    reference: str,
    compared: Mapping[str, str],
    check: Callable[[Run, Run], None] = comparable,
) -> list[Row]:
    """Every other curve minus that of the run labelled `reference`, paired by seed.

    Args:
        found: curves, each with the values by seed of some quantities.
        reference: the label to compare with; of several such runs, that in the same folder.
        compared: which quantities, and which direction of each is better.
        check: refuses runs that cannot be compared.

    Raises:
        InputError: no such label, or runs that cannot be compared, or without a seed in common.
    """
    told, values = [curve for curve, _ in found], {id(curve): each for curve, each in found}
    runs = runs_of(told)
    references, rows = named("--reference", reference, runs), []
    for run in runs:
        for other in beside(run, references) if run.label != reference else []:
            check(run, other)
            for one, two in matched(run, other, told):
                x, y = values[id(one)], values[id(two)]
                rows += [paired(name, one, two, x[name], y[name], better) for name, better in compared.items()]
    return rows


def difference_table(rows: Sequence[Row], about: str) -> Table:
    """The comparisons, and what a reader has to know, a sentence each; `about` says what of."""
    ways = {metric_style(row.metric).label: row.better for row in rows}
    remarks = [f"{about}; differences A - B paired by seed, Student's interval over seeds."]
    remarks += [f"{label}: {better} is better." for label, better in ways.items()]
    remarks += [f"{len(rows)} comparisons; the intervals are {NOT_WIDENED}."] * (len(rows) > 1)
    return Table([HEADINGS, *(row.cells() for row in rows)], remarks, left=3)


# Means --------------------------------------------------------------------------------------------------------------


def mean_table(found: Sequence[Curve], metrics: Sequence[str] | None = None, window: float = 0.1) -> Table:
    """A row per curve and metric; means over the first and the last `window` of the bins, and over all.

    Means are over the bins that hold a measurement, each with the same weight. The first window goes at least to the
    first measurement: what is measured once per task is NaN in the bins before. A cell stays empty where a lane has
    no measurement.

    Raises:
        InputError: a metric that no run holds, a window outside (0, 1].
    """
    runs = runs_of(found)
    share = f"{100 * window:g} %"
    rows = [("method", "metric", f"first {share}", f"last {share}", "whole run", "seeds")]
    for metric in checked_metrics(runs, metrics):
        rows += [_means(curve, metric, window) for curve in found if metric in curve.run.metrics]
    return Table(rows, [f"{run.label}: {run.progress}." for run in runs if run.progress], left=2)


def _means(curve: Curve, metric: str, window: float) -> tuple[str, ...]:
    values = curve.values(metric)
    late = late_bins(values.shape[1], window)
    held = np.isfinite(values).any(axis=0)
    first = slice(0, max(late.stop - late.start, int(held.argmax()) + 1 if held.any() else 0))
    cells = [_mean(values[:, bins]) for bins in (first, late, slice(None))]
    return (curve.name, metric_style(metric).label, *cells, curve.short_note)


def _mean(values: np.ndarray) -> str:
    present = np.isfinite(values)
    if not present.any(axis=1).all():
        return ""
    means = np.where(present, values, 0.0).sum(1) / present.sum(1)
    mean, low, high = (float(v) for v in interval(means))
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]" if np.isfinite(low) else f"{mean:.4g}"


# Verdicts -----------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Whether `one` loses plasticity beside `two`: the difference one - two late in the run, in the unit of its axis.

    "Shown" where the whole 95% Student interval lies on the worse side of 0. With fewer than two seeds nothing is.
    """

    one: Curve
    two: Curve
    span: str
    row: Row

    @property
    def verdict(self) -> str:
        """In words."""
        found = self.row.difference
        return SHOWN if (found.high < 0 if self.row.better == "higher" else found.low > 0) else NOT_SHOWN

    def __str__(self) -> str:
        mean, low, high, n, _ = self.row.difference
        ends = f" [{low:.4g}, {high:.4g}]" if np.isfinite(low) else ""
        names, label = f"{self.row.a} minus {self.row.b}", metric_style(self.row.metric).label
        told = f"Loss of plasticity {self.verdict}: {names}, {label} over the {self.span}: {mean:.4g}{ends}"
        unequal = unequal_numbers(self.one, self.two)
        differ = f" They differ in more than the past: {', '.join(unequal)}." * bool(unequal)
        return f"{told}, {n} pair{'s' * (n != 1)}.{differ}"


def late_verdicts(told: Sequence[Curve], metric: str, window: float = LATE) -> list[Verdict]:
    """One for every method that has a fresh network beside it and is plain, or differs from it in the past alone.

    Compared is the metric's mean over the last `window` of the run.
    """
    runs = [run for run in runs_of(told) if metric in run.metrics]
    fresh, better = [run for run in runs if run.label == FRESH], metric_style(metric).better
    found = []
    for run in (run for run in runs if fresh and run.label != FRESH and baseline(run) is None):
        for other in beside(run, fresh):
            comparable(run, other)
            for one, two in matched(run, other, told):
                if run.label in PLAIN or not unequal_numbers(one, two):
                    row = paired(metric, one, two, *(late_mean(c, metric, window) for c in (one, two)), better)
                    found.append(Verdict(one, two, late_text(window), row))
    return found


def verdict_lines(found: Sequence[Verdict]) -> list[str]:
    """The verdicts, and a line on their number where there are several."""
    several = f"{len(found)} verdicts, each at 95%, {NOT_WIDENED}."
    return [*map(str, found), *[several] * (len(found) > 1)]


def late_text(window: float, of: str = "run") -> str:
    """The window of a verdict, as `last 25% of the run`."""
    return f"last {percent(window)} of {'the ' * (of == 'run')}{of}"
