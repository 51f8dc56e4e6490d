"""The published networks, in Flax linen."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.initializers import gain

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


class MLP(nn.Module):
    """Dense layers of the given widths with one nonlinearity, and a linear output layer.

    `h_0 = x`, `h_{i+1} = f(h_i W_i + b_i)`, `y = h_n W_n + b_n`; kernels Kaiming uniform by activation, the output
    kernel with gain 1, biases 0 (Dohare et al. 2024, slowly-changing regression and online permuted MNIST).
    With no widths it is the linear baseline.

    Attributes:
        widths: units per hidden layer.
        outputs: number of outputs.
        activation: one of `ACTIVATIONS`.

    Input `[batch, ...]` is flattened to `[batch, n]`; output `[batch, outputs]`. With a `dropout_rate` (0-d) every
    hidden unit is dropped with that probability (`dropped`), by the random stream `dropout`.
    """

    widths: tuple[int, ...] = (5,)
    outputs: int = 1
    activation: str = "relu"
    law = staticmethod(kaiming_uniform)

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return f"Dense_{len(self.widths)}"

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        x = jnp.reshape(x, (x.shape[0], -1))
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=self.law(self.activation), name=f"Dense_{i}")(x)
            x = dropped(self, ACTIVATIONS[self.activation](x), dropout_rate)
        return nn.Dense(self.outputs, kernel_init=self.law("linear"), name=self.head)(x)


class LeCunMLP(MLP):
    """`MLP` with all kernels LeCun uniform: `U(-b, b)`, `b = sqrt(3 / fan_in)`."""

    law = staticmethod(lecun_uniform)


class ActorCritic(nn.Module):
    """A Gaussian policy and a value function, two `LeCunMLP`s without a weight in common (Dohare et al. 2024, Ant).

    `policy(a | x) = N(a; m(x), diag(exp(2 s)))` with a logarithm `s` of the standard deviation that is a parameter,
    0 at first.

    Attributes:
        outputs: number of actions.
        widths: units per hidden layer, of both.
        activation: one of `ACTIVATIONS`.

    Input `[batch, observation_size]`; output `(m, s, v)` of shapes `[batch, outputs]`, `[outputs]` and `[batch]`.
    """

    outputs: int
    widths: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean = LeCunMLP(self.widths, self.outputs, self.activation, name="policy")(x)
        value = LeCunMLP(self.widths, 1, self.activation, name="value")(x)
        log_std = self.param("log_std", nn.initializers.zeros, (self.outputs,))
        return mean, log_std, value[:, 0]


def dropped(module: nn.Module, x: jax.Array, rate: jax.Array | None) -> jax.Array:
    """`x_i / (1 - rate)` with probability `1 - rate`, else 0, independently; `x` itself where `rate` is `None`.

    Differs from `flax.linen.Dropout` in that the rate may be traced, so that runs of several rates share a program
    (Srivastava et al., JMLR 2014).
    """
    if rate is None:
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Flax initializer: `U(-b, b)`, `b = sqrt(1 / fan_in)`: PyTorch's default for kernels and biases alike."""
    bound = math.sqrt(1.0 / fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class ConvNet(nn.Module):
    """The network of Continual ImageNet: convolutions with max-pooling, then dense layers.

    Per convolution (stride 1, no padding): convolution, relu, 2 x 2 max-pool with stride 2; the map is flattened with
    the channel running fastest, then dense layers with relu and a linear output layer. Kernels and biases are
    `U(-b, b)`, `b = sqrt(1 / fan_in)`. With the default sizes, pictures of 32 x 32 x 3 and 2 outputs it has 177,218
    parameters, and its units read maps of 14 x 14 x 32, 6 x 6 x 64, then 2 x 2 x 128 = 512, 128 and 128 values
    (Dohare et al. 2024, Methods, Continual ImageNet, and published code).

    Attributes:
        outputs: number of outputs.
        channels: output channels per convolution.
        kernel_sizes: side of the square kernel per convolution.
        widths: units per hidden dense layer.
        dtype: of the arithmetic, with parameters in float32; `None` for that of inputs and parameters. Outputs are
            float32 at least.

    Input `[batch, height, width, channels]`; output `[batch, outputs]`. Parameters: `Conv_0`, ..., `Dense_0`, ...
    With a `dropout_rate` (0-d) every unit of the hidden dense layers is dropped with that probability (`dropped`).
    """

    outputs: int = 2
    channels: tuple[int, ...] = (32, 64, 128)
    kernel_sizes: tuple[int, ...] = (5, 3, 3)
    widths: tuple[int, ...] = (128, 128)
    dtype: Any = None

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return f"Dense_{len(self.widths)}"

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        for i, (channels, size) in enumerate(zip(self.channels, self.kernel_sizes, strict=True)):
            laws = dict.fromkeys(("kernel_init", "bias_init"), torch_uniform(size * size * x.shape[-1]))
            conv = nn.Conv(channels, (size, size), padding="VALID", dtype=self.dtype, name=f"Conv_{i}", **laws)
            x = nn.max_pool(nn.relu(conv(x)), (2, 2), strides=(2, 2))
        x = jnp.reshape(x, (x.shape[0], -1))
        for i, width in enumerate((*self.widths, self.outputs)):
            laws = dict.fromkeys(("kernel_init", "bias_init"), torch_uniform(x.shape[-1]))
            x = nn.Dense(width, dtype=self.dtype, name=f"Dense_{i}", **laws)(x)
            x = dropped(self, nn.relu(x), dropout_rate) if i < len(self.widths) else x
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to their input: `relu(x' + B(C(relu(B(C(x))))))`.

    `x'` is the input, or its 1 x 1 convolution with batch normalisation where stride or channels differ.

    Attributes:
        channels: output channels.
        stride: of the first convolution.
        axis_name: see `BatchNorm`.
        dtype: of the convolutions, see `ResNet`.

    Input `[batch, height, width, any]`; output `[batch, height / stride, width / stride, channels]`.
    """

    channels: int
    stride: int = 1
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv(self.channels, 3, self.stride, "Conv_0", self.dtype)(x)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="BatchNorm_0")(y, train))
        y = _conv(self.channels, 3, 1, "Conv_1", self.dtype)(y)
        y = BatchNorm(axis_name=self.axis_name, name="BatchNorm_1")(y, train)
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.stride, "shortcut", self.dtype)(x)
            x = BatchNorm(axis_name=self.axis_name, name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-18 for small pictures, as published for class-incremental CIFAR-100.

    A 3 x 3 convolution with stride 1, batch normalisation and relu, no max-pool; per stage two `BasicBlock`s, the first
    of stages 2, 3 and 4 with stride 2; the mean over positions; a linear output layer. Convolutions have biases.
    Kernels are Kaiming normal by fan-in, `N(0, gain^2 / fan_in)` with gain sqrt(2) for convolutions and 1 for the
    output layer; biases 0. With the default sizes and pictures of 32 x 32 x 3 it has 11,224,932 parameters
    (He et al. 2016; Dohare et al. 2024, Methods, Class-incremental CIFAR-100, and published code).

    Attributes:
        outputs: number of outputs.
        widths: channels per stage; the stem has those of the first stage.
        blocks: blocks per stage.
        axis_name: see `BatchNorm`.
        dtype: of the arithmetic of convolutions and output layer, with parameters, batch statistics and outputs in
            float32 at least; `None` for that of inputs and parameters.

    Input `[batch, height, width, channels]`; `train` says whether batch statistics are used and taken in (then the
    collection `batch_stats` must be mutable). Output `[batch, outputs]`. Parameters: `Conv_0`, `BatchNorm_0`,
    `BasicBlock_0`, ..., `Dense_0`.
    """

    outputs: int = 100
    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    axis_name: str | None = None
    dtype: Any = None

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return "Dense_0"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = _conv(self.widths[0], 3, 1, "Conv_0", self.dtype)(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="BatchNorm_0")(x, train))
        stages = zip(self.widths, self.blocks, strict=True)
        plan = [(w, 2 if i > 0 and j == 0 else 1) for i, (w, n) in enumerate(stages) for j in range(n)]
        for k, (width, stride) in enumerate(plan):
            x = BasicBlock(width, stride, self.axis_name, self.dtype, name=f"BasicBlock_{k}")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        law = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        x = nn.Dense(self.outputs, kernel_init=law, dtype=self.dtype, name=self.head)(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _conv(channels: int, size: int, stride: int, name: str, dtype: Any) -> nn.Conv:
    # The padding is written out: "SAME" pads on one side only where the stride is 2.
    padding = [(size // 2, size // 2)] * 2
    law = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    return nn.Conv(channels, (size, size), stride, padding=padding, dtype=dtype, kernel_init=law, name=name)
