"""Overshooting-bounded gradient descent: a step small enough that the error of the present example keeps its sign."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.adam import correction, first_counts
from plastic_jax.signature import Range, method


class ObGDState(NamedTuple):
    """State of overshooting-bounded gradient descent.

    Attributes:
        trace: `z`, the eligibility trace of the prediction's gradient, a tree like the parameters, float32 at least.
        nu: `v`, the running average of squared steps, likewise; `None` where it is not adaptive.
        rows, columns: how many steps it has seen, as those of `AdamState`; `None` where it is not adaptive.
    """

    trace: optax.Updates
    nu: Any
    rows: Any
    columns: Any


@method()
def obgd(
    step_size: Annotated[float | jax.Array, Range(0)] = 1.0,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    *,
    overshooting_bound: Annotated[float | jax.Array, Range(0)] = 2.0,
    trace_decay: Annotated[float | jax.Array, Range(0, 1)] = 0.0,
    adaptive: bool = False,
    eps: Annotated[float | jax.Array, Range(0)] = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """ObGD: gradient descent on single examples whose step is bounded so that the error does not overshoot.

        z <- trace_decay z + grad f,   a = step_size / max(1, step_size * overshooting_bound * max(|e|, 1) * |z|_1)
        w <- w + a e z;   z <- 0 where `reset`

    with the prediction f, its error e = target - f, and the sum of magnitudes over all parameters |z|_1. Without traces
    a step removes, to first order, at most the share max |grad f| / `overshooting_bound` of the error: it does not
    overshoot where no entry of the gradient is above `overshooting_bound`. With `adaptive` z is replaced by
    z / sqrt(v + eps) in a and in the step, where v is the corrected running average of (e z)^2.

    `update` is for one of two uses:

    - *Predictions* (temporal differences, one output): the gradients are grad f, and the extra arguments `error` (0-d;
      the TD error) and `reset` (0-d bool, true where an episode ends; it may be left out) are given. `trace_decay` is
      the discount times lambda.
    - *Losses*: the gradients are those of a loss L that is never negative, and the extra argument `loss` is its value.
      The error is sqrt(L), as it is of a squared error L = (target - f)^2, whose step is the same as above; in a trace
      each gradient then has its error's sign.

    Example:
        >>> params, x, target = jnp.zeros(2), jnp.array([3.0, 1.0]), 5.0
        >>> tx = obgd(1.0)
        >>> loss, gradient = jax.value_and_grad(lambda w: (target - w @ x) ** 2)(params)
        >>> updates, state = tx.update(gradient, tx.init(params), params, loss=loss)
        >>> round(float(updates @ x), 3)  # 5 * 10 / (2 * 5 * 4)
        1.25

    Args:
        step_size: the largest step size; 1 as published.
        b2: decay rate of the average of squared steps; used with adaptive.
        overshooting_bound: the published kappa: 2 for values, 3 for policies.
        trace_decay: what is left of the eligibility trace one step later; 0 for independent examples.
        adaptive: whether every weight's step is divided by the root of its average square (AdaptiveObGD).
        eps: keeps that root from 0.

    Raises:
        ValueError: a number outside its range, or `update` is given neither `error` nor `loss`.

    References:
        Elsayed, Vasan and Mahmood, "Streaming deep reinforcement learning finally works", 2024, algorithm 3.
    """

    def init(params: optax.Params) -> ObGDState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(wide(jnp.asarray(p))), params)
        return ObGDState(zeros, *((zeros, *first_counts(params)) if adaptive else (None, None, None)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ObGDState]:
        del params
        error, gradients = prediction_error("obgd", updates, extra)
        trace = jax.tree.map(lambda z, g: (trace_decay * z + g).astype(z.dtype), state.trace, gradients)
        direction, rest = trace, (None, None, None)
        if adaptive:
            rows, columns = jax.tree.map(optax.safe_increment, (state.rows, state.columns))
            nu = jax.tree.map(lambda v, z: (b2 * v + (1 - b2) * (error * z) ** 2).astype(v.dtype), state.nu, trace)
            direction = jax.tree.map(
                lambda z, v, r, c: z / jnp.sqrt(v * correction(b2, r, c, v.dtype) + eps), trace, nu, rows, columns
            )
            rest = nu, rows, columns
        size = optax.tree.sum(jax.tree.map(lambda d: jnp.sum(jnp.abs(d)), direction))
        overshoot = step_size * overshooting_bound * jnp.maximum(jnp.abs(error), 1) * size
        a = step_size / jnp.maximum(overshoot, 1)
        updates = jax.tree.map(lambda d, g: (a * error * d).astype(g.dtype), direction, updates)
        return updates, ObGDState(after_episode(trace, extra), *rest)

    return optax.GradientTransformationExtraArgs(init, update)


def prediction_error(name: str, updates: optax.Updates, extra: dict[str, Any]) -> tuple[jax.Array, optax.Updates]:
    """The error of the prediction, 0-d, and the prediction's gradients, from what `update` is given (see `obgd`).

    Of a loss L the error is sqrt(L), and the prediction's gradient that of -sqrt(L): 0 where the loss is 0.

    Raises:
        ValueError: neither `error` nor `loss` is given.
    """
    if extra.get("error") is not None:
        return wide(jnp.asarray(extra["error"])), jax.tree.map(wide, updates)
    if extra.get("loss") is None:
        raise ValueError(
            f"{name}: update needs the extra argument loss (gradients of a loss that is never negative), or error "
            "(gradients of a prediction), got neither"
        )
    error = jnp.sqrt(jnp.maximum(wide(jnp.asarray(extra["loss"])), 0))
    scale = jnp.where(error > 0, -0.5 / jnp.where(error > 0, error, 1), 0)
    return error, jax.tree.map(lambda g: scale * wide(g), updates)


def after_episode(trace: Any, extra: dict[str, Any]) -> Any:
    """The trace, 0 where an episode has ended."""
    if extra.get("reset") is None:
        return trace
    return jax.tree.map(lambda z: jnp.where(extra["reset"], jnp.zeros_like(z), z), trace)
