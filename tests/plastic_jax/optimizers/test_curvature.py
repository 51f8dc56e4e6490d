"""The curvature by local targets: squares of what each weight is multiplied with, found in a model's program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.networks.convolutions import as_products
from plastic_jax.optimizers.curvature import local_curvature

X = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))


class Net(nn.Module):
    """A convolution, a layer norm, a nonlinearity and a dense layer that is used twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=(2, 2))(x)
        x = nn.tanh(nn.LayerNorm()(x))
        dense = nn.Dense(4)
        return dense(dense(x)) * jnp.exp(self.param("log_scale", nn.initializers.zeros, ()))


@pytest.fixture(scope="module")
def seen():
    network = Net()
    variables = jax.jit(network.init)(jax.random.key(1), X)
    _, found = network.apply(variables, X, capture_intermediates=True, mutable=["intermediates"])
    apply = lambda params, x: network.apply({"params": params}, x)  # noqa: E731
    params = variables["params"]
    both = lambda p: (local_curvature(apply, p, X), local_curvature(as_products(apply), p, X, scale=2.0))  # noqa: E731
    return params, found["intermediates"], *jax.jit(both)(params)


def test_a_convolution_s_is_the_sum_over_its_positions(seen):
    """That is what the squared derivatives of one channel add up to."""
    params, _, found, _ = seen

    def first_channel(kernel):
        return nn.Conv(4, (3, 3), strides=(2, 2), use_bias=False).apply({"params": {"kernel": kernel}}, X)[..., 0]

    squares = jax.jit(lambda kernel: jnp.sum(jax.jacobian(first_channel)(kernel) ** 2, (0, 1, 2)))
    expected = squares(params["Conv_0"]["kernel"])[..., 0] / len(X)
    np.testing.assert_allclose(found["Conv_0"]["kernel"], jnp.stack([expected] * 4, -1), rtol=1e-4)
    np.testing.assert_allclose(found["Conv_0"]["bias"], 16.0, rtol=1e-6)


def test_a_norm_s_scale_is_multiplied_with_the_normalised_values(seen):
    _, middle, found, _ = seen
    normalised = middle["LayerNorm_0"]["__call__"][0]  # scale 1, shift 0
    np.testing.assert_allclose(found["LayerNorm_0"]["scale"], jnp.sum(normalised**2, (0, 1, 2)) / len(X), rtol=1e-4)
    np.testing.assert_allclose(found["LayerNorm_0"]["bias"], 16.0, rtol=1e-6)


def test_a_layer_that_is_used_twice_has_the_squares_of_both_uses(seen):
    _, middle, found, _ = seen
    first = jnp.tanh(middle["LayerNorm_0"]["__call__"][0])
    second = middle["Dense_0"]["__call__"][0]
    expected = jnp.sum(first**2 + second**2, (0, 1, 2)) / len(X)
    np.testing.assert_allclose(found["Dense_0"]["kernel"], jnp.stack([expected] * 4, -1), rtol=1e-4)
    np.testing.assert_allclose(found["Dense_0"]["bias"], 32.0, rtol=1e-6)


def test_a_parameter_that_no_unit_reads_counts_as_a_bias(seen):
    assert seen[2]["log_scale"] == 1.0 and seen[3]["log_scale"] == 2.0


def test_convolutions_as_products_have_the_same_and_a_scale_multiplies(seen):
    _, _, found, twice = seen
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-4), found, twice)


def test_a_linear_model_s_is_the_diagonal_of_its_hessian():
    x, y = jax.random.normal(jax.random.key(2), (5, 3)), jnp.ones((5, 2))
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    apply = lambda p, x: x @ p["kernel"] + p["bias"]  # noqa: E731
    loss = lambda p: jnp.mean((apply(p, x) - y) ** 2)  # noqa: E731
    both = jax.jit(lambda p: (jax.hessian(loss)(p), local_curvature(apply, p, x, scale=2 / 2)))
    hessian, found = both(params)
    np.testing.assert_allclose(found["kernel"], jnp.einsum("ijij->ij", hessian["kernel"]["kernel"]), rtol=1e-5)
    np.testing.assert_allclose(found["bias"], jnp.diag(hessian["bias"]["bias"]), rtol=1e-5)


def test_a_loop_is_refused():
    def looped(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=3)[0]

    with pytest.raises(NotImplementedError, match="local_curvature: '' is used inside 'scan'"):
        local_curvature(looped, jnp.eye(2), jnp.ones((1, 2)))
