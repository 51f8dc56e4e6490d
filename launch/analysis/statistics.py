"""Means over seeds with 95 % intervals, differences paired by seed, and the windows that means are taken over.

A diverged lane carries the task's failure value in errors, accuracies and returns, so nothing is dropped from their
means. A diagnostic that does not exist for a lane (NaN, infinite) is left out of that bin's mean.
"""

from typing import NamedTuple

import numpy as np

from launch.errors import InputError

LEVEL = 0.95
FEW = 5
"""With fewer seeds figures show the seeds themselves and no band."""
RESAMPLED_FROM = 30
"""Seeds from which on the interval is the bootstrap's; with fewer, percentiles cover too little (90 % at ten)."""
RESAMPLES = 2000
_COLUMNS = 512  # bins resampled at once: 2000 x 512 float64 are 8 MB


class Interval(NamedTuple):
    """Mean over lanes and the ends of its interval, each shaped like one lane."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Estimate(NamedTuple):
    """A number and the ends of its interval, NaN where there is none."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a - b over `n` seeds, its interval, and the number of seeds on which a is strictly better."""

    mean: float
    low: float
    high: float
    n: int
    wins: int


def interval(values: np.ndarray, level: float = LEVEL, student: bool = False) -> Interval:
    """Mean of `values` [lane, ...] over lanes and its interval at `level`; the ends are NaN below two lanes.

    Below `RESAMPLED_FROM` lanes, or with `student`, Student's interval, mean +- t(n - 1) s / sqrt(n). From there on
    percentiles of the mean of `RESAMPLES` resamplings of whole lanes, which follow a skewed distribution; the
    resamplings are always the same.
    """
    if not 0 < level < 1:
        raise InputError(f"interval level: {level} is not between 0 and 1")
    values = np.asarray(values, np.float64)
    table = values.reshape(len(values), -1)
    present = np.isfinite(table)
    number = present.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, table, 0.0).sum(axis=0) / number
        few = student or len(values) < RESAMPLED_FROM
        ends = _student(table, present, mean, level) if few else _bootstrap(table, present, level)
    low, high = (np.where(number > 1, end, np.nan).reshape(values.shape[1:]) for end in ends)
    return Interval(mean.reshape(values.shape[1:]), low, high)


def student_quantile(number: np.ndarray | int, level: float = LEVEL) -> np.ndarray:
    """How many standard errors Student's interval reaches to either side, for `number` values."""
    from scipy.special import stdtrit  # scipy.stats takes seconds to import

    return stdtrit(np.maximum(np.asarray(number) - 1, 1), (1 + level) / 2)


def _student(table: np.ndarray, present: np.ndarray, mean: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    number = present.sum(axis=0)
    squares = (np.where(present, table - mean, 0.0) ** 2).sum(axis=0)
    half = student_quantile(number, level) * np.sqrt(squares / (number - 1) / number)
    return mean - half, mean + half


def _bootstrap(table: np.ndarray, present: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    lanes, bins = table.shape
    drawn = np.random.default_rng(0).multinomial(lanes, np.full(lanes, 1 / lanes), RESAMPLES).astype(float)
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


def jackknife(whole: np.ndarray, without: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of an estimate `whole` [...] over lanes, `without` [lane, ...] each of them in turn.

    whole +- t(n - 1) sqrt((n - 1) / n sum_i (theta_i - mean theta)^2): Student's interval where the estimate is a
    mean. NaN below two lanes. Source: Tukey 1958; Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 11.
    """
    number = len(without)
    if number < 2:
        return np.full(np.shape(whole), np.nan), np.full(np.shape(whole), np.nan)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    half = student_quantile(number, level) * np.sqrt((number - 1) / number * spread)
    return whole - half, whole + half


def paired_difference(a: np.ndarray, b: np.ndarray, better: str = "lower", level: float = LEVEL) -> Difference:
    """Difference a - b of two [seed] arrays in the same order of seeds, with Student's interval.

    A pair with a missing value is left out. `better` ("lower" or "higher") says what counts as a win of a. A single
    pair has a NaN interval.
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
    mean, low, high = (float(value) for value in interval(difference, level, student=True))
    return Difference(mean, low, high, len(difference), int(wins.sum()))


def late_bins(bins: int, share: float) -> slice:
    """The last `share` of the bins, at least one."""
    if not 0 < share <= 1:
        raise InputError(f"--window: {share:g} is not in (0, 1]")
    # 0.07 * 100 is 7.000000000000001 in floating point: such a remainder is not another bin.
    return slice(bins - max(1, int(np.ceil(share * bins - 1e-9))), bins)
