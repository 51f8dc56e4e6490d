"""The table of a model's hidden layers: known networks, the definitions of `metrics`, and what has no meaning."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastic_jax import MLP, metrics, trace_units
from plastic_jax.diagnostics.diagnose import diagnose
from plastic_jax.units import Slice, UnitGraph, UnitGroup

KNOWN = {  # relu: units 1 and 2 are dead on inputs that are never negative
    "Dense_0": {
        "kernel": jnp.array([[1.0, -1.0, 0.0, 2.0], [1.0, -1.0, 0.0, -3.0]]),
        "bias": jnp.array([0.0, -0.5, 0.0, -1.0]),
    },
    "Dense_1": {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros(1)},
}
X = jnp.array([[0.2, 0.1], [1.0, 0.0], [0.5, 0.5]])


@functools.cache
def model(activation="relu"):
    network = MLP(widths=(4,), outputs=1, activation=activation)

    def apply(params, x):
        return network.apply({"params": params}, x)

    return apply, trace_units(apply, KNOWN, X)


def test_a_network_with_known_dead_units():
    apply, units = model()
    (row,) = diagnose(apply, KNOWN, [X], units=units, threshold=0.4).rows
    assert (row.name, row.units, row.samples, row.activation) == ("Dense_0", 4, 3, "relu")
    assert (row.dead, row.dormant_nonzero, row.dormant_positive) == (0.5, 0.75, 0.75)
    assert row.dormant_redo == 0.5  # mean |h| is 0.77, 0, 0, 0.33 and its mean 0.28
    assert row.rank == 2 and row.weight_magnitude == 9 / 8


def test_batches_count_together_as_one():
    x = np.asarray(jax.random.normal(jax.random.key(0), (50, 2)))
    apply, units = model()

    def loss(output, batch):
        return jnp.mean((output[:, 0] - batch[1]) ** 2)

    data = [(x, x[:, 0]), (x * 0.1, x[:, 1])]
    whole = (np.concatenate([a for a, _ in data]), np.concatenate([b for _, b in data]))
    options = {"units": units, "loss": loss, "inputs": lambda batch: batch[0]}
    (parts,), (one,) = (diagnose(apply, KNOWN, (b for b in given), **options).rows for given in (data, [whole]))
    for field in dataclasses.fields(parts):
        a, b = getattr(parts, field.name), getattr(one, field.name)
        assert a == (pytest.approx(b, rel=1e-5, nan_ok=True) if isinstance(b, float) else b), field.name
    gradient = jax.grad(lambda p: loss(apply(p, whole[0]), whole))(KNOWN)["Dense_0"]["kernel"]
    assert one.gradient_norm == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-5)


def test_positions_are_samples_and_the_numbers_are_those_of_metrics():
    """A hand-written graph of a network that reads each of 3 positions with weights of its own."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"conv": jax.random.normal(keys[0], (5, 4)), "read": jax.random.normal(keys[1], (12, 2))}
    x = jax.random.normal(keys[2], (40, 3, 5)) - 1.0

    def forward(params, x):
        h = jnp.where(jnp.arange(4) == 2, 0.0, jax.nn.relu(x @ params["conv"]))
        return h.reshape(len(x), -1) @ params["read"], {"conv": h}

    group = UnitGroup(
        "conv",
        4,
        3,
        incoming=(Slice("conv", (5, 4), (1,), "kernel"),),
        outgoing=(Slice("read", (3, 4, 2), (1,), "kernel", copy_dims=(0,)),),
        feature_axes=(2, 1),
    )
    graph = UnitGraph((group,), forward, (dataclasses.replace(group, name="stream", note="identity skip"),))
    found = diagnose(lambda *a: forward(*a)[0], params, [x], units=graph, threshold=0.3)
    (row,) = found.rows
    h = forward(params, x)[1]["conv"]
    assert row.samples == 120 and row.dead == metrics.dead_units(h) == 0.25
    assert row.dormant_nonzero == metrics.dormant_units(h, 0.3)
    assert row.dormant_positive == metrics.dormant_units(h, 0.3, "positive")
    matrix = h.reshape(-1, 4)
    assert row.rank == metrics.rank(matrix) == 3 and row.stable_rank == metrics.stable_rank(matrix)
    assert row.effective_rank == pytest.approx(float(metrics.effective_rank(matrix)), rel=1e-5)
    assert row.approximate_rank == metrics.approximate_rank(matrix)
    assert "not shown: stream (identity skip)" in str(found)


def test_saturation_of_bounded_units_and_nothing_that_means_nothing_for_them():
    apply, units = model("tanh")
    params = {**KNOWN, "Dense_0": {"kernel": jnp.diag(jnp.ones(4))[:2] * 0.1, "bias": jnp.array([0, -9.0, 9.0, 0.1])}}
    (row,) = diagnose(apply, params, [X], units=units).rows
    assert row.saturated == 0.5
    for name in ("dead", "dormant_nonzero", "dormant_positive", "dormant_redo", "gradient_norm"):
        assert math.isnan(getattr(row, name)) and name in row.missing
    apply, units = model("sigmoid")
    (row,) = diagnose(apply, params, [X], units=units).rows
    assert row.saturated == 0.5 and "always positive" in row.missing["dormant_positive"]
    (row,) = diagnose(*model()[:1], KNOWN, [X], units=model()[1]).rows
    assert math.isnan(row.saturated) and "two limits only" in row.missing["saturated"]


