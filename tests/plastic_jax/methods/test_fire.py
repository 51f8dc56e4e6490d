"""FIRE: closed forms, single matrices and a run of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import fire, fire_at_boundary
from plastic_jax.matrices import Kernel
from plastic_jax.methods.fire import orthogonalized


def test_every_layer_of_a_stack_and_every_tap_becomes_a_scaled_isometry_and_biases_stay():
    key = jax.random.key(0)
    params = {
        "Conv_0": {"kernel": jax.random.normal(key, (2, 2, 3, 4)), "bias": jnp.ones(4)},
        "Dense_0": {"kernel": jax.random.normal(key, (2, 6, 5)), "bias": jnp.ones((2, 5))},
        "zero": {"kernel": jnp.zeros((3, 2))},
    }
    tx = fire(optax.sgd(0.1), period=1, iterations=40)
    zeros, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    done = jax.jit(lambda params: optax.apply_updates(params, tx.update(zeros, state, params)[0]))(params)
    for matrix in done["Dense_0"]["kernel"]:
        np.testing.assert_allclose(np.linalg.svd(matrix)[1], (5 / 6) ** 0.5, rtol=1e-4)
    for matrix in done["Conv_0"]["kernel"].reshape(4, 3, 4):
        np.testing.assert_allclose(np.linalg.svd(matrix)[1], (4 / 3) ** 0.5 / 4, rtol=1e-4)
    assert jnp.all(done["Dense_0"]["bias"] == 1) and jnp.all(done["zero"]["kernel"] == 0)


def test_it_acts_at_its_period_and_at_boundaries_but_not_at_the_first_step():
    params = {"kernel": jnp.array([[3.0, 1.0], [0.0, 2.0]])}
    for factory, flags, expected in (
        (lambda: fire(optax.sgd(0.1), period=3), [False] * 6, [False, False, True] * 2),
        (lambda: fire_at_boundary(optax.sgd(0.1)), [True, False, True, False], [False, False, True, False]),
    ):
        tx = factory()
        state, acted = tx.init(params), []
        step = jax.jit(
            lambda state, flag, tx=tx: tx.update({"kernel": jnp.zeros((2, 2))}, state, params, boundary=flag)
        )
        for flag in flags:
            updates, state = step(state, flag)
            acted.append(bool(jnp.any(updates["kernel"] != 0)))
        assert acted == expected


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="fire: period=0 is not in"):
        fire(optax.sgd(0.1), period=0)
    tx = fire_at_boundary(optax.sgd(0.1))
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="fire_at_boundary: update needs the extra argument boundary"):
        tx.update(params, tx.init(params), params)


def test_matrices_and_convolutions_are_those_of_the_published_code(traces):
    load_trace, _, _ = traces
    trace = load_trace("fire_a")
    kernels = {
        key.split("/")[1]: Kernel(key, a.shape, "oi" + "t" * (a.ndim - 2))
        for key, a in trace.arrays.items()
        if key.endswith("/input")
    }

    @jax.jit
    def ours(given):
        return {
            name: k.leaf(
                orthogonalized(k.matrices(given[name], by_tap=True)) * (k.outputs / k.size("i")) ** 0.5 / k.taps
            )
            for name, k in kernels.items()
        }

    with jax.enable_x64(True):
        found = ours({name: jnp.asarray(trace[k.name], jnp.float64) for name, k in kernels.items()})
    assert len(found) == 7
    for name, matrix in found.items():
        np.testing.assert_allclose(matrix, trace[f"f64/pairs/{name}/output"], rtol=1e-9, atol=1e-12, err_msg=name)


def test_momentum_replays_the_published_code(replay):
    def make_tx(config, units, boundary):
        base = config["base_optimizer"]
        return fire_at_boundary(optax.sgd(base["lr"], base["momentum"]), iterations=config["iterations"])

    def boundaries(trace):
        return np.isin(np.arange(len(trace["x"])) + 1, trace.config["after_updates"])

    replay("fire_a", make_tx, extra=boundaries, arguments=lambda boundary: {"boundary": boundary > 0})
