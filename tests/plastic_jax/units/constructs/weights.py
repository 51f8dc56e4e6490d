"""Weights that are made of parameters: normalised, masked, quantised, picked, complex, windows of one vector."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.plastic_jax.units.constructs.convolutions import convolution
from tests.plastic_jax.units.constructs.models import construct, layer, normal
from tests.plastic_jax.units.notation import Expected, Model


@construct
def weight_standardisation() -> Model:
    """Standardising a reader's kernel mixes its rows, so zeros there do not isolate a unit."""

    def standardise(w):
        return (w - jnp.mean(w, axis=(0, 1, 2))) / (jnp.std(w, axis=(0, 1, 2)) + 1e-3)

    params = {
        "a": {"kernel": normal(3, 3, 2, 4, seed=1), "bias": normal(4, seed=2)},
        "b": {"kernel": normal(3, 3, 4, 3, seed=3), "bias": normal(3, seed=4)},
        "c": {"kernel": normal(3, 2, seed=5), "bias": normal(2, seed=6)},
    }

    def apply(p, x):
        for name in ("a", "b"):
            x = jax.nn.relu(convolution({**p[name], "kernel": standardise(p[name]["kernel"])}, x))
        return jnp.mean(x, axis=(1, 2)) @ p["c"]["kernel"] + p["c"]["bias"]

    conv = functools.partial(layer, use="h w i u")
    groups = {
        "a": Expected(4, conv("a"), "b/kernel: h w u o", preserving=False),
        "b": Expected(3, conv("b"), "c/kernel: u o"),
    }
    return Model(apply, params, (normal(2, 4, 4, 2),), groups)


@jax.custom_vjp
def rounded(w):
    """A multiple of 1/8, with the gradient of what was rounded."""
    return jnp.round(8 * w) / 8


rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))


@construct
def quantised_weights() -> Model:
    """Zeros stay zeros, so a unit that is read by none is silent."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}}

    def apply(p, x):
        return jax.nn.relu(x @ rounded(p["a"]["kernel"])) @ rounded(p["b"]["kernel"])

    group = Expected(4, "a/kernel: i u", "b/kernel: u o")
    return Model(apply, params, (normal(3, 5),), {"a": group})


@construct
def complex_weights() -> Model:
    kernel = normal(5, 4, seed=1) + 1j * normal(5, 4, seed=2)
    params = {"a": {"kernel": kernel.astype(np.complex64)}, "b": {"kernel": normal(4, 2, seed=3)}}
    group = Expected(4, "a/kernel: i u", "b/kernel: u o")
    return Model(
        lambda p, x: jax.nn.relu((x @ p["a"]["kernel"]).real) @ p["b"]["kernel"], params, (normal(3, 5),), {"a": group}
    )


def two_layers(weights: Callable[[Any], Any], preserving: bool = True, **more: np.ndarray) -> Model:
    """Units of `a`, read by weights that are made of `b` and `more`, through which units differ."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}, **more}
    group = Expected(4, "a/kernel: i u", "b/kernel: u o", preserving=preserving, blocks=4)
    apply = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ weights(p)  # noqa: E731
    return Model(apply, params, (normal(3, 5),), {"a": group})


@construct
def masked_weights() -> Model:
    mask = normal(4, 2, seed=3) > 0
    return two_layers(lambda p: jnp.where(mask, p["b"]["kernel"], 0.0))


@construct
def weights_masked_by_ones() -> Model:
    mask = normal(4, 2, seed=3) > 0
    return two_layers(lambda p: jnp.where(mask, p["b"]["kernel"], 1.0), preserving=False)


@construct
def clipped_weights() -> Model:
    return two_layers(lambda p: jnp.clip(jnp.round(p["b"]["kernel"] * 8), -127, 127) / 8)


@construct
def weights_of_two_functions() -> Model:
    """Half of the readers are not 0 where the parameter is."""
    both = lambda w: jnp.concatenate([w, jnp.exp(w)], axis=1)  # noqa: E731
    return two_layers(lambda p: both(p["b"]["kernel"]), preserving=False)


@construct
def scores_times_weights() -> Model:
    """One of two factors is 0: with two zeros neither would ever learn again."""
    return two_layers(lambda p: p["b"]["kernel"] * p["score"], score=normal(4, 2, seed=3))


@construct
def divided_weights() -> Model:
    """A divisor is not set to 0."""
    return two_layers(lambda p: p["b"]["kernel"] / p["divisor"][:, None], divisor=np.abs(normal(4, seed=3)) + 0.5)


@construct
def weights_of_a_task() -> Model:
    """Which of the heads reads is an input; all of them are rows of the unit."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(3, 4, 2, seed=2)}}
    apply = lambda p, x, task: jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"][task]  # noqa: E731
    group = Expected(4, "a/kernel: i u", "b/kernel: t u o")
    return Model(apply, params, (normal(3, 5), jnp.int32(1)), {"a": group})


@construct
def permuted_weights() -> Model:
    """Columns in another order are units of their own, which no view of the parameter numbers."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}}
    order = np.array([2, 0, 1, 3])
    apply = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"][:, order]) @ p["b"]["kernel"]  # noqa: E731
    return Model(apply, params, (normal(3, 5),), {}, left_out="a")


@construct
def cumulative_weights() -> Model:
    """A first layer whose weights are made in an unknown way is left out, and named."""
    params = {"a": {"kernel": normal(5, 4, seed=1)}, "b": {"kernel": normal(4, 2, seed=2)}}
    apply = lambda p, x: jax.nn.relu(x @ jnp.cumsum(p["a"]["kernel"], axis=1)) @ p["b"]["kernel"]  # noqa: E731
    return Model(apply, params, (normal(3, 5),), {}, left_out="a")


@construct
def weights_of_two_parts() -> Model:
    params = {"a": {"re": normal(5, 4, seed=1), "im": normal(5, 4, seed=2)}, "b": {"kernel": normal(4, 2, seed=3)}}
    apply = lambda p, x: jnp.abs(x @ jax.lax.complex(p["a"]["re"], p["a"]["im"])) @ p["b"]["kernel"]  # noqa: E731
    group = Expected(4, "a/re~kernel: i u; a/im~kernel: i u", "b/kernel: u o")
    return Model(apply, params, (normal(3, 5),), {"a": group})


@construct
def one_flat_vector() -> Model:
    """What `ravel_pytree` gives: all parameters are windows of one leaf."""
    tree = {"a": normal(5, 4, seed=1), "b": np.abs(normal(4, seed=2)), "c": normal(4, 2, seed=3)}
    flat, unravel = jax.flatten_util.ravel_pytree(tree)

    def apply(p, x):
        p = unravel(p["all"])
        return jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]

    group = Expected(4, "all~kernel[:20]: (i u); all~bias[20:24]: u", "all~kernel[24:]: (u o)")
    return Model(apply, {"all": np.asarray(flat)}, (normal(3, 5),), {"all": group})
