"""Weight clipping: closed forms, and the published code's recording."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import weight_clipping

PARAMS = {
    "Conv_0": {"kernel": jnp.zeros((2, 2, 4, 3)), "bias": jnp.zeros(3)},
    "Dense_0": {"kernel": jnp.zeros((9, 2)), "bias": jnp.zeros(2)},
    "LayerNorm_0": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
}


def test_weights_and_biases_end_at_the_bounds_of_their_layer_and_norms_are_left_alone():
    tx = weight_clipping(optax.sgd(1.0), bound=2.0)
    updates, _ = tx.update(jax.tree.map(lambda w: w - 7.0, PARAMS), tx.init(PARAMS), PARAMS)
    done = optax.apply_updates(PARAMS, updates)
    for layer, fan_in in {"Conv_0": 16, "Dense_0": 9}.items():
        for leaf in done[layer].values():
            np.testing.assert_allclose(leaf, 2 / fan_in**0.5, rtol=1e-6)
    np.testing.assert_array_equal(done["LayerNorm_0"]["bias"], 7.0)


def test_a_layer_that_is_excluded_and_a_parameter_that_inner_freezes_are_left_alone():
    inner = optax.multi_transform({"on": optax.sgd(1.0), "off": optax.set_to_zero()}, labels)
    params = jax.tree.map(lambda w: w + 5.0, PARAMS)
    tx = weight_clipping(inner, bound=1.0, exclude="Dense_0/*")
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    done = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(done["Conv_0"]["kernel"], 5.0)
    np.testing.assert_allclose(done["Conv_0"]["bias"], 0.25)
    np.testing.assert_array_equal(done["Dense_0"]["kernel"], 4.0)


def labels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "off" if jax.tree_util.keystr(path) == "['Conv_0']['kernel']" else "on", params
    )


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"weight_clipping: bound=-1.0 is not in \[0"):
        weight_clipping(optax.sgd(0.1), bound=-1.0)
    with pytest.raises(ValueError, match="layers='hidden' needs units"):
        weight_clipping(optax.sgd(0.1), layers="hidden").init(PARAMS)


@pytest.mark.parametrize("name", ["weight_clipping_a"])
def test_momentum_replays_the_published_code(replay, name):
    def make_tx(config, units, extra):
        layers = "all" if config["clip_last_layer"] else "hidden"
        inner = optax.sgd(config["lr"], config["momentum"])
        return weight_clipping(inner, units, bound=config["zeta"], layers=layers)

    replay(name, make_tx)
