"""Dense networks: the MLP of regression and MNIST."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.networks.layers import activated, dropped, kaiming_uniform, lecun_uniform, units_in


class MLP(nn.Module):
    """Dense layers of the given widths with one nonlinearity, and a linear output layer.

    `h_0 = x`, `h_{i+1} = f(h_i W_i + b_i)`, `y = h_n W_n + b_n`; kernels Kaiming uniform by activation, the output
    kernel with gain 1, biases 0 (Dohare et al. 2024, slowly-changing regression and online permuted MNIST).
    With no widths it is the linear baseline.

    Attributes:
        widths: units per hidden layer; with `deep_fourier` features, two for each unit.
        outputs: number of outputs.
        activation: one of `ACTIVATIONS`.
        norm: of the pre-activations, one of `NORMS`.

    Input `[batch, ...]` is flattened to `[batch, n]`; output `[batch, outputs]`. With a `dropout_rate` (0-d) every
    hidden feature is dropped with that probability (`dropped`), by the random stream `dropout`.
    """

    widths: tuple[int, ...] = (5,)
    outputs: int = 1
    activation: str = "relu"
    norm: str = "none"
    kernel_init = staticmethod(kaiming_uniform)

    @property
    def head(self) -> str:
        """Name of the output layer."""
        return f"Dense_{len(self.widths)}"

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        x = jnp.reshape(x, (x.shape[0], -1))
        for i, width in enumerate(self.widths):
            units, kernel_init = units_in(width, self.activation), self.kernel_init(self.activation)
            x = nn.Dense(units, kernel_init=kernel_init, name=f"Dense_{i}")(x)
            x = dropped(self, activated(x, self.activation, self.norm), dropout_rate)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init("linear"), name=self.head)(x)


class LeCunMLP(MLP):
    """`MLP` with all kernels LeCun uniform: `U(-b, b)`, `b = sqrt(3 / fan_in)`."""

    kernel_init = staticmethod(lecun_uniform)