def test_any_activation_saturates_at_its_own_limits():
    """Units 0 to 3 of x, near the lower limit, near the upper limit, x / 10: of atan, between -pi / 2 and pi / 2."""
    weights = (jnp.diag(jnp.ones(4))[:2] * 0.1, jnp.array([0.0, -30.0, 30.0, 0.1]), jnp.ones((4, 1)))

    def apply(params, x):
        return jnp.arctan(x @ params[0] + params[1]) @ params[2]

    (row,) = diagnose(apply, weights, [X]).rows
    assert (row.activation, row.saturated) == ("atan", 0.5)
    (row,) = diagnose(lambda p, x: jnp.clip(x @ p[0] + p[1], 0, 6) @ p[2], weights, [X]).rows
    assert (row.activation, row.dead, row.saturated) == ("relu6", 0.25, 1.0)  # the second is dead, the first near 0
    assert "dormant_redo" not in row.missing
    (row,) = diagnose(lambda p, x: jnp.sin(x @ p[0] + p[1]) @ p[2], weights, [X]).rows
    assert math.isnan(row.saturated) and "symmetric" in row.missing["dormant_positive"]
    assert row.missing["dead"] == "sin is not switched off at 0"


def test_ranks_from_few_samples_say_so_and_from_many_are_sampled():
    apply, units = model()
    found = diagnose(apply, KNOWN, [X], units=units)
    assert found.rows[0].limits["rank"] == "at most 3, the number of samples"
    assert "rank, effective, approximate, stable: at most 3, the number of samples" in str(found).splitlines()
    x = jax.random.normal(jax.random.key(3), (500, 2))
    many = diagnose(apply, KNOWN, [x], units=units).rows[0]
    few = diagnose(apply, KNOWN, [x], units=units, rank_samples=200).rows[0]
    assert few.rank == many.rank and not few.limits and few.dead == many.dead
    assert few.effective_rank == pytest.approx(many.effective_rank, rel=0.1) and few != many


def test_values_that_are_not_finite_have_no_ranks_and_shares():
    apply, units = model()
    (row,) = diagnose(apply, KNOWN, [X.at[0, 0].set(jnp.nan)], units=units).rows
    assert math.isnan(row.rank) and math.isnan(row.dead) and row.missing["rank"] == "values that are not finite"
    assert row.weight_magnitude == 9 / 8


def test_the_printed_table():
    apply, units = model()
    lines = str(diagnose(apply, KNOWN, [X], units=units)).splitlines()
    assert lines[0].split()[:4] == ["layer", "activation", "units", "samples"]
    assert lines[1].split()[:5] == ["Dense_0", "relu", "4", "3", "50.0"]
    assert "gradient: no loss given" in lines
    assert "saturated %: for activations with two limits only, as tanh and sigmoid" in lines
    assert str(diagnose(apply, KNOWN, [X], units=UnitGraph((), units.forward))) == "no hidden units"


def test_the_units_of_any_model_are_found():
    """A plain function with variables, list parameters and two inputs."""

    def apply(params, variables, x, shift):
        h = jnp.tanh((x - variables["mean"]) @ params[0] + shift)
        return jax.nn.relu(h @ params[1]) @ params[2]

    params = [jnp.eye(2, 3), 5 * jnp.eye(3), jnp.ones((3, 1))]
    variables, batches = {"mean": X[0]}, [[X, 9 * jnp.ones((3, 1))], (X[:2], -9 * jnp.ones((2, 1)))]
    first, second = diagnose(apply, params, batches, variables=variables).rows
    assert (first.name, first.activation, first.units, first.samples, first.saturated) == ("0", "tanh", 3, 5, 1.0)
    assert (second.name, second.activation, second.dead, second.weight_magnitude) == ("1", "relu", 0.0, 5 / 3)
    assert second.dormant_redo == 0 and first.rank == second.rank == 1


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        ([], {}, "batches is empty"),
        (X, {}, r"batches is one array; give an iterable of batches, \[x\]"),
        ([X], {"threshold": 1.5}, "threshold=1.5 is not in"),
        ([X], {"redo_threshold": -1}, "redo_threshold=-1 is not in"),
        ([X], {"rank_samples": 0}, "rank_samples=0 is not positive"),
        ([X], {"incoming": (Slice("Dense_0/kernel", (3, 4), (1,), "kernel"),)}, "does not fit"),
    ],
)
def test_wrong_input(batches, options, words):
    apply, units = model()
    if "incoming" in options:
        units, options = units.replace("Dense_0", **options), {}
    with pytest.raises(ValueError, match=rf"^diagnose: .*{words}"):
        diagnose(apply, KNOWN, batches, units=units, **options)
