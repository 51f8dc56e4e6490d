import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import Initializer
from plastic_jax.replacement.initializers import gain, unit_initializer


@pytest.mark.parametrize(
    ("name", "activation", "expected"),
    [
        ("kaiming_uniform", "relu", math.sqrt(2) * math.sqrt(3 / 12)),
        ("kaiming_uniform", "tanh", 5 / 3 * math.sqrt(3 / 12)),
        ("kaiming_uniform", "linear", math.sqrt(3 / 12)),
        ("lecun_uniform", "relu", math.sqrt(3 / 12)),
        ("xavier_uniform", "relu", math.sqrt(2) * math.sqrt(6 / 32)),
        ("torch_default", "relu", math.sqrt(1 / 12)),
    ],
)
def test_uniform_laws_fill_their_interval(name, activation, expected):
    draw = unit_initializer(name, activation)(jax.random.key(0), 500, 12, 20, jnp.dtype("float32"))
    assert draw.shape == (500, 12)
    assert draw.dtype == jnp.float32
    assert 0.99 * expected < float(jnp.abs(draw).max()) <= expected
    np.testing.assert_allclose(float(draw.std()), expected / math.sqrt(3), rtol=0.03)
    np.testing.assert_allclose(float(draw.mean()), 0, atol=0.03 * expected)


def test_normal_law_has_its_spread():
    draw = Initializer("kaiming_normal", gain("relu"))(jax.random.key(0), 1000, 8, 3, jnp.dtype("float32"))
    np.testing.assert_allclose(float(draw.std()), math.sqrt(2 / 8), rtol=0.03)


@pytest.mark.parametrize("name", ["lecun_uniform", "kaiming_normal"])
def test_complex_weights_have_the_spread_of_real_ones_in_both_parts(name):
    draw = Initializer(name, 1.0)(jax.random.key(0), 1000, 8, 3, jnp.dtype("complex64"))
    assert draw.dtype == jnp.complex64 and draw.shape == (1000, 8)
    np.testing.assert_allclose(np.mean(np.abs(draw) ** 2), 1 / 8, rtol=0.05)
    np.testing.assert_allclose(np.var(draw.real), np.var(draw.imag), rtol=0.1)


def test_deterministic_rule_is_the_recorded_one():
    rows = Initializer("kaiming_uniform", math.sqrt(2), linspace=True)(
        jax.random.key(0), 2, 8, 16, jnp.dtype("float32")
    )
    np.testing.assert_allclose(
        rows, np.tile(np.linspace(-0.8660254037844386, 0.8660254037844386, 8), (2, 1)), rtol=1e-6
    )


def test_laws_can_be_hashed_and_a_function_is_taken_as_it_is():
    assert {Initializer(): 1}[Initializer("kaiming_uniform")] == 1

    def own(key, n, fan_in, fan_out, dtype):
        return jnp.zeros((n, fan_in), dtype)

    assert unit_initializer(own, "relu") is own


def test_unknown_names():
    with pytest.raises(ValueError, match="initializer: unknown name 'he'; allowed: kaiming_uniform"):
        Initializer("he")
    with pytest.raises(ValueError, match="unknown activation 'rely'; allowed: abs, "):
        gain("rely")
