"""Unit biographies of a run: the lives of its units, how they survive, and when they become useful.

The file is described in `launch.storage.replacements`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.storage.run_folder import Run

_LEAST_SEEN = 20


class Lifetimes(NamedTuple):
    """Lives of units, arrays `[life]`.

    Attributes:
        entry: age from which the life is observed; above 0 where the buffer has lost the beginning of the run.
        exit: age at replacement, or at the end of the run.
        replaced: whether it ended in a replacement; else it is censored.
        first: whether it is one of the units that the network began with.
    """

    entry: np.ndarray
    exit: np.ndarray
    replaced: np.ndarray
    first: np.ndarray


class Survival(NamedTuple):
    """Share of the units still there after each age at which one was replaced, and its 95 % interval; `[age]`.

    `longest` is the greatest age observed: nothing is known beyond it.
    """

    age: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    longest: float

    def at(self, age: float) -> tuple[float, float, float]:
        """Share and interval of those that live longer than `age`; NaN beyond what was observed, no interval before."""
        if age > self.longest and not (len(self.share) and self.share[-1] == 0):
            return (np.nan,) * 3
        i = int(np.searchsorted(self.age, age, side="right")) - 1
        return (1.0, np.nan, np.nan) if i < 0 else (float(self.share[i]), float(self.low[i]), float(self.high[i]))

    def median(self) -> float:
        """The least age that half of the units do not outlive; infinite where more than half were still there."""
        below = np.flatnonzero(self.share <= 0.5)
        return float(self.age[below[0]]) if len(below) else np.inf


def group_names(lives: Mapping[str, np.ndarray]) -> list[str]:
    """The groups' names, numbers in them in numerical order: `Dense_2` before `Dense_10`."""
    return sorted(map(str, lives["groups"]), key=lambda n: [(w.isdigit(), int(w) if w.isdigit() else 0, w)
                                                            for w in re.split(r"(\d+)", n)])  # fmt: skip


def lifetimes(run: Run, lanes: Sequence[int] | np.ndarray, group: str) -> Lifetimes:
    """All lives of a group's units in some lanes, as far as the buffer tells.

    Where it overflowed, the time before the oldest replacement that it holds is unobserved: lives that ended then are
    missing, and the others come into view at the age that they had.
    """
    lives = _lives(run)
    number = list(map(str, lives["groups"])).index(group)
    begin = int(np.sum(lives["widths"][:number]))
    last = int(lives["stop"] - lives["start"]) - 1
    entry, exit, replaced, first = [], [], [], []
    for lane in lanes:
        here = lives["lane"] == lane
        # Some of the replacements at the very step of the oldest one may be lost.
        seen_from = int(lives["step"][here].min()) if lives["lost"][lane] else -1
        chosen = here & (lives["group"] == number) & (lives["step"] > seen_from)
        born = np.concatenate(
            [lives["step"][chosen] - lives["age"][chosen], lives["born"][lane, begin : begin + lives["widths"][number]]]
        ).astype(np.int64)
        gone = np.concatenate([lives["step"][chosen], np.full(lives["widths"][number], last)])
        entry.append(np.maximum(seen_from - born, 0))
        exit.append(gone - born)
        replaced.append(np.arange(len(born)) < chosen.sum())
        first.append(born < 0)
    return Lifetimes(*(np.concatenate(parts) for parts in (entry, exit, replaced, first)))


def survival(lives: Lifetimes) -> Survival:
    """Kaplan and Meier's estimate with delayed entry, and Greenwood's interval on the scale of log(-log S).

    S(a) = prod_{t <= a} (1 - d_t / n_t): of the `n_t` units under observation at age `t`, `d_t` were replaced. Units of
    one network are not independent of each other, so that the interval is rather too narrow.

    Source: Kaplan & Meier, JASA 1958; Kalbfleisch & Prentice, The Statistical Analysis of Failure Time Data, 2002.
    """
    known = lives.exit > lives.entry
    entry, exit, replaced = np.sort(lives.entry[known]), np.sort(lives.exit[known]), lives.replaced[known]
    ages, deaths = np.unique(lives.exit[known][replaced], return_counts=True)
    at_risk = np.searchsorted(entry, ages, side="left") - np.searchsorted(exit, ages, side="left")
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.cumprod(1 - deaths / at_risk)
        variance = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        log = np.log(share)
        half = 1.959964 * np.sqrt(variance) / np.abs(log)
        low, high = share ** np.exp(half), share ** np.exp(-half)
    none_left = share <= 0
    low, high = np.where(none_left, 0.0, low), np.where(none_left, 0.0, high)
    return Survival(ages, share, low, high, float(exit[-1]) if len(exit) else 0.0)


def useful_share(run: Run, lanes: Sequence[int] | np.ndarray, group: str) -> tuple[np.ndarray, np.ndarray]:
    """Ages, and the share of the new units of that age that are worth more than their group's median unit.

    A class of ages is placed at its first age; below 20 sightings it is NaN. The network's first units do not count.
    """
    lives = _lives(run)
    number = list(map(str, lives["groups"])).index(group)
    seen, above = lives["usefulness"][np.asarray(lanes)][:, number].sum(axis=0, dtype=np.int64).T
    return lives["ages"], np.where(seen >= _LEAST_SEEN, above / np.maximum(seen, 1), np.nan)


def time_to_usefulness(ages: np.ndarray, share: np.ndarray) -> tuple[float, bool]:
    """The first age at which at least half of the units are above the median, and whether younger ones were below.

    (NaN, False) where that is never seen.
    """
    known = np.flatnonzero(np.isfinite(share))
    useful = known[share[known] >= 0.5]
    return (float(ages[useful[0]]), bool(useful[0] > known[0])) if len(useful) else (np.nan, False)


def _lives(run: Run) -> Mapping[str, Any]:
    assert run.lives is not None, "asked of runs with a history only"
    return run.lives
