"""Dense networks: the MLP of regression and MNIST."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.networks.layers import ACTIVATIONS, dropped, kaiming_uniform, lecun_uniform


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
    kernel_init = staticmethod(kaiming_uniform)

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return f"Dense_{len(self.widths)}"

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        x = jnp.reshape(x, (x.shape[0], -1))
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=self.kernel_init(self.activation), name=f"Dense_{i}")(x)
            x = dropped(self, ACTIVATIONS[self.activation](x), dropout_rate)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init("linear"), name=self.head)(x)


class LeCunMLP(MLP):
    """`MLP` with all kernels LeCun uniform: `U(-b, b)`, `b = sqrt(3 / fan_in)`."""

    kernel_init = staticmethod(lecun_uniform)
