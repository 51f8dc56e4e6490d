"""Hare and tortoise: closed forms, and the published code's recording."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.hare_and_tortoise import hare_and_tortoise

PARAMS = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def run(steps, **settings):
    """The hare's and the tortoise's way from the start, whose every weight moves by -1 a step."""
    tx = hare_and_tortoise(optax.sgd(1.0), **settings)
    params, state, way = PARAMS, tx.init(PARAMS), []
    for _ in range(steps):
        updates, state = tx.update(ONES, state, params)
        params = optax.apply_updates(params, updates)
        way.append((float(params["bias"][0] - 0.5), float(state.tortoise["bias"][0] - 0.5)))
    return way


def test_the_hare_is_set_back_to_the_average():
    assert run(4, decay_rate=0.5, period=3) == [(-1, -0.5), (-2, -1.25), (-2.125, -2.125), (-3.125, -2.625)]


def test_the_first_reset_may_come_earlier():
    assert run(4, decay_rate=0.5, period=3, offset=1) == [(-0.5, -0.5), (-1.5, -1), (-2.5, -1.75), (-2.625, -2.625)]


def test_an_aliased_tortoise_is_the_hare_for_a_step():
    assert run(3, decay_rate=0.5, period=5, offset=1, aliased=True) == [(-0.5, -0.5), (-1.5, -1.5), (-2.5, -2)]


def test_frozen_parameters_stay():
    inner = optax.chain(optax.sgd(1.0), optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True}))
    tx = hare_and_tortoise(inner, decay_rate=0.0, period=1)
    updates, _ = tx.update(ONES, tx.init(PARAMS), PARAMS)
    assert updates["bias"] == 0
    assert (updates["kernel"] == -1).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"hare_and_tortoise: decay_rate=1.5 is not in \[0"):
        hare_and_tortoise(optax.sgd(0.1), decay_rate=1.5)
    tx = hare_and_tortoise(optax.sgd(0.1))
    with pytest.raises(ValueError, match="hare_and_tortoise: update needs `params`"):
        tx.update(ONES, tx.init(PARAMS))


def test_replays_the_published_code(replay):
    def make_tx(config, units, extra):
        base, most = config["base_optimizer"], config["clip_grad_norm"]

        def clip(gradients, params=None):
            scale = jnp.minimum(1, most / (optax.tree.norm(gradients) + 1e-6))
            return jax.tree.map(lambda g: g * scale, gradients)

        inner = optax.chain(optax.stateless(clip), optax.adamw(base["lr"], weight_decay=base["weight_decay"]))
        epoch = config["steps_per_epoch"]
        return hare_and_tortoise(
            inner, decay_rate=config["ema"], period=config["reset_every"] * epoch, offset=epoch, aliased=True
        )

    trace, ours = replay("hare_tortoise_a", make_tx)
    assert trace["f64/reset_steps"][0] == 9
    if trace.full:
        expected = trace.tree("f64/final_tortoise")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours.state.tortoise, expected
        )
