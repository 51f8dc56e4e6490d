"""Gradients in features: from the same backward pass, of every use, position and step; nothing else changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, trace_units
from plastic_jax.learners.supervised import SupervisedLearner
from plastic_jax.replacement.propagation import outgoing_gradient
from plastic_jax.replacement.statistics import feature_matrix

X = jax.random.normal(jax.random.key(0), (3, 6))
NETWORK = MLP((5, 4), 2)
PARAMS = NETWORK.init(jax.random.key(1), X)["params"]
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X, check=False)
Y = jnp.ones((3, 2))
SHAPES = {"in": (3, 4), "again": (4, 4), "start": (3, 4), "out": (4, 1)}
P = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(SHAPES.items())}
XS = jax.random.normal(jax.random.key(9), (5, 2, 3))
H0 = jnp.zeros((2, 4))


def cell(p, h, x):
    return jnp.tanh(x @ p["in"] + h @ p["again"])


def twice(p, x, y):
    return [nn.relu(each @ p["in"]) @ p["out"] for each in (x, y)]


def scanned(p, xs):
    return jax.lax.scan(lambda h, x: (cell(p, h, x), None), H0, xs)[0] @ p["out"]


def begun_by_an_encoder(p, xs):
    return jax.lax.scan(lambda h, x: (cell(p, h, x), None), jnp.tanh(xs[0] @ p["start"]), xs)[0] @ p["out"]


def loss(output, y):
    return jnp.mean((output - y) ** 2)


def test_they_are_those_of_the_chain_rule_and_change_nothing_else():
    both = jax.jit(lambda *args: (UNITS.value_and_grad(loss)(*args), _with(UNITS)(*args)))
    (value, grads), ((also, features), (same, ours)) = both(PARAMS, X, Y)
    jax.tree.map(np.testing.assert_array_equal, (value, grads), ((also, features), same))
    by_output = 2 * (UNITS.apply(PARAMS, X)[0] - Y) / Y.size
    last = by_output @ PARAMS["Dense_2"]["kernel"].T
    np.testing.assert_allclose(ours["Dense_1"], last, rtol=1e-5)
    first = (last * (features["Dense_1"] > 0)) @ PARAMS["Dense_1"]["kernel"].T
    np.testing.assert_allclose(ours["Dense_0"], first, rtol=1e-5)


def _with(units):
    return units.value_and_grad(loss, feature_gradients=True)


def conv(p, x):
    h = nn.relu(jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return h.reshape(len(x), -1) @ p["dense"]


def remat_in_scan(p, xs):
    return jax.lax.scan(jax.checkpoint(lambda h, x: (cell(p, h, x), None)), H0, xs)[0] @ p["out"]


PICTURES = jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
OF_CONV = {
    "conv": jax.random.normal(jax.random.key(3), (3, 3, 1, 2)),
    "dense": jax.random.normal(jax.random.key(4), (32, 3)),
}
MODELS = {
    "a network used twice": (twice, P, (XS[0], XS[1])),
    "a scan begun by an encoder": (begun_by_an_encoder, P, (XS,)),
    "remat in a scan": (remat_in_scan, P, (XS,)),
    "a flattened convolution": (conv, OF_CONV, (PICTURES,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_of_every_use_they_agree_with_the_gradients_of_the_weights_that_read_it(name):
    """`sum h dL/dh` over all values of a unit is `sum w dL/dw` over all weights that read it."""
    apply, params, inputs = MODELS[name]
    units = trace_units(apply, params, *inputs, check=False)
    total = lambda outputs: sum(jnp.sum(jnp.sin(o)) for o in jax.tree.leaves(outputs))  # noqa: E731
    both = jax.jit(units.value_and_grad(total, feature_gradients=True))
    (_, features), (grads, ours) = both(params, *inputs)
    for group in units.groups:
        found = jnp.sum(feature_matrix(group, features[group.name] * ours[group.name]), 0)
        expected = outgoing_gradient(group, params, grads)[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_with_means_they_are_arrays_all_the_same():
    plain, means = (trace_units(scanned, P, XS, check=False, means=means) for means in (False, True))
    loss = lambda output: jnp.sum(output**2)  # noqa: E731
    (_, features), (_, ours) = means.value_and_grad(loss, feature_gradients=True)(P, XS)
    _, (_, expected) = plain.value_and_grad(loss, feature_gradients=True)(P, XS)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert features["in"].mean.shape == (4, 1)


def test_a_learner_needs_units_for_them():
    with pytest.raises(ValueError, match="SupervisedLearner: feature_gradients needs units"):
        SupervisedLearner(NETWORK, (6,), "squared_error", lambda *_: None, feature_gradients=True)  # pyright: ignore
