"""The activation of traced units is the function itself, however it is written; its gain keeps the variance."""

import math
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax.replacement.initializers import gain, unit_initializer
from plastic_jax.units import trace_units
from plastic_jax.units.activation import named

X, W, V = (
    np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate([(3, 5), (5, 4), (4, 2)])
)


def traced(f, params=(W, V)):
    """The activation that is found in a layer `f`."""
    (group,) = trace_units(lambda p, x: f(x @ p[0]) @ p[-1], params, X, check=False).groups
    return group.activation


def of_models(body, *inputs):
    """The activations of all groups of a compact Flax module, by name."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, *inputs):
            return body(*inputs)

    net = Net()
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    units = trace_units(lambda p, *x: net.apply(p, *x), shapes, *inputs)
    return {group.name.removeprefix("params/"): group.activation for group in units.groups}


E2 = math.exp(-2)
CLOSED = {  # E f(z)^2 of a standard normal z
    "abs": (jnp.abs, 1.0),
    "square": (jnp.square, 3.0),
    "sin": (jnp.sin, (1 - E2) / 2),
    "cos": (jnp.cos, (1 + E2) / 2),
    "exp": (jnp.exp, math.exp(2)),
    "squared_relu": (lambda x: jnp.maximum(x, 0) ** 2, 1.5),
    "hard_tanh": (jax.nn.hard_tanh, math.erf(0.5**0.5) - math.sqrt(2 / math.pi / math.e) + math.erfc(0.5**0.5)),
    "celu": (
        jax.nn.celu,
        1 + math.exp(2) * math.erfc(2**0.5) / 2 - math.exp(0.5) * math.erfc(0.5**0.5),
    ),
    "sign": (jnp.sign, 1.0),
    "gt": (lambda x: (x > 0.25).astype(jnp.float32), math.erfc(0.25 / 2**0.5) / 2),
}


@pytest.mark.parametrize("name", CLOSED)
def test_gain_is_that_of_the_second_moment(name):
    f, moment = CLOSED[name]
    assert traced(f).gain == pytest.approx(1 / math.sqrt(moment), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"), [("relu", 2**0.5), ("tanh", 5 / 3), ("sigmoid", 1.0), ("selu", 1.0), ("elu", 2**0.5)]
)
def test_published_gains_go_by_the_function_not_by_its_spelling(name, expected):
    spellings = {
        "relu": lambda x: jnp.where(x > 0, x, 0),
        "tanh": lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)),
        "sigmoid": lambda x: 1 / (1 + jnp.exp(-x)),
        "selu": lambda x: 1.0507009873554805 * jnp.where(x > 0, x, 1.6732632423543772 * (jnp.exp(x) - 1)),
        "elu": lambda x: jnp.maximum(x, 0) + jnp.expm1(jnp.minimum(x, 0)),
    }
    for f in (getattr(jax.nn, name), spellings[name]):
        assert (traced(f).name, traced(f).gain) == (name, expected)
    assert gain(name) == expected


@pytest.mark.parametrize("slope", [0.01, 0.2])
def test_leaky_relu_has_the_gain_of_its_slope(slope):
    found = traced(lambda x: jax.nn.leaky_relu(x, slope))
    assert found.name == "leaky_relu" and found.gain == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-7)


OTHERS = ["softplus", "mish", "soft_sign", "gelu", "silu", "hard_sigmoid", "hard_swish", "log_sigmoid", "relu6"]


@pytest.mark.parametrize("name", OTHERS)
def test_functions_of_jax_have_their_names_and_keep_the_second_moment(name):
    f = getattr(jax.nn, name)
    found = traced(f)
    assert found.name == named({"soft_sign": "softsign"}.get(name, name)).name
    if name != "silu":  # which has the published gain of relu
        z = np.random.default_rng(0).normal(size=400_000).astype(np.float32)
        assert found.gain**2 * float(jnp.mean(f(z) ** 2)) == pytest.approx(1, rel=0.01)


def test_a_function_nobody_knows():
    """Snake (Ziyin et al. 2020) with frequency 2; a constant factor before or behind counts."""
    snake = jax.jit(lambda x: x + jnp.sin(2 * x) ** 2 / 2)
    z = np.random.default_rng(0).normal(size=400_000).astype(np.float32)
    assert traced(snake).gain == pytest.approx(float(jnp.mean(snake(z) ** 2)) ** -0.5, rel=0.01)
    assert traced(lambda x: 2 * jnp.maximum(x, 0)).gain == pytest.approx(2**-0.5)
    assert traced(lambda x: jnp.maximum(x / 10, 0)).gain == pytest.approx(10 * 2**0.5)
    assert traced(lambda x: jnp.tanh(jnp.maximum(x, 0))).limits == (0.0, 1.0)


def test_learned_scales_norms_pooling_and_dropout_are_no_part_of_the_function():
    def body(x, keep):
        x = nn.LayerNorm()(nn.Conv(4, (3, 3))(x))
        x = nn.avg_pool(jnp.tanh(x), (2, 2), strides=(2, 2))
        x = nn.GroupNorm(2)(nn.softplus(nn.Conv(4, (3, 3))(x)))
        x = jnp.where(keep, jnp.mean(x, axis=(1, 2)) / 0.9, 0)
        return nn.Dense(2)(nn.PReLU()(nn.Dense(5)(x)))

    found = of_models(body, np.ones((2, 4, 4, 3), np.float32), np.ones((2, 4), bool))
    assert {name: one.name for name, one in found.items()} == {
        "Conv_0": "tanh",
        "Conv_1": "softplus",
        "Dense_1": "linear",  # a fresh unit has the slope 1
    }


def test_skip_connections_and_several_readers():
    def body(x):
        x = nn.tanh(nn.Dense(4, name="a")(x))
        x = nn.relu(nn.Dense(4, name="b")(x) + x)
        y = jnp.sin(nn.Dense(3, name="c")(x))
        return nn.Dense(2, name="d")(jnp.concatenate([nn.relu(nn.Dense(2, name="e")(y)), y], axis=-1))

    names = {name: one.name for name, one in of_models(body, X).items()}
    assert names == {"a": "tanh", "b": "relu", "c": "sin", "e": "relu"}


def test_units_that_are_read_as_several_functions_have_the_mean_moment():
    """CReLU and Fourier features: of the two halves each has the moment 1/2."""
    crelu = traced(lambda x: jnp.concatenate([jnp.maximum(x, 0), jnp.maximum(-x, 0)], -1), (W, np.tile(V, (2, 1))))
    assert crelu == named("crelu") and crelu.off and crelu.gain == pytest.approx(named("relu").gain)
    fourier = traced(lambda x: jnp.concatenate([jnp.sin(x), jnp.cos(x)], -1), (W, np.tile(V, (2, 1))))
    assert (fourier.name, fourier.odd) == ("deep_fourier", False) and fourier.gain == pytest.approx(2**0.5)


def test_units_of_several_pre_activations_are_gated_and_have_gain_1():
    def body(x):
        x = nn.RNN(nn.GRUCell(4))(x)
        x = nn.RNN(nn.SimpleCell(4))(x)
        x = nn.glu(nn.Dense(8, name="glu")(x))
        x = jnp.maximum(nn.Dense(4, name="left")(x), nn.Dense(4, name="right")(x))
        return nn.Dense(2)(x)

    found = of_models(body, np.ones((2, 3, 5), np.float32))
    assert {name: one.name for name, one in found.items()} == {
        "GRUCell_0": "gated",
        "SimpleCell_0": "tanh",
        "glu": "gated",
        "left": "gated",
    }
    assert found["glu"].gain == 1.0


def test_values_in_lower_precision_and_inner_programs():
    assert (
        traced(jax.checkpoint(jax.jit(lambda x: jax.nn.gelu(x.astype(jnp.bfloat16)).astype(jnp.float32)))).name
        == "gelu"
    )
    assert traced(lambda x: jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h), x)).name == "tanh"


def test_an_activation_can_be_given_by_name_and_decides_the_draw():
    graph = trace_units(lambda p, x: jnp.sin(x @ p[0]) @ p[1], (W, V), X, check=False)
    assert graph.replace("0", activation="tanh").groups[0].activation == named("tanh")
    with pytest.raises(ValueError, match="unknown activation 'tan'; allowed: abs, "):
        graph.replace("0", activation="tan")
    draw = unit_initializer("kaiming_uniform", graph.groups[0].activation)
    rows = draw(jax.random.key(0), 500, 12, 1, jnp.dtype("float32"))
    assert float(rows.std()) == pytest.approx(math.sqrt(2 / (1 - E2) / 12), rel=0.03)
    assert pickle.loads(pickle.dumps(graph.groups)) == graph.groups


def test_facts_of_known_functions():
    facts = {name: (named(name).off, named(name).positive, named(name).odd) for name in ("relu", "exp", "sin", "gelu")}
    assert facts == {
        "relu": (True, False, False),
        "exp": (False, True, False),
        "sin": (False, False, True),
        "gelu": (False, False, False),
    }
    assert named("softsign").limits == pytest.approx((-1, 1), abs=1e-4) and named("sigmoid").limits == (0, 1)
    assert named("sin").limits is None and named("elu").limits is None
    near = named("hard_sigmoid").saturated(np.array([0.0, 0.04, 0.06, 0.94, 0.96]))
    np.testing.assert_array_equal(near, [True, True, False, False, True])
    with pytest.raises(ValueError, match="'relu' has no two limits"):
        named("relu").saturated(np.ones(2))
