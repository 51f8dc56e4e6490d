"""Public architectures by family: their units are found, and replacing one keeps its promise on the real machine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.paths import get_leaf, set_leaves
from plastic_jax.replacement.draw import draw_replacement
from plastic_jax.replacement.initializers import unit_initializer
from plastic_jax.replacement.reset import reset_updates
from plastic_jax.units import trace_units
from tests.marks import slow_unless
from tests.zoo.table import as_counted, installed
from tests.zoo.zoo import FAMILIES, NOT_YET, load

ZOO = load()


def build(name, full):
    if not installed(ZOO[name]):
        pytest.skip(f"{name} NOT TESTED: package '{ZOO[name].requires}' is not installed")
    return ZOO[name].make(full)


def traced(name, network):
    """The graph, if it is as counted."""
    try:
        graph = trace_units(network.apply, network.params, *network.inputs, variables=network.variables, check=False)
    except NotImplementedError:
        graph = None
    if name in NOT_YET and (graph is None or not as_counted(graph, network)):
        pytest.xfail(NOT_YET[name])
    assert graph is not None and as_counted(graph, network), f"\n{graph}"
    return graph


def silenced(graph, params, units):
    """Parameters with zero outgoing weights of one unit a group, by NumPy and the slices alone."""
    edited = {}
    for group in graph.groups:
        for s in group.outgoing if group.name in units else ():
            leaf = edited.get(s.path, np.asarray(get_leaf(params, s.path)))
            mask = np.asarray(s.spread(jnp.arange(group.width) == units[group.name], leaf.shape))
            edited[s.path] = np.where(mask, 0, leaf)
    return set_leaves(params, edited)


def test_there_are_networks_of_every_family():
    assert len(ZOO) >= 50 and {architecture.family for architecture in ZOO.values()} == set(FAMILIES)
    assert set(NOT_YET) <= set(ZOO)


FIRST_OF_FAMILY = {family: next(n for n in ZOO if ZOO[n].family == family) for family in FAMILIES}


@pytest.mark.parametrize("name", slow_unless(lambda name: name in FIRST_OF_FAMILY.values(), ZOO))
def test_a_replaced_unit_contributes_nothing(name):
    """One unit of every isolated group goes at once. The program is compiled once, with the machine in it."""
    network = build(name, full=False)
    if network.size > 100_000:
        pytest.skip(f"{name} has no small size")
    network = network.concrete()
    params, rest = network.params, network.arguments
    graph = traced(name, network)
    isolated = [group for group in graph.groups if group.function_preserving]
    alone = dataclasses.replace(graph, groups=tuple(isolated))
    for shift in range(3):  # a unit may be off on all of so few inputs; then another one goes
        units = {group.name: (group.width // 2 + shift) % group.width for group in isolated}

        def replaced(params, units=units):
            picks = {
                g.name: draw_replacement(
                    g,
                    jnp.array([units[g.name]], jnp.int32),
                    jnp.array([True]),
                    jax.random.key(1),
                    unit_initializer("kaiming_uniform", g.activation),
                    params,
                )
                for g in isolated
            }
            zeros = jax.tree.map(jnp.zeros_like, params)
            return optax.apply_updates(params, reset_updates(alone, picks, params, zeros))

        def outputs(params, silent):
            new = replaced(params)
            every = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, silent, new)
            values = jax.lax.map(lambda p: network.output(graph.apply(p, *rest)[0]), every)
            return new, jnp.concatenate([leaf.reshape(3, -1) for leaf in jax.tree.leaves(values)], axis=1)

        silent = silenced(graph, params, units)
        compiled = jax.jit(outputs).lower(params, silent).compile({"xla_backend_optimization_level": 0})
        new, (plain, without, fresh) = compiled(params, silent)
        assert np.isfinite(plain).all()
        np.testing.assert_allclose(fresh, without, rtol=1e-5, atol=1e-5)
        contributed = np.abs(without - plain).max() > 1e-4 * np.abs(plain).max()
        if contributed or not isolated:
            break
    assert contributed or not isolated
    for group in isolated:
        for s in group.incoming_kernels:
            mask = np.asarray(s.spread(jnp.arange(group.width) == units[group.name], get_leaf(params, s.path).shape))
            same = np.asarray(get_leaf(new, s.path)) == get_leaf(params, s.path)
            assert not np.any(same & mask), f"{group.name}: {s.name} is not fresh"
