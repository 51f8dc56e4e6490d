"""How many units go at a step: from an expected number, mostly a small fraction, to a whole one."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from plastic_jax.paths import leaf_key

CountRule = Callable[[jax.Array, jax.Array], jax.Array]


def expected_replacements(
    rate: jax.Array, eligible: jax.Array, width: int, units: Literal["eligible", "all"]
) -> jax.Array:
    """What a step adds to the number owed: `rate` times the eligible units, or times all once one is eligible.

    Source: eligible: published code for dense layers; all: published code for convolutional and residual networks
    (Dohare et al., Nature 632, 2024).
    """
    return rate * (eligible if units == "eligible" else jnp.where(eligible > 0, width, 0))


def owed(
    rule: Literal["accumulate", "bernoulli"] | CountRule,
    accumulator: jax.Array,
    expected: jax.Array,
    most: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The accumulator after this step, and how many units go now: int32, at most `most`.

    accumulate:  s <- s + expected,  n = min(floor(s), most),  s <- s - n
    bernoulli:   n = [U(0, 1) <= expected] if expected < 1 else floor(expected)
    a function:  n = rule(key, expected)

    Args:
        rule: the rule.
        accumulator: float `[2]`, `s` and the rounding error of that sum.
        expected: 0-d float, the rate times the number of eligible units.
        most: 0-d int32.
        key: typed key of this step and group.

    Source: Dohare et al., Nature 632 (2024), Methods (accumulate) and published code (both).
    """
    if callable(rule):
        return accumulator, jnp.minimum(rule(key, expected), most).astype(jnp.int32)
    if rule == "bernoulli":
        drawn = (jax.random.uniform(leaf_key(key, "count"), dtype=expected.dtype) <= expected) & (expected > 0.0)
        n = jnp.where(expected < 1.0, drawn.astype(expected.dtype), jnp.floor(expected))
        return accumulator, jnp.minimum(n, most).astype(jnp.int32)
    total, error = _add(accumulator[0], accumulator[1], expected)
    n = jnp.minimum(jnp.floor(total), most)
    return jnp.stack([total - n, error]), n.astype(jnp.int32)


def _add(total: jax.Array, error: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum: at rates near 1e-6 a plain float32 sum is off by a few percent, or stalls before it reaches 1."""
    if term.dtype == jnp.float64:
        return total + term, error
    term = term - error
    grown = total + term
    return grown, (grown - total) - term
