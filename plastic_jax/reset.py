"""The one machine that replaces units: fresh incoming weights, zero outgoing weights, a fresh inner state.

A method says which units go (`Replacement`); this module turns that into edits of the updates and of the inner
optimizer's state. Every edit is an elementwise choice on masks of the layer's width, which XLA fuses into the pass
that writes the new weights: no weight is read or written once more than without replacement.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.initializers import UnitInitializer
from plastic_jax.paths import get_leaf, leaf_key, leaf_names, path_name
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup


class Replacement(NamedTuple):
    """Units of one group that go at this step.

    Attributes:
        index: int32 `[n]`, their numbers.
        valid: bool `[n]`, which entries of `index` count.
        fresh: per incoming kernel, by its path, `[n, fan_in]` new weights.
    """

    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    valid: jax.Array
    fresh: dict[str, jax.Array]

    def mask(self, width: int) -> jax.Array:
        """bool `[width]`, true for the units that go."""
        return jnp.any(self._one_hot(width), axis=0)

    def _one_hot(self, width: int) -> jax.Array:
        return (self.index[:, None] == jnp.arange(width)) & self.valid[:, None]


class _Edit(NamedTuple):
    """`leaf.reshape(shape)` becomes `value` where `mask`, both broadcastable to the shape."""

    shape: tuple[int, ...]
    mask: jax.Array
    value: jax.Array | float


def draw_replacement(
    group: UnitGroup,
    index: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    initializer: UnitInitializer,
    params: Any,
) -> Replacement:
    """Fresh incoming weights for the units `index`; each kernel is drawn with a key made from its own path."""
    fresh = {
        s.path: initializer(leaf_key(key, s.path), index.shape[0], s.fan, group.width, get_leaf(params, s.path).dtype)
        for s in group.incoming
        if s.role == "kernel"
    }
    return Replacement(index, valid, fresh)


def reset_updates(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, updates: Any) -> Any:
    """Updates that take the replaced units to their fresh weights, and every other weight where `updates` takes it.

    A replaced unit's incoming kernels become the fresh rows, its bias and shift 0, its scale 1, its outgoing weights 0;
    the update is `target - params` there. A weight that leaves one replaced unit and enters another is redrawn.
    """
    edits = _edits(units, replacements)
    return _edit(edits, lambda mask, value, update, param: jnp.where(mask, value - param, update), updates, params)


def reset_mask(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any) -> Any:
    """Per parameter, bool of its shape: which entries belong to a replaced unit."""
    edits = _edits(units, replacements)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    return _edit(edits, lambda mask, value, sofar: sofar | mask, blank)


def reset_inner_state(inner: optax.GradientTransformation, state: Any, params: Any, masks: Any) -> Any:
    """The inner optimizer's state with every params-shaped statistic as `inner.init` gives it where `masks` is true.

    Raises:
        ValueError: a statistic that belongs to a parameter has another shape (Adafactor's factored moments).
    """
    if not jax.tree.leaves(state):
        return state
    is_leaf = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731

    def mask_of(statistic: Any, mask: jax.Array) -> Any:
        if isinstance(statistic, optax.MaskedNode):
            return statistic
        if statistic.shape != mask.shape:
            raise ValueError(
                f"reset_inner_state: the inner optimizer keeps a statistic of shape {statistic.shape} for a parameter "
                f"of shape {mask.shape}; per-unit resets need statistics of the parameter's shape "
                "(reset_state=False skips them)"
            )
        return mask

    chosen = optax.tree_utils.tree_map_params(
        inner, mask_of, state, masks, transform_non_params=lambda _: False, is_leaf=is_leaf
    )
    return jax.tree.map(
        lambda m, fresh, old: old if m is False else jnp.where(m, fresh, old), chosen, inner.init(params), state
    )


def transferred_bias(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, mean_feature: Any) -> Any:
    """What the readers' biases gain so that the units' mean contribution stays: `sum_i f_i W_out[i]`, by bias path."""
    gains: dict[str, jax.Array] = {}
    for group in units.groups:
        going = replacements[group.name].mask(group.width)
        for s in group.outgoing:
            if s.bias is None:
                continue
            bias = get_leaf(params, s.bias)
            view = jnp.moveaxis(get_leaf(params, s.path).reshape(s.view_shape), s.unit_dims, range(len(s.unit_dims)))
            gone = jnp.where(going[:, None], mean_feature[group.name], 0.0)
            lost = jnp.tensordot(gone, view.reshape(group.width, group.copies, -1, bias.shape[0]).sum(2), 2)
            gains[s.bias] = gains.get(s.bias, 0.0) + lost.astype(bias.dtype)
    return gains


def _edits(units: UnitGraph, replacements: Mapping[str, Replacement]) -> dict[str, list[_Edit]]:
    """Edits by parameter, in the order in which they apply: all zeros first, so that a redraw wins."""
    edits: dict[str, list[_Edit]] = {}
    for group in units.groups:
        mask = replacements[group.name].mask(group.width)
        for s in group.outgoing:
            edits.setdefault(s.path, []).append(_Edit(s.view_shape, _along(mask, s), 0.0))
    for group in units.groups:
        replacement = replacements[group.name]
        for s in group.incoming:
            edits.setdefault(s.path, []).extend(_incoming_edits(s, replacement, group.width))
    return edits


def _incoming_edits(s: Slice, replacement: Replacement, width: int) -> list[_Edit]:
    if s.role != "kernel":
        value = 1.0 if s.role in ("scale", "var") else 0.0
        return [_Edit(s.view_shape, _along(replacement.mask(width), s), value)]
    row_shape = tuple(1 if d == s.unit_dims[0] else n for d, n in enumerate(s.view_shape))
    masks, rows = replacement._one_hot(width), replacement.fresh[s.path]
    return [_Edit(s.view_shape, _along(masks[i], s), rows[i].reshape(row_shape)) for i in range(rows.shape[0])]


def _along(mask: jax.Array, s: Slice) -> jax.Array:
    shape = [1] * len(s.view_shape)
    shape[s.unit_dims[0]] = math.prod(mask.shape)
    return mask.reshape(shape)


def _edit(edits: dict[str, list[_Edit]], choose: Callable[..., jax.Array], tree: Any, *rest: Any) -> Any:
    def edit(path: Any, leaf: jax.Array, *others: jax.Array) -> jax.Array:
        for e in edits.get(path_name(path), []):
            views = [other.reshape(e.shape) for other in others]
            leaf = choose(e.mask, e.value, leaf.reshape(e.shape), *views).reshape(leaf.shape)
        return leaf

    return jax.tree_util.tree_map_with_path(edit, tree, *rest)


def check_units(units: UnitGraph, params: Any, what: str) -> None:
    """Every slice of the graph fits a parameter.

    Raises:
        ValueError: a path is unknown, or a view does not have the parameter's size.
    """
    names = set(leaf_names(params))
    for group in units.groups:
        for s in (*group.incoming, *group.outgoing):
            if s.path not in names:
                raise ValueError(
                    f"{what}: group '{group.name}' names parameter '{s.path}'; there are: {', '.join(sorted(names))}"
                )
            leaf = get_leaf(params, s.path)
            if math.prod(s.view_shape) != math.prod(leaf.shape):
                raise ValueError(f"{what}: view {s.view_shape} of '{s.path}' does not fit its shape {leaf.shape}")
            if s.view_shape[s.unit_dims[0]] != group.width:
                raise ValueError(
                    f"{what}: axis {s.unit_dims[0]} of '{s.path}' {s.view_shape} has not {group.width} units"
                )
