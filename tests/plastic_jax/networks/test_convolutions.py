"""Convolutions as products are the convolutions of `lax`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from plastic_jax import ConvNet, ResNet, trace_units
from plastic_jax.networks.convolutions import as_products
from tests.marks import slow_unless

LAYOUT = ("NHWC", "HWIO", "NHWC")


def draw(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def convolution(x, kernel, strides=(1, 1), padding="VALID", **options):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, **options)


def value_and_gradients(function, *args):
    """The output, and the gradients of a fixed random sum of it."""
    weights = draw(99, jax.eval_shape(function, *args).shape)

    def score(args):
        output = function(*args)
        return jnp.sum(output.astype(jnp.promote_types(output.dtype, jnp.float32)) * weights), output

    gradients, output = jax.jit(jax.grad(score, has_aux=True))(args)
    return output, gradients


def assert_close(a, b, tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * max(np.abs(right).max(initial=0), 1e-6))


def primitives(jaxpr):
    """Names of all equations, also of those inside others."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for p in jax.tree.leaves(list(eqn.params.values())):
            if isinstance(p, ClosedJaxpr | Jaxpr):
                yield from primitives(p.jaxpr if isinstance(p, ClosedJaxpr) else p)


def names(function, *args):
    return set(primitives(jax.make_jaxpr(function)(*args).jaxpr))


SAME = [(1, 1), (1, 1)]
CASES = [
    # batch, sides, input and output channels, kernel sides, strides, padding
    (6, (8, 8), 8, 8, (3, 3), (1, 1), SAME),
    (7, (9, 7), 8, 40, (3, 3), (1, 1), SAME),
    (4, (9, 9), 16, 16, (3, 3), (2, 2), SAME),
    (4, (8, 8), 8, 16, (3, 3), (2, 2), SAME),
    (3, (8, 8), 8, 16, (1, 1), (2, 2), "VALID"),
    (3, (8, 6), 5, 4, (1, 1), (1, 1), "VALID"),
    (5, (14, 14), 8, 6, (3, 3), (1, 1), "VALID"),
    (2, (12, 12), 3, 32, (5, 5), (1, 1), "VALID"),
    (2, (12, 9), 8, 4, (2, 5), (3, 2), [(0, 2), (3, 1)]),
    (2, (7, 7), 8, 4, (4, 2), (1, 1), "SAME"),
    (1, (5, 5), 1, 1, (5, 5), (1, 1), "VALID"),
]


IN_BLOCKS = [CASES[i] for i in (1, 2, 8)]
"""Unequal sides, strides and padding."""


@pytest.mark.parametrize(
    ("case", "dtype", "cache"),
    slow_unless(
        lambda case, dtype, cache: cache is None or case in IN_BLOCKS,
        [(case, *how) for how in ((jnp.float32, None), (jnp.float64, 512)) for case in CASES],
    ),
    ids=str,
)
def test_value_and_gradients_are_those_of_lax(case, dtype, cache, monkeypatch):
    n, sides, channels, outputs, size, strides, padding = case
    if cache:
        monkeypatch.setattr("plastic_jax.networks.convolutions._CACHE", cache)
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = draw(0, (n, *sides, channels), dtype), draw(1, (*size, channels, outputs), dtype)
        plain = functools.partial(convolution, strides=strides, padding=padding)
        products = as_products(plain)
        assert "conv_general_dilated" not in names(products, x, kernel)
        tolerance = 1e-12 if dtype == jnp.float64 else 3e-6
        assert_close(value_and_gradients(products, x, kernel), value_and_gradients(plain, x, kernel), tolerance)


