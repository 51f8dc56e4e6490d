"""Policy and value function of the Ant."""

import flax.linen as nn
import jax

from plastic_jax.networks.mlp import LeCunMLP


class ActorCritic(nn.Module):
    """A Gaussian policy and a value function, two `LeCunMLP`s without a weight in common (Dohare et al. 2024, Ant).

    `policy(a | x) = N(a; m(x), diag(exp(2 s)))` with a logarithm `s` of the standard deviation that is a parameter,
    0 at first.

    Attributes:
        outputs: number of actions.
        widths: units per hidden layer, of both.
        activation: one of `ACTIVATIONS`.
        norm: of the pre-activations, one of `NORMS`.

    Input `[batch, observation_size]`; output `(m, s, v)` of shapes `[batch, outputs]`, `[outputs]` and `[batch]`.
    """

    outputs: int
    widths: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean = LeCunMLP(self.widths, self.outputs, self.activation, self.norm, name="policy")(x)
        value = LeCunMLP(self.widths, 1, self.activation, self.norm, name="value")(x)
        log_std = self.param("log_std", nn.initializers.zeros, (self.outputs,))
        return mean, log_std, value[:, 0]
