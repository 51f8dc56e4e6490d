"""Running mean and variance of inputs, observations and rewards, for normalising them as they come."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastic_jax.axes import mean_over


class Moments(NamedTuple):
    """Running mean and variance: 0-d float32 number of values, mean and sum of squared deviations."""

    number: jax.Array
    mean: jax.Array
    squares: jax.Array


def no_moments(shape: tuple[int, ...]) -> Moments:
    """Moments of no value yet."""
    return Moments(jnp.zeros([]), jnp.zeros(shape), jnp.zeros(shape))


def taken_in(
    moments: Moments, x: jax.Array, decay: float | jax.Array | None = None, axis_name: str | None = None
) -> Moments:
    """Moments with the values `[n, ...]` taken in (Chan et al. 1983).

    Args:
        moments: those before.
        x: the values.
        decay: what the weight of earlier values is multiplied with for every new one: with it the mean is an
            exponential moving average over about `1 / (1 - decay)` values, unbiased from the first on; `None`: all
            values count the same.
        axis_name: mapped axis over which the values are split in equal parts.
    """
    n = len(x) if axis_name is None else len(x) * jax.lax.psum(1, axis_name)
    if decay is not None:
        kept = jnp.power(decay, n)
        moments = moments._replace(number=moments.number * kept, squares=moments.squares * kept)
    mean = mean_over(jnp.mean(x, axis=0), axis_name)
    count, off = moments.number + n, mean - moments.mean
    spread = jnp.sum(jnp.square(x - mean), axis=0)
    squares = moments.squares + (spread if axis_name is None else jax.lax.psum(spread, axis_name))
    squares += jnp.square(off) * moments.number * n / count
    return Moments(count, moments.mean + off * n / count, squares)


def deviation(moments: Moments) -> jax.Array:
    """Standard deviation; 1 before there is any value."""
    variance = moments.squares / jnp.maximum(moments.number, 1.0)
    return jnp.where(moments.number > 0, jnp.sqrt(jnp.maximum(variance, 1e-8)), 1.0)


def normalised(moments: Moments | None, x: jax.Array) -> jax.Array:
    """`(x - mean) / deviation`, clipped to 10 deviations; `x` itself without moments."""
    return x if moments is None else jnp.clip((x - moments.mean) / deviation(moments), -10, 10)
