"""Adam with a step count of its own for every parameter, so that parts of a network can be made new."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

Number = float | jax.Array


class AdamState(NamedTuple):
    """Moments of every weight, and how many gradients they have seen since the weight was new.

    Attributes:
        count: int32, a tree shaped like the parameters, one count per element; saturates.
        mu: first moments, a tree like the parameters.
        nu: second moments, a tree like the parameters.
    """

    count: optax.Updates  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    nu: optax.Updates


def adam(
    step_size: Number,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    bias_correction: Literal["standard", "published"] = "standard",
) -> optax.GradientTransformationExtraArgs:
    """Adam whose bias correction counts the steps of every single weight.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   t <- t + 1     (t per weight)
    standard:   w <- w - step_size * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    published:  w <- w - step_size * (1 - b2^t) * m / (sqrt(v) + eps)

    While nothing is reset this is `optax.adam`. The difference appears when a unit is replaced: its weights must start
    with new moments *and* a new count. Zeroed moments under an old, shared count are not corrected for their bias, and
    since v recovers more slowly than m, the weight moves by up to 6.6 times the regular step (b1 = 0.9, b2 = 0.999,
    some 12 steps after the reset). Setting back a shared count spoils the steps of all weights that were not reset.
    As all three fields have the shape of the parameters, `optax.tree.map_params` resets them with one mask.

    Example:
        >>> params = jnp.array([1.0, -2.0])
        >>> tx = adam(0.1)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.array([3.0, -0.5]), state, params)
        >>> abs(updates + jnp.array([0.1, -0.1])) < 1e-6
        Array([ True,  True], dtype=bool)

    Args:
        step_size: a number or a traced 0-d array.
        b1, b2: decay rates of the moments, in [0, 1).
        eps: keeps the denominator from 0.
        bias_correction: "published" is what the published code's Adam with counts per weight (AdamGnT) computes: its
            bias correction is dropped by mistake, which gives every weight a warm-up over some 1000 steps after each
            reset (for a constant gradient, 0.3 % of the step size at t = 1, 31 % at 100, 80 % at 1000).

    Raises:
        ValueError: a rate outside its interval, or a `bias_correction` of another name.

    Source: Kingma & Ba, ICLR 2015, algorithm 1; counts per weight: Dohare et al., Nature 632 (2024), published code.
    Cost: 4 bytes per weight more than `optax.adam`.
    """
    if bias_correction not in ("standard", "published"):
        raise ValueError(f"bias_correction must be 'standard' or 'published', got {bias_correction!r}")
    _check_in("step_size", step_size, 0, float("inf"))
    _check_in("b1", b1, 0, 1)
    _check_in("b2", b2, 0, 1)
    _check_in("eps", eps, 0, float("inf"))

    def init(params: optax.Params) -> AdamState:
        count = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.int32), params)
        return AdamState(count, optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def step(count: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
        exact = jnp.promote_types(mu.dtype, jnp.float32)
        seen1, seen2 = _seen(b1, count, exact), _seen(b2, count, exact)
        if bias_correction == "standard":
            direction = (mu / seen1) / (jnp.sqrt(nu / seen2) + eps)
        else:
            direction = seen2 * mu / (jnp.sqrt(nu) + eps)
        return (-step_size * direction).astype(mu.dtype)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, AdamState]:
        del params, extra
        count = jax.tree.map(optax.safe_increment, state.count)
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates)
        nu = jax.tree.map(lambda v, g: (b2 * v + (1 - b2) * g * g).astype(v.dtype), state.nu, updates)
        return jax.tree.map(step, count, mu, nu), AdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _seen(decay: Number, count: jax.Array, dtype: Any) -> jax.Array:
    """1 - decay^count, the share of a moment that comes from gradients, without cancellation at small counts."""
    if isinstance(decay, int | float) and decay > 0:
        # In double precision: rounding 0.999 to float32 alone would put 1 - decay off by 5e-5 of itself.
        return -jnp.expm1(count.astype(dtype) * math.log(decay))
    return -jnp.expm1(count.astype(dtype) * jnp.log(jnp.asarray(decay, dtype)))


def _check_in(name: str, value: Any, low: float, high: float) -> None:
    if callable(value) or (isinstance(value, int | float) and not low <= value < high):
        raise ValueError(f"{name} must be a number in [{low}, {high}) or an array, got {value!r}")
