"""Sparse networks: a fixed number of connections, of which at regular intervals some are exchanged for others."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastic_jax.checks import check_like, check_params, typed_key
from plastic_jax.inner import frozen_leaves, network_params, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.matrices import Kernel, read_kernels, wide
from plastic_jax.paths import leaf_key, leaf_names, named_leaves, set_leaves
from plastic_jax.replacement.reset import just_replaced, replace_weights
from plastic_jax.replacement.step_counts import count_every_weight
from plastic_jax.signature import Range, method, static_args
from plastic_jax.units.graph import UnitGraph

_NAME = "sparse"


class SparseState(NamedTuple):
    """State of a sparse network. All dictionaries are by name of the kernel, with arrays of its shape.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps taken; saturates.
        mask: bool, true where there is a connection; as many in every step.
        ages: int32, steps since a connection came; 0 where there is none; saturates.
        utility: float, running average of each connection's utility, 0 when it comes; `{}` unless `drop="utility"`.
        exchanged: int32 scalar, connections exchanged so far; saturates.
    """

    inner: optax.OptState
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mask: dict[str, jax.Array]
    ages: dict[str, jax.Array]
    utility: dict[str, jax.Array]
    exchanged: jax.Array

    of_network = ("mask",)  # no statistic of a weight, which a method around this one might reset


@method()
def sparse(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    density: Annotated[float | jax.Array, Range(0, 1)] = 0.2,
    distribution: Literal["erk", "uniform"] = "erk",
    drop: Literal["utility", "magnitude"] = "utility",
    grow: Literal["random", "gradient"] = "random",
    exchange_rate: Annotated[float | jax.Array, Range(0, 1)] = 0.01,
    exchange_period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 100,
    exchange_over: Literal["layer", "network"] = "layer",
    connection_maturity: Annotated[int | jax.Array, Range(0, 2**31 - 1)] = 100,
    utility_decay: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.99,
    new_weight: Literal["zero", "sample"] = "zero",
    init: Callable[[jax.Array], optax.Params] | None = None,
    key: jax.Array,
    reset_state: bool = True,
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps a share of the connections; every `exchange_period` steps it drops some and grows as many elsewhere.

        drop:   of the k = exchange_rate * (number of connections) lowest, those older than `connection_maturity`,
                magnitude: |w_i|        utility: a_i / (1 - utility_decay^age_i),  a_i <- average of |g_i w_i|
        grow:   of all places that are free then, k:
                random: any             gradient: those of the largest |g_i|

    with the gradient handed to `update`, `w` after inner's step, and `k` rounded up with the probability of its rest.
    SET is `drop="magnitude", grow="random", new_weight="sample"`, RigL `drop="magnitude", grow="gradient"`, both with
    `exchange_rate=0.3, connection_maturity=0`; the default is generate-and-test on connections.

    A connection is an entry of a kernel; biases, scales and embeddings stay dense. The model needs no change: where
    there is no connection, the parameter is 0 after every update (before the first one with `connected`), and `inner`
    receives the gradient 0. A new connection has the statistics of the inner optimizer that `inner.init` gives.
    It computes as much as a dense network.

    Example:
        >>> params = {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4), "bias": jnp.ones(4)}
        >>> tx = sparse(optax.sgd(0.1), density=0.5, exchange_rate=0.5, exchange_period=1, key=jax.random.key(0))
        >>> state = tx.init(params)
        >>> params = connected(params, state)
        >>> for _ in range(3):
        ...     updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> int(state.mask["kernel"].sum()), int((params["kernel"] != 0).sum()) <= 6
        (6, True)

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; with it, the connections of a unit that an inner method has just replaced are young.
        density: share of the kernels' weights that are connections, in [0, 1].
        distribution: "erk", a layer has a density in proportion to (sum of its sizes) / (product of its sizes), at most
            1; "uniform", all layers have the same.
        drop: which connections go.
        grow: where connections come.
        exchange_rate: share of the connections that go at an exchange, in [0, 1]; 0: none.
        exchange_period: steps between two exchanges, at least 1; the first is at step `exchange_period`.
        exchange_over: each "layer" keeps its number of connections, or the "network" has one ranking and one number.
        connection_maturity: age in steps up to which a connection is not dropped, at least 0.
        utility_decay: of the running average of the utility, in [0, 1); 0: the utility of this step alone.
        new_weight: what a new connection's weight is: 0, so that the output does not change, or a draw of `init`.
        init: key -> the parameters of a fresh network; only `new_weight="sample"` needs it.
        key: random key.
        reset_state: whether the inner optimizer's statistics of exchanged connections start afresh.
        exclude: pattern of kernels that stay dense.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params`. It is the outermost transformation: what an inner method draws, it sets to 0 where there is
    no connection. A connection that is dropped may grow again at once, and is then the old one.

    Raises:
        ValueError: a number is outside its range, a name is unknown, "sample" has no `init` or one of another tree, a
            pattern matches no parameter.

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science", Nature Communications 9, 2018 (SET). Evci, Gale, Menick, Castro and Elsen, "Rigging the
        lottery: making all tickets winners", ICML 2020 (RigL).

    Differs from the code of RigL, which makes no gradient step where it exchanges, and lets the rate fall to 0 by a
    cosine: `optax.inject_hyperparams` takes `optax.cosine_decay_schedule` for a rate.
    """
    inner, key = with_extra_args(inner), typed_key(_NAME, key)
    frozen, impl = frozen_leaves(inner), jax.random.key_impl(key)
    if new_weight == "sample" and init is None:
        raise ValueError(f"{_NAME}: new_weight='sample' needs init, key -> the parameters of a fresh network")

    def kernels(params: Any, warn: bool = False) -> tuple[Kernel, ...]:
        return read_kernels(_NAME, network_params(params), units, exclude=exclude, axes=axes, warn=warn)

    def start(params: optax.Params) -> SparseState:
        state, own = inner.init(params), leaf_key(key, _NAME)
        found = kernels(params, warn=True)
        leaves = dict(named_leaves(network_params(params)))
        shares = dict(zip((k.name for k in found), _densities(found, density, distribution), strict=True))
        (ties,) = _random_rows(leaf_key(own, "start"), found, 1)
        masks = {k.name: k.leaf(_drawn(k, shares[k.name], ties[k.name])) for k in found}
        zero = jnp.zeros([], jnp.int32)
        return SparseState(
            count_every_weight(state) if reset_state else state,
            jax.random.key_data(own),
            zero,
            masks,
            {name: jnp.zeros(mask.shape, jnp.int32) for name, mask in masks.items()},
            {k.name: jnp.zeros_like(wide(leaves[k.name])) for k in found} if drop == "utility" else {},
            jnp.copy(zero),
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        check_params(_NAME, params)
        weights, still = network_params(params), frozen(params, extra)
        found = [k for k in kernels(params) if k.name not in still]
        gradients = {name: leaf for name, leaf in named_leaves(updates) if name in state.mask}
        own = {k.name: state.mask[k.name] for k in found}
        hvp: Any = extra.get("hvp")
        if hvp is not None:  # of the loss as a function of the connections alone
            extra["hvp"] = lambda direction: _masked(hvp(_masked(direction, own)), own)
        updates, inner_state = inner.update(_masked(updates, own), state.inner, params, **extra)
        absent = {name: ~mask for name, mask in own.items()}
        updates, inner_state = edited(absent, {}, params, updates, inner_state, False)
        after = dict(named_leaves(optax.apply_updates(weights, network_params(updates))))
        count: Any = optax.safe_increment(state.count)
        now = (count % exchange_period == 0) & (exchange_rate > 0)
        young = _of_new_units(units, inner_state, weights, own)
        ages = {n: jnp.where(young.get(n, False) | absent[n], 0, optax.safe_increment(state.ages[n])) for n in own}
        average = {
            n: jnp.where(
                ages[n] > 0, utility_decay * a + (1 - utility_decay) * jnp.abs(wide(gradients[n] * after[n])), 0
            ).astype(a.dtype)
            for n, a in state.utility.items()
            if n in own
        }

        def exchange() -> Any:
            step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), state.count)
            worth = {n: a / (1 - utility_decay ** ages[n].astype(a.dtype)) for n, a in average.items()}
            known = (
                own,
                {n: ages[n] > connection_maturity for n in own},
                worth or {n: jnp.abs(wide(after[n])) for n in own},
                {n: jnp.abs(wide(gradients[n])) if grow == "gradient" else jnp.zeros(m.shape) for n, m in own.items()},
            )
            rate = jnp.where(now, exchange_rate, 0.0)
            masks = _exchanged(step_key, found, rate, exchange_over, *known)
            came = {n: masks[n] & absent[n] for n in own}
            changed = {n: masks[n] ^ own[n] for n in own}
            fresh = {}
            if new_weight == "sample" and init is not None:
                drawn = init(leaf_key(step_key, "weights"))
                check_like(f"{_NAME}: init", drawn, weights)
                fresh = {n: jnp.where(came[n], leaf, 0) for n, leaf in named_leaves(drawn) if n in own}
            edit = edited(changed, fresh, params, updates, inner_state, reset_state)
            kept = [{n: jnp.where(changed[n], 0, x) for n, x in numbers.items()} for numbers in (ages, average)]
            number = state.exchanged + sum(
                (jnp.sum(m, dtype=jnp.int32) for m in came.values()), jnp.zeros([], jnp.int32)
            )
            return *edit, masks, *kept, jnp.where(number < 0, state.exchanged, number)

        def leave() -> Any:
            return updates, inner_state, own, ages, average, state.exchanged

        updates, inner_state, *after_exchange, exchanged = jax.lax.cond(any_lane(now), exchange, leave)
        mask, ages, average = (old | new for old, new in zip(state[3:6], after_exchange, strict=True))
        return updates, SparseState(inner_state, state.key, count, mask, ages, average, exchanged)

    def edited(
        masks: dict[str, jax.Array], values: dict[str, jax.Array], params: Any, updates: Any, state: Any, reset: bool
    ) -> tuple[Any, Any]:
        """Updates and inner state with `values`, or 0, in place of the masked weights."""
        tree = network_params(params)
        names, structure = leaf_names(tree), jax.tree.structure(tree)
        gone, new = (
            jax.tree.unflatten(structure, [leaves.get(name, blank) for name in names])
            for leaves, blank in ((masks, jnp.zeros([], bool)), (values, jnp.zeros([])))
        )
        return replace_weights(inner, gone, new, params, updates, state, reset)

    return optax.GradientTransformationExtraArgs(start, update)


