import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP
from plastic_jax.initializers import gain
from plastic_jax.networks import ACTIVATIONS


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_weights_follow_the_published_law(activation):
    network = MLP(widths=(300, 200), outputs=100, activation=activation)
    params = network.init(jax.random.key(0), jnp.ones((1, 50)))["params"]
    for layer, fan_in, law in (
        ("Dense_0", 50, gain(activation)),
        ("Dense_1", 300, gain(activation)),
        ("Dense_2", 200, 1),
    ):
        kernel, bound = params[layer]["kernel"], law * math.sqrt(3 / fan_in)
        assert kernel.shape[0] == fan_in
        assert 0.99 * bound < float(jnp.abs(kernel).max()) <= bound * 1.0001
        np.testing.assert_allclose(float(kernel.std()), bound / math.sqrt(3), rtol=0.03)
        assert (params[layer]["bias"] == 0).all()


def test_no_hidden_layer_is_the_linear_map_of_the_flattened_input():
    network = MLP(widths=(), outputs=2)
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    params = network.init(jax.random.key(1), x)["params"]
    assert set(params) == {"Dense_0"}
    np.testing.assert_allclose(
        network.apply({"params": params}, x), x.reshape(3, 20) @ params["Dense_0"]["kernel"], atol=1e-5
    )


def test_hidden_values_are_sown_only_on_request():
    network = MLP(widths=(4,), outputs=2)
    x = jnp.ones((3, 5))
    variables = network.init(jax.random.key(1), x)
    _, sown = network.apply({"params": variables["params"]}, x, mutable=["features"])
    assert sown["features"]["hidden_0"][0].shape == (3, 4)
    assert network.apply({"params": variables["params"]}, x).shape == (3, 2)
