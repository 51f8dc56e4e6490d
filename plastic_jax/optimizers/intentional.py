"""Intentional updates: at every step the step size that changes the prediction by a given share of its error."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.adam import correction, first_counts, share_seen
from plastic_jax.optimizers.obgd import after_episode, prediction_error
from plastic_jax.signature import Range, method


class IntentionalState(NamedTuple):
    """State of intentional updates.

    Attributes:
        trace: `z`, the eligibility trace of the prediction's gradient, a tree like the parameters, float32 at least.
        nu: `v`, the running average of squared gradients, likewise; `None` where they are not scaled.
        rows, columns: how many gradients it has seen, as those of `AdamState`; `None` where they are not scaled.
        count: int32 scalar, steps so far; saturates.
        effect: 0-d, the running average of g' D g, not corrected.
        squared_error: 0-d, the running average of the squared error, not corrected.
    """

    trace: optax.Updates
    nu: Any
    rows: Any
    columns: Any
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    effect: jax.Array
    squared_error: jax.Array


@method()
def intentional(
    step_size: Annotated[float | jax.Array, Range(0)] = 0.5,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    *,
    trace_decay: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.0,
    scaled: bool = True,
    clip_errors: Annotated[float | jax.Array, Range(1)] = 20.0,
    error_decay: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9998,
    eps: Annotated[float | jax.Array, Range(0)] = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Intentional update: `step_size` is the share of the error by which the prediction is to change.

        z <- trace_decay z + g,   a = step_size / sqrt(s z' D z),   w <- w + a e D z;   z <- 0 where `reset`

    with the gradient g of the prediction f, its error e = target - f, D = 1 / (sqrt(v) + eps) for the corrected running
    average v of g^2 (1 where not `scaled`), and s the corrected running average of g' D g with the decay `trace_decay`.
    Without traces a = step_size / g' D g: to first order the step takes away exactly that share of the error. Errors
    are clipped at `clip_errors` times the root of their corrected running mean square, which has taken them in.

    `update` is for predictions or for losses, as that of `obgd`: it needs the extra argument `error`, or `loss`. Of a
    loss L without `scaled` and traces the step is 2 step_size L / |grad L|^2 grad L, Polyak's for the least loss 0.

    Example:
        >>> params, x, target = jnp.zeros(2), jnp.array([3.0, 1.0]), 5.0
        >>> tx = intentional(0.5)
        >>> loss, gradient = jax.value_and_grad(lambda w: (target - w @ x) ** 2)(params)
        >>> updates, state = tx.update(gradient, tx.init(params), params, loss=loss)
        >>> round(float(updates @ x), 3)
        2.5

    Args:
        step_size: the share of the error that a step is to take away: 0.5 for values, 0.05 for policies as published.
        b2: decay rate of the average of squared gradients; used with scaled.
        trace_decay: what is left of the eligibility trace one step later, the discount times lambda; 0 for independent
            examples.
        scaled: whether gradients are divided by the roots of their average squares.
        clip_errors: the largest error, in units of their root mean square.
        error_decay: decay rate of the errors' mean square.
        eps: keeps the scale from 0.

    An actor divides its error by the running mean of its magnitude first; whoever calls `update` does that.

    Raises:
        ValueError: a number outside its range, or `update` is given neither `error` nor `loss`.

    References:
        Sharifnassab, Elsayed, De Asis, Mahmood and Sutton, "Intentional updates for streaming reinforcement learning",
        ICML 2026.
    """

    def init(params: optax.Params) -> IntentionalState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(wide(jnp.asarray(p))), params)
        zero = jnp.zeros([], jnp.result_type(jnp.float32, *jax.tree.leaves(zeros)))
        scales = (zeros, *first_counts(params)) if scaled else (None, None, None)
        return IntentionalState(zeros, *scales, jnp.zeros([], jnp.int32), zero, zero)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, IntentionalState]:
        del params
        error, gradients = prediction_error("intentional", updates, extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        mean_square = error_decay * state.squared_error + (1 - error_decay) * error**2
        most = clip_errors * jnp.sqrt(mean_square / share_seen(error_decay, count, mean_square.dtype))
        error = jnp.clip(error, -most, most)
        trace = jax.tree.map(lambda z, g: (trace_decay * z + g).astype(z.dtype), state.trace, gradients)
        steps, ours, rest = trace, gradients, (None, None, None)
        if scaled:
            rows, columns = jax.tree.map(optax.safe_increment, (state.rows, state.columns))
            nu = jax.tree.map(lambda v, g: (b2 * v + (1 - b2) * g * g).astype(v.dtype), state.nu, gradients)

            def scale(x: jax.Array, v: jax.Array, r: jax.Array, c: jax.Array) -> jax.Array:
                return x / (jnp.sqrt(v * correction(b2, r, c, v.dtype)) + eps)

            steps, ours = (jax.tree.map(scale, tree, nu, rows, columns) for tree in (trace, gradients))
            rest = nu, rows, columns
        effect = trace_decay * state.effect + (1 - trace_decay) * optax.tree.vdot(gradients, ours)
        seen = effect / share_seen(trace_decay, count, effect.dtype) * optax.tree.vdot(trace, steps)
        a = jnp.where(seen > 0, step_size / jnp.sqrt(jnp.where(seen > 0, seen, 1)), 0)
        updates = jax.tree.map(lambda d, g: (a * error * d).astype(g.dtype), steps, updates)
        numbers = effect.astype(state.effect.dtype), mean_square.astype(state.squared_error.dtype)
        return updates, IntentionalState(after_episode(trace, extra), *rest, count, *numbers)

    return optax.GradientTransformationExtraArgs(init, update)
