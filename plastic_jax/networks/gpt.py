"""A causal transformer over tokens, with the norm before every block."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastic_jax.networks.layers import NORMS, activated, dropped, units_in

POSITIONS = ("learned", "rotary")


class GPT(nn.Module):
    """A causal language model: attention and an MLP of four times the width in every layer, both behind a norm.

    `x = E[token] (+ P[position])`; `x = x + attention(norm(x))`, `x = x + MLP(norm(x))` for every layer; logits
    `norm(x) W`. Kernels and embeddings `N(0, 0.02^2)`, those that write to `x` divided by `sqrt(2 layers)`, biases 0
    (Radford et al. 2019). With `positions="rotary"` queries and keys are turned by their position instead of adding
    `P` (Su et al. 2021, base 10,000; the first half of a head's channels is paired with the second).

    Differs from GPT-2 in that the output kernel is not the embedding. Its hidden units are those of the MLPs and the
    values of attention.

    Attributes:
        outputs: number of tokens.
        layers: number of layers.
        width: channels of `x`; a multiple of `heads`, with rotary positions of `2 heads`.
        heads: of attention.
        positions: `"learned"`, one vector for every position of the inputs, or `"rotary"`.
        activation: of the MLPs, one of `ACTIVATIONS`.
        norm: one of `NORMS`.

    Input: tokens, integers `[batch, length]`; output `[batch, length, outputs]`, at every position the logits of the
    token that follows. The sizes by default have 1.1 million parameters with 256 tokens and 128 positions. With a
    `dropout_rate` (0-d) hidden features of the MLPs are dropped.

    Raises:
        ValueError: a field is none of what is allowed.
    """

    outputs: int = 256
    layers: int = 5
    width: int = 128
    heads: int = 4
    positions: str = "learned"
    activation: str = "gelu"
    norm: str = "layer_norm"

    head = "head"
    """Name of the output layer."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a positive integer")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r}; allowed: {', '.join(POSITIONS)}")
        least = self.heads * (2 if self.positions == "rotary" else 1)
        if self.width % least:
            raise ValueError(f"width={self.width} is not a multiple of {least}, as {self.heads} heads need")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, dropout_rate: jax.Array | None = None) -> jax.Array:
        first = nn.initializers.normal(0.02)
        last = nn.initializers.normal(0.02 / (2 * self.layers) ** 0.5)
        norm = NORMS[self.norm]
        x = nn.Embed(self.outputs, self.width, embedding_init=first, name="embedding")(tokens)
        if self.positions == "learned":
            x = x + self.param("positions", first, (tokens.shape[1], self.width)).astype(x.dtype)
        for i in range(self.layers):
            dense = functools.partial(nn.Dense, kernel_init=first)
            read = norm(x, name=f"norm_attention_{i}")
            q, k, v = (dense(self.width, name=f"{name}_{i}")(read) for name in ("query", "key", "value"))
            x = x + nn.Dense(self.width, kernel_init=last, name=f"attention_{i}")(self._attended(q, k, v))
            hidden = dense(units_in(4 * self.width, self.activation), name=f"hidden_{i}")(norm(x, name=f"norm_mlp_{i}"))
            hidden = dropped(self, activated(hidden, self.activation), dropout_rate)
            x = x + nn.Dense(self.width, kernel_init=last, name=f"mlp_{i}")(hidden)
        return nn.Dense(self.outputs, use_bias=False, kernel_init=first, name=self.head)(norm(x, name="norm_head"))

    def _attended(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Values by causal attention, `[batch, length, width]`."""
        batch, length, width = q.shape
        q, k, v = (a.reshape(batch, length, self.heads, -1) for a in (q, k, v))
        if self.positions == "rotary":
            q, k = rotated(q), rotated(k)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        scores = jnp.where(jnp.tri(length, dtype=bool), scores, jnp.finfo(scores.dtype).min)
        return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v).reshape(batch, length, width)


def rotated(x: jax.Array) -> jax.Array:
    """Channels `i` and `i + d / 2` of `x` `[batch, length, heads, d]` turned by `position * 10000^(-2 i / d)`."""
    length, d = x.shape[1], x.shape[-1]
    angle = jnp.arange(length)[:, None, None] * 10000.0 ** (-2 * jnp.arange(d // 2) / d)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
