"""Language models: what a position can see, how positions are told, sizes, and the units that tracing finds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import trace_units
from plastic_jax.networks import GPT, RecurrentLM
from plastic_jax.networks.gpt import rotated

TOKENS = jnp.array([[3, 1, 4, 1, 5, 2], [2, 6, 5, 3, 5, 0]])
SMALL = {
    "learned": GPT(outputs=7, layers=2, width=4, heads=2),
    "rotary": GPT(outputs=7, layers=1, width=8, heads=2, positions="rotary", activation="relu", norm="rms_norm"),
    "gru": RecurrentLM(outputs=7, layers=2, width=3),
    "lstm": RecurrentLM(outputs=7, cell="lstm", layers=1, width=4, activation="relu"),
}


@functools.cache
def made(name):
    params = SMALL[name].init(jax.random.key(0), TOKENS)["params"]
    noise = lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    return jax.tree.map(noise, params), jax.jit(lambda p, x: SMALL[name].apply({"params": p}, x))


@pytest.mark.parametrize("name", SMALL)
def test_a_prediction_depends_on_all_tokens_so_far_and_on_none_that_follows(name):
    params, apply = made(name)
    whole = apply(params, TOKENS)
    assert whole.shape == (2, 6, 7)
    for place in range(6):
        changed = np.abs(apply(params, TOKENS.at[0, place].set(0 if TOKENS[0, place] else 1)) - whole).max(-1)
        assert (changed[0, :place] == 0).all() and (changed[0, place:] > 0).all() and (changed[1] == 0).all()


def test_turned_queries_and_keys_know_how_far_they_are_apart_and_nothing_else():
    q, k = jax.random.normal(jax.random.key(1), (2, 6))
    many = lambda x: rotated(jnp.broadcast_to(x, (1, 9, 1, 6)))[0, :, 0]  # noqa: E731
    products = np.asarray(many(q) @ many(k).T)
    for apart in range(-8, 9):
        np.testing.assert_allclose(np.ptp(np.diagonal(products, apart)), 0, atol=1e-5)
    assert len({round(float(row), 4) for row in products[0]}) == 9
    angle = np.array([1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])
    turned = q[:3] * np.cos(2 * angle) - q[3:] * np.sin(2 * angle)
    np.testing.assert_allclose(many(q)[2, :3], turned, rtol=1e-5, atol=1e-6)


def test_attention_of_one_head_is_the_mean_of_the_values_so_far_where_all_scores_are_equal():
    network = GPT(outputs=7, layers=1, width=4, heads=1, norm="none")
    q = jnp.zeros((1, 3, 4))
    v = jax.random.normal(jax.random.key(1), (1, 3, 4))
    means = np.cumsum(v[0], axis=0) / np.arange(1, 4)[:, None]
    np.testing.assert_allclose(network._attended(q, q, v)[0], means, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "parameters", "groups"),
    [
        (GPT(), 1_073_536, {512: 5, 128: 5}),
        (GPT(layers=6, width=384, heads=6), 10_893_312, {1536: 6, 384: 6}),
        (GPT(positions="rotary", activation="crelu", norm="rms_norm"), 1_383_424, {512: 5, 128: 5}),
        (RecurrentLM(), 919_808, {256: 2}),
        (RecurrentLM(cell="lstm"), 1_181_952, {256: 2}),
    ],
    ids=["gpt", "gpt_10m", "rotary", "gru", "lstm"],
)
def test_sizes_and_the_units_that_can_be_replaced(network, parameters, groups):
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == parameters
    assert network.head in params
    graph = trace_units(lambda params, x: network.apply({"params": params}, x), params, tokens)
    widths = [group.width for group in graph.groups]
    assert {width: widths.count(width) for width in widths} == groups
    assert all(group.function_preserving for group in graph.groups)


@pytest.mark.parametrize("name", SMALL)
def test_dropout_of_everything_leaves_no_hidden_feature(name):
    tokens, params = TOKENS, made(name)[0]
    apply = lambda rate: SMALL[name].apply({"params": params}, tokens, rate, rngs={"dropout": jax.random.key(0)})  # noqa: E731
    np.testing.assert_allclose(apply(jnp.array(0.0)), SMALL[name].apply({"params": params}, tokens), atol=1e-5)
    assert np.abs(apply(jnp.array(0.5)) - apply(jnp.array(0.0))).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: GPT(width=10, heads=4), "width=10 is not a multiple of 4, as 4 heads need"),
        (lambda: GPT(width=12, heads=4, positions="rotary"), "width=12 is not a multiple of 8, as 4 heads need"),
        (lambda: GPT(layers=0), "layers=0 is not a positive integer"),
        (lambda: GPT(positions="sine"), "positions='sine'; allowed: learned, rotary"),
        (lambda: RecurrentLM(width=True), "width=True is not a positive integer"),
        (lambda: RecurrentLM(cell="rnn"), "cell='rnn'; allowed: gru, lstm"),
        (lambda: RecurrentLM(activation="crelu"), "activation='crelu'; allowed: relu, tanh, "),
    ],
)
def test_sizes_that_cannot_be(make, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        make()
