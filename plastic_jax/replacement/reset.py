"""The one machine that replaces units and single weights: fresh weights, and a fresh inner state for them.

A method says which units go (`draw.py`), or which weights (a mask); this module turns that into edits of the updates
and of the inner optimizer's state (`inner_state.py`). Every edit is an elementwise choice, of units on masks of the
layer's width, which XLA fuses into the pass that writes the new weights: no weight is read or written once more than
without replacement.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.inner import network_params
from plastic_jax.paths import get_leaf, leaf_names, named_leaves, set_leaves
from plastic_jax.replacement.draw import Replacement
from plastic_jax.replacement.inner_state import forget_units, reset_inner_state
from plastic_jax.units.graph import Slice, UnitGraph

_ROWS_ONE_BY_ONE = 8  # for more fresh rows, a gather by unit is smaller than a choice for each of them


class _Edit(NamedTuple):
    """A leaf becomes `value` where `mask`, or goes the share `mask` of the way; both broadcast to its shape."""

    mask: jax.Array
    value: jax.Array | float


def just_replaced(state: Any) -> dict[str, jax.Array]:
    """Which units went at the last update, bool `[width]` by group name: those of age 0.

    Args:
        state: any pytree that holds the states of methods that replace units, named tuples with a field `age`, int32
            `[width]` by group name (`continual_backprop`, `redo`); `{}` where it holds none.
    """

    def is_told(node: Any) -> bool:
        return isinstance(getattr(node, "age", None), dict)

    gone: dict[str, jax.Array] = {}
    for node in filter(is_told, jax.tree.leaves(state, is_leaf=is_told)):
        for name, age in node.age.items():
            gone[name] = (age == 0) | gone[name] if name in gone else age == 0
    return gone


def number_replaced(state: Any) -> jax.Array:
    """How many units the methods in `state` have replaced so far, together; 0-d int32."""

    def is_told(node: Any) -> bool:
        return isinstance(getattr(node, "replaced", None), dict)

    told = filter(is_told, jax.tree.leaves(state, is_leaf=is_told))
    return sum((number for node in told for number in node.replaced.values()), jnp.zeros([], jnp.int32))


def replace_units(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    replacements: Mapping[str, Replacement],
    params: Any,
    updates: Any,
    inner_state: Any,
    reset_state: bool,
    *,
    zero_last: bool = False,
    reset_bias_state: bool = True,
) -> tuple[Any, Any]:
    """Updates and inner state of a step in which units are replaced.

    With `reset_state`, what the inner optimizer keeps of a replaced unit is what its `init` gives for the weights after
    this step; inner methods that replace units as well take the unit for a new one.

    Args:
        inner: the inner optimizer.
        units: the graph.
        replacements: by group name, the units that go.
        params: the parameters before this step.
        updates: the inner optimizer's updates.
        inner_state: its state after them.
        reset_state: whether its statistics of replaced units start afresh.
        zero_last: whether a weight that leaves one replaced unit and enters another is 0, and not redrawn.
        reset_bias_state: whether the statistics of the biases are among those that start afresh.
    """
    edits = _edits(units, replacements, network_params(params), zero_last)
    biases = {s.path for g in units.groups for s in g.incoming if s.role == "bias"}
    kept = frozenset() if reset_bias_state else biases
    updates, inner_state = _applied(inner, edits, params, updates, inner_state, reset_state, kept)
    if reset_state:
        inner_state = forget_units(inner_state, {g.name: replacements[g.name].mask(g.width) for g in units.groups})
    return updates, inner_state


def replace_weights(
    inner: optax.GradientTransformation,
    masks: Any,
    fresh: Any,
    params: Any,
    updates: Any,
    inner_state: Any,
    reset_state: bool,
) -> tuple[Any, Any]:
    """Updates and inner state of a step in which single weights become those of `fresh`.

    An inner state that is to start afresh for single weights has been given to `count_every_weight` at the start.

    Args:
        inner: the inner optimizer.
        masks: per parameter, bool that broadcasts to its shape: which weights go.
        fresh: per parameter, values that broadcast to its shape.
        params: the parameters before this step.
        updates: the inner optimizer's updates.
        inner_state: its state after them.
        reset_state: whether its statistics of these weights are set to what its `init` gives for the fresh ones.
    """
    leaves = zip(named_leaves(network_params(params)), jax.tree.leaves(masks), jax.tree.leaves(fresh), strict=True)
    edits = {name: [_Edit(mask, value.astype(leaf.dtype))] for (name, leaf), mask, value in leaves}
    return _applied(inner, edits, params, updates, inner_state, reset_state)


def _applied(
    inner: optax.GradientTransformation,
    edits: dict[str, list[_Edit]],
    params: Any,
    updates: Any,
    inner_state: Any,
    reset_state: bool,
    kept: Collection[str] = (),
) -> tuple[Any, Any]:
    updates = _edited(edits, params, updates)
    if reset_state:
        masks = _mask({path: e for path, e in edits.items() if path not in kept}, network_params(params))
        inner_state = reset_inner_state(inner, inner_state, optax.apply_updates(params, updates), masks)
    return updates, inner_state


def reset_updates(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, updates: Any) -> Any:
    """Updates that take the replaced units to their fresh weights, and every other weight where `updates` takes it.

    A replaced unit's incoming kernels become the fresh rows, its bias and shift 0, its scale 1, its outgoing weights 0;
    the update is `target - params` there. A weight that leaves one replaced unit and enters another is redrawn.
    Of `optax.LookaheadParams` the fast and the slow weights are replaced alike.
    """
    return _edited(_edits(units, replacements, network_params(params)), params, updates)


def reset_mask(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any) -> Any:
    """Per parameter, bool of its shape: which entries belong to a replaced unit."""
    params = network_params(params)
    return _mask(_edits(units, replacements, params), params)


def add_replaced(replaced: Mapping[str, jax.Array], gone: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Units replaced so far, 0-d int32 by group name, after those of the masks `gone`, bool `[width]`; saturates."""
    total = {name: before + jnp.sum(gone[name], dtype=jnp.int32) for name, before in replaced.items()}
    return {name: jnp.where(total[name] < before, before, total[name]) for name, before in replaced.items()}


