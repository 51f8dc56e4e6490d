"""Parseval regularisation: closed forms, and the published code's recording."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import parseval


def descend(params, steps, **options):
    """The parameters after steps along the pull alone."""
    tx = parseval(optax.sgd(1.0), layers="all", **options)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_rows_become_orthogonal_and_as_long_as_asked_in_every_layer_of_a_stack():
    """A convolution's rows run over inputs and taps; of two groups only units of the same one become orthogonal."""
    key = jax.random.key(0)
    params = {
        "Conv_0": {"kernel": jax.random.normal(key, (2, 2, 3, 4)) / 3, "bias": jnp.ones(4)},
        "Dense_0": {"kernel": jax.random.normal(key, (2, 6, 4)) / 2, "bias": jnp.ones((2, 4))},
    }
    for groups in (1, 2):
        done = descend(params, 300, strength=1e-4, target=1.5, groups=groups)
        conv, dense = done["Conv_0"]["kernel"].reshape(12, 4), done["Dense_0"]["kernel"]
        for product in (conv.T @ conv, dense[0].T @ dense[0], dense[1].T @ dense[1]):
            same = np.kron(np.eye(groups), np.ones((4 // groups,) * 2))
            np.testing.assert_allclose(product * same, 1.5 * np.eye(4), atol=1e-3)
            assert (np.abs(product * (1 - same)).max() > 0.01) == (groups > 1)
        np.testing.assert_array_equal(done["Dense_0"]["bias"], 1.0)


def test_normalised_rows_keep_their_lengths():
    kernel = jax.random.normal(jax.random.key(1), (5, 3))
    done = descend({"kernel": kernel}, 1, strength=1e-9, normalize_rows=True)["kernel"]
    change = done - kernel
    np.testing.assert_allclose(jnp.sum(change * kernel, axis=0), 0, atol=1e-7)


def test_wrong_arguments_are_named():
    params = {"kernel": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match="parseval: layers='hidden' needs units"):
        parseval(optax.sgd(0.1)).init(params)
    with pytest.raises(ValueError, match="groups=2 does not divide the 3 units of kernel"):
        parseval(optax.sgd(0.1), layers="all", groups=2).init(params)


def test_momentum_replays_the_published_code(replay):
    def make_tx(config, units, extra):
        base, gain = config["base_optimizer"], config["init_gain"]
        return parseval(
            optax.sgd(base["lr"], base["momentum"]),
            units,
            strength=config["parseval_reg"],
            target=2.0 if gain is None else gain**2,
            normalize_rows=config["parseval_norm"],
            groups=config["num_groups"],
        )

    replay("parseval_a", make_tx)