def test_negative_padding_crops():
    # The reference crops first: lax on the CPU may read beyond the picture where padding is negative.
    x, kernel = draw(0, (2, 6, 6, 8)), draw(1, (3, 3, 8, 4))
    ours = as_products(functools.partial(convolution, padding=[(-1, 1), (0, -1)]))
    cropped = functools.partial(convolution, padding=[(0, 1), (0, 0)])
    assert_close(jax.jit(ours)(x, kernel), jax.jit(cropped)(x[:, 1:, :-1], kernel), 3e-6)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_bfloat16_gives_the_dtype_the_convolution_has(preferred):
    x, kernel = draw(0, (8, 8, 8, 8), jnp.bfloat16), draw(1, (3, 3, 8, 8), jnp.bfloat16)
    plain = functools.partial(convolution, padding=SAME, preferred_element_type=preferred)
    assert_close(as_products(plain)(x, kernel), plain(x, kernel), 1e-2)
    gradients = value_and_gradients(as_products(plain), x, kernel)[1]
    exact = value_and_gradients(
        functools.partial(convolution, padding=SAME), *(a.astype(jnp.float32) for a in (x, kernel))
    )
    assert_close(gradients, jax.tree.map(lambda g: g.astype(jnp.bfloat16), exact[1]), 1e-2)


def pool(x, window=(2, 2), strides=None, padding="VALID"):
    return nn.max_pool(x, window, strides=strides or window, padding=padding)


@pytest.mark.parametrize(
    ("sides", "window"), [((8, 8), (2, 2)), ((7, 9), (2, 2)), ((7, 9), (2, 3)), ((2, 3), (1, 2)), ((2, 3), (2, 3))]
)
def test_pool_is_that_of_lax_also_where_values_are_equal(sides, window):
    # Few different values, so that most windows have several largest.
    x = jnp.round(draw(0, (3, *sides, 4)))
    plain = functools.partial(pool, window=window)
    assert names(as_products(plain), x).isdisjoint({"reduce_window_max"})
    ours, theirs = value_and_gradients(as_products(plain), x), value_and_gradients(plain, x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_pool_hands_on_what_is_no_number():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 0, 1, 0].set(jnp.nan).at[0, 2, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(as_products(pool)(x), pool(x))
    assert int(jnp.isnan(as_products(pool)(x)).sum()) == 2


@pytest.mark.parametrize(
    ("function", "shapes", "primitive"),
    [
        (functools.partial(convolution, feature_group_count=2), ((2, 6, 6, 4), (3, 3, 2, 4)), "conv_general_dilated"),
        (functools.partial(convolution, rhs_dilation=(2, 1)), ((2, 6, 6, 4), (3, 3, 4, 4)), "conv_general_dilated"),
        (
            functools.partial(convolution, padding=SAME, lhs_dilation=(2, 2)),
            ((2, 6, 6, 4), (3, 3, 4, 4)),
            "conv_general_dilated",
        ),
        (
            lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID"),
            ((2, 4, 6, 6), (3, 4, 3, 3)),
            "conv_general_dilated",
        ),
        (
            lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")),
            ((2, 6, 4), (3, 4, 4)),
            "conv_general_dilated",
        ),
        (convolution, ((0, 6, 6, 4), (3, 3, 4, 4)), "conv_general_dilated"),
        (functools.partial(pool, window=(3, 3), strides=(2, 2)), ((2, 7, 7, 3),), "reduce_window_max"),
        (functools.partial(pool, padding="SAME"), ((2, 7, 7, 3),), "reduce_window_max"),
    ],
)
def test_what_is_not_known_is_left_alone(function, shapes, primitive):
    args = [draw(i, shape) for i, shape in enumerate(shapes)]
    assert primitive in names(as_products(function), *args)
    np.testing.assert_array_equal(as_products(function)(*args), function(*args))


def test_a_custom_derivative_rule_stays_whole():
    @jax.custom_vjp
    def doubled(x, kernel):
        return convolution(x, kernel)

    doubled.defvjp(
        lambda x, kernel: (convolution(x, kernel), (x, kernel)), lambda saved, _: jax.tree.map(jnp.ones_like, saved)
    )
    x, kernel = draw(0, (2, 6, 6, 4)), draw(1, (3, 3, 4, 4))

    def both(x, kernel):
        return jnp.sum(doubled(x, kernel)) + jnp.sum(convolution(x, kernel))

    ours, theirs = (jax.jit(jax.grad(f))(x, kernel) for f in (as_products(both), both))
    assert_close(ours, theirs, 1e-5)
    assert_close(ours - 1, jax.grad(lambda x: jnp.sum(convolution(x, kernel)))(x), 1e-5)


def layers(params, x):
    """Convolutions directly, under jit, remat and scan, with a custom derivative (relu) and a pool among them."""
    x = nn.relu(convolution(x, params["first"], padding=SAME))
    x = jax.jit(lambda x, k: jax.nn.silu(convolution(x, k, padding=SAME)))(x, params["second"])
    x = jax.checkpoint(lambda x, k: jnp.tanh(convolution(x, k, padding=SAME)))(x, params["third"])
    x, seen = jax.lax.scan(lambda x, k: (nn.relu(convolution(x, k, padding=SAME)), x.mean()), x, params["rest"])
    return {"output": pool(x).mean((1, 2)), "seen": seen}


def inputs(lanes=()):
    params = {name: draw(i, (*lanes, 3, 3, 8, 8)) / 8 for i, name in enumerate(("first", "second", "third"))}
    return params | {"rest": draw(5, (*lanes, 3, 3, 3, 8, 8)) / 8}, draw(6, (*lanes, 4, 8, 8, 8))


def loss(function):
    return lambda params, x: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(function(params, x)))


