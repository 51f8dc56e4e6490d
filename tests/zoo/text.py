"""Language models."""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tests.zoo.zoo import STREAM, Network, architecture, linen


class GPT(nn.Module):
    """Radford et al. 2019 as nanoGPT writes it: one kernel for query, key and value; the head is the embedding."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    context: int = 1024
    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens, train=True):
        batch, length = tokens.shape
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
        wte = nn.Embed(self.vocabulary, self.width, name="wte")
        x = drop(wte(tokens) + nn.Embed(self.context, self.width, name="wpe")(jnp.arange(length)))
        for i in range(self.layers):
            y = nn.Dense(3 * self.width, name=f"h{i}_attn_c_attn")(nn.LayerNorm(name=f"h{i}_ln_1")(x))
            q, k, v = (a.reshape(batch, length, self.heads, -1) for a in jnp.split(y, 3, axis=-1))
            weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            weights = jnp.where(jnp.tri(length, dtype=bool), weights, jnp.finfo(weights.dtype).min)
            y = jnp.einsum("bhqk,bkhd->bqhd", drop(nn.softmax(weights)), v).reshape(batch, length, self.width)
            x = x + drop(nn.Dense(self.width, name=f"h{i}_attn_c_proj")(y))
            y = nn.gelu(nn.Dense(4 * self.width, name=f"h{i}_mlp_c_fc")(nn.LayerNorm(name=f"h{i}_ln_2")(x)))
            x = x + drop(nn.Dense(self.width, name=f"h{i}_mlp_c_proj")(y))
        return wte.attend(nn.LayerNorm(name="ln_f")(x))


@architecture("GPT-2", "Radford et al. 2019, as nanoGPT", 124_439_808)
def gpt(full: bool) -> Network:
    if full:
        tokens = np.zeros((1, 64), np.int32)
        return linen(GPT(dropout=0.0), tokens, found=(24, 12 * (768 + 3072), 12 * (768 + 3072)), left_out=(STREAM,))
    net = GPT(2, 4, 2, vocabulary=11, context=6, dropout=0.0)
    return linen(
        net, np.array([[1, 2, 3], [4, 5, 10]], np.int32), found=(4, 2 * (4 + 16), 2 * (4 + 16)), left_out=(STREAM,)
    )


class Bert(nn.Module):
    """Devlin et al. 2019: norms behind the sums; masked tokens are predicted with the embedding."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 30522
    context: int = 512

    @nn.compact
    def __call__(self, tokens):
        norm = functools.partial(nn.LayerNorm, epsilon=1e-12)
        words = nn.Embed(self.vocabulary, self.width, name="words")
        x = words(tokens) + nn.Embed(self.context, self.width, name="positions")(jnp.arange(tokens.shape[1]))
        x = norm()(x + nn.Embed(2, self.width, name="segments")(jnp.zeros_like(tokens)))
        for i in range(self.layers):
            x = norm()(x + nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")(x))
            y = nn.gelu(nn.Dense(self.hidden, name=f"in_{i}")(x), approximate=False)
            x = norm()(x + nn.Dense(self.width, name=f"out_{i}")(y))
        x = norm()(nn.gelu(nn.Dense(self.width, name="transform")(x), approximate=False))
        return words.attend(x) + self.param("bias", nn.initializers.zeros_init(), (self.vocabulary,))


# The transformation before the output is read by the embedding. The embedding is the stream.
@architecture("BERT-base", "Devlin et al. 2019")
def bert(full: bool) -> Network:
    net = Bert() if full else Bert(2, 4, 2, 6, 7, 5)
    units = net.layers * (net.width + net.hidden)
    tokens = np.zeros((1, 32), np.int32) if full else np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    return linen(net, tokens, found=(2 * net.layers, units, units), left_out=(STREAM, "tied weights"))


class Llama(nn.Module):
    """Touvron et al. 2023, with grouped queries (Ainslie et al. 2023): RMS norm, rotary positions, SwiGLU."""

    layers: int = 22
    width: int = 2048
    heads: int = 32
    groups: int = 4
    hidden: int = 5632
    vocabulary: int = 32000

    @nn.compact
    def __call__(self, tokens):
        batch, length = tokens.shape
        dense = functools.partial(nn.Dense, use_bias=False)
        size = self.width // self.heads
        angle = jnp.arange(length)[:, None] * 10000.0 ** -(jnp.arange(0, size, 2) / size)

        def rotate(x):
            a, b = jnp.split(x, 2, axis=-1)
            cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
            return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        for i in range(self.layers):
            y = nn.RMSNorm(name=f"norm_a{i}")(x)
            q = rotate(dense(self.width, name=f"q{i}")(y).reshape(batch, length, self.heads, size))
            k = rotate(dense(self.groups * size, name=f"k{i}")(y).reshape(batch, length, self.groups, size))
            v = dense(self.groups * size, name=f"v{i}")(y).reshape(batch, length, self.groups, size)
            k, v = (jnp.repeat(a, self.heads // self.groups, axis=2) for a in (k, v))
            weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(size)
            weights = nn.softmax(jnp.where(jnp.tri(length, dtype=bool), weights, -1e9))
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, self.width)
            x = x + dense(self.width, name=f"o{i}")(y)
            y = nn.RMSNorm(name=f"norm_b{i}")(x)
            y = nn.silu(dense(self.hidden, name=f"gate{i}")(y)) * dense(self.hidden, name=f"up{i}")(y)
            x = x + dense(self.width, name=f"down{i}")(y)
        return dense(self.vocabulary, name="head")(nn.RMSNorm(name="norm")(x))


# A value channel is read by all heads of its group.
@architecture("Llama (TinyLlama 1.1B)", "Touvron et al. 2023, Zhang et al. 2024", 1_100_048_384)
def llama(full: bool) -> Network:
    net = Llama() if full else Llama(2, 16, 4, 2, 6, 7)
    units = net.layers * (net.groups * net.width // net.heads + net.hidden)
    tokens = np.zeros((1, 16), np.int32) if full else np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    return linen(net, tokens, found=(2 * net.layers, units, units), left_out=(STREAM,))


class T5(nn.Module):
    """Raffel et al. 2020, small: encoder and decoder, relu, relative positions, one embedding for all three."""

    layers: int = 6
    width: int = 512
    heads: int = 8
    hidden: int = 2048
    vocabulary: int = 32128
    buckets: int = 32

    @nn.compact
    def __call__(self, source, target):
        attention = functools.partial(nn.MultiHeadDotProductAttention, self.heads, use_bias=False)
        words = nn.Embed(self.vocabulary, self.width, name="words")

        def block(x, name, memory=None):
            norm = lambda: nn.RMSNorm()(x)  # noqa: E731
            mask = None if memory is None else nn.make_causal_mask(target)
            x = x + attention(name=f"{name}_self")(norm(), mask=mask)
            if memory is not None:
                x = x + attention(name=f"{name}_cross")(norm(), memory)
            y = nn.relu(nn.Dense(self.hidden, use_bias=False, name=f"{name}_in")(norm()))
            return x + nn.Dense(self.width, use_bias=False, name=f"{name}_out")(y)

        x = words(source)
        for i in range(self.layers):
            x = block(x, f"encoder{i}")
        memory, x = nn.RMSNorm(name="encoder_norm")(x), words(target)
        for i in range(self.layers):
            x = block(x, f"decoder{i}", memory)
        return words.attend(nn.RMSNorm(name="norm")(x) / math.sqrt(self.width))


@architecture("T5-small", "Raffel et al. 2020, without its position biases")
def t5(full: bool) -> Network:
    net = T5() if full else T5(1, 4, 2, 6, 7)
    units = net.layers * (3 * net.width + 2 * net.hidden)
    tokens = [np.zeros((1, n), np.int32) for n in (16, 12)] if full else [np.array([[1, 2, 3]]), np.array([[4, 5]])]
    return linen(net, *tokens, found=(5 * net.layers, units, units), left_out=(STREAM,))
