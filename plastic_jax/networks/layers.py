"""Parts that the networks share: activations, norms, initializers of kernels, dropout, batch normalisation."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.replacement.initializers import gain
from plastic_jax.units.activation import RATIONAL_DENOMINATOR, RATIONAL_NUMERATOR


def smooth_leaky_relu(x: jax.Array) -> jax.Array:
    """`a z + (1 - a) z sigmoid(c z / p)`, `a = 0.1`, `p = 3`, `c = 5`: slopes 0.1 and 1, without a kink.

    "Activation function design sustains plasticity in continual learning", ICLR 2026 (arXiv 2509.22562).
    """
    return 0.1 * x + 0.9 * x * nn.sigmoid(x * (5 / 3))


def crelu(x: jax.Array) -> jax.Array:
    """`[relu(z), relu(-z)]`, side by side on the last axis: every unit has two features, of which one is positive.

    Shang et al., ICML 2016; for plasticity Abbas et al., CoLLAs 2023.
    """
    return jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1)


def deep_fourier(x: jax.Array) -> jax.Array:
    """`[sin(z), cos(z)]`, side by side on the last axis: of the two slopes of a unit never both are 0.

    Lewandowski, Schuurmans and Machado, "Plastic learning with deep Fourier features", ICLR 2025.
    """
    return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)


class Rational(nn.Module):
    """`P(z) / (1 + |Q(z)|)` with learned polynomials of degrees 5 and 4, one pair for the whole layer.

    At first the published fit of leaky ReLU (slope 0.01) on [-3, 3], whose greatest error there is 0.034, at 0.
    Delfosse et al., "Adaptive rational activations to boost deep reinforcement learning", ICLR 2024, version B of their
    code; Molina et al., ICLR 2020.

    Parameters: `numerator` `[6]`, from the constant on, and `denominator` `[4]`, from the linear term on.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = (RATIONAL_NUMERATOR, RATIONAL_DENOMINATOR)
        p, q = (
            self.param(name, lambda _, values=values: jnp.asarray(values, jnp.float32)).astype(x.dtype)
            for name, values in zip(("numerator", "denominator"), first, strict=True)
        )
        return rational(x, p, q)


@jax.jit
def rational(x: jax.Array, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`P(x) / (1 + |Q(x)|)`; by this function's name `trace_units` knows the activation, whose numbers are learned."""
    return jnp.polyval(numerator[::-1], x) / (1 + jnp.abs(x * jnp.polyval(denominator[::-1], x)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "swish": nn.swish,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "smooth_leaky_relu": smooth_leaky_relu,
    "crelu": crelu,
    "deep_fourier": deep_fourier,
    "rational": lambda x: Rational()(x),
}
"""By name; `rational` has parameters, and can be called inside a Flax module only."""
TWO_FEATURES = ("crelu", "deep_fourier")
"""Activations with two features for every unit."""
NORMS: dict[str, Callable[..., jax.Array]] = {
    "none": lambda x, name=None: x,
    "layer_norm": lambda x, name=None: nn.LayerNorm(epsilon=1e-5, dtype=x.dtype, name=name)(x),
    "rms_norm": lambda x, name=None: nn.RMSNorm(epsilon=1e-5, dtype=x.dtype, name=name)(x),
}
"""Norms over the units of a layer (of a convolution: over the channels at every position), with a learned scale, and of
layer norm a shift, for every unit. They normalise pre-activations, as Lyle et al. 2023 and 2024 do."""


def activated(x: jax.Array, activation: str, norm: str = "none") -> jax.Array:
    """`f(norm(z))` for pre-activations `z`, units on the last axis. To be called inside a Flax module.

    Raises:
        ValueError: there is no such activation or norm.
    """
    for what, name, known in (("activation", activation, ACTIVATIONS), ("norm", norm, NORMS)):
        if name not in known:
            raise ValueError(f"{what}={name!r}; allowed: {', '.join(known)}")
    return ACTIVATIONS[activation](NORMS[norm](x))


def units_in(width: int, activation: str) -> int:
    """How many units make a layer of that width: with deep Fourier features, which keep the width, half, rounded up."""
    return -(-width // 2) if activation == "deep_fourier" else width


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
