"""Distributions of actions: normal for continuous ones, categorical for discrete ones."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Policy(NamedTuple):
    """A distribution of actions, whose parameters are the outputs of a network before the value.

    Attributes:
        noise: `(key, shape [..., actions]) -> noise` of that shape, from which actions are drawn.
        act: `(noise, *parameters) -> action`, `[n, actions]` or, of categories, int32 `[n]`.
        log_probability: `(action, *parameters) -> [n]`, in nats; of continuous actions that of the density.
        entropy: `*parameters -> [n]`, in nats.
    """

    noise: Callable[..., jax.Array]
    act: Callable[..., jax.Array]
    log_probability: Callable[..., jax.Array]
    entropy: Callable[..., jax.Array]


def gaussian_log_probability(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Logarithm (nats) of the density at `x` of independent normal variables, summed over the last axis."""
    z = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi), axis=-1)


def gaussian_entropy(log_std: jax.Array) -> jax.Array:
    """Entropy (nats) of independent normal variables, summed over the last axis."""
    return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


def categorical_log_probability(action: jax.Array, logits: jax.Array) -> jax.Array:
    """Logarithm (nats) of the probability of each action, whole numbers `[...]`, by logits `[..., actions]`."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def categorical_entropy(logits: jax.Array) -> jax.Array:
    """Entropy (nats) of the softmax of logits `[..., actions]`; an action of probability 0 adds 0."""
    log_probability = jax.nn.log_softmax(logits)
    probability = jnp.exp(log_probability)
    return -jnp.sum(probability * jnp.where(probability > 0, log_probability, 0), axis=-1)


GAUSSIAN = Policy(
    noise=jax.random.normal,
    act=lambda noise, mean, log_std: mean + jnp.exp(log_std) * noise,
    log_probability=gaussian_log_probability,
    entropy=lambda mean, log_std: gaussian_entropy(jnp.broadcast_to(log_std, mean.shape)),
)
"""Independent normal variables, by mean `[n, actions]` and a logarithm of the deviation that broadcasts to it."""

CATEGORICAL = Policy(
    noise=jax.random.gumbel,
    act=lambda noise, logits: jnp.argmax(logits + noise, axis=-1).astype(jnp.int32),
    log_probability=categorical_log_probability,
    entropy=categorical_entropy,
)
"""One of some actions, by the softmax of logits `[n, actions]`; drawn by the largest of logits plus Gumbel noise."""
