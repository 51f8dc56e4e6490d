"""The unit graph: its corrections by hand, its table, and the evaluation that gives features."""

import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from plastic_jax import MLP, ConvNet, ResNet, Slice, trace_units

NETWORK = MLP(widths=(4, 3), outputs=2, activation="tanh")
X = jax.random.normal(jax.random.key(0), (5, 2, 3))
PARAMS = NETWORK.init(jax.random.key(1), X)["params"]


def apply(params, x):
    return NETWORK.apply({"params": params}, x)


UNITS = trace_units(apply, PARAMS, X)


def test_graph_of_an_mlp_names_what_enters_and_leaves_each_layer():
    first, second = UNITS.groups
    assert (first.name, first.width, first.activation.name) == ("Dense_0", 4, "tanh")
    assert first.incoming == (
        Slice("Dense_0/kernel", (6, 4), (1,), "kernel"),
        Slice("Dense_0/bias", (4,), (0,), "bias"),
    )
    assert second.outgoing == (Slice("Dense_2/kernel", (3, 2), (0,), "kernel", bias="Dense_2/bias"),)
    assert [s.fan for s in (*first.incoming, *second.outgoing)] == [6, 1, 2]


def test_features_are_the_hidden_values_and_the_output_is_the_networks_at_any_batch_size():
    for x in (X, X[:2]):
        output, features = UNITS.apply(PARAMS, x)
        np.testing.assert_array_equal(output, apply(PARAMS, x))
        hidden = jnp.tanh(x.reshape(len(x), 6) @ PARAMS["Dense_0"]["kernel"] + PARAMS["Dense_0"]["bias"])
        np.testing.assert_allclose(features["Dense_0"], hidden, atol=1e-6)
        np.testing.assert_allclose(features["Dense_1"] @ PARAMS["Dense_2"]["kernel"], output, atol=1e-5)


def test_graph_can_be_made_from_shapes_and_of_no_hidden_layer():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert trace_units(apply, shapes, jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)).groups == UNITS.groups
    linear = MLP(widths=(), outputs=2)
    params = linear.init(jax.random.key(0), X)
    units = trace_units(linear.apply, params, X)
    assert units.groups == ()
    assert units.apply(params, X)[1] == {}


def test_replace_changes_one_group_only():
    changed = UNITS.replace("Dense_1", function_preserving=False)
    assert [g.function_preserving for g in changed.groups] == [True, False]
    assert [g.function_preserving for g in UNITS.groups] == [True, True]
    with pytest.raises(ValueError, match=r"no group 'Dense_l' .did you mean 'Dense_1'.*groups: Dense_0, Dense_1"):
        UNITS.replace("Dense_l", width=2)
    with pytest.raises(ValueError, match=r"no field 'with'; fields: .*width"):
        UNITS.replace("Dense_1", **{"with": 2})


def test_printed_graph_has_a_line_for_each_layer_and_says_what_cannot_be_replaced():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="stem")(x)
            return nn.Dense(2, name="head")(x + nn.Dense(4, name="out")(nn.relu(nn.Dense(8, name="in")(x))))

    params = Block().init(jax.random.key(0), jnp.ones((2, 3)))
    units = trace_units(Block().apply, params, jnp.ones((2, 3)))
    head, hidden, stream = str(units).splitlines()
    assert head.split() == ["layer", "units", "incoming", "outgoing", "replaceable"]
    assert hidden.split() == ["params/in", "8", "params/in/{kernel,bias}", "params/out/kernel", "yes"]
    assert "no: residual stream" in stream
    rows = units.summary()
    assert [(row["name"], row["replaceable"]) for row in rows] == [("params/in", True), ("params/stem", False)]


def test_marked_value_is_a_feature_whatever_it_has_passed():
    def linear(params, x, mark):
        hidden = x @ params["a"]
        return (checkpoint_name(hidden, "units/code") if mark else hidden) @ params["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    assert trace_units(lambda p, x: linear(p, x, False), params, jnp.ones((2, 3))).groups == ()
    units = trace_units(lambda p, x: linear(p, x, True), params, jnp.ones((2, 3)))
    assert [(g.name, g.width) for g in units.groups] == [("a:code", 4)]
    assert units.apply(params, jnp.ones((5, 3)))[1]["a:code"].shape == (5, 4)


def test_of_an_operation_without_a_rule_only_what_it_reads_is_left_out():
    def apply(params, x):
        hidden = jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"])
        return jax.nn.relu(jnp.linalg.qr(hidden)[0] @ params["c"]) @ params["d"]

    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 4)), "c": jnp.ones((4, 6)), "d": jnp.ones((6, 2))}
    units = trace_units(apply, params, jnp.ones((4, 3)), check=False)
    assert [group.name for group in units.groups] == ["a", "c"]
    assert [group.name for group in units.left_out] == ["b"]
    assert re.search(r": passes '\w+', for which there is no rule \(test_units.py:\d+\)", units.left_out[0].note)


