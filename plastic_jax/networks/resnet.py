"""The network of class-incremental CIFAR-100."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.networks.layers import NORMS, TWO_FEATURES, BatchNorm, activated


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to their input: `relu(x' + B(C(relu(B(C(x))))))`.

    `x'` is the input, or its 1 x 1 convolution with batch normalisation where stride or channels differ.

    Attributes:
        channels: output channels.
        stride: of the first convolution.
        axis_name: see `BatchNorm`.
        dtype: of the convolutions, see `ResNet`.
        activation: in place of relu, see `ResNet`.
        norm: in place of batch normalisation, see `ResNet`.

    Input `[batch, height, width, any]`; output `[batch, height / stride, width / stride, channels]`.
    """

    channels: int
    stride: int = 1
    axis_name: str | None = None
    dtype: Any = None
    activation: str = "relu"
    norm: str = "batch_norm"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = _conv(self.channels, 3, self.stride, "Conv_0", self.dtype)(x)
        y = activated(_normed(self, y, train, "BatchNorm_0"), self.activation)
        y = _conv(self.channels, 3, 1, "Conv_1", self.dtype)(y)
        y = _normed(self, y, train, "BatchNorm_1")
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.stride, "shortcut", self.dtype)(x)
            x = _normed(self, x, train, "shortcut_norm")
        return activated(x + y, self.activation)


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
        activation: one of `ACTIVATIONS` that keep the number of channels, in place of relu.
        norm: one of `NORMS`, in place of `"batch_norm"`; its parameters are then called `LayerNorm_0` or `RMSNorm_0`.

    Raises:
        ValueError: (when called) the activation has two features for every channel.

    Input `[batch, height, width, channels]`; `train` says whether batch statistics are used and taken in (then the
    collection `batch_stats` must be mutable). Output `[batch, outputs]`. Parameters: `Conv_0`, `BatchNorm_0`,
    `BasicBlock_0`, ..., `Dense_0`.
    """

    outputs: int = 100
    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    axis_name: str | None = None
    dtype: Any = None
    activation: str = "relu"
    norm: str = "batch_norm"

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return "Dense_0"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.activation in TWO_FEATURES:
            raise ValueError(f"ResNet: activation={self.activation!r} changes the number of channels that are added")
        x = _conv(self.widths[0], 3, 1, "Conv_0", self.dtype)(x)
        x = activated(_normed(self, x, train, "BatchNorm_0"), self.activation)
        stages = zip(self.widths, self.blocks, strict=True)
        plan = [(w, 2 if i > 0 and j == 0 else 1) for i, (w, n) in enumerate(stages) for j in range(n)]
        for k, (width, stride) in enumerate(plan):
            how = (self.axis_name, self.dtype, self.activation, self.norm)
            x = BasicBlock(width, stride, *how, name=f"BasicBlock_{k}")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        x = nn.Dense(self.outputs, kernel_init=kernel_init, dtype=self.dtype, name=self.head)(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normed(module: BasicBlock | ResNet, x: jax.Array, train: bool, name: str) -> jax.Array:
    """`x` normalised as the module says, by a norm of that name or one after its kind."""
    if module.norm == "batch_norm":
        return BatchNorm(axis_name=module.axis_name, name=name)(x, train)
    if module.norm not in NORMS:
        raise ValueError(f"norm={module.norm!r}; allowed: batch_norm, {', '.join(NORMS)}")
    kind = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}.get(module.norm, "")
    return NORMS[module.norm](x, name=name.replace("BatchNorm", kind))


def _conv(channels: int, size: int, stride: int, name: str, dtype: Any) -> nn.Conv:
    # The padding is written out: "SAME" pads on one side only where the stride is 2.
    padding = [(size // 2, size // 2)] * 2
    kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    return nn.Conv(channels, (size, size), stride, padding=padding, dtype=dtype, kernel_init=kernel_init, name=name)
