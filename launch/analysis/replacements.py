"""The replacement log: how long hidden units stay, when new ones become useful, which are soon replaced again.

The file is described in `launch.storage.replacements`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from launch.analysis.curves import Curve
from launch.analysis.statistics import Estimate
from launch.analysis.survival import kaplan_meier
from launch.analysis.text import Table
from launch.errors import InputError, unknown

HEADINGS = (
    "method", "group", "units", "replacements", "lost", "median life", "useful after", "soon replaced again"
)  # fmt: skip
_LEAST_SEEN = 20


def logged(found: Sequence[Curve]) -> list[Curve]:
    """The curves whose runs have a replacement log.

    Raises:
        InputError: there is none.
    """
    told = [curve for curve in found if curve.run.lives is not None]
    if not told:
        labels = ", ".join(dict.fromkeys(curve.run.label for curve in found))
        raise InputError(
            f"no replacement log (lives.npz) of {labels}; run launch.train with --history=N and a method that "
            "replaces units"
        )
    return told


def log_of(curve: Curve) -> Mapping[str, Any]:
    """The replacement log of a curve's run."""
    assert curve.run.lives is not None, "asked of runs with a replacement log only"
    return curve.run.lives


def group_names(log: Mapping[str, np.ndarray]) -> list[str]:
    """The groups' names, numbers in them in numerical order: `Dense_2` before `Dense_10`."""
    return sorted(map(str, log["groups"]), key=lambda n: [(w.isdigit(), int(w) if w.isdigit() else 0, w)
                                                          for w in re.split(r"(\d+)", n)])  # fmt: skip


def chosen_groups(found: Sequence[Curve], groups: Sequence[str] | None = None, most: int | None = None) -> list[str]:
    """The groups asked for, or all, or `most` of them evenly chosen; InputError for one that no log has."""
    there = list(dict.fromkeys(name for curve in found for name in group_names(log_of(curve))))
    for name in groups or ():
        if name not in there:
            raise unknown("--groups", name, there)
    if groups:
        return list(groups)
    if most is None or len(there) <= most:
        return there
    return [there[round(i)] for i in np.linspace(0, len(there) - 1, most)]


