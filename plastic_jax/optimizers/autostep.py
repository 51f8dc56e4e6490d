"""Autostep: IDBD whose meta step is normalised and whose steps never overshoot, so that it needs no tuning."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.optimizers.curvature import read_curvature, sum_by_unit
from plastic_jax.optimizers.idbd import full_like, map_leaves
from plastic_jax.signature import Range, method


class AutostepState(NamedTuple):
    """State of Autostep; trees like the parameters, float32 at least.

    Attributes:
        step_size: the step sizes.
        trace: `h`, how the weight depends on the logarithm of its step size.
        normalizer: `v`, a running maximum of |g h|.
    """

    step_size: optax.Updates
    trace: optax.Updates
    normalizer: optax.Updates

    step_sizes = (("step_size", "linear"),)


@method("curvature")
def autostep(
    step_size: Annotated[float | jax.Array, Range(0)],
    meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.01,
    tau: Annotated[float | jax.Array, Range(1)] = 1e4,
) -> optax.GradientTransformationExtraArgs:
    """Autostep: IDBD with normalised meta steps, and step sizes that never overshoot a unit's target.

        m = -g h,   v <- max(|m|, v + a c (|m| - v) / tau),   a <- a exp(meta_step_size m / v)   where v > 0
        a <- a / max(sum_j a_j c_j, 1),   w <- w - a g,   h <- h (1 - a c) - a g

    with the gradient g and the curvature c; the sum is over all weights of a unit, its bias included
    (`plastic_jax.matrices` reads kernels by their names). Of a linear unit with the loss 1/2 e^2, g = -e x and c = x^2:
    sum_j a_j x_j^2 > 1 is a step beyond the target. Hidden layers learn by local targets: c is `local_curvature`.

    Example:
        >>> params = {"kernel": jnp.zeros((2, 1))}
        >>> tx = autostep(1.0)
        >>> x, e = jnp.array([[1.0], [2.0]]), 3.0
        >>> updates, _ = tx.update({"kernel": -e * x}, tx.init(params), params, curvature={"kernel": x**2})
        >>> round(float(jnp.sum(updates["kernel"] * x)), 4)  # the whole error, and no more
        3.0

    Args:
        step_size: the first step size of every weight, at least 0; a schedule of it changes those of new weights alone.
        meta_step_size: how far the logarithm of a step size goes at most in a step, at least 0.
        tau: steps over which `v` forgets, at least 1.

    `update` needs the extra argument `curvature`, a tree like the parameters (`plastic_jax.local_curvature`).

    Raises:
        ValueError: a number is outside its range; `update` has no curvature, or one of other shapes.

    References:
        Mahmood, Sutton, Degris and Pilarski, "Tuning-free step-size adaptation", ICASSP 2012.
    """

    def init(params: optax.Params) -> AutostepState:
        return AutostepState(*(jax.tree.map(lambda p, x=x: full_like(p, x), params) for x in (step_size, 0.0, 0.0)))

    def adapted(g: jax.Array, c: jax.Array, a: jax.Array, h: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        m = -g * h
        v = jnp.maximum(jnp.abs(m), v + a * c * (jnp.abs(m) - v) / tau)
        return jnp.zeros_like(g), a * jnp.exp(jnp.where(v > 0, meta_step_size * m / jnp.where(v > 0, v, 1), 0)), h, v

    def step(g: jax.Array, c: jax.Array, total: jax.Array, a: jax.Array, h: jax.Array) -> tuple[jax.Array, ...]:
        a = a / jnp.maximum(total, 1)
        return -a * g, a, h * (1 - a * c) - a * g

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, AutostepState]:
        del params
        c = read_curvature("autostep", updates, extra)
        _, a, h, v = map_leaves(adapted, updates, c, *state)
        total = sum_by_unit("autostep", jax.tree.map(jnp.multiply, a, c))
        updates, a, h = map_leaves(step, updates, c, total, a, h)
        return updates, AutostepState(a, h, v)

    return optax.GradientTransformationExtraArgs(init, update)
