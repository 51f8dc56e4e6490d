from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.weight_decay import weight_decay as typed_weight_decay

# optax types a state as any tree of arrays; the tests look inside it.
weight_decay: Any = typed_weight_decay
PARAMS: Any = {"kernel": jnp.array([[1.0, -2.0], [0.5, 4.0]]), "bias": jnp.array([3.0, -1.0])}
GRADIENT: Any = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([1.0, -1.0])}


def after_steps(tx, n=3, params=PARAMS) -> Any:
    state = tx.init(params)
    for _ in range(n):
        updates, state = tx.update(GRADIENT, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_zero_rate_returns_inner_itself():
    inner = optax.adam(0.1)
    assert weight_decay(inner, 0) is inner
    assert weight_decay(inner, 0.0, coupled=False, step_size=0.1) is inner


def test_coupled_and_decoupled_agree_for_plain_sgd_and_shrink_biases():
    coupled = after_steps(weight_decay(optax.sgd(0.1), 0.5), n=1)
    decoupled = after_steps(weight_decay(optax.sgd(0.1), 0.5, coupled=False, step_size=0.1), n=1)
    np.testing.assert_allclose(coupled["bias"], 0.95 * PARAMS["bias"] - 0.1 * GRADIENT["bias"], rtol=1e-6)
    assert_trees_close(coupled, decoupled, rtol=1e-6)


def test_coupled_decay_enters_the_moments_of_adam_and_decoupled_decay_does_not():
    adamw = after_steps(optax.adamw(0.1, weight_decay=0.5))
    decoupled = after_steps(weight_decay(optax.adam(0.1), 0.5, coupled=False, step_size=0.1))
    coupled = after_steps(weight_decay(optax.adam(0.1), 0.5))
    assert_trees_close(decoupled, adamw, rtol=1e-5)
    assert np.abs(coupled["kernel"] - adamw["kernel"]).max() > 0.1


def test_rates_can_be_mapped_over():
    rates = jnp.array([0.0, 0.01, 0.5])
    mapped = jax.jit(jax.vmap(lambda rate: after_steps(weight_decay(optax.sgd(0.1, 0.9), rate))))(rates)
    for i, rate in enumerate(rates.tolist()):
        one = after_steps(weight_decay(optax.sgd(0.1, 0.9), rate))
        assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), one, rtol=1e-5)


@pytest.mark.parametrize("coupled", [True, False])
def test_traced_rate_keeps_bfloat16(coupled):
    params, gradient = (optax.tree.cast(PARAMS, jnp.bfloat16), optax.tree.cast(GRADIENT, jnp.bfloat16))

    @jax.jit
    def run(rate):
        tx = weight_decay(optax.sgd(0.1, 0.9), rate, coupled=coupled, step_size=None if coupled else rate)
        return tx.init(params), tx.update(gradient, tx.init(params), params)

    state, (updates, new_state) = run(jnp.float32(0.1))
    assert jax.tree.map(lambda leaf: leaf.dtype, new_state) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_extra_arguments_reach_inner_and_unknown_ones_are_ignored():
    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda g: extra["scale"] * g, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    updates, _ = weight_decay(inner, 1.0).update(GRADIENT, optax.EmptyState(), PARAMS, scale=2.0, boundary=True)
    np.testing.assert_allclose(updates["bias"], 2 * (GRADIENT["bias"] + PARAMS["bias"]))
    tx = weight_decay(optax.sgd(0.1), 1.0)
    tx.update(GRADIENT, tx.init(PARAMS), PARAMS, clock=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay": -0.1}, r"weight_decay=-0.1 is not in \[0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan is not in"),
        ({"weight_decay": lambda step: 0.1}, "neither a number nor an array"),
        ({"weight_decay": 0.1, "coupled": False}, "needs step_size"),
        ({"weight_decay": 0.1, "coupled": False, "step_size": -1.0}, "step_size=-1.0 is not in"),
        ({"weight_decay": 0.1, "step_size": 0.1}, "no effect"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        weight_decay(optax.sgd(0.1), **arguments)


def test_momentum_with_decay_replays_the_published_code(replay, traces):
    _, _, assert_tree_close = traces

    def make_tx(config, units, extra):
        return weight_decay(optax.sgd(config["lr"], momentum=config["momentum"]), config["weight_decay"])

    trace, ours = replay("mlp_l2", make_tx)
    if trace.full:
        assert_tree_close(ours.state[0].trace, trace.tree("f64/opt/momentum_buffer"))


def test_plain_gradient_descent_replays_the_published_code(replay):
    replay("mlp_bp_sgd", lambda config, units, extra: weight_decay(optax.sgd(config["lr"]), 0.0))