def without_frozen(units: UnitGraph, frozen: Collection[str]) -> UnitGraph:
    """The graph without the groups that have a slice of a leaf that is not to be changed."""
    kept = tuple(g for g in units.groups if not any(s.path in frozen for s in (*g.incoming, *g.outgoing)))
    return dataclasses.replace(units, groups=kept) if len(kept) < len(units.groups) else units


def add_to_leaves(updates: Any, gains: Mapping[str, jax.Array]) -> Any:
    """The updates with `gains` added to the leaves of these names."""
    if not gains:
        return updates
    if isinstance(updates, optax.LookaheadParams):
        return optax.LookaheadParams(*(add_to_leaves(u, gains) for u in updates))
    return set_leaves(updates, {path: get_leaf(updates, path) + gain for path, gain in gains.items()})


def transferred_bias(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, mean_feature: Any) -> Any:
    """What the readers' biases gain so that the units' mean contribution stays: `sum_i f_i W_out[i]`, by bias path.

    For a convolution with zero padding that is the contribution away from the borders.

    Raises:
        ValueError: the last axes of a reader's kernel are not those of its bias.
    """
    gains: dict[str, jax.Array] = {}
    for group in units.groups:
        going = replacements[group.name].mask(group.width)
        gone = jnp.where(going[:, None], mean_feature[group.name], 0.0)
        for s in group.outgoing:
            if s.bias is None:
                continue
            bias, kernel = get_leaf(params, s.bias), get_leaf(params, s.path)
            inputs = kernel.ndim - bias.ndim
            if kernel.shape[inputs:] != bias.shape:
                raise ValueError(
                    f"transferred_bias: the last axes of '{s.path}' {kernel.shape} are not those of '{s.bias}' "
                    f"{bias.shape} (transfer_bias=False does without)"
                )
            means = gone if s.copies == group.copies else jnp.mean(gone, axis=1, keepdims=True)
            means = jnp.broadcast_to(means, (group.width, s.copies))
            lost = jnp.sum(kernel * s.spread(means, kernel.shape), axis=tuple(range(inputs)))
            gains[s.bias] = gains.get(s.bias, 0.0) + lost.astype(bias.dtype)
    return gains


def soften_units(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, updates: Any) -> Any:
    """Updates after which every unit's kernels have gone the share `amount` of the way to what a new one's are.

        outgoing: w <- (1 - r) w,   then incoming: w <- (1 - r) w + r fresh

    with `w` where `updates` takes it. Units of amount 0 stay where they are, bit for bit.
    """
    return _edited(_edits(units, replacements, network_params(params)), params, updates)


