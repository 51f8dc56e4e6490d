"""Contractions: what makes channels and what reads them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plastic_jax.units import jaxprs, labels
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import (
    Entering,
    Entries,
    Frame,
    Leaf,
    Made,
    Reading,
    Unknown,
    Use,
    Value,
    WeightUse,
    clearest,
)
from plastic_jax.units.walk import Walk


def dot_general(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Products of matrices, of whatever kind."""
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    a, b = values
    free_a = [d for d in range(len(a.shape)) if d not in (*ca, *ba)]
    free_b = [d for d in range(len(b.shape)) if d not in (*cb, *bb)]
    n = len(ba) + len(free_a) + len(free_b)
    to_a = {d: i for i, d in enumerate((*ba, *free_a))}
    to_b = {d: i for i, d in enumerate(bb)} | {d: len(ba) + len(free_a) + i for i, d in enumerate(free_b)}
    picked_a, picked_b = (bool(v.entries) and v.depends and not v.behind for v in values)
    a_is_read = a.depends and not (b.depends and picked_a and not picked_b)
    if not (a.depends or b.depends) or (a.depends and b.depends and picked_a == picked_b):
        return _product(walk, eqn, [(a, to_a, ca), (b, to_b, cb)], n)
    if a_is_read:
        value, weight, atom, to, to_w = a, b, eqn.invars[0], to_a, to_b
        pairs, batch, contracted = dict(zip((*ca, *ba), (*cb, *bb), strict=True)), bb, ca
    else:
        value, weight, atom, to, to_w = b, a, eqn.invars[1], to_b, to_a
        pairs, batch, contracted = dict(zip((*cb, *bb), (*ca, *ba), strict=True)), ba, cb
    if not (weight.entries or weight.unknown):
        return _product(walk, eqn, [(value, to, contracted), (weight, to_w, ())], n)
    made_dims = [d for d in range(len(weight.shape)) if d in batch or d not in pairs.values()]
    made_dims.sort(key=lambda d: to_w[d])
    produced = labels.numbered(weight.shape, made_dims)
    read, carried = [], {}
    for source, made in value.made.items():
        single = made.channel.size == 1 and any(value.shape[d] == 1 for d in contracted)
        if single or any(made.channel.shape[d] > 1 for d in contracted):
            channels, shared = labels.one_per_place(made.channel, sorted(pairs))
            walk.same(shared)
            read.append(labels.placed(channels, pairs, len(weight.shape)))
        else:
            read.append(None)
            carried[source] = made.at(labels.placed(made.channel, to, n))
    out = (produced, lambda index: labels.placed(index, to_w, n), carried)
    return _contraction(walk, eqn, value, atom, weight, read, out, frame)


def conv_general_dilated(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """Convolutions: grouped, strided, dilated, transposed."""
    value, weight = values
    numbers = eqn.params["dimension_numbers"]
    groups = eqn.params["feature_group_count"]
    out_shape = jaxprs.shape(eqn.outvars[0])
    n = len(out_shape)
    feature, (rhs_out, rhs_in), out_feature = numbers.lhs_spec[1], numbers.rhs_spec[:2], numbers.out_spec[1]
    batch = {numbers.lhs_spec[0]: numbers.out_spec[0]}
    space = dict(zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True))
    if weight.depends or eqn.params["batch_group_count"] != 1:
        for operand in values:
            walk.leak(operand, "is multiplied with other activations")
        return [Value(out_shape, True)]
    if not value.depends:
        return [Value(out_shape)]
    per_group = value.shape[feature] // groups
    outputs = weight.shape[rhs_out]
    group_of = np.arange(outputs) // (outputs // groups)
    read, carried = [], {}
    for source, made in value.made.items():
        spread = [d for d in space if made.channel.shape[d] > 1]
        single = made.channel.size == 1 and value.shape[feature] == 1
        if made.channel.shape[feature] == 1 and not spread and not single:
            read.append(None)
            carried[source] = made.at(labels.placed(made.channel, batch | space, n))
            continue
        channels, shared = labels.one_per_place(made.channel, [feature])
        walk.same(shared)
        line = np.broadcast_to(channels.ravel(), (value.shape[feature],))
        table = line.reshape(groups, per_group)[group_of]  # [output, input of its group]
        if not (weight.entries or weight.unknown):
            read.append(None)
            if per_group == 1 and not spread:
                carried[source] = made.at(labels.compressed(labels.line(table[:, 0], out_feature, n)))
            else:
                walk.leak(value, "is mixed with other units by constants", [source])
            continue
        shape = [1] * len(weight.shape)
        shape[rhs_out], shape[rhs_in] = table.shape
        laid = table if rhs_out < rhs_in else table.T
        read.append(labels.compressed(laid.reshape(shape)))
    if not (weight.entries or weight.unknown):
        return [Value(out_shape, True, carried)]
    produced = labels.along(rhs_out, len(weight.shape), outputs)
    out = (produced, lambda index: labels.line(index.ravel(), out_feature, n), carried)
    return _contraction(walk, eqn, value, eqn.invars[0], weight, read, out, frame)


