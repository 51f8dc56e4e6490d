"""Label arrays: for every element of an array, which thing of a kind it is made of.

A label array has one axis per axis of the array that it describes, of full size or of size 1 where the label does not
change along the axis; -1 means "of none". Data movement acts on labels as it acts on the data, so that after any
reshape, split, concatenation or transposition it is known which unit, or which entry of a parameter, stands where.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Labels = np.ndarray


def along(axis: int, ndim: int, size: int) -> Labels:
    """`0, 1, ..., size - 1` along one axis of `ndim`."""
    return line(np.arange(size, dtype=np.int32), axis, ndim)


def line(numbers: np.ndarray, axis: int, ndim: int) -> Labels:
    """Given labels along one axis of `ndim`."""
    shape = [1] * ndim
    shape[axis] = numbers.size
    return numbers.reshape(shape)


def numbered(shape: Sequence[int], dims: Sequence[int]) -> Labels:
    """Numbers for the places along `dims`, the last of them fastest."""
    sizes = [shape[d] for d in dims]
    table = np.arange(size(sizes), dtype=np.int32).reshape(sizes)
    order = np.argsort(dims)
    out = [1] * len(shape)
    for d in dims:
        out[d] = shape[d]
    return np.transpose(table, order).reshape(out)


def placed(index: Labels, to: Mapping[int, int], ndim: int) -> Labels:
    """Labels with axis `d` at `to[d]` of `ndim`; other axes must not matter."""
    dims = sorted((d for d in to if d < index.ndim), key=lambda d: to[d])
    rest = [d for d in range(index.ndim) if d not in to]
    index = np.transpose(index, [*rest, *dims])[(0,) * len(rest)]
    shape = [1] * ndim
    for d, n in zip(dims, index.shape, strict=True):
        shape[to[d]] = n
    return index.reshape(shape)


def varying(labels: Labels) -> tuple[int, ...]:
    """The axes along which the labels change."""
    return tuple(axis for axis, n in enumerate(labels.shape) if n > 1)


def members(labels: Labels) -> np.ndarray:
    """The labels that occur, in order."""
    there = np.unique(labels)
    return there[there >= 0]


def compressed(labels: Labels) -> Labels:
    """The same labels, with size 1 along every axis on which they do not change."""
    for axis, n in enumerate(labels.shape):
        first = labels.take([0], axis)
        if n > 1 and np.array_equal(np.broadcast_to(first, labels.shape), labels):
            labels = first
    return labels


def expanded(labels: Labels, axis: int, size: int) -> Labels:
    """The same labels, at full size along `axis`."""
    return labels if labels.shape[axis] == size else np.repeat(labels, size, axis)


def reshape(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Labels of an array of shape `old` after it was reshaped to `new`."""
    full, small = list(labels.shape), []
    for these, those in blocks(old, new):
        if all(n == 1 for n in labels.shape[these]):
            small += [1] * len(new[those])
        else:
            full[these] = old[these]
            small += new[those]
    return compressed(np.broadcast_to(labels, full).reshape(small))


