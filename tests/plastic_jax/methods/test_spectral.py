"""Spectral regularisation: closed forms, and recordings of two public implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import spectral


def run(params, steps, step_size, **options):
    """The parameters and the state after steps along the pull alone."""
    tx = spectral(optax.sgd(step_size), **options)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_largest_singular_value_of_every_layer_goes_to_1_and_biases_to_0(unrolled):
    key = jax.random.key(0)
    params = {
        "Conv_0": {"kernel": jax.random.normal(key, (2, 2, 3, 4)), "bias": jnp.ones(4)},
        "Dense_0": {"kernel": jax.random.normal(key, (2, 6, 5)), "bias": jnp.ones((2, 5))},
    }
    options = {"strength": 0.2, "exponent": 1.0, "bias_exponent": 1.0, "unrolled": unrolled}
    options["iterations"] = 30 if unrolled else 2  # enough for the layer's largest, whatever the start
    done, _ = run(params, 300, 0.5, **options)
    conv, dense = done["Conv_0"]["kernel"].reshape(12, 4), done["Dense_0"]["kernel"]
    for matrix in (conv, dense[0], dense[1]):
        np.testing.assert_allclose(np.linalg.norm(matrix, 2), 1, atol=0.05)
    np.testing.assert_allclose(done["Dense_0"]["bias"], 0.0, atol=1e-6)


def test_the_vector_of_the_power_iteration_is_the_singular_one_in_the_end():
    matrix = jax.random.normal(jax.random.key(3), (6, 4))
    _, state = run({"kernel": matrix}, 60, 0.0)
    expected = np.linalg.svd(matrix)[0][:, 0]
    np.testing.assert_allclose(np.abs(state.vectors["kernel"][0] @ expected), 1, atol=1e-5)


def test_weights_that_are_0_give_no_nan_and_are_seen_once_they_are_not():
    kernel = jnp.zeros((3, 2))
    for unrolled in (False, True):
        params, state = run({"kernel": kernel}, 2, 0.1, unrolled=unrolled)
        np.testing.assert_array_equal(params["kernel"], 0)
        np.testing.assert_allclose(jnp.linalg.norm(state.vectors["kernel"]), 1, rtol=1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"spectral: exponent=0.5 is not in \[1"):
        spectral(optax.sgd(0.1), exponent=0.5)
    with pytest.raises(ValueError, match=r"exclude: no parameter matches 'Dense_1\*'; there are: kernel"):
        spectral(optax.sgd(0.1), exclude="Dense_1*").init({"kernel": jnp.ones((2, 2))})


def starting_at(tx, vectors):
    """The transformation with recorded vectors at first."""
    return tx._replace(init=lambda params: tx.init(params)._replace(vectors=vectors))


def vectors(trace, name):
    """Recorded vectors by kernel, the same for every step."""
    rows = {f"Dense_{i}/kernel": trace[f"init/{name}{i}"] for i in range(3)}
    return {key: np.broadcast_to(row, (len(trace["x"]), 1, len(row))) for key, row in rows.items()}


def test_persistent_vectors_replay_a_public_implementation(replay):
    def make_tx(config, units, begin):
        base = config["base_optimizer"]
        tx = spectral(
            optax.sgd(base["lr"], base["momentum"]),
            units,
            strength=config["coefficient"],
            exponent=config["exponent"],
            bias_exponent=config["exponent"],
            iterations=config["power_iterations"],
            layers="all" if config["parameter_scope"] == "network" else "hidden",
            exclude="nothing" if config["include_bias"] else "*bias",
        )
        return starting_at(tx, {name: v / jnp.linalg.norm(v) for name, v in begin.items()})

    trace, ours = replay("spectral_rp_a", make_tx, extra=lambda trace: vectors(trace, "raw_v"))
    if trace.full:
        for i in range(3):
            np.testing.assert_allclose(ours.state.vectors[f"Dense_{i}/kernel"][0], trace[f"f64/final/v{i}"], rtol=1e-7)


def test_unrolled_iterations_replay_another(replay):
    def make_tx(config, units, begin):
        base = config["base_optimizer"]
        tx = spectral(
            optax.sgd(base["lr"], base["momentum"]),
            strength=config["reg_strength"],
            exponent=float(config["k"]),
            target=config["target"],
            bias_exponent=1.0,
            iterations=config["num_iter"],
            unrolled=True,
        )
        return starting_at(tx, begin)

    replay("spectral_lop_a", make_tx, extra=lambda trace: vectors(trace, "v_start"))
