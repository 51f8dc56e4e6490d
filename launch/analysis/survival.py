"""How long until something happens, where for some it does not happen while they are watched (censored)."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from launch.analysis.statistics import Estimate, jackknife

_TIE = 1e-9  # products of fractions miss a half by rounding


class Survival(NamedTuple):
    """Kaplan and Meier's estimate over all seeds, and without each of them in turn, from which intervals follow.

    Attributes:
        time: the times of events, rising strictly, `[k]`.
        shares: share that has not had the event right after each time, `[1 + seed, k]`: of all seeds, then without
            each; before the first time it is 1.
        longest: the longest time watched; nothing is known beyond it.
        number: how many were watched.
    """

    time: np.ndarray
    shares: np.ndarray
    longest: float
    number: int

    @property
    def share(self) -> np.ndarray:
        """The estimate itself, `[k]`."""
        return self.shares[0]

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval of `share` over seeds, `[k]` each, within 0 and 1; NaN for a single seed."""
        low, high = jackknife(self.share, self.shares[1:])
        return np.clip(low, 0, 1), np.clip(high, 0, 1)

    def at(self, time: float) -> Estimate:
        """Share of those whose event comes after `time`; NaN beyond what was watched."""
        if time > self.longest and not (len(self.time) and self.share[-1] <= 0):
            return Estimate(np.nan, np.nan, np.nan)
        i = int(np.searchsorted(self.time, time, side="right")) - 1
        return Estimate(1.0, np.nan, np.nan) if i < 0 else Estimate(*(float(e[i]) for e in (self.share, *self.band)))

    def median(self) -> Estimate:
        """The first time at which at most half are left, infinite where more are; the ends are those of the band."""
        value, low, high = (_median(self.time, share) for share in (self.share, *self.band))
        known = len(self.shares) > 2
        return Estimate(value, low if known else np.nan, high if known else np.nan)

    def restricted_mean(self, horizon: float) -> Estimate:
        """Mean of min(time, horizon): the area under the curve from 0 to `horizon`."""
        width = np.diff(np.minimum(np.concatenate([[0.0], self.time, [np.inf]]), horizon))
        areas = np.concatenate([np.ones((len(self.shares), 1)), self.shares], axis=1) @ width
        return Estimate(float(areas[0]), *(float(np.clip(end, 0, horizon)) for end in jackknife(areas[0], areas[1:])))


def _median(time: np.ndarray, share: np.ndarray) -> float:
    below = np.flatnonzero(share <= 0.5 + _TIE)
    return float(time[below[0]]) if len(below) else np.inf


def kaplan_meier(watched: pd.DataFrame) -> Survival:
    """Kaplan and Meier (1958): S(t) = product over event times t_i <= t of (1 - d_i / n_i).

    d_i events happen at t_i, to n_i that are watched: who leaves at t_i without the event (censored) still counts, who
    comes into view at t_i does not yet. Those of one seed depend on each other, seeds do not: intervals are
    `statistics.jackknife` over seeds.

    Args:
        watched: a row for each, with `seed`, `time` (positive and finite), `happened` (bool), and, where they come
            into view late, `entry`; who leaves before is not counted.
    """
    if "entry" in watched:
        watched = watched[watched["time"] > watched["entry"]]
    time = watched["time"].to_numpy(float)
    if not (np.isfinite(time).all() and (time > 0).all()):
        raise ValueError("kaplan_meier: times have to be positive and finite")
    times = np.unique(watched["time"][watched["happened"]]).astype(float)
    events, risk = [], []
    for _, mine in watched.groupby("seed"):
        ends, hit = mine["time"].to_numpy(float), mine["happened"].to_numpy(bool)
        entries = np.sort(mine["entry"].to_numpy(float)) if "entry" in mine else np.zeros(len(mine))
        events.append(np.bincount(np.searchsorted(times, ends[hit]), minlength=len(times)))
        risk.append(np.searchsorted(entries, times) - np.searchsorted(np.sort(ends), times))
    seeds = len(events)
    weights = np.concatenate([np.ones((1, seeds)), 1 - np.eye(seeds)])
    happened, left = (weights @ np.reshape(each, (seeds, len(times))) for each in (events, risk))
    # Where nobody is watched the share stays as it was.
    shares = np.cumprod(1 - np.divide(happened, left, out=np.zeros(left.shape), where=left > 0), axis=1)
    return Survival(times, shares, float(watched["time"].max()) if len(watched) else 0.0, len(watched))


def never(watched: pd.DataFrame) -> Estimate:
    """Share of those `watched`, as `kaplan_meier` takes them, to whom it did not happen."""
    by_seed = watched.groupby("seed")["happened"].agg(["sum", "count"]).to_numpy(float)
    missed, number = by_seed[:, 1] - by_seed[:, 0], by_seed[:, 1]
    whole = missed.sum() / number.sum()
    if len(number) < 2:
        return Estimate(float(whole), np.nan, np.nan)
    ends = jackknife(whole, (missed.sum() - missed) / (number.sum() - number))
    return Estimate(float(whole), *(float(np.clip(end, 0, 1)) for end in ends))