def lifetimes(curve: Curve, group: str) -> pd.DataFrame:
    """All lives of a group's units, as far as the log tells; a row each, as `survival.kaplan_meier` takes them.

    Columns: `seed`; `entry`, the age from which the life is observed; `time`, the age at replacement or at the end of
    the run; `happened`, whether it ended in a replacement (else it is censored); `first`, whether it is one of the
    units that the network began with. Where the log overflowed, the time before the oldest replacement that it holds
    is unobserved: lives that ended then are missing, and the others come into view at the age that they had.
    """
    log = log_of(curve)
    number = list(map(str, log["groups"])).index(group)
    begin = int(np.sum(log["widths"][:number]))
    last = int(log["stop"] - log["start"]) - 1
    parts = []
    for lane, seed in zip(curve.lanes, curve.seeds, strict=True):
        here = log["lane"] == lane
        # Some of the replacements at the very step of the oldest one may be lost.
        seen_from = int(log["step"][here].min()) if log["lost"][lane] else -1
        kept = here & (log["group"] == number) & (log["step"] > seen_from)
        there = log["born"][lane, begin : begin + log["widths"][number]]
        born = np.concatenate([log["step"][kept] - log["age"][kept], there]).astype(np.int64)
        gone = np.concatenate([log["step"][kept], np.full(len(there), last)])
        parts.append(
            pd.DataFrame({
                "seed": seed,
                "entry": np.maximum(seen_from - born, 0),
                "time": gone - born,
                "happened": np.arange(len(born)) < kept.sum(),
                "first": born < 0,
            })
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def useful_share(curve: Curve, group: str) -> pd.Series:
    """By age, the share of the new units of that age that are worth more than their group's median unit.

    A class of ages is placed at its first age; below 20 sightings it is NaN. The network's first units do not count.
    """
    log = log_of(curve)
    number = list(map(str, log["groups"])).index(group)
    seen, above = log["usefulness"][curve.lanes][:, number].sum(axis=0, dtype=np.int64).T
    return pd.Series(np.where(seen >= _LEAST_SEEN, above / np.maximum(seen, 1), np.nan), log["ages"])


def time_to_usefulness(share: pd.Series) -> tuple[float, bool]:
    """The first age at which at least half of the units are above the median, and whether younger ones were below.

    (NaN, False) where that is never seen.
    """
    known = share.dropna()
    useful = known.index[known >= 0.5]
    return (float(useful[0]), bool(useful[0] > known.index[0])) if len(useful) else (np.nan, False)


def report(found: Sequence[Curve], groups: Sequence[str] | None = None, soon: int | None = None) -> Table:
    """A row per curve and group; `soon` in steps, by default twice the method's protection of new units."""
    told = logged(found)
    shown = chosen_groups(told, groups)
    rows = [HEADINGS]
    rows += [_row(curve, group, soon) for curve in told for group in group_names(log_of(curve)) if group in shown]
    return Table(rows, [
        "replacements: kept per seed, and lost per seed, of all groups, where the log was too short. median life: "
        "steps, after Kaplan and Meier; units still there at the end are censored. useful after: the age in steps at "
        "which half of the new units still there are above their group's median in what the method ranks by. soon "
        "replaced again: share of the new units (of how many) that are replaced within the given steps. Intervals are "
        "95% jackknife intervals over seeds."
    ], left=2)  # fmt: skip


def _row(curve: Curve, group: str, soon: int | None) -> tuple[str, ...]:
    log, lives = log_of(curve), lifetimes(curve, group)
    number = list(map(str, log["groups"])).index(group)
    of_group = np.isin(log["lane"], curve.lanes) & (log["group"] == number)
    return (
        f"{curve.name} ({curve.note})",
        group,
        str(int(log["widths"][number])),
        f"{of_group.sum() / len(curve.lanes):.4g}",
        f"{log['lost'][curve.lanes].mean():.4g}",
        _median_text(lives),
        _useful_text(*time_to_usefulness(useful_share(curve, group))),
        _soon_text(lives, _protection(curve) if soon is None else soon),
    )


def _median_text(lives: pd.DataFrame) -> str:
    found = kaplan_meier(lives)
    median = found.median().value
    return f"{median:.0f}" if math.isfinite(median) else f"> {found.longest:.0f}"


def _useful_text(age: float, after_others: bool) -> str:
    if not math.isfinite(age):
        return "never seen"
    return f"{age:.0f}" if after_others else f"<= {age:.0f}"


def _soon_text(lives: pd.DataFrame, soon: int | None) -> str:
    if soon is None:
        return "give --soon"
    again = lives[~lives["first"] & (lives["time"] > lives["entry"])]
    gone = replaced_within(again, soon)
    if again.empty or not math.isfinite(gone.value):
        return f"none seen for {soon} steps"
    ends = f" [{gone.low:.3g}, {gone.high:.3g}]" if math.isfinite(gone.low) else ""
    return f"{gone.value:.3g} % of {len(again)}{ends} within {soon}"


def replaced_within(lives: pd.DataFrame, steps: float) -> Estimate:
    """Per cent of the units that are replaced within so many steps."""
    stay, low, high = kaplan_meier(lives).at(steps)
    return Estimate(100 * (1 - stay), 100 * (1 - high), 100 * (1 - low))


def _protection(curve: Curve) -> int | None:
    """Twice the steps in which a new unit cannot go: the maturity threshold, or the period between two resets."""
    settings = {**curve.run.meta["settings"], **curve.hyper}
    steps = settings.get("maturity_threshold", settings.get("period"))
    return None if steps is None else int(2 * steps)
