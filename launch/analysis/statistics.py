"""Means over seeds with intervals, and differences between methods paired by seed.

A diverged lane carries the task's failure value in errors, accuracies and returns, so nothing is dropped from their
means. A diagnostic that does not exist for a lane (NaN, infinite) is left out of that bin's mean.
"""

from typing import NamedTuple

import numpy as np

from launch.errors import InputError, unknown
from launch.storage.run_folder import Run

INTERVALS = ("bootstrap", "se")
RESAMPLES = 2000
_COLUMNS = 512  # bins resampled at once: 2000 x 512 float64 are 8 MB


class Interval(NamedTuple):
    """Mean over lanes and the ends of its interval, each shaped like one lane."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Difference(NamedTuple):
    """Mean of a - b over `n` seeds, its interval, and the number of seeds on which a is strictly better."""

    mean: float
    low: float
    high: float
    n: int
    wins: int


def interval(values: np.ndarray, kind: str = "bootstrap", level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of `values` [lane, ...] over lanes and its interval at `level`; the ends are NaN below two lanes.

    `bootstrap`: percentiles of the mean of `RESAMPLES` resamplings of the lanes, whole lanes at a time, so that all
    bins share them; the same `seed` gives the same interval. It is too narrow for fewer than about ten lanes.
    `se`: mean +- t(n - 1) s / sqrt(n), Student's interval.
    """
    if kind not in INTERVALS:
        raise unknown("--interval", kind, INTERVALS)
    if not 0 < level < 1:
        raise InputError(f"interval level: {level} is not between 0 and 1")
    values = np.asarray(values, np.float64)
    table = values.reshape(len(values), -1)
    present = np.isfinite(table)
    number = present.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, table, 0.0).sum(axis=0) / number
        ends = _student(table, present, mean, level) if kind == "se" else _bootstrap(table, present, level, seed)
    low, high = (np.where(number > 1, end, np.nan).reshape(values.shape[1:]) for end in ends)
    return Interval(mean.reshape(values.shape[1:]), low, high)


def _student(table: np.ndarray, present: np.ndarray, mean: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import stdtrit  # of Student's distribution; scipy.stats takes seconds to import

    number = present.sum(axis=0)
    squares = (np.where(present, table - mean, 0.0) ** 2).sum(axis=0)
    half = stdtrit(np.maximum(number - 1, 1), (1 + level) / 2) * np.sqrt(squares / (number - 1) / number)
    return mean - half, mean + half


def _bootstrap(table: np.ndarray, present: np.ndarray, level: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    lanes, bins = table.shape
    drawn = np.random.default_rng(seed).multinomial(lanes, np.full(lanes, 1 / max(lanes, 1)), RESAMPLES).astype(float)
    ends = np.full((2, bins), np.nan)
    for start in range(0, bins, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        weight = drawn @ present[:, columns]
        means = drawn @ np.where(present, table, 0.0)[:, columns] / weight
        known = present[:, columns].any(axis=0)
        # A resampling may hold no lane with a value in a bin that few lanes have measured; it says nothing there.
        quantile = np.nanquantile if np.isnan(means[:, known]).any() else np.quantile
        if known.any():
            ends[:, np.flatnonzero(known) + start] = quantile(
                means[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0
            )
    return ends[0], ends[1]


def paired_difference(
    a: np.ndarray, b: np.ndarray, better: str = "lower", kind: str = "se", level: float = 0.95, seed: int = 0
) -> Difference:
    """Difference a - b of two [seed] arrays in the same order of seeds; a pair with a missing value is left out.

    `better` ("lower" or "higher") says what counts as a win of a. A single pair has a NaN interval.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired_difference: shapes {a.shape} and {b.shape}, two equal [seed] are needed")
    if better not in ("lower", "higher"):
        raise ValueError(f"paired_difference: better='{better}'; allowed: higher, lower")
    difference = (a - b)[np.isfinite(a) & np.isfinite(b)]
    if not len(difference):
        return Difference(np.nan, np.nan, np.nan, 0, 0)
    wins = difference < 0 if better == "lower" else difference > 0
    mean, low, high = (float(value) for value in interval(difference, kind, level, seed))
    return Difference(mean, low, high, len(difference), int(wins.sum()))


def late_bins(bins: int, share: float) -> slice:
    """The last `share` of the bins, at least one."""
    if not 0 < share <= 1:
        raise InputError(f"--window: {share:g} is not in (0, 1]")
    # 0.07 * 100 is 7.000000000000001 in floating point: such a remainder is not another bin.
    return slice(bins - max(1, int(np.ceil(share * bins - 1e-9))), bins)


def late_mean(run: Run, metric: str, share: float = 0.1) -> np.ndarray:
    """Mean of `metric` over the last `share` of the bins, float64 [lane]; a bin weighs as many steps as it holds.

    A lane without any measurement there is NaN; a metric without any raises InputError.
    """
    if metric not in run.metrics:
        raise unknown(f"{run.label}: metric", metric, run.metrics)
    late = late_bins(len(run.step), share)
    values = run.metrics[metric][:, late]
    if not np.isfinite(values).any():
        raise InputError(f"{run.label}: {metric} was not measured in the last {share:g} of the run; widen --window")
    return mean_over_bins(values, run.count[late])


def mean_over_bins(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean of `values` [lane, bin] over the bins with a measurement, of `count` [bin] steps each; NaN without any."""
    weight = np.isfinite(values) * count
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(weight > 0, values, 0.0) * weight).sum(axis=1) / weight.sum(axis=1)
