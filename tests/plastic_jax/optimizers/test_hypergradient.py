"""Hypergradient descent against its equations, and against its base optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.optimizers.adam import adam
from plastic_jax.optimizers.hypergradient import hypergradient

PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}
SEEN = [jax.tree.map(lambda p, i=i: jnp.sin(p * (i + 1)), PARAMS) for i in range(4)]


def steps_of(tx):
    def run():
        state, seen = tx.init(PARAMS), []
        for gradient in SEEN:
            updates, state = tx.update(gradient, state, PARAMS)
            seen.append((updates, state))
        return seen

    return jax.jit(run)()


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_the_step_size_follows_the_agreement_of_successive_gradients(rule):
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]).astype(float) for g in SEEN]
    expected, last = 0.1, np.zeros(3)
    for gradient, (updates, state) in zip(
        flat, steps_of(hypergradient(0.1, meta_step_size=0.02, rule=rule)), strict=True
    ):
        agreement = gradient @ last
        if rule == "multiplicative" and last.any():
            agreement *= expected / (np.linalg.norm(gradient) * np.linalg.norm(last))
        expected, last = expected + 0.02 * agreement, gradient
        for leaf in jax.tree.leaves(state.step_size):
            np.testing.assert_allclose(leaf, expected, rtol=1e-5)
        taken = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)])
        np.testing.assert_allclose(taken, -expected * gradient, rtol=1e-5)
    assert expected != 0.1


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_a_meta_step_size_of_zero_is_the_base_optimizer(base):
    other = adam(0.1, 0.8, 0.9) if base == "adam" else optax.sgd(0.1)
    ours = steps_of(hypergradient(0.1, 0.8, 0.9, base=base, meta_step_size=0.0))
    for (mine, _), (theirs, _) in zip(ours, steps_of(other), strict=True):
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), mine, theirs)


def test_a_step_size_is_never_negative():
    tx = hypergradient(0.1, meta_step_size=1e6)
    state = tx.init(PARAMS)
    for factor in (1.0, -1.0):
        updates, state = tx.update(jax.tree.map(lambda p, f=factor: f * p, PARAMS), state, PARAMS)
    assert all(leaf == 0 for leaf in jax.tree.leaves(state.step_size))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
