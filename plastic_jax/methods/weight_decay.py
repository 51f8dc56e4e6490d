"""Weight decay around any optimizer: coupled (L2, as published) or decoupled."""

from typing import Any

import jax
import optax

from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.paths import keep_leaves

Number = float | jax.Array


def weight_decay(
    inner: optax.GradientTransformation, rate: Number, *, coupled: bool = True, step_size: Number | None = None
) -> optax.GradientTransformationExtraArgs:
    """Decays every parameter, biases and normalisation parameters included, at `rate`.

    coupled (L2):   inner is given g + rate * w instead of g, before its momentum or moments;
    decoupled:      inner's update is followed by - step_size * rate * w, for parameters that inner does not freeze.

    For plain SGD of that step size both are w <- (1 - step_size * rate) * w - step_size * g. Under Adam they differ:
    a coupled decay is divided by the root of the second moment like the gradient itself.

    The state is inner's own. With a rate of 0 given as a Python number, inner itself is returned.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([1.0, -2.0])}
        >>> tx = weight_decay(optax.sgd(0.1), rate=0.5)
        >>> updates, _ = tx.update({"kernel": jnp.zeros(2)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"]
        Array([ 0.95, -1.9 ], dtype=float32)

    Args:
        inner: the optimizer; extra arguments of `update` are handed to it if it takes them.
        rate: the decay rate, >= 0; a Python number or a traced 0-d array.
        coupled: L2 if true, which is the published `weight_decay`.
        step_size: multiplies the decoupled decay; a number or a traced 0-d array. Required if `coupled` is false.

    Raises:
        ValueError: negative or callable rate or step size; step size missing (decoupled) or without effect (coupled).

    Source: Dohare et al., Nature 632 (2024), Methods (L2); decoupled: Loshchilov & Hutter, ICLR 2019.
    """
    _check_number("rate", rate)
    if coupled and step_size is not None:
        raise ValueError("step_size has no effect on a coupled decay: leave it out, or set coupled=False")
    if not coupled:
        if step_size is None:
            raise ValueError("a decoupled decay needs step_size, the step size of inner")
        _check_number("step_size", step_size)
    inner = with_extra_args(inner)
    if isinstance(rate, int | float) and rate == 0:
        return inner
    frozen = frozen_leaves(inner)
    decay = optax.add_decayed_weights(rate if step_size is None else -(step_size * rate))

    def add_decay(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        decayed, _ = decay.update(updates, optax.EmptyState(), params)
        # A traced rate is strongly typed: without the cast, float32 would widen the bfloat16 state of inner.
        return optax.tree.cast_like(decayed, updates)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if coupled:
            return inner.update(add_decay(updates, params), state, params, **extra)
        still = frozen(params, extra)
        updates, state = inner.update(updates, state, params, **extra)
        return keep_leaves(add_decay(updates, params), updates, still), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _check_number(name: str, value: Any) -> None:
    if callable(value) or (isinstance(value, int | float) and not value >= 0):
        raise ValueError(f"{name} must be a number >= 0 or an array, got {value!r}")
