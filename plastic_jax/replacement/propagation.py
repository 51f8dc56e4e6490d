"""What a unit means further on: sums over its outgoing weights that look at its readers, not at their size alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from plastic_jax.paths import get_leaf
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup


def outgoing_gradient(group: UnitGroup, params: Any, gradients: Any) -> jax.Array:
    """`sum w g` over the outgoing kernels of every unit and all its copies, `[width, 1]`.

    Where a loss is the batch mean of `l` and the unit is read by these kernels only, this is exactly `E[h dl/dh]`,
    summed over the positions of `h`, as a reader is a function of the products `h w` alone.

    Args:
        group: the units.
        params: the parameters at which the gradients were taken.
        gradients: the gradients, a tree like `params`.
    """
    total: Any = jnp.zeros((group.width, 1), get_leaf(params, group.incoming[0].path).dtype)
    for s in group.outgoing_kernels:
        product = get_leaf(params, s.path) * get_leaf(gradients, s.path)
        total = total + jnp.sum(per_unit(s, product), axis=1, keepdims=True)
    return total


def recursive_worth(units: UnitGraph, params: Any, activity: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What every unit is worth by what its readers are worth, `[width, 1]` by group name.

        R_i = sum_j R_j a_i |w_ij| / sum_k a_k |w_kj|

    over all readers `j` of unit `i` and all units `k` that reader `j` reads, with `|w|` summed over the positions of a
    convolution's window and over a unit's copies. A reader that is no unit of a later group is worth 1: a network's
    output, a residual stream. Inputs of the network have no share. So each group of a chain of layers is worth as
    much as the network has outputs, unless a reader reads nothing (its denominator is 0: nobody gets its worth).

    Computed from the last group to the first by products of |leaf| with vectors; nothing as large as a leaf is made but
    |leaf|. Units that read themselves or earlier groups (recurrent cells) are left out of that sum: the worth of a
    cell is shared out among what it reads at the same time.

    Args:
        units: the graph.
        params: the model's parameters.
        activity: `a`, `[width, copies]` by group name.

    Source: shares in proportion to |a w| are those of layer-wise relevance propagation (Bach et al., PLoS ONE 2015) and
    of neuron importance score propagation (Yu et al., CVPR 2018), there for pruning with weights alone.
    """
    size = {s.path: jnp.abs(get_leaf(params, s.path)) for g in units.groups for s in g.outgoing_kernels}
    worth = {g.name: jnp.zeros((g.width, 1), activity[g.name].dtype) for g in units.groups}

    def flow(g: UnitGroup, s: Slice) -> jax.Array:
        return s.spread(_of_copies(activity[g.name], s.copies), size[s.path].shape)

    def pay(g: UnitGroup, s: Slice, price: jax.Array) -> None:
        gain = _of_copies(activity[g.name], s.copies) * per_unit(s, size[s.path], price)
        worth[g.name] = worth[g.name] + jnp.sum(gain, axis=1, keepdims=True)

    open_ends: dict[str, list[tuple[UnitGroup, Slice]]] = {}
    for i, group in enumerate(units.groups):
        entered = {t.path for reader in units.groups[i + 1 :] for t in reader.incoming_kernels}
        for s in group.outgoing_kernels:
            if s.path not in entered:
                open_ends.setdefault(s.path, []).append((group, s))
    for path, sources in open_ends.items():
        axes = _reader_axes(sources[0][1], params)
        read = sum((_contract(size[path], flow(g, s), axes) for g, s in sources))
        for g, s in sources:
            pay(g, s, _share(1.0, read))

    for j in range(len(units.groups) - 1, -1, -1):
        reader = units.groups[j]
        edges = [
            (g, s, t)
            for g in units.groups[:j]
            for s in g.outgoing_kernels
            for t in reader.incoming_kernels
            if s.path == t.path
        ]
        if not edges:
            continue
        read = sum((jnp.sum(per_unit(t, size[t.path], flow(g, s)), 1) for g, s, t in edges))
        price = _share(worth[reader.name][:, 0], read)
        for g, s, t in edges:
            pay(g, s, t.spread(price, size[t.path].shape))
    return worth


def per_unit(s: Slice, leaf: jax.Array, factor: jax.Array | None = None) -> jax.Array:
    """Sums of `leaf * factor` over what belongs to each copy of each unit, `[width, copies]`.

    Args:
        s: the units' slice of the leaf.
        leaf: an array of the leaf's shape.
        factor: broadcasts to the leaf, with size 1 wherever it is constant; `None`: 1.
    """

    def spread(values: jax.Array) -> jax.Array:
        return s.spread(values, leaf.shape)

    units = jax.ShapeDtypeStruct((s.width, s.copies), leaf.dtype)
    seen = jax.eval_shape(spread, units)
    axes = tuple(d for d, n in enumerate(seen.shape) if n > 1)
    totals = _contract(leaf, jnp.ones((), leaf.dtype) if factor is None else factor, axes)
    return jax.linear_transpose(spread, units)(totals.astype(leaf.dtype))[0]


def _contract(leaf: jax.Array, factor: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`sum leaf * factor` over all axes but `axes`, which keep their place; the others have size 1."""
    others = tuple(d for d in range(leaf.ndim) if d not in axes)
    if factor.size > 1:
        varying = tuple(d for d, n in enumerate(factor.shape) if n > 1)
        values = factor.squeeze([d for d in range(leaf.ndim) if d not in varying])
        summed = jnp.einsum(leaf, range(leaf.ndim), values, varying, axes, precision="highest")
    elif leaf.ndim == 2 and len(others) == 1:  # on CPUs a product is faster than a sum
        ones = jnp.full(leaf.shape[others[0]], factor.reshape(()), leaf.dtype)
        summed = jnp.einsum(leaf, (0, 1), ones, others, axes, precision="highest")
    else:
        summed = jnp.sum(leaf, others) * factor.reshape(())
    return jnp.expand_dims(summed, others)


def _share(worth: Any, read: Any) -> jax.Array:
    """`worth / read`, 0 where nothing is read."""
    return jnp.where(read > 0, worth / jnp.where(read > 0, read, 1), 0)


def _of_copies(values: jax.Array, copies: int) -> jax.Array:
    """`[width, copies]` of another number of copies: the same for each, or the mean of all."""
    if values.shape[1] != copies:
        values = jnp.broadcast_to(jnp.mean(values, 1, keepdims=True), (values.shape[0], copies))
    return values


def _reader_axes(s: Slice, params: Any) -> tuple[int, ...]:
    """The axis of the leaf that numbers what reads the units: as long as the reader's bias, else the longest."""
    shape = get_leaf(params, s.path).shape
    part = shape if s.window is None else tuple(stop - start for start, stop in s.window)
    whole = dataclasses.replace(s, window=None)
    units = jax.ShapeDtypeStruct((s.width, s.copies), jnp.float32)
    own = jax.eval_shape(lambda values: whole.spread(values, part), units).shape
    free = [d for d, n in enumerate(own) if n == 1 and part[d] > 1]
    if s.bias is not None:
        n = get_leaf(params, s.bias).shape[-1]
        fitting = [d for d in free if shape[d] == n] or [d for d, m in enumerate(shape) if m == n]
        if fitting:
            return (fitting[-1],)
    return (max(free, key=lambda d: (part[d], d)),) if free else ()
