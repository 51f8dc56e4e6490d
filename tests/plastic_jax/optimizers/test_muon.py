"""Muon: all singular values of a step of a kernel are about the same, everything else is Adam's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from plastic_jax.optimizers.adam import adam
from plastic_jax.optimizers.muon import muon

PARAMS = {"dense": jnp.ones((6, 4)), "bias": jnp.ones(4), "conv": jnp.ones((3, 3, 2, 5))}
GRADS = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape), PARAMS)


@pytest.fixture(scope="module")
def step():
    def both(grads):
        ours, theirs = muon(0.1), optax.contrib.muon(0.1)
        dense = {"dense": PARAMS["dense"]}
        mine = ours.update(grads, ours.init(PARAMS), PARAMS)[0]
        return mine, theirs.update({"dense": grads["dense"]}, theirs.init(dense), dense)[0]

    return jax.jit(both)(GRADS)


def test_a_step_of_a_kernel_has_singular_values_of_about_one(step):
    for name in ("dense", "conv"):
        matrix = np.asarray(step[0][name]).reshape(-1, PARAMS[name].shape[-1])
        values = np.linalg.svd(matrix / 0.1, compute_uv=False)
        assert (values > 0.6).all() and (values < 1.3).all(), name


def test_a_dense_kernel_has_the_step_of_optax(step):
    np.testing.assert_allclose(step[0]["dense"], step[1]["dense"], rtol=1e-4, atol=1e-6)


def test_a_vector_has_the_step_of_adam(step):
    tx = adam(0.1)
    updates, _ = tx.update(GRADS["bias"], tx.init(PARAMS["bias"]), PARAMS["bias"])
    np.testing.assert_allclose(step[0]["bias"], updates, rtol=1e-4)
