"""The network of Continual ImageNet."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.networks.layers import activated, dropped, torch_uniform, units_in


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
        activation: one of `ACTIVATIONS`, in place of relu; with `deep_fourier`, `channels` and `widths` count features,
            two for each unit.
        norm: of the pre-activations, one of `NORMS`.

    Input `[batch, height, width, channels]`; output `[batch, outputs]`. Parameters: `Conv_0`, ..., `Dense_0`, ...
    With a `dropout_rate` (0-d) every feature of the hidden dense layers is dropped with that probability (`dropped`).
    """

    outputs: int = 2
    channels: tuple[int, ...] = (32, 64, 128)
    kernel_sizes: tuple[int, ...] = (5, 3, 3)
    widths: tuple[int, ...] = (128, 128)
    dtype: Any = None
    activation: str = "relu"
    norm: str = "none"

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return f"Dense_{len(self.widths)}"

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        for i, (channels, size) in enumerate(zip(self.channels, self.kernel_sizes, strict=True)):
            init = dict.fromkeys(("kernel_init", "bias_init"), torch_uniform(size * size * x.shape[-1]))
            units = units_in(channels, self.activation)
            conv = nn.Conv(units, (size, size), padding="VALID", dtype=self.dtype, name=f"Conv_{i}", **init)
            x = nn.max_pool(activated(conv(x), self.activation, self.norm), (2, 2), strides=(2, 2))
        x = jnp.reshape(x, (x.shape[0], -1))
        widths = [units_in(width, self.activation) for width in self.widths]
        for i, width in enumerate((*widths, self.outputs)):
            init = dict.fromkeys(("kernel_init", "bias_init"), torch_uniform(x.shape[-1]))
            x = nn.Dense(width, dtype=self.dtype, name=f"Dense_{i}", **init)(x)
            if i < len(widths):
                x = dropped(self, activated(x, self.activation, self.norm), dropout_rate)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
