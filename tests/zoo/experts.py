"""Mixtures of experts."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.zoo import STREAM, Network, architecture, linen, normal


class Experts(nn.Module):
    """Networks of one hidden layer, side by side: `[experts, tokens, inputs]` to `[experts, tokens, outputs]`."""

    experts: int
    hidden: int
    gated: bool = False

    @nn.compact
    def __call__(self, x):
        init, width = nn.initializers.lecun_normal(batch_axis=(0,)), x.shape[-1]
        first = self.param("in", init, (self.experts, width, self.hidden))
        last = self.param("out", init, (self.experts, self.hidden, width))
        h = jnp.einsum("etd,edh->eth", x, first)
        if self.gated:
            h = nn.silu(h) * jnp.einsum("etd,edh->eth", x, self.param("up", init, first.shape))
        else:
            h = nn.relu(h)
        return jnp.einsum("eth,ehd->etd", h, last)


class Mixture(nn.Module):
    """Jacobs et al. 1991: every expert answers, a softmax of the input weighs the answers."""

    experts: int = 8
    hidden: int = 64

    @nn.compact
    def __call__(self, x):
        answers = Experts(self.experts, self.hidden)(jnp.broadcast_to(x, (self.experts, *x.shape)))
        return jnp.einsum("te,etd->td", nn.softmax(nn.Dense(self.experts, name="gate")(x)), answers)


class Switch(nn.Module):
    """Fedus et al. 2022: the first expert of each token, up to a capacity, by products with one-hot masks."""

    experts: int = 8
    hidden: int = 2048
    capacity: int = 4

    @nn.compact
    def __call__(self, x):
        gates = nn.softmax(nn.Dense(self.experts, use_bias=False, name="router")(x))
        chosen = nn.one_hot(jnp.argmax(gates, axis=-1), self.experts)
        place = jnp.cumsum(chosen, axis=0) * chosen - 1
        sent = chosen[..., None] * jax.nn.one_hot(place.astype(jnp.int32), self.capacity)  # [tokens, experts, places]
        y = Experts(self.experts, self.hidden)(jnp.einsum("tec,td->ecd", sent, x))
        return jnp.einsum("tec,te,ecd->td", sent, gates, y)


class Mixtral(nn.Module):
    """Jiang et al. 2024: the two best experts of each token by `top_k`; SwiGLU; all experts are computed."""

    experts: int = 8
    hidden: int = 14336

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(self.experts, use_bias=False, name="router")(x)
        best, index = jax.lax.top_k(logits, 2)
        weight = jnp.sum(nn.softmax(best)[..., None] * nn.one_hot(index, self.experts), axis=-2)
        y = Experts(self.experts, self.hidden, gated=True)(jnp.broadcast_to(x, (self.experts, *x.shape)))
        return jnp.einsum("te,etd->td", weight, y)


class SoftMoE(nn.Module):
    """Puigcerver et al. 2024: every place of every expert reads a mean of all tokens, and the way back."""

    experts: int = 8
    hidden: int = 1536
    places: int = 2

    @nn.compact
    def __call__(self, x):
        phi = self.param("phi", nn.initializers.lecun_normal(), (x.shape[-1], self.experts * self.places))
        logits = x @ phi
        sent = (nn.softmax(logits, axis=0).T @ x).reshape(self.experts, self.places, -1)
        y = Experts(self.experts, self.hidden)(sent).reshape(self.experts * self.places, -1)
        return nn.softmax(logits, axis=1) @ y


class Block(nn.Module):
    """A layer of a transformer: the mixture reads a normed stream and adds to it."""

    mixture: nn.Module
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x)
        x = x + self.mixture(nn.RMSNorm(name="norm")(x))
        return nn.Dense(2, name="head")(nn.RMSNorm(name="norm_out")(x))


def layer(mixture: Any, width: int) -> Network:
    """The hidden units of the experts."""
    units = mixture.experts * mixture.hidden
    found = (mixture.experts, units, units)
    return linen(Block(mixture, width), normal(3, 5), found=found, left_out=(STREAM,))


@architecture("Mixture of experts", "Jacobs et al. 1991")
def dense_mixture(full: bool) -> Network:
    net = Mixture() if full else Mixture(2, 3)
    units = net.experts * net.hidden
    return linen(net, normal(3, 5), found=(net.experts, units, units))


@architecture("Switch layer", "Fedus et al. 2022")
def switch(full: bool) -> Network:
    return layer(Switch(), 512) if full else layer(Switch(2, 3, 2), 4)


@architecture("Mixtral layer", "Jiang et al. 2024")
def mixtral(full: bool) -> Network:
    return layer(Mixtral(), 4096) if full else layer(Mixtral(2, 3), 4)


@architecture("Soft MoE layer", "Puigcerver et al. 2024")
def soft_moe(full: bool) -> Network:
    return layer(SoftMoE(), 384) if full else layer(SoftMoE(2, 3, 2), 4)
