"""Selective weight reinitialisation: at regular intervals, the least useful single weights are drawn anew."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_like, check_params, typed_key
from plastic_jax.inner import frozen_leaves, network_params, with_extra_args
from plastic_jax.lanes import any_lane
from plastic_jax.paths import leaf_key, leaf_names
from plastic_jax.replacement.reset import replace_weights
from plastic_jax.replacement.step_counts import count_every_weight
from plastic_jax.signature import Range, method

_NAME = "swr"


class SWRState(NamedTuple):
    """State of selective weight reinitialisation.

    Attributes:
        inner: the inner optimizer's state.
        key: uint32, data of a random key, never changed; step `t` uses `fold_in(key, t)`.
        count: int32 scalar, steps taken; saturates.
        utility: float, a tree like the parameters: running average of each weight's utility, not corrected for bias.
        redrawn: int32 scalar, weights redrawn so far; saturates.
    """

    inner: optax.OptState
    key: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    utility: Any
    redrawn: jax.Array


@method()
def swr(
    inner: optax.GradientTransformation,
    *,
    factor: Annotated[float | jax.Array, Range(0)] = 1e-5,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 2048,
    utility: Literal["gradient", "magnitude", "random"] = "gradient",
    selection: Literal["threshold", "proportional"] = "threshold",
    redraw: Literal["sample", "mean"] = "sample",
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.0,
    init: Callable[[jax.Array], optax.Params],
    key: jax.Array,
    reset_state: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Every `period` steps, draws the least useful weights of each parameter anew.

        gradient:   u_i = |g_i w_i|          magnitude:   u_i = |w_i|          random:   u_i ~ U(0, 1)

    with the gradient handed to `update`, `w` after inner's step, and `a <- decay_rate * a + (1 - decay_rate) * u` over
    the steps. Of every parameter (kernel, bias, scale; the output layer too) with `n` weights go

        threshold:      all weights with a_i <= factor * mean(a);
        proportional:   the floor(factor * n) + B lowest, B = 1 with probability factor * n mod 1, else 0.

    They get the values that a fresh network has there. Where a weight of a parameter goes, all of that parameter's
    averages start anew at 0. No unit is looked at, so any model will do.

    Example:
        >>> params = {"kernel": jnp.array([2.0, 0.001, -1.0])}
        >>> init = lambda key: {"kernel": jnp.full(3, 5.0)}
        >>> tx = swr(optax.sgd(0.1), factor=0.1, period=1, utility="magnitude", init=init, key=jax.random.key(0))
        >>> updates, state = tx.update({"kernel": jnp.zeros(3)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"]
        Array([ 2.,  5., -1.], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        factor: share of the mean utility up to which weights go, or share of the weights that go; 0: none go.
        period: steps between two reinitialisations, at least 1; the first is at step `period`.
        utility: how useful a weight is.
        selection: which weights go.
        redraw: what a weight becomes: a draw of `init`, or the mean of its parameter in a fresh network, taken as 0
            unless all its values there are the same.
        decay_rate: of the running average, in [0, 1); 0: the utility of this step alone, as in the paper.
        init: key -> the parameters of a fresh network, a tree like the parameters.
        key: random key.
        reset_state: whether the inner optimizer's statistics of these weights start afresh.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or `init` gives another tree.

    References:
        Hernandez-Garcia, Dohare, Luo and Sutton, "Reinitializing weights vs units for maintaining plasticity in neural
        networks", CoLLAs 2025.

    Differs from the published code, which keeps the inner optimizer's statistics (`reset_state=False`).
    """
    inner, key = with_extra_args(inner), typed_key(_NAME, key)
    frozen, impl = frozen_leaves(inner), jax.random.key_impl(key)

    def start(params: optax.Params) -> SWRState:
        state, average = inner.init(params), jax.tree.map(_blank, network_params(params))
        own_key, zero = jax.random.key_data(leaf_key(key, _NAME)), jnp.zeros([], jnp.int32)
        return SWRState(count_every_weight(state) if reset_state else state, own_key, zero, average, jnp.copy(zero))

    def measure(gradient: jax.Array, weight: jax.Array) -> jax.Array:
        size = jnp.abs(gradient * weight) if utility == "gradient" else jnp.abs(weight)
        return size.astype(_precise(weight))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        check_params(_NAME, params)
        weights, gradients, still = network_params(params), updates, frozen(params, extra)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count: Any = optax.safe_increment(state.count)
        now = (count % period == 0) & (factor > 0)
        after = optax.apply_updates(weights, network_params(updates))
        average = jax.tree.map(
            lambda a, g, w: (decay_rate * a + (1 - decay_rate) * measure(g, w)).astype(a.dtype),
            state.utility,
            gradients,
            after,
        )

        def reinitialize() -> Any:
            step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), state.count)
            fresh = init(leaf_key(step_key, "weights"))
            check_like(f"{_NAME}: init", fresh, weights)
            if redraw == "mean":
                fresh = jax.tree.map(_mean, fresh)
            leaves, treedef = jax.tree.flatten(average)
            going = [
                now & (name not in still) & _chosen(leaf_key(step_key, name), a, factor, selection, utility)
                for name, a in zip(leaf_names(weights), leaves, strict=True)
            ]
            kept = [jnp.where(jnp.any(mask), 0, a) for mask, a in zip(going, leaves, strict=True)]
            masks = jax.tree.unflatten(treedef, going)
            edited = replace_weights(inner, masks, fresh, params, updates, inner_state, reset_state)
            redrawn = state.redrawn + sum(jnp.sum(mask, dtype=jnp.int32) for mask in going)
            return *edited, jax.tree.unflatten(treedef, kept), jnp.where(redrawn < 0, state.redrawn, redrawn)

        def leave() -> Any:
            return updates, inner_state, average, state.redrawn

        updates, inner_state, average, redrawn = jax.lax.cond(any_lane(now), reinitialize, leave)
        return updates, SWRState(inner_state, state.key, count, average, redrawn)

    return optax.GradientTransformationExtraArgs(start, update)


def _chosen(key: jax.Array, average: jax.Array, factor: Any, selection: str, utility: str) -> jax.Array:
    """Which weights of a parameter go: bool of its shape."""
    if utility == "random":
        average = jax.random.uniform(leaf_key(key, "utility"), average.shape, average.dtype)
    if selection == "threshold":
        return average <= factor * jnp.mean(average)
    lowest = jnp.argsort(average, axis=None, stable=True)
    first = jnp.arange(average.size) < _number(key, average.size * factor)
    return jnp.zeros(average.size, bool).at[lowest].set(first).reshape(average.shape)


def _number(key: jax.Array, expected: Any) -> jax.Array:
    """A whole number whose mean is `expected`: rounded down, or up with the probability of the rest."""
    whole = jnp.floor(expected)
    return whole + jax.random.bernoulli(leaf_key(key, "number"), expected - whole)


def _mean(fresh: jax.Array) -> jax.Array:
    return jnp.where(jnp.ptp(fresh) == 0, fresh, 0)


def _precise(weight: jax.Array) -> Any:
    return jnp.promote_types(weight.dtype, jnp.float32)


def _blank(weight: jax.Array) -> jax.Array:
    return jnp.zeros(jnp.shape(weight), _precise(weight))
