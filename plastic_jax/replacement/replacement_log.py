"""Replacement log: which units were replaced, when and why, in a bounded buffer inside a method's state.

A method that replaces units calls `record` inside the branch that it takes when a unit goes, so that a step at which
nothing goes costs nothing. What is kept of each replacement: the step, the group, the unit, its age and its utility.
The buffer is a ring: when it is full the oldest replacement makes room, and how many were lost is known.

At such moments, but at most every `LOOK_EVERY` steps, all units are looked at: which of those that replaced another
are, by age, worth more than the median unit of their group. From that follows how long a new unit takes to become
useful, without following any single one from step to step.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.lanes import any_lane
from plastic_jax.replacement.draw import Replacement

AGES = tuple(sorted({math.ceil(2 ** (k / 2)) for k in range(62)}))
"""First age of every class of ages, two classes an octave: 1, 2, 3, 4, 6, 8, 12, 16, 23, ..."""

LOOK_EVERY = 100
"""Steps between two looks at all units: the sort that finds a median costs as much as some steps of a small network."""

_COLUMNS = ("step", "group", "unit", "age", "utility")
_MOST = 2**30  # one look adds less than as much again, so that an int32 cannot overflow


class ReplacementLog(NamedTuple):
    """The last replacements of a model's units, and how useful units are by age; dictionaries are by group name.

    Attributes:
        rows: int32 `[size, 5]`, a ring of replacements: step, number of the group (in the order of the sorted names),
            unit, age, and the bits of the float32 utility.
        written: int32 scalar, replacements so far; saturates.
        looked: int32 scalar, the step of the last look at all units.
        usefulness: int32 `[len(AGES), 2]`, by class of age: how often a unit of that age was seen, and how often its
            utility was above the group's median. The first units do not count, only those that replaced another. A
            class stops counting at about 2^30.
    """

    rows: jax.Array
    written: jax.Array
    looked: jax.Array
    usefulness: dict[str, jax.Array]


class Events(NamedTuple):
    """Replacements in the order in which they happened; numpy arrays `[event]`.

    Attributes:
        step: int32, the step at which the unit went; its successor's age is 0 after that step.
        group: the group's name.
        unit: int32, its number in the group.
        age: int32, steps that it lived.
        utility: float32, what it was ranked by.
        lost: how many earlier replacements the buffer no longer holds.
    """

    step: np.ndarray
    group: np.ndarray
    unit: np.ndarray
    age: np.ndarray
    utility: np.ndarray
    lost: int


def empty(size: int, names: Iterable[str]) -> ReplacementLog | None:
    """A log before step 0, or `None` for size 0.

    Args:
        size: replacements that the buffer holds, from 0 on, 20 bytes each.
        names: the names of the groups.
    """
    if size == 0:
        return None
    return ReplacementLog(
        rows=jnp.zeros((size, len(_COLUMNS)), jnp.int32),
        written=jnp.zeros([], jnp.int32),
        looked=jnp.full([], -LOOK_EVERY, jnp.int32),
        usefulness={name: jnp.zeros((len(AGES), 2), jnp.int32) for name in names},
    )


def record(
    log: ReplacementLog | None,
    step: jax.Array,
    replaced: Mapping[str, Replacement],
    age: Mapping[str, jax.Array],
    utility: Mapping[str, jax.Array],
) -> ReplacementLog | None:
    """The log after the replacements of one step; `None` stays `None`.

    Cheap, but not free: to be called inside the branch that is taken when some unit goes. Every write is masked by
    what is valid, so that under `vmap` a lane in which nothing goes stays as it is.

    Args:
        log: the log so far.
        step: 0-d int32, steps taken before this one.
        replaced: by group name, the units that go (`valid` says which entries count).
        age: by group name, int32 `[width]`, steps that every unit has lived, this one included.
        utility: by group name, `[width]`, what all units of the group are ranked by.
    """
    if log is None:
        return None
    size = log.rows.shape[0]
    step = jnp.asarray(step, jnp.int32)
    rows, valid = [], []
    for number, name in enumerate(sorted(log.usefulness)):
        goes = replaced[name]
        bits = jax.lax.bitcast_convert_type(utility[name][goes.index].astype(jnp.float32), jnp.int32)
        columns = (step, jnp.int32(number), goes.index, age[name][goes.index], bits)
        rows.append(jnp.stack([jnp.broadcast_to(c, goes.index.shape) for c in columns], axis=1))
        valid.append(goes.valid)
    counted = jnp.concatenate(valid)
    order = log.written + jnp.cumsum(counted, dtype=jnp.int32) - 1
    written = log.written + jnp.sum(counted, dtype=jnp.int32)
    # Where one step fills more than the whole ring, its last rows stay. A place beyond the end is not written.
    place = jnp.where(counted & (order >= written - size), order % size, size)
    now = jnp.any(counted) & (step - log.looked >= LOOK_EVERY)
    seen = log.usefulness
    return ReplacementLog(
        rows=log.rows.at[place].set(jnp.concatenate(rows), mode="drop"),
        written=jnp.where(written < log.written, log.written, written),
        looked=jnp.where(now, step, log.looked),
        usefulness=jax.lax.cond(
            any_lane(now), lambda: {n: _look(seen[n], step, age[n], utility[n], now) for n in seen}, lambda: seen
        ),
    )


def _look(seen: jax.Array, step: jax.Array, age: jax.Array, value: jax.Array, counts: jax.Array) -> jax.Array:
    """The counts of usefulness by age, with this step's where it `counts`."""
    above = value > jnp.median(value)
    first, last = np.array(AGES), np.array((*AGES[1:], 2**31 - 1))
    new = age <= step  # the first units are one step older
    here = (age[:, None] >= first) & (age[:, None] < last) & new[:, None]
    now = jnp.stack([jnp.sum(here, 0, dtype=jnp.int32), jnp.sum(here & above[:, None], 0, dtype=jnp.int32)], axis=1)
    return seen + jnp.where(counts & (seen[:, :1] < _MOST), now, 0)


def events(log: ReplacementLog) -> Events:
    """The replacements that the buffer holds, oldest first; of one lane, on the host."""
    rows, written = np.asarray(log.rows), int(log.written)
    kept = min(written, len(rows))
    rows = rows[np.arange(written - kept, written) % len(rows)]
    names = np.array(sorted(log.usefulness), dtype=str)
    step, group, unit, age, bits = (np.ascontiguousarray(column) for column in rows.T)
    return Events(step, names[group], unit, age, bits.view(np.float32), written - kept)


def find(state: Any) -> tuple[ReplacementLog, dict[str, jax.Array]] | None:
    """The log in a method's state, and the units' ages by group name; `None` where no log is kept.

    Args:
        state: any pytree that holds the state of a method as a named tuple with the fields `log` and `age`.
    """

    def is_told(node: Any) -> bool:
        return isinstance(getattr(node, "log", None), ReplacementLog)

    found = next((node for node in jax.tree.leaves(state, is_leaf=is_told) if is_told(node)), None)
    return None if found is None else (found.log, found.age)
