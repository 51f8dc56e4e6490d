"""Parts that the networks share: activations, initializers of kernels, dropout, batch normalisation."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.replacement.initializers import gain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "swish": nn.swish,
}


def kaiming_uniform(activation: str) -> Callable[..., jax.Array]:
    """Flax initializer: `U(-b, b)`, `b = gain(activation) * sqrt(3 / fan_in)`."""
    return nn.initializers.variance_scaling(gain(activation) ** 2, "fan_in", "uniform")


def lecun_uniform(activation: str) -> Callable[..., jax.Array]:
    """Flax initializer: `U(-b, b)`, `b = sqrt(3 / fan_in)`, whatever the activation."""
    del activation
    return nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Flax initializer: `U(-b, b)`, `b = sqrt(1 / fan_in)`: PyTorch's default for kernels and biases alike."""
    bound = math.sqrt(1.0 / fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def dropped(module: nn.Module, x: jax.Array, rate: jax.Array | None) -> jax.Array:
    """`x_i / (1 - rate)` with probability `1 - rate`, else 0, independently; `x` itself where `rate` is `None`.

    Differs from `flax.linen.Dropout` in that the rate may be traced, so that runs of several rates share a program
    (Srivastava et al., JMLR 2014).
    """
    if rate is None:
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last: `scale (x - m) / sqrt(v + epsilon) + bias`.

    When training, `m` and `v` are the batch's mean and biased variance (divided by `n`), and the running averages take
    in `1 - momentum` of the batch's mean and of its variance; otherwise they are the running averages.
    Differs from `flax.linen.BatchNorm` in `unbiased`.

    Attributes:
        momentum: what the running averages keep per step.
        epsilon: added to the variance.
        unbiased: whether the running variance takes in the unbiased variance of the batch (divided by `n - 1`, as
            PyTorch does), or the biased one (as Flax does).
        axis_name: name of a mapped axis (devices) over which the batch is split in equal parts: `m`, `v` and `n` are
            those of the whole batch, the same on every device. Used when training only, so that evaluation and `init`
            need no mapped axis.

    Parameters `scale` (1) and `bias` (0); collection `batch_stats`: `mean` (0) and `var` (1); all `[channels]`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape, n = x.shape[-1:], math.prod(x.shape[:-1])
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            mean, var = _moments(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis_name)
            n *= 1 if axis_name is None else jax.lax.psum(1, axis_name)
            if not self.is_initializing():
                seen = var * (n / max(n - 1, 1)) if self.unbiased else var
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * seen
        else:
            mean, var = running_mean.value, running_var.value
        # Statistics are float32 at least; what goes on to the next layer is of the input's type.
        return ((x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(x.dtype)


def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over every axis but the last, and over the mapped axis."""
    axes = tuple(range(x.ndim - 1))
    if axis_name is None:
        return jnp.mean(x, axes), jnp.var(x, axes)
    mean = jax.lax.pmean(jnp.mean(x, axes), axis_name)
    return mean, jax.lax.pmean(jnp.mean(jnp.square(x - mean), axes), axis_name)
