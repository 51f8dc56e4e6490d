"""Hare and tortoise: a fast network is set back, now and then, to a slow average of itself."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_params
from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.paths import keep_leaves
from plastic_jax.signature import Range, method

_NAME = "hare_and_tortoise"


class HareAndTortoiseState(NamedTuple):
    """State of hare and tortoise.

    Attributes:
        inner: the inner optimizer's state.
        count: int32 scalar, steps taken; saturates.
        tortoise: a tree like the parameters, their running average; the network to evaluate.
    """

    inner: optax.OptState
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    tortoise: Any


@method()
def hare_and_tortoise(
    inner: optax.GradientTransformation,
    *,
    decay_rate: Annotated[float | jax.Array, Range(0, 1)] = 0.999,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 2000,
    offset: Annotated[int | jax.Array, Range(0, 2**31 - 1)] = 0,
    aliased: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Every `period` steps, sets the weights back to their running average.

    hare <- hare + inner's step,   tortoise <- decay_rate * tortoise + (1 - decay_rate) * hare
    and after steps `offset`, `offset + period`, ...:   hare <- tortoise

    The hare is the parameters; the tortoise lies in the state, begins as the first parameters, and is the network
    meant for evaluation. The inner optimizer's state is kept.

    Example:
        >>> params = {"kernel": jnp.array([1.0])}
        >>> tx = hare_and_tortoise(optax.sgd(1.0), decay_rate=0.75, period=1)
        >>> updates, state = tx.update({"kernel": jnp.array([-4.0])}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"], state.tortoise["kernel"]
        (Array([2.], dtype=float32), Array([2.], dtype=float32))

    Args:
        inner: the optimizer that does the learning.
        decay_rate: of the tortoise, in [0, 1].
        period: steps between two resets, at least 1.
        offset: number of steps after which the first reset comes; 0: after `period` steps.
        aliased: whether the tortoise is the hare itself for one step after a reset, without averaging, as in the
            published code, where both are the same memory then.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range.

    References:
        Lee, Cho, Kim, Kim, Min, Choo and Lyle, "Slow and steady wins the race: maintaining plasticity with hare and
        tortoise networks", ICML 2024. There 0.999, and a reset every 10 epochs.

    Differs from the published code, which is `aliased` and resets for the first time after one epoch (`offset`).
    """
    inner = with_extra_args(inner)
    frozen = frozen_leaves(inner)

    def start(params: optax.Params) -> HareAndTortoiseState:
        return HareAndTortoiseState(inner.init(params), jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

    def due(count: Any) -> jax.Array:
        return (count > 0) & (count >= offset) & ((count - offset) % period == 0)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        check_params(_NAME, params)
        still = frozen(params, extra)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count: Any = optax.safe_increment(state.count)
        decay = jnp.where(due(state.count), 0, decay_rate) if aliased else decay_rate
        tortoise = jax.tree.map(
            lambda slow, w, u: (decay * slow + (1 - decay) * (w + u)).astype(slow.dtype),
            state.tortoise,
            params,
            updates,
        )
        moved = jax.tree.map(lambda u, slow, w: jnp.where(due(count), slow - w, u), updates, tortoise, params)
        return keep_leaves(moved, updates, still), HareAndTortoiseState(inner_state, count, tortoise)

    return optax.GradientTransformationExtraArgs(start, update)
