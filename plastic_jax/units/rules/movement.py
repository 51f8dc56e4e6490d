"""Data movement, reductions and windows: label arrays move as the data do."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from plastic_jax.units import jaxprs, labels
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import Frame, Made, Value, clearest
from plastic_jax.units.walk import Walk

MARK = "units/"
"""Values named `units/NAME` by `jax.ad_checkpoint.checkpoint_name` are features, whatever they have passed."""


def checkpoint_name(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A value that the user named; as a feature, if the name says so."""
    name = eqn.params["name"]
    if not name.startswith(MARK):
        return values
    made = {s: m.passed("linear") for s, m in values[0].made.items()}
    walk.story.marks.append((name.removeprefix(MARK), *walk.hoisted(eqn.invars[0], values[0].shape, made, frame)))
    return [dataclasses.replace(values[0], made=made)]


def transpose(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Axes in another order."""
    order = eqn.params["permutation"]
    return [values[0].moved(jaxprs.shape(eqn.outvars[0]), lambda i: np.transpose(i, order))]


def reshape(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Axes regrouped."""
    old, new = values[0].shape, jaxprs.shape(eqn.outvars[0])
    given = eqn.params["dimensions"] if eqn.primitive.name == "reshape" else None
    order = tuple(range(len(old))) if given is None else given
    turned = [old[d] for d in order]
    return [values[0].moved(new, lambda i: labels.reshape(np.transpose(i, order), turned, new))]


def broadcast_in_dim(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """New axes, along which nothing changes."""
    shape, dims = jaxprs.shape(eqn.outvars[0]), eqn.params["broadcast_dimensions"]
    to = dict(enumerate(dims))
    return [values[0].moved(shape, lambda i: labels.placed(i, to, len(shape)))]


def rev(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Axes backwards."""
    return [values[0].moved(values[0].shape, lambda i: np.flip(i, eqn.params["dimensions"]))]


def tile(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Repetitions."""
    reps = eqn.params["reps"]
    repeat = lambda i: np.tile(i, [r if n > 1 else 1 for r, n in zip(reps, i.shape, strict=True)])  # noqa: E731
    return [values[0].moved(jaxprs.shape(eqn.outvars[0]), repeat)]


def slice_(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A part, known in advance."""
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or [1] * len(starts)

    def move(index: Labels) -> Labels:
        for axis, box in enumerate(zip(starts, stops, steps, strict=True)):
            index = labels.cut(index, axis, slice(*box))
        return index

    first = values[0].row(slice(starts[0], stops[0], steps[0])) if starts else values[0]
    first = _cut(frame, first, jaxprs.shape(eqn.outvars[0]))
    return [dataclasses.replace(first.moved(jaxprs.shape(eqn.outvars[0]), move), rows=first.rows)]


def unstack(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Every index of one axis as a value of its own."""
    axis, out = eqn.params["axis"], []
    for number, variable in enumerate(eqn.outvars):
        box = slice(number, number + 1)
        move = lambda i, box=box: np.squeeze(labels.cut(i, axis, box), axis)  # noqa: E731
        value = values[0].row(box) if axis == 0 else values[0]
        value = _cut(frame, value, (*value.shape[:axis], 1, *value.shape[axis + 1 :]))
        out.append(value.moved(jaxprs.shape(variable), move))
    return out


def split(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Parts along one axis."""
    out, start, axis = [], 0, eqn.params["axis"]
    for size, variable in zip(eqn.params["sizes"], eqn.outvars, strict=True):
        box = slice(start, start + int(size))
        value = values[0].row(box) if axis == 0 else values[0]
        value = _cut(frame, value, jaxprs.shape(variable))
        out.append(value.moved(jaxprs.shape(variable), lambda i, box=box: labels.cut(i, axis, box)))
        start += int(size)
    return out


def _cut(frame: Frame, value: Value, shape: tuple[int, ...]) -> Value:
    """A value of which a part goes on: of channels that do not change along an axis that gets shorter, a part too."""
    shorter = [d for d, n in enumerate(shape) if n < value.shape[d]]
    by = (frame.path, frame.at)
    made = {s: m if all(m.channel.shape[d] > 1 for d in shorter) else m.part(by) for s, m in value.made.items()}
    return dataclasses.replace(value, made=made)


def dynamic_slice(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A part whose place may be known at run time only."""
    value, shape = values[0], jaxprs.shape(eqn.outvars[0])
    starts = [int(a.val) if isinstance(a, jaxprs.Literal) else None for a in eqn.invars[1:]]
    cut = [d for d, n in enumerate(shape) if n != value.shape[d]]
    unknown = [d for d in cut if starts[d] is None]
    for index in values[1:]:
        walk.leak(index, "decides which part of a value is taken")
    lost = value.varied(unknown)
    walk.leak(value, "is picked by an index", lost)
    value = _cut(frame, value.without(lost), shape)

    def move(index: Labels) -> Labels:
        for d in cut:
            if (start := starts[d]) is not None:
                first = min(max(start, 0), value.shape[d] - shape[d])
                index = labels.cut(index, d, slice(first, first + shape[d]))
        return index

    depends = value.depends or any(v.depends for v in values[1:])
    moved = dataclasses.replace(value.moved(shape, move), depends=depends)
    apart = -1 - labels.numbered(tuple(n if d in unknown else 1 for d, n in enumerate(shape)), unknown)
    entries = {}
    for leaf, e in moved.entries.items():
        index = tuple(
            None if i is None or set(labels.varying(i)) & set(unknown) else i for i in value.entries[leaf].index
        )
        entries[leaf] = dataclasses.replace(e, index=index).unplaced(e, apart)
    return [dataclasses.replace(moved, entries=entries)]


def dynamic_update_slice(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A value written into another."""
    value, new = values[:2]
    cut = [d for d, n in enumerate(new.shape) if n != value.shape[d]]
    for index in values[2:]:
        walk.leak(index, "decides where a value is written")
    for part in (value, new):
        walk.leak(part, "is written at an index", part.varied(cut))
    kept = [part.without(part.varied(cut)) for part in (value, new)]
    return [Value(value.shape, any(v.depends for v in values), _both(walk, kept, add=False))]


def _both(walk: Walk, parts: list[Value], add: bool) -> dict[int, Made]:
    """The channels of values that stand beside each other in one array."""
    made = walk.merged(parts, add)
    uses = {s: frozenset().union(*(v.made[s].uses for v in parts if s in v.made)) for s in made}
    return {s: dataclasses.replace(m, uses=uses[s]) for s, m in made.items()}


def scatter(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Values written, or added, at indices: on the axes that are written whole every element stays what it is."""
    value, where, new = values
    numbers, shape, name = eqn.params["dimension_numbers"], values[0].shape, eqn.primitive.name
    walk.leak(where, "decides where a value is written")
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(shape)) if d not in gone]
    to = {w: d for w, d in zip(numbers.update_window_dims, kept, strict=True) if new.shape[w] == shape[d]}
    indexed = [d for d in range(len(shape)) if d not in to.values()]
    parts = []
    for part, axes in ((value, indexed), (new, [d for d in range(len(new.shape)) if d not in to])):
        lost = part.varied(axes)
        walk.leak(part, "is written at an index", lost)
        parts.append(part.without(lost))
    parts[1] = parts[1].moved(shape, lambda i: labels.placed(i, to, len(shape)))
    made = _both(walk, parts, add=name in _SCATTER_ADD)
    if name not in ("scatter", *_SCATTER_ADD):
        made = {s: m.passed("linear") for s, m in made.items()}
    if any(v.entries for v in (value, new)) and made:
        walk.guests(parts)
    return [Value(shape, any(v.depends for v in values), made)]


_SCATTER_ADD = ("scatter-add", "scatter_add", "scatter-sub", "scatter_sub")
_SCATTER = (*_SCATTER_ADD, "scatter", *(f"scatter{sign}{name}" for sign in "-_" for name in ("mul", "min", "max")))


def concatenate(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Values one after the other."""
    return [_one_after_another(walk, values, eqn.params["dimension"], jaxprs.shape(eqn.outvars[0]))]


def stack(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Values one after the other on a new axis."""
    axis, shape = eqn.params["axis"], jaxprs.shape(eqn.outvars[0])
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    layers = [value.moved(one, lambda i: np.expand_dims(i, axis)) for value in values]
    return [_one_after_another(walk, layers, axis, shape)]


def _one_after_another(walk: Walk, values: list[Value], axis: int, shape: tuple[int, ...]) -> Value:
    sizes = [v.shape[axis] for v in values]
    made, entries = {}, {}
    for source in dict.fromkeys(s for v in values for s in v.made):
        parts = [v.made[source].channel if source in v.made else None for v in values]
        names = [v.made[source].activation for v in values if source in v.made]
        name = next((n for n in names if n), None)
        uses = frozenset().union(*(v.made[source].uses for v in values if source in v.made))
        there = [(part, n) for part, n in zip(parts, sizes, strict=True) if part is not None]
        if all(part.size == 1 and n > 1 and (part == there[0][0]).all() for part, n in there):
            channel = there[0][0]  # one channel that weighs others goes on along the whole axis
        else:
            channel = labels.concatenate(parts, sizes, axis)
        made[source] = Made(channel, name, uses)
    for leaf in dict.fromkeys(leaf for v in values for leaf in v.entries):
        found = [v.entries.get(leaf) for v in values]
        worst = functools.reduce(clearest, [dataclasses.replace(f, index=()) for f in found if f])
        entries[leaf] = dataclasses.replace(worst, index=_joined([f.index if f else None for f in found], sizes, axis))
    depends = any(v.depends for v in values)
    scaled = any(v.scaled for v in values)
    if depends and entries:
        walk.guests(values)
    joined = Value(shape, depends, made, {} if depends else entries, scaled=scaled)
    squares = [v.squared for v in values]
    if axis == 0 and all(v.statistic for v in values) and len(set(squares)) > 1:  # moments that are sent together
        rows = tuple(squared for squared, n in zip(squares, sizes, strict=True) for _ in range(n))
        joined = dataclasses.replace(joined, statistic=True, squared=True, rows=rows)
    return joined


def pad(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A border, or gaps."""
    config = eqn.params["padding_config"]
    return [values[0].moved(jaxprs.shape(eqn.outvars[0]), lambda i: labels.pad(i, config))]


def _joined(
    parts: Sequence[tuple[Labels | None, ...] | None], sizes: Sequence[int], axis: int
) -> tuple[Labels | None, ...]:
    """Entries of a parameter in a concatenation of pieces, some of which are made of others (`None`)."""
    known = [p for p in parts if p is not None]
    joined: list[Labels | None] = []
    marked = len(known) == len(parts)
    for a, first in enumerate(known[0]):
        if first is None or any(p[a] is None for p in known):
            joined.append(None)
            continue
        pieces = [None if p is None else p[a] for p in parts]
        index = labels.concatenate(pieces, sizes, axis)
        marked |= index.shape[axis] > 1
        joined.append(index)
    if not marked:  # nothing changes along the axis: say on the first axis that is known where the pieces are
        a, like = next((a, index) for a, index in enumerate(joined) if index is not None)
        pieces = [np.full_like(like, -1) if p is None else like for p in parts]
        joined[a] = np.concatenate([labels.expanded(i, axis, n) for i, n in zip(pieces, sizes, strict=True)], axis)
    return tuple(joined)


RULES = dict.fromkeys(_SCATTER, scatter) | {
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "expand_dims": reshape,
    "name": checkpoint_name,
    "pad": pad,
    "reshape": reshape,
    "rev": rev,
    "slice": slice_,
    "split": split,
    "squeeze": reshape,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
    "unstack": unstack,
}
