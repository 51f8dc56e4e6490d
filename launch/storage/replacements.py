"""The replacement log on disk: every replacement of a hidden unit, and what is known of the units' ages.

`DIR/<label>/lives.npz` (one lane's units behind the other's):

    groups [group]                      names, sorted; `widths` [group] their numbers of units
    lane, step, group, unit, age [event], utility [event]
                                        every replacement that was kept: when, which unit, how old, its utility
    lost [lane]                         replacements that the buffer could not hold, all before those kept
    born [lane, unit]                   per unit, groups one after the other, when it was made; -1 for the first ones
    ages [class]                        first age of every class of ages
    usefulness [lane, group, class, 2]  how often a unit of that age that had replaced another was seen, and how often
                                        it was above its group's median
    start, stop                         steps of the run between which lives were recorded

Steps are counted from `start`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

PREFIX = "lives/"
"""Prefix of the log's arrays among a checkpoint's metrics."""


def gathered(arrays: Mapping[str, np.ndarray], ages: Sequence[int], start: int, stop: int) -> dict[str, np.ndarray]:
    """What goes to disk, from a replacement log's arrays with lanes on the leading axis.

    Args:
        arrays: `rows` [lane, size, 5], `written` [lane], and by group `age/NAME` [lane, unit], the units' ages at the
            end, and `usefulness/NAME` [lane, class, 2].
        ages: first age of every class.
        start: step of the run at which the method began.
        stop: step at which it ended.
    """
    rows, written = arrays["rows"], arrays["written"].astype(np.int64)
    groups = sorted(name.removeprefix("age/") for name in arrays if name.startswith("age/"))
    kept = np.minimum(written, rows.shape[1])
    chosen = [r[np.arange(w - k, w) % len(r)] for r, w, k in zip(rows, written, kept, strict=True)]
    step, group, unit, age, bits = np.ascontiguousarray(np.concatenate(chosen).T)
    return {
        "groups": np.array(groups, dtype=str),
        "widths": np.array([arrays[f"age/{name}"].shape[1] for name in groups]),
        "lane": np.repeat(np.arange(len(rows), dtype=np.int32), kept),
        "step": step,
        "group": group,
        "unit": unit,
        "age": age,
        "utility": bits.view(np.float32),
        "lost": written - kept,
        "born": stop - start - 1 - np.concatenate([arrays[f"age/{name}"] for name in groups], axis=1),
        "ages": np.array(ages),
        "usefulness": np.stack([arrays[f"usefulness/{name}"] for name in groups], axis=1),
        "start": np.array(start),
        "stop": np.array(stop),
    }