def _edits(
    units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, zero_last: bool = False
) -> dict[str, list[_Edit]]:
    """Edits by parameter, in the order in which they apply: all zeros first, so that a redraw wins, or last."""
    edits: dict[str, list[_Edit]] = {}
    shapes = {name: jnp.shape(leaf) for name, leaf in named_leaves(params)}
    going = [(group, replacements[group.name]) for group in units.groups if replacements[group.name].index.size]
    redrawn: dict[str, list[_Edit]] = {}
    for group, replacement in going:
        mask = replacement.share(group.width)
        for s in group.outgoing:
            edits.setdefault(s.path, []).append(_Edit(s.spread(mask, shapes[s.path]), 0.0))
        for s in group.incoming:
            redrawn.setdefault(s.path, []).extend(_incoming_edits(s, replacement, group.width, shapes[s.path]))
    first, last = (redrawn, edits) if zero_last else (edits, redrawn)
    return {path: [*first.get(path, []), *last.get(path, [])] for path in {**edits, **redrawn}}


def _incoming_edits(s: Slice, replacement: Replacement, width: int, shape: tuple[int, ...]) -> list[_Edit]:
    if s.role != "kernel" and replacement.amount is not None:
        return []
    if s.name not in replacement.fresh:
        value = 1.0 if s.role in ("scale", "var") else 0.0
        return [_Edit(s.spread(replacement.mask(width), shape), value)]
    own = (*s.copy_dims, *s.fan_dims)
    masks, rows = replacement.one_hot(width), replacement.fresh[s.name]
    if len(rows) > _ROWS_ONE_BY_ONE or replacement.amount is not None:
        by_unit = rows[jnp.argmax(masks, axis=0)]
        return [_Edit(s.spread(replacement.share(width), shape), s.spread(by_unit, shape, (*s.unit_dims, *own)))]
    return [_Edit(s.spread(masks[i], shape), s.spread(rows[i], shape, own)) for i in range(len(rows))]


def _edited(edits: dict[str, list[_Edit]], params: Any, updates: Any) -> Any:
    if isinstance(params, optax.LookaheadParams):
        return optax.LookaheadParams(*(_edited(edits, *pair) for pair in zip(params, updates, strict=True)))

    def go(mask: jax.Array, value: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        if mask.dtype == bool:
            return jnp.where(mask, value - param, update)
        return (update + mask * (value - (param + update))).astype(update.dtype)

    return _edit(edits, go, updates, params)


def _mask(edits: dict[str, list[_Edit]], params: Any) -> Any:
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    return _edit(edits, lambda mask, value, sofar: sofar | mask, blank)


def _edit(edits: dict[str, list[_Edit]], choose: Callable[..., jax.Array], tree: Any, *rest: Any) -> Any:
    def edit(name: str, leaf: jax.Array, *others: jax.Array) -> jax.Array:
        for e in edits.get(name, []):
            leaf = choose(e.mask, e.value, leaf, *others)
        return leaf

    leaves, treedef = jax.tree.flatten(tree)
    others = [treedef.flatten_up_to(other) for other in rest]
    return jax.tree.unflatten(treedef, map(edit, leaf_names(tree), leaves, *others))


def check_units(units: UnitGraph, params: Any, what: str) -> None:
    """Every slice of the graph fits a parameter. No parameters, as in `optax.tree.map_params`, fit as well.

    Raises:
        ValueError: a path is unknown, or a view does not have the parameter's size.
    """
    names = set(leaf_names(params))
    if not names:
        return
    for group in units.groups:
        for s in (*group.incoming, *group.outgoing):
            if s.path not in names:
                raise ValueError(
                    f"{what}: group '{group.name}' names parameter '{s.path}'; there are: {', '.join(sorted(names))} "
                    "(one optimizer has to hold all parameters of a graph; optax.multi_transform inside splits them)"
                )
            _check_slice(s, get_leaf(params, s.path).shape, group.width, what)


def _check_slice(s: Slice, shape: tuple[int, ...], width: int, what: str) -> None:
    part = shape
    if s.window is not None:
        if len(s.window) != len(shape) or any(not 0 <= a < b <= n for (a, b), n in zip(s.window, shape, strict=True)):
            raise ValueError(f"{what}: window {s.window} is not inside '{s.path}' of shape {shape}")
        part = tuple(stop - start for start, stop in s.window)
    if math.prod(s.view_shape) != math.prod(part):
        raise ValueError(f"{what}: view {s.view_shape} of '{s.name}' does not fit its shape {part}")
    dims = (*s.unit_dims, *s.copy_dims)
    if len(set(dims)) < len(dims) or not all(0 <= d < len(s.view_shape) for d in dims):
        raise ValueError(f"{what}: '{s.name}' {s.view_shape} has no distinct axes {dims} for units and copies")
    if s.width != width:
        axes = f"axis {s.unit_dims[0]}" if len(s.unit_dims) == 1 else f"axes {s.unit_dims}"
        raise ValueError(f"{what}: {axes} of '{s.name}' {s.view_shape} has not {width} units")
