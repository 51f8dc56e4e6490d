"""L2 Init: weights are pulled to where they began instead of to zero."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import typed_key
from plastic_jax.inner import with_extra_args
from plastic_jax.methods.signature import Range, method
from plastic_jax.paths import leaf_key

_NAME = "l2_init"


class L2InitState(NamedTuple):
    """State of L2 Init.

    Attributes:
        inner: the inner optimizer's state.
        initial: the parameters at `init`; `None` with `resample`.
        key: uint32, data of a random key, never changed; `None` without `resample`.
        count: int32 scalar, steps taken; saturates.
    """

    inner: optax.OptState
    initial: Any
    key: jax.Array | None
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@method()
def l2_init(
    inner: optax.GradientTransformation,
    *,
    strength: Annotated[float | jax.Array, Range(0)] = 1e-3,
    resample: bool = False,
    init: Callable[[jax.Array], optax.Params] | None = None,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls every weight to its initial value: L2 regularisation whose centre is the network before training.

    g <- g + strength * (w - w_0), before the inner optimizer

    which is the gradient of `strength / 2 * ||w - w_0||^2`; biases and normalisation parameters are included. A unit
    that has fallen silent is pulled back to weights with which it was not.

    Example:
        >>> params = {"kernel": jnp.array([1.0, -2.0])}
        >>> tx = l2_init(optax.sgd(0.1), strength=0.5)
        >>> state = tx.init(params)  # where the weights are pulled to
        >>> moved = {"kernel": jnp.array([3.0, -2.0])}
        >>> updates, state = tx.update({"kernel": jnp.zeros(2)}, state, moved)
        >>> optax.apply_updates(moved, updates)["kernel"]
        Array([ 2.9, -2. ], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        strength: how strong the pull is, at least 0.
        resample: pull to newly drawn initial weights at every step instead, which keeps the law of the weights rather
            than the weights.
        init: key -> the parameters of a fresh network; needed with `resample`.
        key: random key; needed with `resample`.

    `update` needs `params`.

    Raises:
        ValueError: `strength` is negative, or `resample` has no `init` or `key`.

    References:
        Kumar, Marklund and Van Roy, "Maintaining plasticity in continual learning via regenerative regularization",
        CoLLAs 2024.

    Differs from the published code, which leaves the parameters of normalisation layers out.
    """
    inner, fresh = with_extra_args(inner), _fresh(init, key) if resample else None

    def start(params: optax.Params) -> Any:
        own_key = jax.random.key_data(leaf_key(typed_key(_NAME, key), _NAME)) if resample else None
        # Copies, since the parameters may be donated with the state.
        initial = None if resample else jax.tree.map(jnp.copy, params)
        return L2InitState(inner.init(params), initial, own_key, jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(f"{_NAME}: update needs `params`; call update(grads, state, params)")
        centre = state.initial if fresh is None else fresh(state.key, state.count)
        pulled = jax.tree.map(lambda g, w, w0: (g + strength * (w - w0)).astype(g.dtype), updates, params, centre)
        updates, inner_state = inner.update(pulled, state.inner, params, **extra)
        return updates, state._replace(inner=inner_state, count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(start, update)


def _fresh(init: Any, key: Any) -> Callable[[jax.Array, jax.Array], optax.Params]:
    """A function of key data and step: a fresh network's parameters."""
    if init is None or key is None:
        raise ValueError(f"{_NAME}: resample needs init and key")
    impl = jax.random.key_impl(typed_key(_NAME, key))
    return lambda data, step: init(jax.random.fold_in(jax.random.wrap_key_data(data, impl=impl), step))
