"""The one machine that replaces units and single weights: fresh weights, and a fresh inner state for them.

A method says which units go (`Replacement`), or which weights (a mask); this module turns that into edits of the
updates and of the inner optimizer's state. Every edit is an elementwise choice, of units on masks of the layer's width,
which XLA fuses into the pass that writes the new weights: no weight is read or written once more than without
replacement.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastic_jax.paths import get_leaf, leaf_key, leaf_names, name_number, named_leaves, set_leaves
from plastic_jax.replacement.initializers import Initializer, UnitInitializer
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup

_ROWS_ONE_BY_ONE = 8  # for more fresh rows, a gather by unit is smaller than a choice for each of them
_LOOP_FROM = 4  # for fewer groups that are alike, a loop costs the step more time than it saves the compiler


class Replacement(NamedTuple):
    """Units of one group that go at this step.

    Attributes:
        index: int32 `[n]`, their numbers.
        valid: bool `[n]`, which entries of `index` count.
        fresh: per incoming kernel, by the slice's name, `[n, copies * fan_in]` new weights; a bias that has an entry,
            `[n, copies]`, gets that in place of 0.
        amount: float `[n]`, how far the kernels go from what they are to what a new unit's are, in [0, 1]; biases,
            scales and shifts stay. `None`: all the way, biases, scales and shifts too.
    """

    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    valid: jax.Array
    fresh: dict[str, jax.Array]
    amount: jax.Array | None = None

    @classmethod
    def of_none(cls) -> "Replacement":
        """No unit at all."""
        return cls(jnp.zeros(0, jnp.int32), jnp.zeros(0, bool), {})

    def mask(self, width: int) -> jax.Array:
        """bool `[width]`, true for the units that go."""
        return jnp.any(self._one_hot(width), axis=0)

    def share(self, width: int) -> jax.Array:
        """`[width]`, the mask, or with `amount` how far each unit goes."""
        if self.amount is None:
            return self.mask(width)
        return jnp.sum(jnp.where(self._one_hot(width), self.amount[:, None], 0), axis=0)

    def _one_hot(self, width: int) -> jax.Array:
        return (self.index[:, None] == jnp.arange(width)) & self.valid[:, None]


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


def draw_replacement(
    group: UnitGroup,
    index: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    initializer: UnitInitializer,
    params: Any,
    bias_initializer: UnitInitializer | None = None,
) -> Replacement:
    """Fresh incoming weights for the units `index`; each kernel is drawn with a key made from its own name.

    Where a kernel makes each copy of a unit with weights of its own, every copy gets a draw of its own. A fresh bias is
    the first entry of a row that `bias_initializer` draws for the unit's first kernel.
    """
    numbers = [name_number(s.name) for s in group.incoming_kernels]
    fresh = _named(group, _draw(group, len(index), key, numbers, initializer, params))
    for s in group.incoming:
        if s.role == "bias" and bias_initializer is not None:
            size, fan, dtype = s.copies * s.fan, group.incoming_kernels[0].fan, get_leaf(params, s.path).dtype
            rows = bias_initializer(leaf_key(key, s.name), len(index) * size, fan, group.width, dtype)
            fresh[s.name] = rows[:, 0].reshape(len(index), size)
    return Replacement(index, valid, fresh)


def choose_and_draw(
    groups: Sequence[UnitGroup],
    choose: Callable[..., tuple[jax.Array, jax.Array]],
    known: Mapping[str, tuple[jax.Array, ...]],
    key: jax.Array,
    initializers: Mapping[str, UnitInitializer],
    params: Any,
) -> dict[str, Replacement]:
    """The units of every group that go, with fresh weights as `draw_replacement` gives them.

    The layers of a deep network are much alike. For those that differ in their numbers alone one program is compiled,
    which loops over them; else most of the time to compile a step would go into random numbers.

    Args:
        groups: the groups.
        choose: `choose(*known) -> (index, valid)`, as in `Replacement`.
        known: by group name, what `choose` is given.
        key: the step's key; each group's is made from its own name.
        initializers: by group name.
        params: the model's parameters.
    """
    kinds: dict[Any, list[UnitGroup]] = {}
    for g in groups:
        kernels = tuple((s.copies, s.fan, get_leaf(params, s.path).dtype) for s in g.incoming_kernels)
        numbers = tuple((x.shape, x.dtype) for x in known[g.name])
        law = initializers[g.name]
        same = law if isinstance(law, Initializer) else id(law)
        kinds.setdefault((g.width, kernels, numbers, same), []).append(g)

    def some(first: UnitGroup, name: Any, kernels: Any, known: tuple[jax.Array, ...]) -> tuple[Any, ...]:
        index, valid = choose(*known)
        key_of_group = jax.random.fold_in(key, name)
        return index, valid, _draw(first, len(index), key_of_group, kernels, initializers[first.name], params)

    found: dict[str, Replacement] = {}
    for alike in kinds.values():
        first = alike[0]
        names = np.array([name_number(g.name) for g in alike], np.uint32)
        kernels = np.array([[name_number(s.name) for s in g.incoming_kernels] for g in alike], np.uint32)
        theirs = [known[g.name] for g in alike]
        if len(alike) < _LOOP_FROM:
            drawn = [some(first, *each) for each in zip(names, kernels, theirs, strict=True)]
        else:
            each = names, kernels, jax.tree.map(lambda *x: jnp.stack(x), *theirs)
            stacked = jax.lax.map(lambda x, first=first: some(first, *x), each)
            drawn = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(alike))]
        for g, (index, valid, rows) in zip(alike, drawn, strict=True):
            found[g.name] = Replacement(index, valid, _named(g, rows))
    return found


def _draw(
    group: UnitGroup, n: int, key: jax.Array, numbers: Sequence[Any], initializer: UnitInitializer, params: Any
) -> list[jax.Array]:
    """Fresh rows of `n` units for every incoming kernel, each drawn with the key of its number."""
    return [
        initializer(
            jax.random.fold_in(key, number), n * s.copies, s.fan, group.width, get_leaf(params, s.path).dtype
        ).reshape(n, s.copies * s.fan)
        for s, number in zip(group.incoming_kernels, numbers, strict=True)
    ]


def _named(group: UnitGroup, rows: Sequence[jax.Array]) -> dict[str, jax.Array]:
    return {s.name: own for s, own in zip(group.incoming_kernels, rows, strict=True)}


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


def network_params(params: Any) -> Any:
    """The weights that the network runs with, which a graph's paths name: the fast ones of `optax.LookaheadParams`."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def reset_inner_state(inner: optax.GradientTransformation, state: Any, params: Any, masks: Any) -> Any:
    """The inner optimizer's state, with what `inner.init(params)` gives in the statistics of all masked weights.

    Most initial statistics are constants, and XLA computes nothing for them. Those that are made from the weights (the
    anchor of a penalty, the averaged weights of `optax.contrib.schedule_free`) are made from the fresh weights.
    A statistic that weights share, with axes of size 1 (the counts of `plastic_jax.adam`), is reset where all of them
    are. What belongs to a layer as a whole, a single number, stays.

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
    chosen = _statistics(inner, state, params, masks)
    return jax.tree.map(
        lambda m, fresh, old: old if m is False else jnp.where(m, fresh, old), chosen, inner.init(params), state
    )


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

    def by_shape(node: Any) -> Any:
        if not like_params(node):
            return other(node, of_parameter=True)
        leaves = [own(*pair) for pair in zip(jax.tree.leaves(node), jax.tree.leaves(masks), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(node), leaves)

    try:
        chosen = optax.tree_utils.tree_map_params(init, own, state, masks, transform_non_params=other, is_leaf=gap)
    except Exception:  # noqa: BLE001  whatever an `init` raises that looks into its parameters
        unknown.clear()
        chosen = jax.tree.map(by_shape, state, is_leaf=like_params)
    if unknown:
        raise ValueError(
            f"reset_inner_state: the inner optimizer keeps statistics of shape {unknown[0]}, which is not that of a "
            "parameter; per-unit resets need statistics of the parameter's shape (reset_state=False skips them)"
        )
    return chosen


def is_shared(statistic: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether a statistic of this shape has one entry for all weights along some axes of the parameter."""
    return len(statistic) == len(parameter) and all(n in (1, m) for n, m in zip(statistic, parameter, strict=True))


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
    masks, rows = replacement._one_hot(width), replacement.fresh[s.name]
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
