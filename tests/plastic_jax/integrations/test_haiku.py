"""Haiku: transformed functions are models as they are; state is `variables`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import continual_backprop, trace_units

hk = pytest.importorskip("haiku", reason="Haiku NOT TESTED: package 'dm-haiku' is not installed")

X = jax.random.normal(jax.random.key(0), (6, 3))


def test_state_and_random_numbers_of_a_transformed_function():
    def net(x):
        h = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training=True)
        h = hk.dropout(hk.next_rng_key(), 0.1, jax.nn.relu(h))
        return hk.Linear(1)(h)

    model = hk.transform_with_state(net)
    params, state = model.init(jax.random.key(1), X)

    def apply(params, state, x, key):
        return model.apply(params, state, key, x)

    def loss(output):
        return jnp.mean(output[0] ** 2), output[1]

    key = jax.random.key(2)
    units = trace_units(apply, params, X, key, variables=state)
    (group,) = units.groups
    assert {s.path for s in group.incoming} == {"linear/w", "linear/b", "batch_norm/scale", "batch_norm/offset"}
    tx = continual_backprop(optax.adam(1e-2), units, replacement_rate=0.2, maturity_threshold=0, key=key)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, state, opt_state, key):
        grads, (features, state) = units.grad(loss, has_aux=True)(params, state, X, key)
        updates, opt_state = tx.update(grads, opt_state, params, features=features)
        return optax.apply_updates(params, updates), state, opt_state

    before = state
    for i in range(3):
        params, state, opt_state = step(params, state, opt_state, jax.random.fold_in(key, i))
    assert int(opt_state.replaced[group.name]) > 0
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True))
