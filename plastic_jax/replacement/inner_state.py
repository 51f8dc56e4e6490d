"""What an inner optimizer keeps of replaced units and weights begins anew, as its own `init` would have it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plastic_jax.inner import network_params
from plastic_jax.optimizers.step_sizes import fresh_step_sizes
from plastic_jax.paths import named_leaves
from plastic_jax.units.graph import UnitGraph


def reset_inner_state(inner: optax.GradientTransformation, state: Any, params: Any, masks: Any) -> Any:
    """The inner optimizer's state, with what `inner.init(params)` gives in the statistics of all masked weights.

    Most initial statistics are constants, and XLA computes nothing for them. Those that are made from the weights (the
    anchor of a penalty, the averaged weights of `optax.contrib.schedule_free`) are made from the fresh weights.
    A statistic that weights share, with axes of size 1 (the counts of `plastic_jax.adam`), is reset where all of them
    are. What belongs to a layer as a whole, a single number, stays. Learned step sizes are what
    `plastic_jax.of_new_weights` says, the first ones where it is not used.

    Args:
        inner: the inner optimizer.
        state: its state after this step.
        params: the parameters after this step, fresh weights included.
        masks: per parameter, bool of its shape: which entries belong to a replaced unit.

    Raises:
        ValueError: a statistic that belongs to a parameter has another shape (Adafactor's factored moments).
    """
    if not jax.tree.leaves(state):
        return state
    chosen, first = _statistics(inner, state, params, masks), fresh_step_sizes(inner.init(params), state)
    return jax.tree.map(lambda m, fresh, old: old if m is False else jnp.where(m, fresh, old), chosen, first, state)


def restart_counts(
    inner: optax.GradientTransformation, units: UnitGraph, state: Any, params: Any, now: jax.Array
) -> Any:
    """The inner optimizer's state with, where `now`, the step counts of all parameters around the units begun again.

    Counts are the whole numbers that it keeps of parameters (`plastic_jax.adam`); one that all parameters share stays.
    """
    around = {s.path for g in units.groups for s in (*g.incoming, *g.outgoing)}
    leaves = [jnp.full(leaf.shape, name in around) & now for name, leaf in named_leaves(network_params(params))]
    masks = jax.tree.unflatten(jax.tree.structure(network_params(params)), leaves)

    def restart(mask: Any, fresh: Any, old: Any) -> Any:
        counts = mask is not False and jnp.issubdtype(old.dtype, jnp.integer)
        return jnp.where(mask, fresh, old) if counts else old

    return jax.tree.map(restart, _statistics(inner, state, params, masks), inner.init(params), state)


def forget_units(state: Any, gone: Mapping[str, jax.Array]) -> Any:
    """The state with 0 in all that methods which replace units know of the units `gone`, bool `[width]` by group name.

    Such a method's state is a named tuple that lists the fields in question, dictionaries by group name of arrays
    `[width, ...]`, in its attribute `per_unit`.
    """

    def is_method(node: Any) -> bool:
        return hasattr(node, "per_unit")

    def forget(node: Any) -> Any:
        if not is_method(node):
            return node
        fields = {name: {n: blank(n, v) for n, v in getattr(node, name).items()} for name in node.per_unit}
        return node._replace(inner=forget_units(node.inner, gone), **fields)

    def blank(name: str, values: jax.Array) -> jax.Array:
        mask = gone.get(name)
        if mask is None or mask.shape != values.shape[:1]:
            return values
        return jnp.where(mask.reshape(-1, *[1] * (values.ndim - 1)), jnp.zeros([], values.dtype), values)

    return jax.tree.map(forget, state, is_leaf=is_method)


def _statistics(inner: optax.GradientTransformation, state: Any, params: Any, masks: Any) -> Any:
    """The state with each parameter's mask in place of its statistics, and `False` in place of everything else."""
    shapes = [jnp.shape(mask) for mask in jax.tree.leaves(masks)]
    unknown: list[tuple[int, ...]] = []

    def gap(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def init(tree: Any) -> Any:
        return inner.init(optax.LookaheadParams(tree, tree) if isinstance(params, optax.LookaheadParams) else tree)

    def own(statistic: Any, mask: jax.Array) -> Any:
        if gap(statistic):
            return statistic
        shape = jnp.shape(statistic)
        if shape == mask.shape:
            return mask
        if is_shared(shape, mask.shape):
            return jnp.all(mask, axis=tuple(d for d, n in enumerate(mask.shape) if n != shape[d]), keepdims=True)
        return other(statistic, of_parameter=True)

    def other(leaf: Any, of_parameter: bool = False) -> Any:
        if jnp.shape(leaf) == (sum(map(math.prod, shapes)),) and len(shapes) > 1:  # all parameters in one vector
            return jnp.concatenate([mask.ravel() for mask in jax.tree.leaves(masks)])
        if of_parameter and jnp.ndim(leaf) > 0:
            unknown.append(jnp.shape(leaf))
        return False

    def like_params(node: Any) -> bool:
        own_shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(node)]
        return len(own_shapes) == len(shapes) and all(map(is_shared, own_shapes, shapes))

    def is_method(node: Any) -> bool:
        return "inner" in getattr(node, "_fields", ())

    def field(node: Any, name: str) -> Any:
        """A method keeps statistics of weights in trees like the parameters, or by name; the rest is of layers."""
        value, known = getattr(node, name), dict(named_leaves(masks))
        if name == "inner":
            return search(value)
        if name not in getattr(node, "of_network", ()):
            if isinstance(value, dict) and value.keys() <= known.keys():
                return {n: known[n] if jnp.shape(leaf) == known[n].shape else False for n, leaf in value.items()}
            if like_params(value):
                return by_shape(value)
        return jax.tree.map(lambda _: False, value)

    def search(tree: Any) -> Any:
        return jax.tree.map(by_shape, tree, is_leaf=lambda node: like_params(node) or is_method(node))

    def by_shape(node: Any) -> Any:
        if is_method(node):
            return node._replace(**{name: field(node, name) for name in node._fields})
        if not like_params(node):
            return other(node, of_parameter=True)
        leaves = [own(*pair) for pair in zip(jax.tree.leaves(node), jax.tree.leaves(masks), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(node), leaves)

    try:
        chosen = optax.tree_utils.tree_map_params(init, own, state, masks, transform_non_params=other, is_leaf=gap)
    except Exception:  # noqa: BLE001  whatever an `init` raises that looks into its parameters
        unknown.clear()
        chosen = search(state)
    if unknown:
        raise ValueError(
            f"reset_inner_state: the inner optimizer keeps statistics of shape {unknown[0]}, which is not that of a "
            "parameter; per-unit resets need statistics of the parameter's shape (reset_state=False skips them)"
        )
    return chosen


def is_shared(statistic: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether a statistic of this shape has one entry for all weights along some axes of the parameter."""
    return len(statistic) == len(parameter) and all(n in (1, m) for n, m in zip(statistic, parameter, strict=True))
