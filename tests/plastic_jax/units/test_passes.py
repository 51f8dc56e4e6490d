"""Gradients that bring the features along, and features of several passes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import trace_units
from plastic_jax.replacement.statistics import mean_feature


class Net(nn.Module):
    norm: bool = False

    @nn.compact
    def __call__(self, x, scale=1.0, train=True):
        h = nn.Dense(4)(x)
        if self.norm:
            h = nn.BatchNorm(use_running_average=not train)(h)
        return nn.Dense(2)(nn.relu(h)) * scale


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def squared(output, y):
    return jnp.mean((output - y) ** 2)


@pytest.fixture(scope="module")
def data():
    return jax.random.normal(jax.random.key(0), (6, 3)), jnp.arange(12.0).reshape(6, 2)


@pytest.fixture(scope="module")
def plain(data):
    net = Net()
    params = net.init(jax.random.key(1), data[0])
    return net, params, trace_units(net.apply, params, data[0])


def test_gradient_value_and_features_are_those_of_the_model(plain, data):
    net, params, units = plain
    x, y = data
    (value, features), grads = units.value_and_grad(squared)(params, x, y)
    expected = jax.value_and_grad(lambda p: squared(net.apply(p, x), y))(params)
    equal((value, grads), expected)
    equal(features, units.apply(params, x)[1])
    equal(units.grad(squared)(params, x, y), (grads, features))


def test_gradient_compiles_and_takes_another_batch_size(plain, data):
    _, params, units = plain
    x, y = data
    step = jax.jit(units.grad(squared))
    for n in (6, 3):
        grads, _ = step(params, x[:n], y[:n])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            grads,
            units.grad(squared)(params, x[:n], y[:n])[0],
        )


def test_arguments_after_the_inputs_go_to_the_loss(data):
    net, (x, y) = Net(), data
    params = net.init(jax.random.key(1), x)
    units = trace_units(net.apply, params, x, jnp.ones([]))

    def loss(output, y, weight):
        return weight * squared(output, y)

    grads, _ = units.grad(loss)(params, x, 2.0, y, 3.0)
    expected = jax.grad(lambda p: 3.0 * squared(net.apply(p, x, 2.0), y))(params)
    equal(grads, expected)


def test_auxiliary_output_comes_beside_the_features_as_new_running_statistics_do(data):
    net, (x, y) = Net(norm=True), data
    variables = net.init(jax.random.key(1), x)
    params, stats = variables["params"], variables["batch_stats"]

    def apply(params, stats, x):
        return net.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])

    def loss(output, y):
        prediction, new = output
        return squared(prediction, y), new["batch_stats"]

    units = trace_units(apply, params, x, variables=stats)
    grads, (features, new) = units.grad(loss, has_aux=True)(params, stats, x, y)
    equal((grads, new), jax.grad(lambda p: loss(apply(p, stats, x), y), has_aux=True)(params))
    equal(features, units.apply(params, stats, x)[1])
    assert np.any(new["BatchNorm_0"]["mean"] != stats["BatchNorm_0"]["mean"])
    (value, (_, again)), _ = units.value_and_grad(loss, has_aux=True)(params, stats, x, y)
    equal((value, again), loss(apply(params, stats, x), y))


def test_too_few_arguments_are_named(plain, data):
    _, params, units = plain
    with pytest.raises(TypeError, match=r"takes 1 arguments after its parameters, as in trace_units; got 0"):
        units.grad(squared)(params)


def test_features_of_two_passes_count_every_value_once(plain, data):
    _, params, units = plain
    (group,) = units.groups
    x = data[0]
    parts = [units.apply(params, part)[1] for part in (x[:1], -x[1:4], x[4:])]
    together = units.combine(*parts)
    hidden = np.concatenate([np.asarray(part[group.name]) for part in parts])
    np.testing.assert_allclose(mean_feature(group, together[group.name])[:, 0], hidden.mean(0), rtol=1e-6)
    equal(units.combine(parts[0]), parts[0])


def test_running_statistics_among_the_parameters_are_refused_in_one_line(data):
    net, x = Net(norm=True), data[0]
    with pytest.raises(ValueError, match="'batch_stats', which is not learned; give it apart") as error:
        trace_units(net.apply, net.init(jax.random.key(1), x), x)
    assert "\n" not in str(error.value)