def gather(walk: Walk, eqn: Any, values: list[Value], frame: Frame) -> list[Value]:
    """A row looked up by an input (embedding) makes channels; a fixed index moves data."""
    value, where = values[:2]
    walk.leak(where, "decides what is looked up")
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = jaxprs.shape(eqn.outvars[0])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(value.shape)) if d not in gone]
    whole = {d: o for d, o in zip(kept, numbers.offset_dims, strict=True) if sizes[d] == value.shape[d]}
    cut = [d for d in range(len(value.shape)) if d not in whole]
    if (value.entries or value.unknown) and not value.depends and where.depends:
        made_dims = sorted(whole, key=lambda d: whole[d])
        produced = labels.numbered(value.shape, made_dims)
        out = (produced, lambda index: labels.placed(index, whole, len(shape)), {})
        place = Value(where.shape, True, behind=where.behind)
        return _contraction(walk, eqn, place, eqn.invars[1], value, [], out, frame)
    if (move := _rows(eqn, value, where)) is not None:
        made = {s: m.part((frame.path, frame.at)) for s, m in value.made.items()}
        return [dataclasses.replace(value, made=made).moved(shape, move)]
    lost = value.varied(cut)
    walk.leak(value, "is picked by an index", lost)
    made = {
        s: m.at(labels.placed(m.channel, whole, len(shape))).part((frame.path, frame.at))
        for s, m in value.made.items()
        if s not in lost
    }
    entries = {leaf: e.placed(whole, cut, len(shape)) for leaf, e in value.entries.items()}
    batch = [d for d in range(len(shape)) if d not in numbers.offset_dims]
    apart = -1 - labels.numbered([n if d in batch else 1 for d, n in enumerate(shape)], batch)
    entries = {leaf: e.unplaced(value.entries[leaf], apart) for leaf, e in entries.items()}
    depends = value.depends or where.depends
    return [dataclasses.replace(value, shape=shape, made=made, entries=entries, depends=depends)]


def _rows(eqn: Any, value: Value, where: Value) -> Callable[[Labels], Labels] | None:
    """What happens to labels where rows of one axis are looked up whose numbers are known."""
    numbers, sizes, rank = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], len(value.shape)
    axes, shape = numbers.collapsed_slice_dims, jaxprs.shape(eqn.outvars[0])
    if where.known is None or len(axes) != 1 or axes != numbers.start_index_map or numbers.operand_batching_dims:
        return None
    axis, rows = axes[0], where.known[..., 0]
    if any(sizes[d] != value.shape[d] for d in range(rank) if d != axis):
        return None
    if not rows.size or rows.min() < 0 or rows.max() >= value.shape[axis]:
        return None
    batch = [d for d in range(len(shape)) if d not in numbers.offset_dims]

    def move(index: Labels) -> Labels:
        there = rows if index.shape[axis] > 1 else np.zeros((1,) * rows.ndim, int)
        taken = np.take(np.moveaxis(index, axis, 0), there, 0)
        return np.moveaxis(taken, range(taken.ndim), [*batch, *numbers.offset_dims])

    return move


