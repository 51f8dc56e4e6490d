"""Policy and value function, with or without a memory."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.networks.layers import activated, lecun_uniform, units_in
from plastic_jax.networks.mlp import LeCunMLP

MEMORIES = ("none", "gru")
"""What `ActorCritic` remembers with."""


class ActorCritic(nn.Module):
    """A policy and a value function, two `LeCunMLP`s without a weight in common (Dohare et al. 2024, Ant).

    Of continuous actions, `policy(a | x) = N(a; m(x), diag(exp(2 s)))` with a logarithm `s` of the standard deviation
    that is a parameter, 0 at first; of discrete ones, `policy(a | x) = softmax(m(x))_a`.

    With a memory the last hidden layer of both is a gated recurrent unit (Cho et al. 2014), which goes on from step
    to step: see `RecurrentMLP`.

    Attributes:
        outputs: number of actions.
        widths: units per hidden layer, of both.
        activation: one of `ACTIVATIONS`; a recurrent layer has tanh.
        norm: of the pre-activations, one of `NORMS`; a recurrent layer has none.
        discrete: whether one of the actions is chosen, in place of a number for each.
        memory: one of `MEMORIES`.

    Input `[batch, observation_size]`; output `(m, s, v)` of shapes `[batch, outputs]`, `[outputs]` and `[batch]`, and
    `(m, v)` of discrete actions. With a memory, see `RecurrentMLP` for what is read beside the input; the result is
    `(output, memory)`, with a dictionary `memory` of arrays `[batch, widths[-1]]`.
    """

    outputs: int
    widths: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    norm: str = "none"
    discrete: bool = False
    memory: str = "none"

    def initial_memory(self, batch: int) -> dict[str, jax.Array] | None:
        """The memory at the start of an episode: 0; `None` without one."""
        if self.memory == "none":
            return None
        return {name: jnp.zeros((batch, self.widths[-1])) for name in ("policy", "value")}

    @nn.compact
    def __call__(self, x: jax.Array, memory: Any = None, starts: jax.Array | None = None) -> Any:
        after = None
        if self.memory == "none":
            mean = LeCunMLP(self.widths, self.outputs, self.activation, self.norm, name="policy")(x)
            value = LeCunMLP(self.widths, 1, self.activation, self.norm, name="value")(x)
        else:
            memory = self.initial_memory(len(x)) if memory is None else memory
            network = (self.activation, self.norm)
            mean, policy = RecurrentMLP(self.widths, self.outputs, *network, name="policy")(x, memory["policy"], starts)
            value, valued = RecurrentMLP(self.widths, 1, *network, name="value")(x, memory["value"], starts)
            after = {"policy": policy, "value": valued}
        if self.discrete:
            output = mean, value[..., 0]
        else:
            output = mean, self.param("log_std", nn.initializers.zeros, (self.outputs,)), value[..., 0]
        return output if after is None else (output, after)


class RecurrentMLP(nn.Module):
    """Dense layers, a gated recurrent unit as the last hidden layer, and a linear output layer.

    With `h` the memory before a step, `r, z = sigmoid(x W_r + h U_r + b_r)` and likewise `z`,
    `n = tanh(x W_n + b_n + r (h U_n + c_n))`, the memory after it and the layer's value are `(1 - z) n + z h`.
    Kernels that read the input are LeCun uniform, those that read the memory orthogonal, biases 0.

    Attributes:
        widths: units per hidden layer, at least one; the last is the recurrent one.
        outputs: number of outputs.
        activation: of the dense layers, one of `ACTIVATIONS`.
        norm: of the dense layers, one of `NORMS`.

    Input `[batch, n]`, one step, with the memory `[batch, widths[-1]]` before it; output `[batch, outputs]` and the
    memory after. Or input `[batch, steps, n]` with the memory before the first, and bool `starts` `[batch, steps]`,
    true where a step begins an episode and the memory before it counts as 0; output `[batch, steps, outputs]`.
    """

    widths: tuple[int, ...]
    outputs: int
    activation: str = "relu"
    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array, starts: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        *widths, last = self.widths
        for i, width in enumerate(widths):
            dense = nn.Dense(units_in(width, self.activation), kernel_init=lecun_uniform("linear"), name=f"Dense_{i}")
            x = activated(dense(x), self.activation, self.norm)
        cell = nn.GRUCell(last, kernel_init=lecun_uniform("linear"), name="GRU")
        if x.ndim == 2:
            memory, x = cell(memory, x)
        else:
            starts = jnp.zeros(x.shape[:2], bool) if starts is None else starts
            scanned = nn.scan(_step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
            memory, x = scanned(cell, memory, (x, starts))
        head = nn.Dense(self.outputs, kernel_init=lecun_uniform("linear"), name=f"Dense_{len(widths)}")
        return head(x), memory


def _step(cell: nn.RNNCellBase, memory: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x, starts = now
    return cell(jnp.where(starts[:, None], 0, memory), x)
