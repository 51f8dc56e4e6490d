"""Mapped axes: one model on several devices, each with its part of the batch."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def is_mapped(axis_name: str) -> bool:
    """Whether this code is traced under a mapped axis of that name (`shard_map`, `pmap`, `vmap`)."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def mean_over(tree: Tree, axis_name: str | None) -> Tree:
    """The mean over the mapped axis of all leaves that are real or complex numbers; `None`: the tree as it is."""
    if axis_name is None:
        return tree

    def mean(leaf: Any) -> Any:
        return jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf

    return jax.tree.map(mean, tree)


def with_axis(function: Callable[..., Any], axis_name: str | None) -> Callable[..., Any]:
    """`function`, which may use the axis, made to run where none of that name is mapped too: as on a single device.

    So `trace_units(with_axis(apply, "devices"), params, x)` follows a model that averages over devices, and the graph's
    `apply` works inside `shard_map` and outside. Where the axis is not mapped, results that would differ between
    devices raise ValueError.
    """
    if axis_name is None:
        return function

    def run(*args: Any) -> Any:
        if is_mapped(axis_name):
            return function(*args)
        return jax.vmap(function, in_axes=None, out_axes=None, axis_size=1, axis_name=axis_name)(*args)

    return run
