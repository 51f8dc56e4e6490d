"""Every construct is traced to the units that were written down by hand, and those are units by the model's own output.

The first test needs no tracer: it holds the expected lists themselves against their definition.
"""

import functools

import jax
import numpy as np
import pytest

from plastic_jax.replacement.statistics import mean_feature
from plastic_jax.units import trace_units
from tests.plastic_jax.units.constructs import CONSTRUCTS
from tests.plastic_jax.units.notation import asymmetry, expected_owners, found_owners, influence, matters


@functools.cache
def traced(name):
    model = CONSTRUCTS[name]()
    return model, trace_units(model.apply, model.params, *model.inputs, variables=model.variables, check=False)


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_expected_groups_are_units(name):
    model = CONSTRUCTS[name]()
    for label, group in model.groups.items():
        owned = expected_owners(group, model.params, model.variables)
        units = range(0, group.width, 2)
        change = influence(model, owned, units)
        assert change < 1e-6 if group.preserving else change > 1e-3, f"{label}: {change}"
        if group.preserving:
            for spare in owned.outgoing:
                assert influence(model, owned, units, spare) > 1e-4, f"{label} without {spare}"
        assert asymmetry(model, owned, group.blocks) < 1e-4, f"{label} renumbered"
        if group.blocks < group.width:
            for spare in (*owned.incoming, *owned.outgoing, *owned.variables):
                noticed = asymmetry(model, owned, group.blocks, spare) > 1e-4
                assert noticed or not matters(model, spare), f"{label} without {spare}"


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_traced_groups_are_the_expected_ones(name):
    model, graph = traced(name)
    assert [group.name for group in graph.groups] == list(model.groups)
    assert [group.name for group in graph.left_out] == model.left_out.split()
    assert all(group.note for group in graph.left_out)
    for group in graph.groups:
        expected = model.groups[group.name]
        assert (group.width, group.function_preserving) == (expected.width, expected.preserving), group
        assert expected.copies in (None, group.copies), group
        assert group.function_preserving or group.note, group
        found = found_owners(group, model.params, model.variables)
        for side in ("incoming", "outgoing", "variables"):
            ours, theirs = getattr(found, side), getattr(expected_owners(expected, model.params, model.variables), side)
            assert set(ours) == set(theirs), f"{group.name}: {side}"
            for key in theirs:
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{group.name}: {side} {key}")


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_features_have_their_units_on_an_axis_of_their_own(name):
    model, graph = traced(name)
    output = jax.eval_shape(model.apply, model.params, *model.arguments)
    ours, features = jax.eval_shape(graph.apply, model.params, *model.arguments)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(lambda a: (a.shape, a.dtype), output)
    assert set(features) == set(model.groups)
    for group in graph.groups:
        axis, *copy_axes = group.feature_axes
        shape = features[group.name].shape
        assert shape[axis] == group.width
        assert np.prod([shape[a] for a in copy_axes], dtype=int) == group.copies


@pytest.mark.parametrize("name", [name for name in CONSTRUCTS if CONSTRUCTS[name]().features])
def test_features_are_the_values_that_are_read(name):
    model, graph = traced(name)
    output, features = graph.apply(model.params, *model.arguments)
    np.testing.assert_array_equal(output, model.apply(model.params, *model.arguments))
    for group in graph.groups:
        if group.name in model.features:
            expected = model.features[group.name](model.params, *model.inputs)
            while expected.ndim > (1 if group.copies == 1 else 2):
                expected = expected.mean(axis=0)
            ours = mean_feature(group, features[group.name], None)
            np.testing.assert_allclose(ours, expected.reshape(group.copies, group.width).T, rtol=1e-4, atol=1e-6)
