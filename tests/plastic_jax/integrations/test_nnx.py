"""Flax nnx: modules, `nnx.Optimizer` and `nnx.ModelAndOptimizer`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from plastic_jax import continual_backprop, redo
from plastic_jax.integrations.nnx import trace_units
from plastic_jax.paths import leaf_names

X = jax.random.normal(jax.random.key(0), (6, 3))
Y = jnp.ones((6, 1))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def loss(output, y):
    return jnp.mean((output - y) ** 2)


def same(a, b):
    """The same arrays; random keys aside."""
    a, b = (jax.tree.leaves(nnx.state(m, nnx.Not(nnx.RngKey))) for m in (a, b))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_units_are_named_as_parameters_and_statistics_are():
    model = Net(nnx.Rngs(0))
    units = trace_units(model, X)
    (group,) = units.groups
    assert {s.path for s in group.incoming} == {"first/kernel", "first/bias", "norm/scale", "norm/bias"}
    assert {s.path for s in group.variables} == {"norm/mean", "norm/var"}
    assert leaf_names(nnx.state(model)) == leaf_names(nnx.to_pure_dict(nnx.state(model)))


def test_call_and_gradient_are_the_modules_with_their_side_effects():
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    units = trace_units(ours, X)
    output, features = units.apply(ours, X)
    np.testing.assert_allclose(output, theirs(X), rtol=1e-6)
    assert features["first"].shape == (6, 8)
    grads, _ = units.grad(loss)(ours, X, Y)
    expected = nnx.grad(lambda model: loss(model(X), Y))(theirs)
    same(grads, expected)
    same(ours, theirs)  # running statistics and counts of random numbers


def test_evaluation_mode_of_the_same_module_is_evaluated_as_such():
    model = Net(nnx.Rngs(0))
    units = trace_units(model, X)
    model.eval()
    before = nnx.state(model, nnx.BatchStat)
    np.testing.assert_allclose(units.apply(model, X)[0], model(X), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize("method", ["continual_backprop", "redo"])
def test_optimizer_learns_and_replaces_as_in_plain_optax(method):
    model = Net(nnx.Rngs(0))
    units = trace_units(model, X)
    if method == "redo":
        tx = redo(optax.adam(1e-2), units, threshold=0.9, period=2, key=jax.random.key(1))
    else:
        options = {"replacement_rate": 0.2, "maturity_threshold": 0, "key": jax.random.key(1)}
        tx = continual_backprop(optax.adam(1e-2), units, **options)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    opt_state = tx.init(params)

    @nnx.jit
    def step(model, optimizer):
        grads, features = units.grad(loss)(model, X, Y)
        optimizer.update(model, grads, features=features)
        return grads, features

    for _ in range(4):
        grads, features = step(model, optimizer)
        updates, opt_state = tx.update(nnx.as_pure(grads), opt_state, params, features=features)
        params = optax.apply_updates(params, updates)
    found = nnx.as_pure(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, params)
    assert sum(int(n) for n in opt_state.replaced.values()) > 0
    replaced = nnx.as_pure(optimizer.opt_state).replaced
    jax.tree.map(np.testing.assert_array_equal, replaced, opt_state.replaced)


def test_model_and_optimizer_takes_features():
    model = Net(nnx.Rngs(0))
    units = trace_units(model, X)
    tx = continual_backprop(optax.sgd(0.1), units, replacement_rate=0.2, maturity_threshold=0, key=jax.random.key(1))
    optimizer = nnx.ModelAndOptimizer(model, tx)
    for _ in range(2):
        grads, features = units.grad(loss)(model, X, Y)
        optimizer.update(grads, features=features)
    assert int(nnx.as_pure(optimizer.opt_state).replaced["first"]) > 0