def blocks(shape: Sequence[int], other: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Smallest runs of axes that a reshape from one shape to the other keeps together."""
    i = j = 0
    while i < len(shape) or j < len(other):
        start = i, j
        i, j = min(i + 1, len(shape)), min(j + 1, len(other))
        while (size := math.prod(shape[start[0] : i])) != (size_of_other := math.prod(other[start[1] : j])):
            i, j = (i + 1, j) if size < size_of_other else (i, j + 1)
            if i > len(shape) or j > len(other):
                raise ValueError(f"UnitGraph: a view of shape {shape} does not fit a parameter of shape {other}")
        yield slice(start[0], i), slice(start[1], j)


def concatenate(parts: Sequence[Labels | None], sizes: Sequence[int], axis: int) -> Labels:
    """Labels of a concatenation of pieces `sizes` long; `None` for a piece that is of none."""
    known = [part for part in parts if part is not None]
    elsewhere = any(n > 1 for a, n in enumerate(known[0].shape) if a != axis)
    same = all(part.shape == known[0].shape and np.array_equal(part, known[0]) for part in known)
    if same and known[0].shape[axis] == 1 and (elsewhere or len(known) == len(parts)):
        return known[0]  # the pieces differ in position, not in what they are made of
    rest = np.broadcast_shapes(*[tuple(1 if a == axis else n for a, n in enumerate(part.shape)) for part in known])
    pieces = []
    for part, size in zip(parts, sizes, strict=True):
        shape = tuple(size if a == axis else n for a, n in enumerate(rest))
        pieces.append(np.full(shape, -1, np.int32) if part is None else np.broadcast_to(part, shape))
    return np.concatenate(pieces, axis)


def pad(labels: Labels, config: Sequence[tuple[int, int, int]]) -> Labels:
    """Labels after padding by (low, high, interior); what is put in is of none where the labels change on that axis."""
    for axis, (low, high, interior) in enumerate(config):
        n = labels.shape[axis]
        if n == 1 or (low, high, interior) == (0, 0, 0):
            continue
        shape = list(labels.shape)
        shape[axis] = n + (n - 1) * interior
        spread = np.full(shape, -1, np.int32)
        spread[_at(axis, slice(None, None, interior + 1))] = labels
        spread = spread[_at(axis, slice(max(-low, 0), shape[axis] - max(-high, 0)))]
        width = [(max(low, 0), max(high, 0)) if a == axis else (0, 0) for a in range(labels.ndim)]
        labels = np.pad(spread, width, constant_values=-1)
    return labels


def cut(labels: Labels, axis: int, where: slice | int) -> Labels:
    """Labels of the part `where` of `axis`; an axis of size 1 is left alone."""
    if labels.shape[axis] == 1:
        return labels
    return compressed(labels[_at(axis, slice(where, where + 1) if isinstance(where, int) else where)])


def _at(axis: int, where: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, where)


def one_per_place(labels: Labels, keep: Sequence[int]) -> tuple[Labels, np.ndarray]:
    """One label for every place along the axes `keep`, and the pairs `[n, 2]` of labels that share a place."""
    others = [axis for axis in range(labels.ndim) if axis not in keep]
    moved = np.moveaxis(labels, others, range(len(others))).reshape(-1, *[labels.shape[a] for a in sorted(keep)])
    first = moved.max(0)
    pairs = np.stack([np.broadcast_to(first, moved.shape).ravel(), moved.ravel()], 1)
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs[:, 1] >= 0)]
    shape = tuple(1 if axis in others else n for axis, n in enumerate(labels.shape))
    return first.reshape(shape), np.unique(pairs, axis=0) if len(pairs) else pairs


def together(a: Labels, b: Labels) -> np.ndarray:
    """Pairs `[n, 2]` of labels that stand at the same element, where both change along the same axes."""
    if varying(a) != varying(b):
        return np.zeros((0, 2), np.int32)
    a, b = np.broadcast_arrays(a, b)
    pairs = np.stack([a.ravel(), b.ravel()], 1)
    return pairs[(pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])]


def owners(shape: Sequence[int], entry: Sequence[Labels | None], labels: Labels) -> tuple[Labels, np.ndarray]:
    """Who owns each entry of a parameter, as label array of the parameter; and pairs of labels that share an entry.

    Args:
        shape: of the parameter.
        entry: per axis of the parameter, which index of it stands at every element of a value made from the parameter;
            `None` where every index does.
        labels: of that value, the owner of every element.
    """
    free = [i is None or (varying(i) == () and shape[a] == 1) for a, i in enumerate(entry)]
    for axis, index in enumerate(entry):
        if not free[axis] and index is not None and not set(varying(index)) & set(varying(labels)):
            there = np.zeros(shape[axis], bool)
            there[index[index >= 0]] = True
            free[axis] = bool(there.all() or (index < 0).all())
    used = [index for axis, index in enumerate(entry) if not free[axis] and index is not None]
    arrays = np.broadcast_arrays(labels, *used)
    flat = np.stack([array.ravel() for array in arrays], 1)
    flat = flat[(flat >= 0).all(1)]
    owner = np.full([1 if f else n for n, f in zip(shape, free, strict=True)], -1, np.int32)
    numbers = iter(range(1, flat.shape[1]))
    place = tuple(np.zeros(len(flat), int) if f else flat[:, next(numbers)] for f in free)
    at = np.ravel_multi_index(place, owner.shape) if place else np.zeros(len(flat), int)
    owner.reshape(-1)[at] = flat[:, 0]
    shared = np.stack([owner.reshape(-1)[at], flat[:, 0]], 1)
    shared = shared[shared[:, 0] != shared[:, 1]]
    return compressed(owner), np.unique(shared, axis=0) if len(shared) else shared


def components(n: int, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """`[n]`: the least number that is connected with each number by the pairs."""
    root = np.arange(n)
    edges = np.concatenate([np.zeros((0, 2), np.int64), *pairs]).astype(np.int64)
    while True:
        one, other = root[edges].T
        apart = one != other
        edges, one, other = edges[apart], one[apart], other[apart]
        before = root.copy()
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        root = root[root]
        if np.array_equal(root, before):
            return root


def window(labels: Labels, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The smallest box (start, stop) per axis that holds all elements that are of something."""
    box = []
    for axis, n in enumerate(shape):
        if labels.shape[axis] == 1:
            box.append((0, n))
            continue
        there = np.nonzero((labels >= 0).any(tuple(a for a in range(labels.ndim) if a != axis)))[0]
        box.append((int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def strides(values: np.ndarray) -> list[tuple[int, int]] | None:
    """Sizes and strides, outermost first, with `values[i, j, ...] = i * stride_i + j * stride_j + ...`.

    `None` where the values are not of this form. Neighbouring axes that are one progression are merged.
    """
    values, form = np.asarray(values).ravel(), []
    while values.size > 1:
        step = values[1] - values[0]
        run = np.nonzero(np.diff(values) != step)[0]
        length = int(run[0]) + 1 if len(run) else values.size
        while values.size % length or not _progressions(values, length, step):
            length -= 1
            if length < 2:
                return None
        form.insert(0, (length, int(step)))
        values = values[::length]
    return form if values[0] == 0 else None


def _progressions(values: np.ndarray, length: int, step: int) -> bool:
    blocks = values.reshape(-1, length)
    return np.array_equal(blocks, blocks[:, :1] + step * np.arange(length))


def size(shape: Sequence[int]) -> int:
    """Number of elements."""
    return math.prod(shape)
