"""FADE: a decay rate for every weight, learned by gradient descent, beside a fixed or a learned step size."""

import fnmatch
import math
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.matrices import wide
from plastic_jax.optimizers.adam import AdamState, adam, correction
from plastic_jax.optimizers.curvature import read_curvature
from plastic_jax.optimizers.idbd import IDBDState, full_like, map_leaves
from plastic_jax.paths import leaf_names
from plastic_jax.signature import Range, method

FIRST_DECAY = math.exp(-5)
"""The first decay rate, as published."""
LEAST_LOG_DECAY = -15.0
"""The logarithm of the smallest decay rate; the largest rate is 1."""


class FadeState(NamedTuple):
    """State of FADE.

    Attributes:
        base: `AdamState`, `IDBDState`, or `()` of gradient descent.
        log_decay: `gamma`, natural logarithms of the decay rates, a tree like the parameters, float32 at least; of a
            parameter that does not decay 0-d, minus infinity.
        decay_trace: `q`, how the weight depends on `log_decay`, likewise; 0-d of a parameter that does not decay.
    """

    base: Any
    log_decay: optax.Updates
    decay_trace: optax.Updates


@method("curvature")
def fade(
    step_size: Annotated[float | jax.Array, Range(0)],
    b1: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    *,
    base: Literal["sgd", "adam", "idbd"] = "sgd",
    decay_meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.01,
    first_decay: Annotated[float | jax.Array, Range(0, 1)] = FIRST_DECAY,
    idbd_meta_step_size: Annotated[float | jax.Array, Range(0)] = 0.01,
    decaying: str = "*",
    eps: Annotated[float | jax.Array, Range(0)] = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """FADE: the decay rate of every weight follows the gradient of the loss in its logarithm.

        gamma <- clip(gamma - decay_meta_step_size g q, -15, 0),   l = exp(gamma)
        q <- q max(1 - l - a c, 0) - l w,   w <- (1 - l) w - a d

    with the gradient g at the weight before it decays, the curvature c, the base optimizer's direction d and its step
    size a for g: `step_size` (sgd), step_size / (sqrt(v) + eps) with Adam's corrected moment of the step before
    (`step_size` in the first), or a weight's own that IDBD learns beside it: beta <- beta - idbd_meta_step_size g h,
    a = exp(beta), h <- h max(1 - l - a c, 0) - a g. The decay is not multiplied with the step size.

    Example:
        >>> params = {"kernel": jnp.array([[2.0]])}
        >>> tx = fade(0.0, decay_meta_step_size=1.0, first_decay=0.1)
        >>> state = tx.init(params)
        >>> for _ in range(2):  # the weight is too large, so that its decay rate grows
        ...     updates, state = tx.update(params, state, params, curvature=jax.tree.map(jnp.ones_like, params))
        >>> round(float(jnp.exp(state.log_decay["kernel"][0, 0])), 3)  # 0.1 exp(2 * 0.2)
        0.149

    Args:
        step_size: of the base optimizer; of idbd the first one of every weight.
        b1, b2: decay rates of Adam's moments, in [0, 1).
        base: the optimizer that moves the weights.
        decay_meta_step_size: step size of the logarithms of decay rates; 1 as published for networks.
        first_decay: the first decay rate of every weight, in [0, 1]; of 0 it stays 0.
        idbd_meta_step_size: step size of the logarithms of step sizes; used with base=idbd.
        decaying: pattern of the parameters that decay, as "Dense_2/*"; the published scope "head" is the output layer.
        eps: keeps Adam's denominators from 0.

    `update` needs `params` and the extra argument `curvature`, a tree like the parameters
    (`plastic_jax.local_curvature`); with zeros decays are learned as in the published code without `local_grad_sq`.

    Raises:
        ValueError: a number outside its range, a pattern that fits no parameter, or `update` lacks what it needs.

    References:
        Ramesh et al., arXiv 2604.27063.
    """
    moves = adam(step_size, b1, b2, eps) if base == "adam" else optax.identity()

    def which(params: optax.Params) -> Any:
        names = leaf_names(params)
        chosen = [fnmatch.fnmatchcase(name, decaying) for name in names]
        if names and not any(chosen):
            raise ValueError(f"fade: decaying='{decaying}' fits no parameter; there are {', '.join(names)}")
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    def init(params: optax.Params) -> FadeState:
        def own(value: Any, otherwise: float) -> Any:
            return jax.tree.map(
                lambda p, on: full_like(p, value) if on else full_like(jnp.zeros([], jnp.result_type(p)), otherwise),
                params,
                which(params),
            )

        kept: Any = () if base == "sgd" else moves.init(params)
        if base == "idbd":
            kept = IDBDState(*(jax.tree.map(lambda p, v=v: full_like(p, v), params) for v in (jnp.log(step_size), 0)))
        return FadeState(kept, own(jnp.log(first_decay), -jnp.inf), own(0, 0))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, FadeState]:
        if params is None:
            raise ValueError("fade: update needs `params`; call update(grads, state, params)")
        curvature = read_curvature("fade", updates, extra)
        gradients = jax.tree.map(wide, updates)
        betas, h = state.base if base == "idbd" else (updates, updates)
        if base == "idbd":
            betas = jax.tree.map(lambda g, b, h: (b - idbd_meta_step_size * g * h).astype(b.dtype), gradients, betas, h)
            sizes = jax.tree.map(jnp.exp, betas)
        else:
            sizes = _sizes(step_size, b2, eps, state.base, gradients)
        if base == "adam":
            steps, moments = moves.update(updates, state.base, params)
            kept: Any = moments
        else:
            kept = ()
            steps = jax.tree.map(lambda a, g: -a * g, sizes, gradients)

        def step(
            g: jax.Array,
            u: jax.Array,
            c: jax.Array,
            a: jax.Array,
            w: jax.Array,
            on: bool,
            gamma: jax.Array,
            q: jax.Array,
        ) -> tuple[jax.Array, ...]:
            if on:
                gamma = jnp.clip(gamma - decay_meta_step_size * g * q, LEAST_LOG_DECAY, 0)
            rate = jnp.exp(gamma)
            return wide(u) - rate * w, gamma, q * _left(rate, a, c) - rate * w if on else q

        given = steps, curvature, sizes, params, which(params)
        updates, gammas, traces = map_leaves(step, updates, *given, state.log_decay, state.decay_trace)
        if base == "idbd":
            left = jax.tree.map(lambda gamma, a, c: _left(jnp.exp(gamma), a, c), gammas, sizes, curvature)
            kept = IDBDState(betas, jax.tree.map(lambda h, r, u: (h * r + u).astype(h.dtype), h, left, steps))
        return updates, FadeState(kept, gammas, traces)

    return optax.GradientTransformationExtraArgs(init, update)


def _left(rate: jax.Array, a: jax.Array, c: jax.Array) -> jax.Array:
    """What is left of a change of the weight after a step."""
    return jnp.maximum(1 - rate - a * c, 0)


def _sizes(step_size: Any, b2: Any, eps: Any, state: Any, gradients: Any) -> Any:
    """For every weight how far a gradient of 1 moves it, as the step before has it."""

    def one(g: jax.Array, rows: jax.Array, columns: jax.Array, nu: jax.Array) -> jax.Array:
        nu = wide(nu)
        scale = correction(b2, rows, columns, nu.dtype)
        seen = jnp.isfinite(scale)
        return step_size / jnp.where(seen, jnp.sqrt(nu * jnp.where(seen, scale, 0)) + eps, 1) + jnp.zeros_like(g)

    if isinstance(state, AdamState):
        return jax.tree.map(one, gradients, state.rows, state.columns, state.nu)
    return jax.tree.map(lambda g: jnp.full_like(g, step_size), gradients)
