"""Equinox: filtered gradients, state, modules with functions in them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import continual_backprop

eqx = pytest.importorskip("equinox", reason="integrations.equinox NOT TESTED: package 'equinox' is not installed")

from plastic_jax.integrations.equinox import trace_units  # noqa: E402

X = jax.random.normal(jax.random.key(0), (6, 3))
Y = jnp.ones((6, 1))


class Normed(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear
    table: jax.Array

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 8, key=one)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.last = eqx.nn.Linear(8, 1, key=two)
        self.table = jnp.arange(3)  # integers, which are no parameters

    def __call__(self, x, state):
        h, state = self.norm(self.first(x[self.table]), state)
        return self.last(jax.nn.relu(h)), state


def loss(output, y):
    return jnp.mean((output - y) ** 2)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_a_module_learns_with_replacement_in_a_filtered_loop():
    model = eqx.nn.MLP(3, 1, 8, 2, key=jax.random.key(1))
    call = lambda model, x: jax.vmap(model)(x)  # noqa: E731
    units = trace_units(call, model, X)
    assert [g.width for g in units.groups] == [8, 8]
    tx = continual_backprop(optax.adam(1e-2), units, replacement_rate=0.2, maturity_threshold=0, key=jax.random.key(2))

    @eqx.filter_jit
    def step(model, opt_state, x, y):
        grads, features = units.grad(loss)(model, x, y)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params, features=features)
        return eqx.apply_updates(model, updates), opt_state, grads

    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    _, _, grads = step(model, opt_state, X, Y)
    close(grads, eqx.filter_grad(lambda model: loss(call(model, X), Y))(model))
    for _ in range(3):
        model, opt_state, _ = step(model, opt_state, X, Y)
    assert all(int(n) > 0 for n in opt_state.replaced.values())
    assert isinstance(model, eqx.nn.MLP) and model(X[0]).shape == (1,)


def test_state_goes_in_and_out_and_its_statistics_belong_to_the_units():
    model, state = eqx.nn.make_with_state(Normed)(jax.random.key(1))

    def call(model, state, x):
        return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)

    def with_state(output, y):
        prediction, state = output
        return loss(prediction, y), state

    units = trace_units(call, model, X, state=state)
    (group,) = units.groups
    assert {s.path for s in group.incoming} == {"first/weight", "first/bias", "norm/weight", "norm/bias"}
    grads, (features, new) = units.grad(with_state, has_aux=True)(model, state, X, Y)
    expected, new_expected = eqx.filter_grad(lambda m: with_state(call(m, state, X), Y), has_aux=True)(model)
    close((grads, new), (expected, new_expected))
    assert features[group.name].shape == (6, 8)
    reading = trace_units(call, eqx.nn.inference_mode(model), X, state=new, check=False)
    fresh = reading.reset_variables({group.name: jnp.arange(8) < 2}, new)
    for leaf, value in ((0, 0), (1, 1)):  # mean and variance
        before, after = (np.asarray(s.get(model.norm.batch_state_index)[leaf]) for s in (new, fresh))
        np.testing.assert_array_equal(after, np.where(np.arange(8) < 2, value, before))
