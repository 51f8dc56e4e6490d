"""Flax linen's TrainState."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import continual_backprop, trace_units
from plastic_jax.integrations.linen import TrainState

X = jax.random.normal(jax.random.key(0), (6, 3))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.relu(h))


class StateWithStatistics(TrainState):
    batch_stats: Any = None


def apply(params, batch_stats, x):
    return Net().apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])


def loss(output):
    prediction, new = output
    return jnp.mean(prediction**2), new["batch_stats"]


@pytest.fixture(scope="module")
def start():
    variables = Net().init(jax.random.key(1), X)
    units = trace_units(apply, variables["params"], X, variables=variables["batch_stats"])
    return variables, units


def test_gradients_are_applied_with_their_features(start):
    variables, units = start
    tx = continual_backprop(optax.adam(1e-3), units, replacement_rate=0.2, maturity_threshold=0, key=jax.random.key(2))
    state = StateWithStatistics.create(apply_fn=apply, tx=tx, **variables)
    by_hand, opt_state = state.params, state.opt_state
    for _ in range(3):
        grads, (features, new) = units.grad(loss, has_aux=True)(state.params, state.batch_stats, X)
        updates, opt_state = tx.update(grads, opt_state, by_hand, features=features)
        by_hand = optax.apply_updates(by_hand, updates)
        state = state.apply_gradients(grads=grads, features=features, batch_stats=new)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state.age), (by_hand, opt_state.age))
    assert (int(state.step), state.tx) == (3, tx)
    assert sum(int(n) for n in state.opt_state.replaced.values()) > 0
    assert np.any(state.batch_stats["BatchNorm_0"]["mean"] != variables["batch_stats"]["BatchNorm_0"]["mean"])


def test_plain_optimizers_do_without_features(start):
    variables, _ = start
    state = StateWithStatistics.create(apply_fn=apply, tx=optax.sgd(0.5), **variables)
    new = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    jax.tree.map(np.testing.assert_array_equal, new.params, jax.tree.map(lambda p: p - 0.5, state.params))
