"""Public architectures: all their units are found, the graph is verified, and continual backprop takes a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import continual_backprop
from plastic_jax.paths import get_leaf
from plastic_jax.units import trace_units
from tests.plastic_jax.units.architectures import ARCHITECTURES
from tests.plastic_jax.units.notation import found_owners


def build(name, full):
    architecture = ARCHITECTURES[name]
    if architecture.requires:
        pytest.importorskip(
            architecture.requires, reason=f"{name} NOT TESTED: package '{architecture.requires}' is not installed"
        )
    return architecture.make(full)


def counts(graph):
    kept = sum(group.width for group in graph.groups if group.function_preserving)
    return len(graph.groups), sum(group.width for group in graph.groups), kept


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_units_of_the_published_size_are_found(name):
    network = build(name, full=True)
    assert ARCHITECTURES[name].parameters in (None, network.size)
    graph = trace_units(network.apply, network.params, *network.inputs, variables=network.variables)
    assert counts(graph) == network.found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_size_is_verified_and_learns_with_replacement(name):
    network = build(name, full=False)
    if network.size > 100_000:
        pytest.skip(f"{name} has no small size")
    network = network.concrete()
    params, variables = jax.tree.map(jnp.asarray, (network.params, network.variables))
    graph = trace_units(network.apply, params, *network.inputs, variables=variables, check=True)
    assert counts(graph) == network.found
    key = jax.random.key(0)
    tx = continual_backprop(optax.sgd(1e-3, 0.9), graph, replacement_rate=1.0, maturity_threshold=0, key=key)
    rest = network.inputs if variables is None else (variables, *network.inputs)

    def loss(params):
        output, features = graph.apply(params, *rest)
        leaves = jax.tree.leaves(network.output(output))
        return sum(jnp.mean(leaf**2) for leaf in leaves), features

    @jax.jit
    def step(params):
        (value, features), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, tx.init(params), params, features=features)
        return optax.apply_updates(params, updates), state, value

    params, state, value = step.lower(params).compile({"xla_backend_optimization_level": 0})(params)
    assert np.isfinite(value)
    gone = {group.name: np.flatnonzero(np.asarray(state.age[group.name]) == 0) for group in graph.groups}
    assert all(len(units) == 1 for units in gone.values())
    owned = {group.name: found_owners(group, network.params, network.variables) for group in graph.groups}
    redrawn = {}
    for name, group in owned.items():
        for (path, _), owner in group.incoming.items():
            redrawn[path] = redrawn.get(path, False) | np.isin(owner, gone[name])
    for name, group in owned.items():
        for (path, _), owner in group.outgoing.items():
            silent = np.isin(owner, gone[name]) & ~redrawn.get(path, np.zeros(owner.shape, bool))
            np.testing.assert_array_equal(np.asarray(get_leaf(params, path))[silent], 0.0)
