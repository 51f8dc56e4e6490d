"""Attention and transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, dense, layer, linen, normal
from tests.plastic_jax.units.notation import Expected, Model


@construct
def attention() -> Model:
    def body(x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=4, name="attention")(x)

    group = Expected(6, layer("attention/value", use="i u v"), "attention/out/kernel: u v o", blocks=2)
    left_out = "attention/query attention/key"
    return linen(body, normal(2, 3, 5), groups={"attention/value": group}, left_out=left_out)


@construct
def attention_of_one_kernel() -> Model:
    """Query, key and value from one matrix product: the units are in its last third."""

    def body(x):
        batch, length, _ = x.shape
        q, k, v = jnp.split(nn.Dense(12, name="qkv")(x), 3, axis=-1)
        q, k, v = (a.reshape(batch, length, 2, 2).transpose(0, 2, 1, 3) for a in (q, k, v))
        weights = nn.softmax(jnp.where(jnp.tri(length, dtype=bool), q @ k.swapaxes(-1, -2) / jnp.sqrt(2.0), -jnp.inf))
        y = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, 4)
        return nn.Dense(3, name="out")(y)

    group = Expected(4, "qkv/kernel[:, 8:12]: i u; qkv/bias[8:12]: u", "out/kernel: u o", blocks=2)
    return linen(body, normal(2, 3, 5), groups={"qkv": group}, left_out="qkv")


@construct
def attention_by_one_score() -> Model:
    """The score's only channel weighs all units, which stay units of their own beside another value."""

    def body(x):
        h = nn.relu(nn.Dense(4, name="h")(x))
        context = jnp.einsum("bt,btd->bd", nn.softmax(nn.Dense(1, name="score")(h)[..., 0]), h)
        return nn.Dense(2, name="out")(jnp.concatenate([context, x[:, 0]], axis=-1))

    group = Expected(4, layer("h"), "score/kernel: u o; out/kernel[:4]: u o")
    return linen(body, normal(2, 3, 5), groups={"h": group}, left_out="score")


@construct
def transformer() -> Model:
    def body(tokens):
        x = nn.Embed(7, 6, name="embed")(tokens) + nn.Embed(3, 6, name="position")(jnp.arange(3))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm{i}a")(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, name=f"attention{i}")(y)
            y = nn.gelu(nn.Dense(8, name=f"in{i}")(nn.LayerNorm(name=f"norm{i}b")(x)))
            x = x + nn.Dense(6, name=f"out{i}")(y)
        return nn.Dense(7, name="head")(nn.LayerNorm(name="norm")(x))

    groups = {}
    for i in range(2):
        a = f"attention{i}"
        groups[f"{a}/value"] = Expected(6, layer(f"{a}/value", use="i u v"), f"{a}/out/kernel: u v o", blocks=2)
        groups[f"in{i}"] = dense(8, f"in{i}", f"out{i}")
    left_out = "embed attention0/query attention0/key attention1/query attention1/key"
    return linen(body, jnp.array([[1, 2, 0], [0, 6, 5]]), groups=groups, left_out=left_out)


@construct
def learned_queries() -> Model:
    """Scores are channels of the queries, but weigh the values and are no units with them."""
    params = {
        "q": normal(3, 2, 2, seed=1),
        "k": normal(5, 4, seed=2),
        "v": {"kernel": normal(5, 4, seed=3)},
        "o": {"kernel": normal(4, 2, seed=4)},
    }

    def apply(p, x):
        keys, values = ((x @ w).reshape(2, -1, 2, 2) for w in (p["k"], p["v"]["kernel"]))
        scores = jax.nn.softmax(jnp.einsum("thd,bshd->bhts", p["q"], keys))
        return jnp.einsum("bhts,bshd->bthd", scores, values).reshape(2, 3, 4) @ p["o"]["kernel"]

    group = Expected(4, "v/kernel: i u", "o/kernel: u o", blocks=2)
    return Model(apply, params, (normal(2, 3, 5),), {"v": group}, left_out="k[0] k[1] q")