def _contraction(
    walk: Walk, eqn: Any, value: Value, atom: Any, weight: Value, read: Sequence[Labels | None], out: Any, frame: Frame
) -> list[Value]:
    """A parameter's contraction with a value.

    Args:
        eqn: the equation.
        value: what is read; `atom` is its variable.
        weight: the parameter.
        read: per source of the value, its channels on the axes of the weight; `None` where it is not read.
        out: `(made of the output: channel labels on the weight's axes, move to the output, carried sources)`.
        frame: the level of nesting.
    """
    produced, move, carried = out
    weight = _placed(weight, [produced, *(r for r in read if r is not None)], eqn, frame)
    key = (
        produced.shape,
        (frame.path, frame.at) if weight.unknown else None,
        tuple(
            (leaf, tuple(i if i is None else (i.shape, i.tobytes()) for i in e.index))
            for leaf, e in weight.entries.items()
        ),
    )
    source = walk.source(key, int(produced.max()) + 1)
    channel = produced + np.int32(walk.story.sources[source][0])
    makes = _owners(walk, weight, channel)
    makes = [each for each in makes if weight.entries[each[0]].kind != "inverse"] or makes
    for leaf, owner, shared in makes:
        walk.same(shared)
        walk.story.entering.append(Entering(leaf, "kernel", owner, shared))
        if leaf[0] == "params" and weight.entries[leaf].mixed & set(labels.varying(owner)):
            how = "depend on each other, as where the whole kernel is divided by its norm"
            walk.story.barred.append((labels.members(channel), Unknown(frozenset([leaf]), how)))
    if weight.unknown:
        walk.story.barred.append((labels.members(channel), weight.unknown))
    if any(not found.stays for found in weight.entries.values()):  # they make something of what they read even if 0
        walk.story.guests.append(labels.members(channel))
    seen: dict[int, Made] = {}
    leaves: list[tuple[Leaf, Labels]] = []
    partitions: list[tuple[np.ndarray, np.ndarray]] = []
    reads = np.full((1,) * len(weight.shape), -1, np.int32)
    for (number, made), channels in zip(value.made.items(), read, strict=bool(read)):
        if channels is None:
            continue
        seen[number] = made
        reads = np.where(reads >= 0, reads, channels)
        own = _owners(walk, weight, channels)
        own = [each for each in own if not weight.entries[each[0]].factor] or own
        for leaf, owner, shared in own:
            walk.same(shared)
            leaves.append((leaf, owner))
            partitions += [p for name, made, _ in makes if name == leaf for p in _partitions(owner, made)]
            found = weight.entries[leaf]
            if leaf[0] == "variables":
                walk.leak(value, "is read by variables, which are not learned", [number])
            if not found.stays or found.mixed & set(labels.varying(owner)):
                walk.leak(value, "is read by weights that are not 0 where the parameter is", [number])
        if weight.unknown:
            walk.leak(value, f"is read by weights that {weight.unknown.how}", [number])
    for leaf, found in weight.entries.items():
        use = WeightUse(found.index, reads, eqn.primitive.name == "gather")
        walk.story.uses.setdefault(leaf, {}).setdefault((source, reads.shape, reads.tobytes()), use)
    walk.story.reached |= value.behind
    if seen and leaves:
        place, shape, seen = walk.hoisted(atom, value.shape, seen, frame)
        walk.story.readings.append(Reading(place, shape, seen, source, tuple(leaves), tuple(partitions)))
    shape = jaxprs.shape(eqn.outvars[0])
    uses = frozenset([Use(frame.path, frame.at)])
    made = carried | {source: Made(labels.compressed(move(channel)), uses=uses)}
    return [Value(shape, True, made, behind=frozenset(made))]


