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

from plastic_jax.paths import get_leaf, leaf_key, leaf_names
from plastic_jax.replacement.initializers import UnitInitializer
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup

_ROWS_ONE_BY_ONE = 8  # for more fresh rows, a gather by unit is smaller than a choice for each of them


class Replacement(NamedTuple):
    """Units of one group that go at this step.

    Attributes:
        index: int32 `[n]`, their numbers.
        valid: bool `[n]`, which entries of `index` count.
        fresh: per incoming kernel, by the slice's name, `[n, copies * fan_in]` new weights.
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
    """A leaf becomes `value` where `mask`; both broadcast to its shape."""

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


def draw_replacement(
    group: UnitGroup,
    index: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    initializer: UnitInitializer,
    params: Any,
) -> Replacement:
    """Fresh incoming weights for the units `index`; each kernel is drawn with a key made from its own name.

    Where a kernel makes each copy of a unit with weights of its own, every copy gets a draw of its own.
    """
    fresh = {
        s.name: initializer(
            leaf_key(key, s.name), index.shape[0] * s.copies, s.fan, group.width, get_leaf(params, s.path).dtype
        ).reshape(index.shape[0], s.copies * s.fan)
        for s in group.incoming_kernels
    }
    return Replacement(index, valid, fresh)


def reset_updates(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any, updates: Any) -> Any:
    """Updates that take the replaced units to their fresh weights, and every other weight where `updates` takes it.

    A replaced unit's incoming kernels become the fresh rows, its bias and shift 0, its scale 1, its outgoing weights 0;
    the update is `target - params` there. A weight that leaves one replaced unit and enters another is redrawn.
    """
    edits = _edits(units, replacements, params)
    return _edit(edits, lambda mask, value, update, param: jnp.where(mask, value - param, update), updates, params)


def reset_mask(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any) -> Any:
    """Per parameter, bool of its shape: which entries belong to a replaced unit."""
    edits = _edits(units, replacements, params)
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


def add_replaced(replaced: Mapping[str, jax.Array], gone: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Units replaced so far, 0-d int32 by group name, after those of the masks `gone`, bool `[width]`; saturates."""
    total = {name: before + jnp.sum(gone[name], dtype=jnp.int32) for name, before in replaced.items()}
    return {name: jnp.where(total[name] < before, before, total[name]) for name, before in replaced.items()}


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


def _edits(units: UnitGraph, replacements: Mapping[str, Replacement], params: Any) -> dict[str, list[_Edit]]:
    """Edits by parameter, in the order in which they apply: all zeros first, so that a redraw wins."""
    edits: dict[str, list[_Edit]] = {}
    for group in units.groups:
        mask = replacements[group.name].mask(group.width)
        for s in group.outgoing:
            edits.setdefault(s.path, []).append(_Edit(s.spread(mask, get_leaf(params, s.path).shape), 0.0))
    for group in units.groups:
        replacement = replacements[group.name]
        for s in group.incoming:
            shape = get_leaf(params, s.path).shape
            edits.setdefault(s.path, []).extend(_incoming_edits(s, replacement, group.width, shape))
    return edits


def _incoming_edits(s: Slice, replacement: Replacement, width: int, shape: tuple[int, ...]) -> list[_Edit]:
    if s.role != "kernel":
        value = 1.0 if s.role in ("scale", "var") else 0.0
        return [_Edit(s.spread(replacement.mask(width), shape), value)]
    own = (*s.copy_dims, *s.fan_dims)
    masks, rows = replacement._one_hot(width), replacement.fresh[s.name]
    if len(rows) > _ROWS_ONE_BY_ONE:
        by_unit = rows[jnp.argmax(masks, axis=0)]
        return [_Edit(s.spread(jnp.any(masks, axis=0), shape), s.spread(by_unit, shape, (*s.unit_dims, *own)))]
    return [_Edit(s.spread(masks[i], shape), s.spread(rows[i], shape, own)) for i in range(len(rows))]


def _edit(edits: dict[str, list[_Edit]], choose: Callable[..., jax.Array], tree: Any, *rest: Any) -> Any:
    def edit(name: str, leaf: jax.Array, *others: jax.Array) -> jax.Array:
        for e in edits.get(name, []):
            leaf = choose(e.mask, e.value, leaf, *others)
        return leaf

    leaves, treedef = jax.tree.flatten(tree)
    others = [treedef.flatten_up_to(other) for other in rest]
    return jax.tree.unflatten(treedef, map(edit, leaf_names(tree), leaves, *others))


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
