import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, trace_units
from plastic_jax.networks import ACTIVATIONS, BatchNorm, ConvNet, ResNet
from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.replacement.initializers import gain
from plastic_jax.units import jaxprs


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_weights_follow_the_published_law(activation):
    network = MLP(widths=(300, 200), outputs=100, activation=activation)
    params = network.init(jax.random.key(0), jnp.ones((1, 50)))["params"]
    features = 2 if activation == "crelu" else 1  # of a unit; two of deep Fourier features make one of a layer's width
    for layer, fan_in, law in (
        ("Dense_0", 50, gain(activation)),
        ("Dense_1", 300 * features, gain(activation)),
        ("Dense_2", 200 * features, 1),
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


def shapes(network, **options):
    variables = jax.eval_shape(lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), **options), jax.random.key(0))
    return variables, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def units_of(network, variables, x=jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)):  # noqa: B008
    params = variables["params"]
    if "batch_stats" not in variables:
        return trace_units(lambda params, x: network.apply({"params": params}, x), params, x)

    def training(params, statistics, x):
        return network.apply({"params": params, **statistics}, x, train=True, mutable=["batch_stats"])

    return trace_units(training, params, x, variables={"batch_stats": variables["batch_stats"]})


def test_published_networks_have_the_published_numbers_of_parameters_and_units():
    variables, parameters = shapes(ConvNet())
    assert parameters == 177_218
    units = units_of(ConvNet(), variables)
    assert [(g.width, g.copies) for g in units.groups] == [(32, 1), (64, 1), (128, 4), (128, 1), (128, 1)]
    for train in (False, True):
        variables, parameters = shapes(ResNet(), train=train)
        assert parameters == 11_224_932
    units = units_of(ResNet(), variables)
    assert [g.width for g in units.groups] == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    assert sum(g.width for g in units.groups) == 3904


def test_units_of_published_networks_read_maps_of_the_published_sizes():
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables, _ = shapes(ConvNet())
    logits, features = jax.eval_shape(units_of(ConvNet(), variables).apply, variables["params"], x)
    assert logits.shape == (2, 2)
    assert [f.shape[1:] for f in features.values()] == [(14, 14, 32), (6, 6, 64), (4, 128), (128,), (128,)]
    variables, _ = shapes(ResNet())
    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}
    units = units_of(ResNet(), variables)
    (logits, _), features = jax.eval_shape(units.apply, params, statistics, x)
    assert logits.shape == (2, 100)
    maps = [(32, 64)] * 5 + [(16, 128)] * 4 + [(8, 256)] * 4 + [(4, 512)] * 3
    assert [features[g.name].shape[1:] for g in units.groups] == [
        *((side, side, width) for side, width in maps),
        (512,),
    ]


def test_convolutional_network_starts_from_the_published_law_biases_too():
    network = ConvNet(outputs=50, channels=(40,), kernel_sizes=(3,), widths=(60,))
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 30)))["params"]
    for layer, fan_in in (("Conv_0", 270), ("Dense_0", 160), ("Dense_1", 60)):
        bound = math.sqrt(1 / fan_in)
        for leaf in ("kernel", "bias"):
            values = np.asarray(params[layer][leaf])
            assert 0.9 * bound < np.abs(values).max() <= bound * 1.0001
        np.testing.assert_allclose(params[layer]["kernel"].std(), bound / math.sqrt(3), rtol=0.03)


def test_residual_network_starts_from_the_published_law():
    network = ResNet(outputs=30, widths=(20, 24), blocks=(1, 1))
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 20)))
    params = variables["params"]
    kernels = {
        "Conv_0": math.sqrt(2 / 180),
        "BasicBlock_0/Conv_0": math.sqrt(2 / 180),
        "BasicBlock_1/Conv_0": math.sqrt(2 / 180),
        "BasicBlock_1/shortcut": math.sqrt(2 / 20),
        "Dense_0": math.sqrt(1 / 24),
    }
    for layer, deviation in kernels.items():
        np.testing.assert_allclose(get_leaf(params, f"{layer}/kernel").std(), deviation, rtol=0.1)
        assert not get_leaf(params, f"{layer}/bias").any()
    assert "shortcut" not in params["BasicBlock_0"]