def test_convolutions_inside_jit_remat_and_scan_are_found():
    params, x = inputs()
    assert "conv_general_dilated" not in names(jax.grad(loss(as_products(layers))), params, x)
    assert {"custom_jvp_call", "scan"} <= names(as_products(layers), params, x)
    assert_close(jax.jit(as_products(layers))(params, x), jax.jit(layers)(params, x), 1e-5)
    ours, theirs = (jax.jit(jax.grad(loss(f)))(params, x) for f in (as_products(layers), layers))
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("lanes", [1, 3])
def test_mapped_over_lanes_inside_a_compiled_loop(lanes):
    params, x = inputs((lanes,))

    def train(function):
        def step(params, _):
            gradient = jax.grad(loss(function))(params, x_lane)
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), loss(function)(params, x_lane)

        def run(params, x):
            nonlocal x_lane
            x_lane = x
            return jax.lax.scan(step, params, None, length=3)

        x_lane = None
        return jax.jit(jax.vmap(run))

    assert_close(train(as_products(layers))(params, x), train(layers)(params, x), 2e-5)


def test_constants_arguments_without_a_convolution_and_pytrees():
    kernel = draw(1, (3, 3, 4, 4))

    def function(x, unused, scale):
        return (convolution(x["a"], kernel) * scale, x["a"], 3.0)

    args = ({"a": draw(0, (2, 6, 6, 4))}, jnp.arange(3), 2.0)
    assert_close(as_products(function)(*args), jax.tree.map(jnp.asarray, function(*args)), 1e-5)
    assert_close(as_products(jnp.sin)(jnp.ones(3)), jnp.sin(jnp.ones(3)), 0)


NETWORKS = [
    (ConvNet(), {}),
    (ResNet(widths=(8, 8, 16, 16), outputs=5), {"train": True, "mutable": ["batch_stats"]}),
]


@pytest.mark.parametrize(("network", "mode"), NETWORKS, ids=["ConvNet", "ResNet"])
def test_our_networks_hold_no_convolution_any_more(network, mode):
    x = draw(0, (4, 32, 32, 3))
    variables = network.init(jax.random.key(1), x)

    def scored(transform):
        def score(params, x):
            output = transform(lambda params, x: network.apply({**variables, "params": params}, x, **mode))(params, x)
            return jnp.sum(jnp.square(jax.tree.leaves(output)[-1])), output

        return jax.value_and_grad(score, has_aux=True)

    params = variables["params"]
    found = names(scored(as_products), params, x)
    assert found.isdisjoint({"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"})
    ours, theirs = jax.jit(scored(as_products))(params, x), jax.jit(scored(lambda f: f))(params, x)
    assert_close(ours[0], theirs[0], 1e-5)
    # A bias before batch normalisation has gradient 0 but for rounding: the scale is that of all gradients.
    most = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(theirs[1]))
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * most)


def test_features_of_the_units_are_the_same():
    network, x = ConvNet(), draw(0, (4, 32, 32, 3))
    params = network.init(jax.random.key(1), x)["params"]
    units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
    assert_close(jax.jit(as_products(units.apply))(params, x), jax.jit(units.apply)(params, x), 1e-5)