SPARSE_STATIC_ARGS = static_args(sparse)
"""Arguments of `sparse` that are no numbers: `static_args` of `optax.inject_hyperparams`."""


def connected(params: optax.Params, state: Any) -> optax.Params:
    """The parameters with 0 where a `SparseState` anywhere in `state` has no connection.

    `sparse` sees to that in every update; this is for the parameters before the first one.
    """

    def is_sparse(node: Any) -> bool:
        return isinstance(node, SparseState)

    for found in filter(is_sparse, jax.tree.leaves(state, is_leaf=is_sparse)):
        params = _masked(params, found.mask)
    return params


def _masked(tree: Any, masks: Mapping[str, jax.Array]) -> Any:
    """The tree with 0 where the mask of a leaf is false."""
    leaves = dict(named_leaves(tree))
    return set_leaves(tree, {name: jnp.where(mask, leaves[name], 0) for name, mask in masks.items()})


def _densities(kernels: Sequence[Kernel], density: Any, distribution: str) -> list[Any]:
    """The density of every kernel.

    ERK: min(1, e r) with r = (sum of sizes) / (product of sizes), and e such that the whole has the given density. The
    layers of the largest r become dense first: of all numbers of dense layers, the least that is possible holds.
    """
    if distribution == "uniform" or not kernels:
        return [density] * len(kernels)
    sizes = [[k.size("i"), k.outputs, *(n for n, a in zip(k.shape, k.axes, strict=True) if a == "t")] for k in kernels]
    ratios, numbers = [sum(s) / math.prod(s) for s in sizes], [math.prod(k.shape) for k in kernels]
    order = sorted(range(len(kernels)), key=lambda i: -ratios[i])
    scale = 1.0 / min(ratios)
    for dense in reversed(range(len(kernels))):
        budget = density * sum(numbers) - sum(numbers[i] for i in order[:dense])
        fitting = budget / sum(ratios[i] * numbers[i] for i in order[dense:])
        scale = jnp.where(fitting * ratios[order[dense]] <= 1, fitting, scale)
    return [jnp.where(density >= 1, 1.0, jnp.minimum(1.0, scale * ratio)) for ratio in ratios]


