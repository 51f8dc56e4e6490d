"""Recurrent cells, loops and scanned layers."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, layer, linen, normal
from tests.plastic_jax.units.notation import Expected, Model


def recurrent(make: Callable[[], nn.RNNCellBase], cell: str, incoming: str, recurrent: str) -> Model:
    """`incoming`: the layers that make the unit, "+" where there is a bias; `recurrent`: those that read it."""

    def body(x):
        return nn.Dense(2, name="readout")(nn.RNN(make())(x))

    lines = []
    for name in incoming.split():
        lines.append(f"{cell}/{name.rstrip('+')}/kernel: i u")
        if name.endswith("+"):
            lines.append(f"{cell}/{name.rstrip('+')}/bias: u")
    read = ["readout/kernel: u o", *(f"{cell}/{name}/kernel: u o" for name in recurrent.split())]
    return linen(body, normal(2, 3, 5), groups={cell: Expected(4, ";".join(lines), ";".join(read))})


@construct
def simple_rnn() -> Model:
    return recurrent(lambda: nn.SimpleCell(4), "SimpleCell_0", "i+ h", "h")


@construct
def lstm() -> Model:
    return recurrent(lambda: nn.LSTMCell(4), "LSTMCell_0", "ii if ig io hi+ hf+ hg+ ho+", "hi hf hg ho")


@construct
def optimized_lstm() -> Model:
    return recurrent(
        lambda: nn.OptimizedLSTMCell(4), "OptimizedLSTMCell_0", "ii if ig io hi+ hf+ hg+ ho+", "hi hf hg ho"
    )


@construct
def gru() -> Model:
    return recurrent(lambda: nn.GRUCell(4), "GRUCell_0", "ir+ iz+ in+ hr hz hn+", "hr hz hn")


@construct
def two_recurrent_layers() -> Model:
    def body(x):
        for i in range(2):
            x = nn.RNN(nn.GRUCell(4 - i, name=f"gru{i}"))(x)
        return nn.Dense(2, name="readout")(x[:, -1])

    made = ";".join(f"gru0/{n}/kernel: i u" for n in ("ir", "iz", "in", "hr", "hz", "hn"))
    bias = ";".join(f"gru0/{n}/bias: u" for n in ("ir", "iz", "in", "hn"))
    first = f"{made};{bias}"
    reads = lambda cell, names: ";".join(f"{cell}/{n}/kernel: u o" for n in names.split())  # noqa: E731
    return linen(
        body,
        normal(2, 3, 5),
        groups={
            "gru0": Expected(4, first, reads("gru0", "hr hz hn") + ";" + reads("gru1", "ir iz in")),
            "gru1": Expected(3, first.replace("gru0", "gru1"), reads("gru1", "hr hz hn") + ";readout/kernel: u o"),
        },
    )


@construct
def unrolled_rnn() -> Model:
    """A Python loop that uses the same weights three times."""
    params = {
        "cell": {"wx": normal(5, 4, seed=1), "wh": normal(4, 4, seed=2), "b": normal(4, seed=3)},
        "out": {"w": normal(4, 2, seed=4), "b": normal(2, seed=5)},
    }

    def apply(p, x):
        cell, h = p["cell"], jnp.zeros((x.shape[0], 4))
        for t in range(3):
            h = jnp.tanh(x[:, t] @ cell["wx"] + h @ cell["wh"] + cell["b"])
        return h @ p["out"]["w"] + p["out"]["b"]

    group = Expected(4, "cell/wx~kernel: i u; cell/wh~kernel: i u; cell/b: u", "cell/wh~kernel: u o; out/w: u o")
    return Model(apply, params, (normal(2, 3, 5),), {"cell": group})


@construct
def recurrent_with_a_learned_state() -> Model:
    params = {
        "cell": {"wx": normal(5, 4, seed=1), "wh": normal(4, 4, seed=2), "first": normal(4, seed=3)},
        "out": {"w": normal(4, 2, seed=4)},
    }

    def apply(p, x):
        cell = p["cell"]
        step = lambda h, x: (jnp.tanh(x @ cell["wx"] + h @ cell["wh"]), None)  # noqa: E731
        h, _ = jax.lax.scan(step, jnp.broadcast_to(cell["first"], (2, 4)), x)
        return h @ p["out"]["w"]

    made = "cell/wx~kernel: i u; cell/wh~kernel: i u; cell/first~bias: u"
    group = Expected(4, made, "cell/wh~kernel: u o; out/w: u o")
    return Model(apply, params, (normal(3, 2, 5),), {"cell": group})


@construct
def one_scanned_layer() -> Model:
    """A stack of one layer is no recurrence."""
    params = {"a": {"w": normal(5, 4, seed=1)}, "b": {"w": normal(1, 4, 4, seed=2)}, "c": {"w": normal(4, 2, seed=3)}}

    def apply(p, x):
        x, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), jax.nn.relu(x @ p["a"]["w"]), p["b"]["w"])
        return x @ p["c"]["w"]

    groups = {"a": Expected(4, "a/w: i u", "b/w: l u o"), "b": Expected(4, "b/w: l i u", "c/w: u o")}
    return Model(apply, params, (normal(3, 5),), groups)


@construct
def scanned_blocks() -> Model:
    """Blocks of a residual stream whose weights are stacked: a group for each block."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.gelu(nn.Dense(4)(nn.LayerNorm()(x)))
            return x + nn.Dense(3)(y), None

    def body(x):
        x = nn.Dense(3, name="stem")(x)
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(2, name="head")(x)

    def group(i):
        incoming = f"blocks/Dense_0/kernel[{i}:{i + 1}]: l i u; blocks/Dense_0/bias[{i}:{i + 1}]: l u"
        return Expected(4, incoming, f"blocks/Dense_1/kernel[{i}:{i + 1}]: l u o")

    groups = {f"blocks/Dense_0[{i}]": group(i) for i in range(2)}
    return linen(body, normal(3, 5), groups=groups, left_out="stem")


@construct
def scanned_layers() -> Model:
    """Layers without a skip: each layer's units are read by the next, the last one's by the head."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(4)(x)), None

    def body(x):
        x = nn.tanh(nn.Dense(4, name="stem")(x))
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)

    def made(i):
        return f"layers/Dense_0/kernel[{i}:{i + 1}]: l i u; layers/Dense_0/bias[{i}:{i + 1}]: l u"

    def read(i):
        return f"layers/Dense_0/kernel[{i}:{i + 1}]: l u o"

    groups = {
        "stem": Expected(4, layer("stem"), read(0)),
        "layers/Dense_0[0]": Expected(4, made(0), read(1)),
        "layers/Dense_0[1]": Expected(4, made(1), "head/kernel: u o"),
    }
    return linen(body, normal(3, 5), groups=groups)