def test_a_layer_whose_kernel_is_divided_by_its_norm_is_left_out_with_that_reason():
    params = {"a": jax.random.normal(jax.random.key(0), (5, 4)), "b": jax.random.normal(jax.random.key(1), (4, 3))}
    params["c"] = jax.random.normal(jax.random.key(2), (3, 2))

    def apply(p, x):
        return jax.nn.relu(jax.nn.relu(x @ (p["a"] / jnp.linalg.norm(p["a"]))) @ p["b"]) @ p["c"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        units = trace_units(apply, params, jnp.ones((6, 5)))
    assert [group.name for group in units.groups] == ["b"]
    assert [(g.name, "divided by its norm" in g.note) for g in units.left_out] == [("a", True)]


def test_layer_inside_a_custom_derivative_is_left_out_and_the_others_are_not():
    @jax.custom_vjp
    def layers(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    layers.defvjp(lambda p, x: (layers(p, x), (p, x)), lambda saved, g: (saved[0], saved[1]))
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 5)), "c": jnp.ones((5, 2))}
    units = trace_units(lambda p, x: jax.nn.relu(layers(p, x)) @ p["c"], params, jnp.ones((2, 3)))
    assert [group.name for group in units.groups] == ["b"]
    assert [(g.name, "custom derivative" in g.note) for g in units.left_out] == [("a", True)]
    assert list(units.apply(params, jnp.ones((2, 3)))[1]) == ["b"]


PUBLISHED = {
    "mlp": (MLP(widths=(2000, 2000, 2000), outputs=10), (784,), 3, 6000),
    "conv_net": (ConvNet(), (32, 32, 3), 5, 480),
    "resnet": (ResNet(), (32, 32, 3), 17, 3904),
}


def published(name, batch):
    """The network's apply, its parameters and variables as shapes, and one input."""
    network, shape, _, _ = PUBLISHED[name]
    x = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    made = jax.eval_shape(network.init, jax.random.key(0), x)
    rest = {"batch_stats": made["batch_stats"]} if "batch_stats" in made else None
    if rest is None:
        return (lambda p, x: network.apply({"params": p}, x)), (made["params"], x), None
    return training(network), (made["params"], x), rest


def training(network):
    return lambda p, v, x: network.apply({"params": p, **v}, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_lists_of_features(name):
    apply, (params, x), variables = published(name, 4)
    units = trace_units(apply, params, x, variables=variables)
    assert len(units.groups) == PUBLISHED[name][2]
    assert sum(g.width for g in units.groups) == PUBLISHED[name][3]
    mixed = [g.name for g in units.groups if not g.function_preserving]
    skips = ["Conv_0", *(f"BasicBlock_{i}/Conv_1" for i in (0, 2, 4, 6))]
    assert mixed == (skips if name == "resnet" else [])
    assert units.left_out == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_features_cost_nothing(name):
    """The compiled training step with and without them: the same output and gradients, bit for bit, the same work."""
    apply, (shapes, x), variables = published(name, 2)
    if name == "resnet":
        small = ResNet(widths=(4, 8, 8, 8))
        apply = training(small)
        made = jax.eval_shape(small.init, jax.random.key(0), x)
        shapes, variables = made["params"], {"batch_stats": made["batch_stats"]}
    units = trace_units(apply, shapes, x, variables=variables)
    rng = np.random.default_rng(0)
    draw = lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(leaf.size)).astype(np.float32)  # noqa: E731
    params, inputs = jax.tree.map(draw, shapes), draw(x)
    rest = () if variables is None else (jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables),)

    def plain(params):
        output = apply(params, *rest, inputs)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(output)), output

    def traced(params):
        output, _ = units.apply(params, *rest, inputs)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(output)), output

    steps = [jax.jit(jax.value_and_grad(f, has_aux=True)).lower(params).compile() for f in (plain, traced)]
    without, with_features = (step(params) for step in steps)
    jax.tree.map(np.testing.assert_array_equal, without, with_features)
    flops, bytes_ = ([step.cost_analysis()[kind] for step in steps] for kind in ("flops", "bytes accessed"))
    assert flops[0] == flops[1]
    assert bytes_[0] == bytes_[1]


def test_without_leaves_parameters_out_by_name():
    network = ResNet(widths=(4, 8, 8, 8))
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    made = jax.eval_shape(network.init, jax.random.key(0), x)
    units = trace_units(training(network), made["params"], x, variables={"batch_stats": made["batch_stats"]})
    alone = units.without("*shortcut*")
    paths = lambda graph: {s.path for g in graph.groups for s in (*g.incoming, *g.outgoing)}  # noqa: E731
    assert {p for p in paths(units) if "shortcut" not in p} == paths(alone)
    assert [g.name for g in units.groups] == [g.name for g in alone.groups]
    with pytest.raises(ValueError, match=r"no parameter around the units matches '\*short'"):
        units.without("*short")
    with pytest.raises(ValueError, match=r"'\*/Conv_1/\*' would leave nothing around the units of BasicBlock_0/Conv_0"):
        units.without("*/Conv_1/*")
