"""Activations and norms of the networks: closed forms, and what tracing finds of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, trace_units
from plastic_jax.networks import ACTIVATIONS, NORMS, ActorCritic, ConvNet, Rational, ResNet
from plastic_jax.networks.layers import TWO_FEATURES, crelu, deep_fourier, smooth_leaky_relu
from plastic_jax.units.activation import named

Z = np.linspace(-3, 3, 6001)


def test_crelu_of_the_negative_is_crelu_with_its_halves_exchanged():
    z = jnp.array([[-2.0, 0.0, 3.0]])
    np.testing.assert_array_equal(crelu(z), [[0, 0, 3, 2, 0, 0]])
    np.testing.assert_array_equal(crelu(-z), jnp.roll(crelu(z), 3, axis=-1))
    np.testing.assert_array_equal(crelu(z)[:, :3] - crelu(z)[:, 3:], z)


def test_deep_fourier_features_are_sines_and_cosines_of_the_same_pre_activation():
    features = np.asarray(deep_fourier(jnp.asarray(Z)))
    np.testing.assert_allclose(features[: len(Z)] ** 2 + features[len(Z) :] ** 2, 1, rtol=1e-5)
    np.testing.assert_allclose(features[: len(Z)], np.sin(Z), atol=1e-6)


def test_smooth_leaky_relu_has_the_slopes_one_tenth_and_one_and_their_mean_at_zero():
    slope = jax.vmap(jax.grad(smooth_leaky_relu))(jnp.array([-30.0, 0.0, 30.0]))
    np.testing.assert_allclose(slope, [0.1, 0.55, 1.0], rtol=1e-5)
    assert smooth_leaky_relu(jnp.array(0.0)) == 0


def test_the_first_rational_function_is_leaky_relu_up_to_the_published_fit():
    params = Rational().init(jax.random.key(0), jnp.zeros(1))
    error = np.asarray(Rational().apply(params, jnp.asarray(Z))) - np.where(Z > 0, Z, 0.01 * Z)
    assert abs(Z[np.argmax(np.abs(error))]) < 1e-9  # at the kink, where it is the constant of the numerator
    np.testing.assert_allclose(np.abs(error).max(), 0.0335582, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(error**2)), 0.00554, rtol=2e-3)


def test_the_coefficients_of_a_rational_function_are_learned_in_numerator_and_denominator():
    params = {"params": {"numerator": jnp.arange(6.0), "denominator": jnp.array([0.5, 0.0, -2.0, 0.0])}}
    numerator = sum(k * 2.0**k for k in range(6))
    assert Rational().apply(params, jnp.array(2.0)) == numerator / (1 + abs(0.5 * 2 - 2 * 8))
    grads = jax.grad(lambda p: Rational().apply(p, jnp.array(2.0)))(params)["params"]
    assert all(np.all(np.asarray(g) != 0) for g in grads.values())
    half = Rational().apply(params, jnp.ones(3, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_pre_activations_are_normalised_over_the_units_before_the_activation(norm):
    network, x = MLP(widths=(5,), outputs=2, norm=norm), jax.random.normal(jax.random.key(0), (3, 4))
    params = network.init(jax.random.key(1), x)["params"]
    module = {"layer_norm": "LayerNorm_0", "rms_norm": "RMSNorm_0"}[norm]
    params[module] = jax.tree.map(lambda leaf: leaf + jnp.arange(5.0), params[module])
    z = np.asarray(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    z = z - z.mean(1, keepdims=True) if norm == "layer_norm" else z
    z = z / np.sqrt(np.mean(z**2, 1, keepdims=True) + 1e-5) * params[module]["scale"]
    z = z + params[module].get("bias", 0)
    expected = np.maximum(z, 0) @ params["Dense_1"]["kernel"]
    np.testing.assert_allclose(network.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def traced(network, shape, **mode):
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    assert set(variables) == {"params"}
    return trace_units(lambda params, x: network.apply({"params": params}, x, **mode), variables["params"], x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_recognised_with_its_gain_and_a_unit_has_all_its_features(activation):
    graph = traced(MLP(widths=(6, 4), outputs=2, activation=activation), (3,))
    units = (3, 2) if activation == "deep_fourier" else (6, 4)
    features = 2 if activation in TWO_FEATURES else 1
    for group, width in zip(graph.groups, units, strict=True):
        assert (group.width, group.copies, group.activation.name) == (width, features, activation)
        assert group.activation.gain == pytest.approx(named(activation).gain, rel=1e-6)
        assert group.function_preserving and len(group.incoming) == 2
        (reader,) = group.outgoing
        assert np.prod(reader.view_shape) == width * features * (2 if group is graph.groups[1] else units[1])


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "none"])
@pytest.mark.parametrize("kind", ["mlp", "conv", "residual", "actor_critic"])
def test_parameters_of_a_norm_belong_to_the_unit(kind, norm):
    options = {"norm": norm} if kind == "residual" else {"norm": norm, "activation": "crelu"}
    if kind == "mlp":
        graph = traced(MLP((6, 4), 2, **options), (3,))
    elif kind == "conv":
        graph = traced(ConvNet(2, (2, 4), (3, 3), (4,), **options), (12, 12, 3))
    elif kind == "residual":
        graph = traced(ResNet(3, (4, 6), (1, 1), **options), (8, 8, 3), train=True)
    else:
        graph = traced(ActorCritic(2, (4, 4), **options), (3,))
    own = ["scale", "shift"] if norm == "layer_norm" else ["scale"]
    assert len(graph.groups) == {"mlp": 2, "conv": 3, "residual": 5, "actor_critic": 4}[kind]
    for group in graph.groups:
        assert [s.role for s in group.incoming if s.role not in ("kernel", "bias")] == own * (
            len(group.incoming_kernels)
        )
        assert not group.function_preserving and group.variables == ()


def test_deep_fourier_features_keep_the_width_and_halve_the_units_rounded_up():
    shape = jax.eval_shape(MLP((10, 5), 2, "deep_fourier").init, jax.random.key(0), jnp.ones((1, 3)))["params"]
    assert [shape[f"Dense_{i}"]["kernel"].shape for i in range(3)] == [(3, 5), (10, 3), (6, 2)]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (MLP((4,), 1, activation="rely"), r"activation 'rely'; allowed: .*relu"),
        (MLP((4,), 1, norm="batch_norm"), r"norm='batch_norm'; allowed: none, layer_norm, rms_norm"),
        (ResNet(2, (4,), (1,), activation="crelu"), r"ResNet: activation='crelu' changes the number of channels"),
        (ResNet(2, (4,), (1,), norm="group"), r"norm='group'; allowed: batch_norm, none, layer_norm"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(network, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
