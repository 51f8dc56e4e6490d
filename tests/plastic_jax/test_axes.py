import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from plastic_jax import BatchNorm, trace_units
from plastic_jax.axes import is_mapped, mean_over, with_axis

AXIS = "devices"
X = jax.random.normal(jax.random.key(0), (8, 6, 6, 2))


class Net(nn.Module):
    """A layer of each kind of batch normalisation; the last activation looks at other devices' values in passing."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm(axis_name=AXIS)(nn.Conv(3, (3, 3))(x), True))
        x = nn.relu(nn.BatchNorm(False, axis_name=AXIS)(nn.Dense(4)(x.reshape(x.shape[0], -1))))
        x = nn.relu(nn.BatchNorm(False, axis_name=AXIS, use_fast_variance=False)(nn.Dense(5)(x)))
        largest = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(x, 0)), AXIS)
        return nn.Dense(2)(x / (1 + largest) + jax.lax.axis_index(AXIS) * 0)


def model(params, variables, x):
    return Net().apply({"params": params, **variables}, x, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def collections():
    variables = dict(jax.jit(jax.vmap(Net().init, (None, 0), axis_name=AXIS))(jax.random.key(1), X[None]))
    variables = jax.tree.map(lambda leaf: leaf[0], variables)
    return variables.pop("params"), variables


def over_one_device(function, **options):
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(function, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(AXIS), **options)


@pytest.mark.parametrize("known", [True, False])
def test_units_found_across_collectives_are_those_of_a_single_device(known, collections):
    found = []

    def look(params, variables, x):
        units = trace_units(model, params, x, variables=variables, check=False)
        found.append(units.groups)
        (output, _), features = units.apply(params, variables, x)
        return output, *features.values()

    seen = jax.jit(over_one_device(look, check_vma=known))(*collections, X)
    expected, _ = jax.vmap(model, (None, None, 0), axis_name=AXIS)(*collections, X[None])
    np.testing.assert_allclose(seen[0], expected[0], rtol=1e-4, atol=1e-5)
    assert [(g.name, g.width) for g in found[0]] == [("Conv_0", 3), ("Dense_0", 4), ("Dense_1", 5)]
    for group in found[0]:
        assert {s.path.rpartition("/")[2]: s.role for s in group.variables} == {"mean": "mean", "var": "var"}


def test_model_that_averages_over_devices_runs_alone_as_on_a_single_one():
    def centred(x):
        return x - jax.lax.pmean(jnp.mean(x, 0), AXIS)

    whole = X.reshape(8, -1)
    alone = with_axis(centred, AXIS)
    np.testing.assert_allclose(alone(whole), whole - whole.mean(0), atol=1e-6)
    halves = jax.vmap(alone, axis_name=AXIS)(whole.reshape(2, 4, -1))
    np.testing.assert_allclose(halves.reshape(8, -1), whole - whole.mean(0), atol=1e-6)
    assert with_axis(centred, None) is centred


def test_axis_is_mapped_inside_and_not_outside():
    assert not is_mapped(AXIS)
    inside = []
    jax.vmap(lambda x: inside.append((is_mapped(AXIS), is_mapped("other"))), axis_name=AXIS)(X)
    assert inside == [(True, False)]


def test_mean_is_of_numbers_only_and_without_an_axis_changes_nothing():
    tree = {"a": jnp.arange(4.0), "count": jnp.arange(4)}
    assert mean_over(tree, None) is tree
    mean = jax.vmap(lambda tree: mean_over(tree, AXIS), axis_name=AXIS)(tree)
    assert mean["a"].tolist() == [1.5] * 4
    assert mean["count"].tolist() == [0, 1, 2, 3]