def _drawn(kernel: Kernel, density: Any, ties: jax.Array) -> jax.Array:
    """A random mask `[layers, fan_in, outputs]` with round(density * n) connections in each layer of n weights."""
    n = kernel.fan_in * kernel.outputs
    number = jnp.where(density >= 1, n, jnp.clip(jnp.round(density * n), 0, n)).astype(jnp.int32)
    anywhere, alike = jnp.ones(n, bool), jnp.zeros(n)
    rows = jax.vmap(lambda ties: _first(ties, anywhere, alike, number))(ties)
    return rows.reshape(kernel.stack, kernel.fan_in, kernel.outputs)


def _random_rows(key: jax.Array, kernels: Sequence[Kernel], times: int) -> list[dict[str, jax.Array]]:
    """`times` sets of random numbers, by name `[layers, weights of a layer]`; from one draw, which compiles sooner."""
    drawn = jax.random.bits(key, (times, sum(math.prod(k.shape) for k in kernels)))
    split = [_by_name(row, kernels, [math.prod(k.shape) for k in kernels]) for row in drawn]
    return [{k.name: row[k.name].reshape(k.stack, -1) for k in kernels} for row in split]


def _by_name(values: jax.Array, kernels: Sequence[Kernel], numbers: Sequence[int]) -> dict[str, jax.Array]:
    """A vector cut into the parts of the kernels, of which each has so many entries."""
    parts = jnp.split(values, np.cumsum(numbers)[:-1]) if kernels else []
    return {k.name: part for k, part in zip(kernels, parts, strict=True)}