@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_is_flax_s_but_for_its_running_variance(unbiased):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    ours, flax = BatchNorm(unbiased=unbiased), nn.BatchNorm(momentum=0.9, epsilon=1e-5)
    variables = ours.init(jax.random.key(0), x, True)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x, False))
    assert not variables["batch_stats"]["mean"].any()
    params = {"scale": jnp.arange(1.0, 5.0), "bias": jnp.arange(4.0)}
    full = {**variables, "params": params}
    y, after = ours.apply(full, x, True, mutable=["batch_stats"])
    expected, expected_after = flax.apply(full, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    after, expected_after = after["batch_stats"], expected_after["batch_stats"]
    np.testing.assert_allclose(after["mean"], expected_after["mean"], rtol=1e-5)
    batch = expected_after["var"] - 0.9  # 0.1 times the biased variance of 12 values
    np.testing.assert_allclose(after["var"], 0.9 + batch * (12 / 11 if unbiased else 1), rtol=1e-5)
    np.testing.assert_allclose(ours.apply(full, x, False), flax.apply(full, x, True), atol=1e-5)


def test_only_units_that_the_shortcuts_see_are_not_isolated():
    # With its readers at zero a unit may not matter, unless an identity shortcut carries it past them.
    network = ResNet(outputs=3, widths=(2, 2, 4), blocks=(1, 1, 1))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    variables = jax.jit(network.init)(jax.random.key(1), x)
    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}
    units = units_of(network, variables, x)
    evaluate = jax.jit(lambda params: network.apply({"params": params, **statistics}, x))
    found = {}
    for group in units.groups:
        cut = set_leaves(params, {s.path: 0 * get_leaf(params, s.path) for s in group.outgoing})
        bias = f"{group.name}/bias"
        found[group.name] = np.array_equal(evaluate(cut), evaluate(set_leaves(cut, {bias: get_leaf(cut, bias) + 1})))
    assert found == {group.name: group.function_preserving for group in units.groups}
    assert [name for name, silent in found.items() if not silent] == ["Conv_0"]


# -- arithmetic in bfloat16


def equations(jaxpr):
    """All equations, those within others too."""
    for eqn in jaxpr.jaxpr.eqns:
        yield eqn
        for inside in jaxprs.inner(eqn):
            yield from equations(inside)


SMALL = {"conv": ConvNet(3, (4, 4), (3, 3), (5,)), "residual": ResNet(3, (4, 6), (1, 1))}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16], ids=["named", "type"])
def test_in_bfloat16_only_contractions_are_and_what_is_kept_is_float32(name, dtype):
    network, x = SMALL[name].clone(dtype=dtype), jnp.ones((2, 12, 12, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), x)

    def loss(variables):
        mode = {"train": True, "mutable": ["batch_stats"]} if "batch_stats" in variables else {}
        output = network.apply(variables, x, **mode)
        output, after = output if mode else (output, {})
        return jnp.sum(output**2), (output, after)

    closed, (grads, (output, after)) = jax.make_jaxpr(jax.grad(loss, has_aux=True), return_shape=True)(variables)
    for kept in (variables, grads, after, output):
        assert {leaf.dtype for leaf in jax.tree.leaves(kept)} <= {jnp.dtype("float32")}
    contractions = [eqn for eqn in equations(closed) if eqn.primitive.name in jaxprs.CONTRACTIONS]
    assert {eqn.primitive.name for eqn in contractions} == set(jaxprs.CONTRACTIONS)
    assert {v.aval.dtype for eqn in contractions for v in eqn.invars} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_answers_as_float32_does_but_for_rounding(name):
    network, x = SMALL[name], jax.random.normal(jax.random.key(1), (2, 12, 12, 3))
    variables = jax.jit(network.init)(jax.random.key(0), x)
    outputs = [jax.jit(each.apply)(variables, x) for each in (network, network.clone(dtype="bfloat16"))]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0.05, atol=0.05)
    assert np.any(outputs[0] != outputs[1])


def test_statistics_of_a_batch_are_not_rounded_to_bfloat16():
    x = 300 + jax.random.normal(jax.random.key(0), (50, 2, 2, 4))
    x = x.astype(jnp.bfloat16)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, after = norm.apply(variables, x, True, mutable=["batch_stats"])
    mean, var = np.asarray(x, np.float64).mean((0, 1, 2)), np.asarray(x, np.float64).var((0, 1, 2), ddof=1)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "outputs"),
    [(MLP(widths=(4, 3), outputs=7), 7), (MLP(widths=(), outputs=7), 7), (ConvNet(7, (2,), (3,), (4,)), 7),
     (ResNet(7, (2,), (1,)), 7)],
)  # fmt: skip
def test_a_network_says_which_layer_its_outputs_come_from(network, outputs):
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert params[network.head]["kernel"].shape[-1] == params[network.head]["bias"].shape[0] == outputs
