"""Recurrent language models: GRU and LSTM."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from plastic_jax.networks.layers import ACTIVATIONS, TWO_FEATURES, dropped

CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
RECURRENT_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name not in (*TWO_FEATURES, "rational"))
"""Activations of a state: one feature for every unit, and nothing learned."""


class RecurrentLM(nn.Module):
    """A recurrent language model: embedding, layers of GRU or LSTM cells, a linear output layer.

    Every sequence begins with states of 0. Input kernels LeCun normal, recurrent ones orthogonal, biases 0; the gates
    are those of Flax's `GRUCell` (Cho et al. 2014) and `OptimizedLSTMCell` (Hochreiter and Schmidhuber 1997).

    Attributes:
        outputs: number of tokens.
        cell: `"gru"` or `"lstm"`.
        layers: number of recurrent layers.
        width: units of every layer, and channels of the embedding.
        activation: of a cell's new state (of an LSTM also of what is read of it); the gates stay logistic.

    Input: tokens, integers `[batch, length]`; output `[batch, length, outputs]`, at every position the logits of the
    token that follows. The sizes by default have 0.9 (GRU) and 1.2 million (LSTM) parameters with 256 tokens. With a
    `dropout_rate` (0-d) what a layer gives to the next is dropped (Zaremba et al. 2014).

    Raises:
        ValueError: a field is none of what is allowed.
    """

    outputs: int = 256
    cell: str = "gru"
    layers: int = 2
    width: int = 256
    activation: str = "tanh"

    head = "head"
    """Name of the output layer."""

    def __post_init__(self) -> None:
        for name in ("layers", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a positive integer")
        for name, allowed in (("cell", CELLS), ("activation", RECURRENT_ACTIVATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        x = nn.Embed(self.outputs, self.width, name="embedding")(tokens)
        for i in range(self.layers):
            cell = CELLS[self.cell](self.width, activation_fn=ACTIVATIONS[self.activation], parent=None)
            states: Any = nn.RNN(cell, name=f"{self.cell}_{i}")(x)
            x = dropped(self, states, dropout_rate)
        return nn.Dense(self.outputs, name=self.head)(x)
