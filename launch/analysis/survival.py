"""How long until something happens, where for some it does not happen while they are watched (censored)."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
_TIE = 1e-9  # products of fractions miss a half by rounding


class Survival(NamedTuple):
    """Kaplan and Meier's estimate: `share` [k] have not had the event right after `time` [k]; before the first, all.

    `time` rises strictly and holds the times of events only.
    """

    time: np.ndarray
    share: np.ndarray

    def median(self) -> float:
        """The first time at which at most half are left; infinite where more than half are left at the end."""
        return float(_median(self.time, self.share))

    def restricted_mean(self, horizon: float) -> float:
        """Mean of min(time, horizon): the area under the curve from 0 to `horizon`."""
        return float(_area(self.time, self.share, horizon))


class Ranged(NamedTuple):
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


class Pooled(NamedTuple):
    """Survival of the tasks of several lanes, with intervals over lanes.

    `curve` has `low` and `high` [k] beside it; `never` is the share of tasks without the event, `mean` restricted.
    """

    curve: Survival
    low: np.ndarray
    high: np.ndarray
    never: Ranged
    median: Ranged
    mean: Ranged
    tasks: int


def kaplan_meier(time: np.ndarray, happened: np.ndarray) -> Survival:
    """Kaplan and Meier (1958): S(t) = product over event times t_i <= t of (1 - d_i / n_i).

    d_i events happen at t_i, and n_i have neither had theirs nor left the study before t_i: who leaves at t_i
    (`happened` false, censored) is still counted there. `time` [n] positive and finite, `happened` bool [n].
    """
    time, happened = np.asarray(time, np.float64), np.asarray(happened, bool)
    if time.ndim != 1 or time.shape != happened.shape:
        raise ValueError(f"kaplan_meier: shapes {time.shape} and {happened.shape}, two equal [n] are needed")
    if not (np.isfinite(time).all() and (time > 0).all()):
        raise ValueError("kaplan_meier: times have to be positive and finite")
    times, events, left = _counts(time[None], happened[None])
    return Survival(times, _product(events[0], left[0]))


def _counts(time: np.ndarray, happened: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Event times [k] of all lanes, and per lane how many events [lane, k] and how many still watched [lane, k].

    A NaN time counts nowhere.
    """
    times = np.unique(time[happened & np.isfinite(time)])
    events, left = (np.zeros((len(time), len(times))) for _ in range(2))
    for lane, (mine, mark) in enumerate(zip(time, happened, strict=True)):
        mine, mark = mine[np.isfinite(mine)], mark[np.isfinite(mine)]
        left[lane] = len(mine) - np.searchsorted(np.sort(mine), times)
        np.add.at(events[lane], np.searchsorted(times, mine[mark]), 1)
    return times, events, left


def _product(events: np.ndarray, left: np.ndarray) -> np.ndarray:
    """S [..., k]; where nobody is left, S stays as it was."""
    return np.cumprod(1 - np.divide(events, left, out=np.zeros(np.shape(events)), where=left > 0), axis=-1)


def _median(time: np.ndarray, share: np.ndarray) -> np.ndarray:
    below = share <= 0.5 + _TIE
    if not len(time):
        return np.full(share.shape[:-1], np.inf)
    return np.where(below.any(axis=-1), time[below.argmax(axis=-1)], np.inf)


def _area(time: np.ndarray, share: np.ndarray, horizon: float) -> np.ndarray:
    width = np.diff(np.minimum(np.concatenate([[0.0], time, [np.inf]]), horizon))
    return np.concatenate([np.ones((*share.shape[:-1], 1)), share], axis=-1) @ width


def pooled(time: np.ndarray, happened: np.ndarray, horizon: float, level: float = 0.95, seed: int = 0) -> Pooled:
    """Kaplan-Meier over all tasks of all lanes; `time` and `happened` [lane, task], NaN times left out.

    Tasks of a lane are not independent of each other, lanes are: the intervals are percentiles of `RESAMPLES`
    resamplings of whole lanes; too narrow for fewer than about ten lanes, NaN below two.
    """
    watched = np.isfinite(time)
    lanes = watched.any(axis=1)
    if not lanes.any():
        raise ValueError("pooled: no time in any lane")
    time, happened, watched = time[lanes], happened[lanes], watched[lanes]
    times, events, left = _counts(time, happened)
    number, missed = watched.sum(axis=1), (watched & ~happened).sum(axis=1)
    drawn = np.random.default_rng(seed).multinomial(len(time), np.full(len(time), 1 / len(time)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(time))), drawn])  # the first row: the lanes as they are
    share = _product(weights @ events, weights @ left)
    never = (weights @ missed) / (weights @ number)
    found = [
        Ranged(float(each[0]), *(float(end) for end in _ends(each[1:], level, len(time))))
        for each in (never, _median(times, share), _area(times, share, horizon))
    ]
    low, high = _ends(share[1:], level, len(time))
    return Pooled(Survival(times, share[0]), low, high, *found, int(number.sum()))


def _ends(values: np.ndarray, level: float, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles over the first axis, values that occur: a mean of a number and an infinite one would be none."""
    if lanes < 2:
        return (np.full(values.shape[1:], np.nan),) * 2
    ends = ((1 - level) / 2, "lower"), ((1 + level) / 2, "higher")
    low, high = (np.quantile(values, share, axis=0, method=method) for share, method in ends)
    return low, high
