"""Gives weights step counts of their own where rows and columns that share one do not begin anew as a whole."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.optimizers.adam import AdamState, count_shapes
from plastic_jax.paths import get_leaf, leaf_names, named_leaves, set_leaves
from plastic_jax.units.graph import Slice, UnitGraph


def count_by_weight(state: Any, units: UnitGraph, params: Any) -> Any:
    """The inner optimizer's first state, with a count for every weight of the parameters that need it.

    `adam` counts steps by row and by column. A replaced unit's counts can begin again only where each of its weights
    lies in a row or a column that is the unit's as a whole. That fails for the kernel that reads a unit in a grouped
    convolution, and for kernels that are used in parts. There the counts are given the parameter's shape.
    """
    known = set(leaf_names(params))  # empty where `optax.tree.map_params` asks
    apart = [
        path
        for path in dict.fromkeys(s.path for g in units.groups for s in (*g.incoming, *g.outgoing))
        if path in known and _is_apart(units, path, jnp.shape(get_leaf(params, path)))
    ]

    return _widened(state, apart) if apart else state


def count_every_weight(state: Any) -> Any:
    """The inner optimizer's first state, with a count for every weight: for methods that renew single weights."""
    return _widened(state, None)


def _widened(state: Any, paths: Collection[str] | None) -> Any:
    """The state with counts of the parameter's shape for the parameters of these names; `None`: for all."""

    def is_adam(node: Any) -> bool:
        return isinstance(node, AdamState)

    def widen(node: Any) -> Any:
        if not is_adam(node):
            return node
        shapes = {name: jnp.shape(leaf) for name, leaf in named_leaves(node.mu) if paths is None or name in paths}

        def wide(counts: Any) -> Any:
            return set_leaves(counts, {n: jnp.broadcast_to(get_leaf(counts, n), shape) for n, shape in shapes.items()})

        return node._replace(rows=wide(node.rows), columns=wide(node.columns))

    return jax.tree.map(widen, state, is_leaf=is_adam)


def _is_apart(units: UnitGraph, path: str, shape: tuple[int, ...]) -> bool:
    """Whether some unit owns a weight of this parameter without its whole row or its whole column."""
    for group in units.groups:
        for slices in (group.incoming, group.outgoing):
            own = [_weights_of_first_unit(s, shape) for s in slices if s.path == path]
            if own and not _in_whole_lines(np.unique(np.concatenate(own, axis=1), axis=1), shape):
                return True
    return False


def _weights_of_first_unit(s: Slice, shape: tuple[int, ...]) -> np.ndarray:
    """Indices into the parameter, int `[axes, weights]`, of the weights that unit 0 owns; other units' lie alike."""
    window = s.window or tuple((0, n) for n in shape)
    ranges = [np.arange(1 if d in s.unit_dims else n) for d, n in enumerate(s.view_shape)]
    flat = np.ravel_multi_index(np.meshgrid(*ranges, indexing="ij"), s.view_shape).ravel()
    inside = np.unravel_index(flat, tuple(stop - start for start, stop in window))
    return np.stack([i + start for i, (start, _) in zip(inside, window, strict=True)])


def _in_whole_lines(weights: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether each of these weights lies in a row or in a column of which all weights are among them."""

    def whole(lines: tuple[int, ...]) -> np.ndarray:
        shared = [d for d, (n, m) in enumerate(zip(lines, shape, strict=True)) if n != m]
        first = weights.copy()
        first[shared] = 0
        _, line, number = np.unique(
            np.ravel_multi_index(tuple(first), tuple(shape)), return_inverse=True, return_counts=True
        )
        return number[line] == math.prod(shape[d] for d in shared)

    rows, columns = count_shapes(tuple(shape))
    return bool(np.all(whole(rows) | whole(columns)))