def _placed(weight: Value, channels: Sequence[Labels], eqn: Any, frame: Frame) -> Value:
    """The weights without parameters of which it is not known which entries tell the channels apart."""
    varying = {axis for each in channels for axis in labels.varying(each)}
    lost = {
        leaf
        for leaf, e in weight.entries.items()
        if any(i is not None and (i < 0).all() and varying & set(labels.varying(i)) for i in e.index)
    }
    if not lost:
        return weight
    how = Unknown(frozenset(lost), f"are picked by an index ({jaxprs.line_of(*frame.calls(eqn))})")
    entries = {leaf: e for leaf, e in weight.entries.items() if leaf not in lost}
    return dataclasses.replace(weight, entries=entries, unknown=weight.unknown or how)


def _partitions(read: Labels, produced: Labels) -> list[tuple[np.ndarray, np.ndarray]]:
    """Axes of a parameter along which both what it reads and what it makes are told apart: those over the members of an
    ensemble. As (channels read, index along the axis)."""
    found = []
    for axis in set(labels.varying(read)) & set(labels.varying(produced)):
        part = _index(read, axis)
        if part is not None and len(np.unique(part[1])) > 1 and _index(produced, axis) is not None:
            found.append(part)
    return found


def _index(owner: Labels, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Every owner and its index along an axis; `None` where one has several."""
    place = np.broadcast_to(labels.along(axis, owner.ndim, owner.shape[axis]), owner.shape)
    pairs = np.unique(np.stack([owner.ravel(), place.ravel()], 1)[owner.ravel() >= 0], axis=0)
    return (pairs[:, 0], pairs[:, 1]) if len(np.unique(pairs[:, 0])) == len(pairs) else None


def _owners(walk: Walk, weight: Value, channels: Labels) -> list[tuple[Leaf, Labels, np.ndarray]]:
    """Leaf, owner of its entries, and channels that share one: of the leaves that tell the channels apart, else of all.

    Of a weight that is made of several parameters some are shared by all channels (a factor of low rank, a norm); they
    belong to none of them.
    """
    found = [(leaf, *labels.owners(walk.shapes[leaf], e.index, channels)) for leaf, e in weight.entries.items()]
    return [each for each in found if not len(each[2])] or found


def _product(walk: Walk, eqn: Any, operands: list[tuple[Value, dict[int, int], Sequence[int]]], n: int) -> list[Value]:
    """A contraction of two activations, of an activation with constants, or of parameters."""
    shape = jaxprs.shape(eqn.outvars[0])
    both = all(value.depends for value, _, _ in operands)
    out: dict[int, Made] = {}
    entries: dict[Leaf, Entries] = {}
    weighed = both and all(value.made for value, _, _ in operands) and operands[0][2] != ()
    weighed = weighed and sum(value.shares for value, _, _ in operands) == 1
    for value, to, contracted in operands:
        if weighed and value.shares:  # attention whose queries are parameters: its scores are channels
            walk.leak(value, "weighs other activations")
            continue
        gone = value.varied(contracted)
        why = "is multiplied with other activations" if both else "is mixed with other units by constants"
        walk.leak(value, why, gone)
        for source, made in value.made.items():
            if source in out:
                walk.leak(value, "meets itself along another axis", [source])
            elif source not in gone:
                activation = made.activation or ("linear" if both else None)
                out[source] = made.at(labels.placed(made.channel, to, n)).passed(activation)
        if not value.depends:
            for leaf, found in value.entries.items():
                entries[leaf] = clearest(entries.get(leaf), found.placed(to, contracted, n), times=True)
    depends, zero = any(value.depends for value, _, _ in operands), any(value.zero for value, _, _ in operands)
    return [Value(shape, depends, out, {} if depends or zero else entries, zero=zero and not depends)]


RULES = {"dot_general": dot_general, "conv_general_dilated": conv_general_dilated, "gather": gather}
