"""The published networks, in Flax linen."""

from collections.abc import Callable

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


class MLP(nn.Module):
    """Dense layers of the given widths with one nonlinearity, and a linear output layer.

    `h_0 = x`, `h_{i+1} = f(h_i W_i + b_i)`, `y = h_n W_n + b_n`; kernels Kaiming uniform by activation, the output
    kernel with gain 1, biases 0 (Dohare et al. 2024, slowly-changing regression and online permuted MNIST).
    With no widths it is the linear baseline.

    Attributes:
        widths: units per hidden layer.
        outputs: number of outputs.
        activation: one of `ACTIVATIONS`.

    Input `[batch, ...]` is flattened to `[batch, n]`; output `[batch, outputs]`. The hidden values are sown into the
    collection `features` as `hidden_0`, `hidden_1`, ...
    """

    widths: tuple[int, ...] = (5,)
    outputs: int = 1
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.reshape(x, (x.shape[0], -1))
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=kaiming_uniform(self.activation), name=f"Dense_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
            self.sow("features", f"hidden_{i}", x)
        return nn.Dense(self.outputs, kernel_init=kaiming_uniform("linear"), name=f"Dense_{len(self.widths)}")(x)