def _exchanged(
    key: jax.Array, kernels: Sequence[Kernel], rate: Any, over: str, *known: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The masks after an exchange, by name; `known` are those of `_exchange_row`, by name."""
    ties = _random_rows(leaf_key(key, "ties"), kernels, 2)
    rows = {k.name: [k.matrices(x[k.name]).reshape(k.stack, -1) for x in known] for k in kernels}
    rows = {name: [*parts, *(x[name] for x in ties)] for name, parts in rows.items()}
    chances = jax.random.uniform(leaf_key(key, "number"), (sum(k.stack for k in kernels),))
    exchange = functools.partial(_exchange_row, rate)
    if over == "network" and kernels:
        whole = [jnp.concatenate([x.ravel() for x in parts]) for parts in zip(*rows.values(), strict=True)]
        masks = _by_name(exchange(chances[0], *whole), kernels, [math.prod(k.shape) for k in kernels])
    else:
        chance = _by_name(chances, kernels, [k.stack for k in kernels])
        masks = {name: jax.vmap(exchange)(chance[name], *parts) for name, parts in rows.items()}
    return {k.name: k.leaf(masks[k.name].reshape(k.stack, k.fan_in, k.outputs)) for k in kernels}


def _exchange_row(
    rate: Any,
    chance: jax.Array,
    mask: jax.Array,
    mature: jax.Array,
    worth: jax.Array,
    promise: jax.Array,
    *ties: jax.Array,
) -> jax.Array:
    """A mask `[n]` after the mature connections of least worth went, and as many came at the most promising places.

    `chance`, from U(0, 1), rounds their number; `ties` are random numbers `[n]` that decide among equal ones.
    """
    mature, expected = mature & mask, rate * jnp.sum(mask, dtype=jnp.int32)
    number = jnp.floor(expected) + (chance < expected % 1)
    number = jnp.minimum(number.astype(jnp.int32), jnp.sum(mature, dtype=jnp.int32))
    kept = mask & ~_first(ties[0], mature, worth, number)
    return kept | _first(ties[1], ~kept, -promise, number)


def _first(ties: jax.Array, among: jax.Array, score: jax.Array, number: jax.Array) -> jax.Array:
    """bool `[n]`, the `number` entries of the lowest score, of those that count.

    Entries that do not count are last even where a score is not a number, so that the number always holds.
    """
    order = jax.lax.sort((~among, score, ties, jnp.arange(score.size)), num_keys=3)[-1]
    return jnp.zeros(score.shape, bool).at[order].set(jnp.arange(score.size) < number)


def _of_new_units(
    units: UnitGraph | None, inner_state: Any, params: Any, kernels: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """By name of the kernel, which connections enter or leave a unit that an inner method has just replaced."""
    gone, found = just_replaced(inner_state), {}
    shapes = {name: jnp.shape(leaf) for name, leaf in named_leaves(params)}
    for group in units.groups if units is not None else ():
        for s in (*group.incoming_kernels, *group.outgoing_kernels) if group.name in gone else ():
            if s.path in kernels:
                mask = s.spread(gone[group.name], shapes[s.path]).astype(bool)
                found[s.path] = found.get(s.path, False) | mask
    return found
