"""Which parameters are read as matrices, and how: layers of Flax and Equinox, stacked or not."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, trace_units
from plastic_jax.matrices import Kernel, UnreadWarning, map_kernels, normalisations, read_kernels

SHAPES = {
    "Dense_0/kernel": ((6, 4), (4,), "io"),
    "Conv_0/kernel": ((3, 3, 6, 4), (4,), "ttio"),
    "Conv_1/kernel": ((5, 6, 4), (4,), "tio"),
    "BareConv/kernel": ((3, 3, 6, 4), None, "ttio"),
    "shortcut/kernel": ((1, 1, 6, 4), None, "ttio"),
    "scanned/kernel": ((3, 6, 4), (3, 4), "sio"),
    "ScanConv/kernel": ((3, 2, 2, 6, 4), (3, 4), "sttio"),
    "query/kernel": ((6, 2, 4), (2, 4), "ioo"),
    "out/kernel": ((2, 4, 6), (6,), "iio"),
    "scanned_query/kernel": ((3, 6, 2, 4), (3, 2, 4), "sioo"),
    "scanned_out/kernel": ((3, 2, 4, 6), (3, 6), "siio"),
    "linear/weight": ((4, 6), (4,), "oi"),
    "conv_of_equinox/weight": ((4, 6, 3, 3), (4, 1, 1), "oitt"),
    "stacked_linear/weight": ((3, 4, 6), (3, 4), "soi"),
}


def tree_of(shapes):
    """Parameters by module."""
    tree = {}
    for name, (shape, bias, _) in shapes.items():
        module, leaf = name.split("/")
        tree[module] = {leaf: jnp.zeros(shape)} | ({} if bias is None else {"bias": jnp.zeros(bias)})
    return tree


def test_layers_are_told_apart_by_name_axes_and_bias():
    params = tree_of(SHAPES) | {"Embed_0": {"embedding": jnp.zeros((9, 4))}, "LayerNorm_0": {"scale": jnp.ones((3, 4))}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadWarning)
        found = {kernel.name: kernel for kernel in read_kernels("test", params, warn=True)}
    assert {name: kernel.axes for name, kernel in found.items()} == {name: axes for name, (*_, axes) in SHAPES.items()}
    for name, (_, bias, _) in SHAPES.items():
        assert found[name].bias == (None if bias is None else name.split("/")[0] + "/bias")
    assert {kernel.fan_in for name, kernel in found.items() if name.endswith("Conv_0/kernel")} == {3 * 3 * 6}


def test_what_may_be_read_in_two_ways_is_left_alone_and_named_unless_it_is_said():
    params = {"a": {"kernel": jnp.zeros((3, 6, 4))}, "w": jnp.zeros((2, 3))}
    with pytest.warns(UnreadWarning, match=r"test: left alone, .*: a/kernel \(3, 6, 4\), w \(2, 3\); axes="):
        assert read_kernels("test", params, warn=True) == ()
    said = read_kernels("test", params, axes={"a/*": "sio", "w": "oi"})
    assert [kernel.axes for kernel in said] == ["sio", "oi"]
    for axes, message in (
        ({"b/*": "io"}, r"test: axes: no parameter matches 'b/\*'; there are: a/kernel, w"),
        ({"w": "ix"}, "test: axes: 'ix' for 'w'; letters are s, t, i, o"),
        ({"w": "sio"}, r"test: axes: 'sio' for 'w' does not fit w of shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            read_kernels("test", params, axes=axes)


def test_the_unit_graph_tells_inputs_from_outputs_and_layers_of_a_stack():
    """Without biases, by names of one's own: nothing but the graph knows."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            w, v = (self.param(n, nn.initializers.lecun_normal(), s) for n, s in (("w", (4, 5)), ("v", (5, 4))))
            return x + nn.relu(x @ w) @ v, None

    scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = jnp.ones((2, 4))
    params = scanned.init(jax.random.key(0), x, None)["params"]
    units = trace_units(lambda params, x: scanned.apply({"params": params}, x, None)[0], params, x)
    assert {kernel.name: kernel.axes for kernel in read_kernels("test", params, units)} == {"v": "sio", "w": "sio"}
    assert [kernel.name for kernel in read_kernels("test", params, units, layers="hidden")] == ["w"]


def test_hidden_layers_are_all_but_the_output_layer_of_a_network_without_shortcuts():
    network, x = MLP(widths=(4, 3), outputs=2), jnp.ones((2, 6))
    params = network.init(jax.random.key(0), x)["params"]
    units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
    names = [kernel.name for kernel in read_kernels("test", params, units, layers="hidden", exclude="*_1/*")]
    assert names == ["Dense_0/kernel"]
    with pytest.raises(ValueError, match="test: layers='hidden' needs units"):
        read_kernels("test", params, layers="hidden")


@pytest.mark.parametrize(("shape", "axes"), [((3, 2, 2, 6, 4), "sttio"), ((4, 6, 3, 2), "oitt"), ((6, 2, 4), "ioo")])
def test_a_leaf_comes_back_from_its_matrices(shape, axes):
    kernel, leaf = Kernel("w", shape, axes), jax.random.normal(jax.random.key(0), shape)
    for by_tap in (False, True):
        np.testing.assert_array_equal(kernel.leaf(kernel.matrices(leaf, by_tap)), leaf)
    doubled = map_kernels(lambda matrices: 2 * matrices, {"w": leaf.astype(jnp.bfloat16)}, [kernel])["w"]
    assert doubled.dtype == jnp.bfloat16 and doubled.shape == shape


def test_normalisation_layers_are_found_by_name_and_shape():
    params = {
        "LayerNorm_0": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "RMSNorm_0": {"scale": jnp.ones(4)},
        "norm": {"weight": jnp.ones(4), "bias": jnp.zeros(4)},
        "linear": {"weight": jnp.ones((4, 4)), "bias": jnp.zeros(4)},
    }
    found = [("LayerNorm_0/scale", "LayerNorm_0/bias"), ("RMSNorm_0/scale", None), ("norm/weight", "norm/bias")]
    assert normalisations(params) == found
