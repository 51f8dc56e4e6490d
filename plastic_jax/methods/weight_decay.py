"""Weight decay around any optimizer: coupled (L2, as published) or decoupled."""

from typing import Annotated, Any

import jax
import optax

from plastic_jax.inner import frozen_leaves, with_extra_args
from plastic_jax.paths import keep_leaves
from plastic_jax.signature import Range, method


@method()
def weight_decay(
    inner: optax.GradientTransformation,
    weight_decay: Annotated[float | jax.Array, Range(0)] = 1e-4,
    *,
    coupled: bool = True,
    step_size: Annotated[float | jax.Array | None, Range(0)] = None,
) -> optax.GradientTransformationExtraArgs:
    """Decays every parameter, biases and normalisation parameters included, at the rate `weight_decay`.

    coupled (L2):   inner is given g + weight_decay * w instead of g, before its momentum or moments;
    decoupled:      inner's update is followed by - step_size * weight_decay * w, where inner does not freeze w.

    For plain SGD of that step size both are w <- (1 - step_size * weight_decay) * w - step_size * g. Under Adam they
    differ: a coupled decay is divided by the root of the second moment like the gradient itself.

    The state is inner's own. With a rate of 0 given as a Python number, inner itself is returned.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([1.0, -2.0])}
        >>> tx = weight_decay(optax.sgd(0.1), 0.5)
        >>> updates, _ = tx.update({"kernel": jnp.zeros(2)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"]
        Array([ 0.95, -1.9 ], dtype=float32)

    Args:
        inner: the optimizer; extra arguments of `update` are handed to it if it takes them.
        weight_decay: the rate, at least 0.
        coupled: L2 if true, which is the published `weight_decay`.
        step_size: multiplies the decoupled decay; a number or a traced 0-d array. Required if `coupled` is false.

    Raises:
        ValueError: negative or callable rate or step size; step size missing (decoupled) or without effect (coupled).

    References:
        Coupled: Dohare et al., Nature 632, 2024, Methods (L2). Decoupled: Loshchilov and Hutter, ICLR 2019.
    """
    if coupled and step_size is not None:
        raise ValueError("step_size has no effect on a coupled decay: leave it out, or set coupled=False")
    if not coupled and step_size is None:
        raise ValueError("a decoupled decay needs step_size, the step size of inner")
    inner = with_extra_args(inner)
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return inner
    frozen = frozen_leaves(inner)
    decay = optax.add_decayed_weights(weight_decay if step_size is None else -(step_size * weight_decay))

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
