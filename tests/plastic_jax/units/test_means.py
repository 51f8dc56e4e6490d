"""Means in place of features: the same numbers, without the values of all layers at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import FeatureMeans, continual_backprop, redo, trace_units
from plastic_jax.replacement.statistics import mean_absolute, mean_feature
from tests.plastic_jax.units import test_features as uses

LAYERS, WIDTH, BATCH = 6, 32, 256


def stack(p, x):
    """Layers by scan with remat, as large models have them."""

    @jax.checkpoint
    def layer(x, p):
        return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

    return jax.lax.scan(layer, x @ p["in"], p["layers"])[0] @ p["out"]


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape) / shape[-2] ** 0.5


@pytest.fixture(scope="module")
def model():
    layers = {"up": normal(LAYERS, WIDTH, 4 * WIDTH), "down": normal(LAYERS, 4 * WIDTH, WIDTH)}
    params = {"in": normal(3, WIDTH), "layers": layers, "out": normal(WIDTH, 1)}
    x = normal(BATCH, 3)
    return params, x, trace_units(stack, params, x, check=False), trace_units(stack, params, x, check=False, means=True)


def same_means(values, means, params, inputs):
    output, features = values.apply(params, *inputs)
    again, found = means.apply(params, *inputs)
    jax.tree.map(np.testing.assert_array_equal, output, again)
    for group in values.groups:
        for mean in (mean_feature, mean_absolute):
            expected = mean(group, features[group.name])
            np.testing.assert_allclose(mean(group, found[group.name]), expected, rtol=1e-5, atol=1e-6)
        assert found[group.name].samples == features[group.name].size / (group.width * group.copies)


def test_means_are_those_of_the_features_of_every_layer(model):
    params, x, values, means = model
    assert [group.width for group in means.groups] == [4 * WIDTH] * LAYERS
    same_means(values, means, params, (x,))


@pytest.mark.parametrize("name", ["on batches of different sizes", "scanned LSTM", "cell begun by an encoder"])
def test_means_are_over_all_uses(name):
    apply, inputs, _ = uses.CASES[name]
    values, means = (trace_units(apply, uses.P, *inputs, check=False, means=m) for m in (False, True))
    same_means(values, means, uses.P, inputs)


def test_values_of_a_stack_of_layers_are_not_held_together(model):
    params, x, values, means = model

    def memory(gradient):
        return jax.jit(gradient).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    loss = lambda output: jnp.mean(output**2)  # noqa: E731
    plain = memory(jax.grad(lambda p, x: loss(stack(p, x))))
    all_values = LAYERS * BATCH * 4 * WIDTH * 4
    assert memory(means.grad(loss)) < plain + all_values / 4
    assert memory(lambda p, x: optax.tree.sum(values.grad(loss)(p, x))) >= plain + all_values / 2


@pytest.mark.parametrize("method", ["redo", "continual_backprop"])
def test_methods_replace_the_same_units_by_means(model, method):
    params, x, values, means = model
    found = []
    for units in (values, means):
        if method == "redo":
            tx = redo(optax.sgd(0.1), units, threshold=0.5, period=1, key=jax.random.key(0))
        else:
            options = {"replacement_rate": 0.01, "maturity_threshold": 0, "utility": "contribution"}
            tx = continual_backprop(optax.sgd(0.1), units, key=jax.random.key(0), **options)
        grads, features = units.grad(lambda output: jnp.mean(output**2))(params, x)
        found.append(jax.jit(tx.update)(grads, tx.init(params), params, features=features))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *(updates for updates, _ in found)
    )
    assert sum(int(n) for n in found[1][1].replaced.values()) > 0


def test_measure_that_looks_at_more_than_means_is_refused(model):
    params, x, _, units = model
    tx = continual_backprop(
        optax.sgd(0.1), units, replacement_rate=0.1, utility="zero_contribution", key=jax.random.key(0)
    )
    grads, features = units.grad(lambda output: jnp.mean(output**2))(params, x)
    with pytest.raises(ValueError, match=r"E\|h - f\|, which cannot be had of FeatureMeans"):
        tx.update(grads, tx.init(params), params, features=features)


def test_combined_means_weigh_passes_by_their_samples():
    units = trace_units(uses.net, uses.P, uses.XS[0], check=False, means=True)
    (name,) = (group.name for group in units.groups)
    parts = [units.apply(uses.P, x)[1] for x in (uses.XS[0], uses.XS[1:].reshape(-1, 3))]
    whole = units.apply(uses.P, uses.XS.reshape(-1, 3))[1][name]
    found = units.combine(*parts)[name]
    assert isinstance(found, FeatureMeans)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, whole)
