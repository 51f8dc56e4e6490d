"""ReDo."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.redo import redo as typed_redo
from plastic_jax.methods.redo import relative_activity, unit_activity
from plastic_jax.optimizers.adam import adam
from plastic_jax.paths import named_leaves
from plastic_jax.replacement.initializers import Initializer
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup

redo: Any = typed_redo  # the tests also give it what its types forbid

COMMITTED = pathlib.Path(__file__).parents[2] / "data" / "ppo_traces.npz"
GOLDEN = pathlib.Path(__file__).parents[3].parent / "shared" / "golden"
NETWORKS = {"policy": "pol", "value": "val"}  # our names, the recording's


# -- a small problem: three units, of which the first is silent

PARAMS: Any = {
    "Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.array([-9.0, 0.1, 0.2])},
    "Dense_1": {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)},
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
KEY = jax.random.key(0)


def layer(prefix, i, params):
    """The group of hidden layer `i` of a chain of dense layers."""
    (fan_in, width), outputs = params[f"Dense_{i}"]["kernel"].shape, params[f"Dense_{i + 1}"]["kernel"].shape[1]
    return UnitGroup(
        f"{prefix}Dense_{i}",
        width,
        1,
        incoming=(
            Slice(f"{prefix}Dense_{i}/kernel", (fan_in, width), (1,), "kernel"),
            Slice(f"{prefix}Dense_{i}/bias", (width,), (0,), "bias"),
        ),
        outgoing=(
            Slice(
                f"{prefix}Dense_{i + 1}/kernel",
                (width, outputs),
                (0,),
                "kernel",
                bias=f"{prefix}Dense_{i + 1}/bias",
            ),
        ),
    )


def hidden(params, x):
    h = {}
    for i in range(len(params) - 1):
        h[f"Dense_{i}"] = x = jax.nn.relu(x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"])
    last = params[f"Dense_{len(params) - 1}"]
    return x @ last["kernel"] + last["bias"], h


UNITS = UnitGraph((layer("", 0, PARAMS),), hidden)


def step(tx, state, h=((0.0, 1.0, 2.0), (0.0, 1.0, 2.0)), gradient=ZEROS):
    updates, state = jax.jit(tx.update)(gradient, state, PARAMS, features={"Dense_0": jnp.array(h)})
    return optax.apply_updates(PARAMS, updates), state


def test_score_is_the_share_of_the_mean_over_batch_and_positions():
    group = UnitGroup("Conv_0", 2, 1, (), ())
    feature = jax.random.normal(KEY, (3, 4, 5, 2))
    mean = np.abs(feature).mean((0, 1, 2))
    np.testing.assert_allclose(relative_activity(unit_activity(group, feature)), mean / mean.mean(), rtol=1e-5)
    assert relative_activity(unit_activity(group, 0 * feature)).tolist() == [0, 0]


def test_dormant_units_start_afresh_at_every_period_and_at_no_other_step():
    tx = redo(optax.sgd(0.1), UNITS, threshold=0.025, period=3, initializer=Initializer(linspace=True), key=KEY)
    state = tx.init(PARAMS)
    seen = []
    for _ in range(7):
        after, state = step(tx, state)
        seen.append(state.age["Dense_0"].tolist())
        if len(seen) % 3:
            jax.tree.map(np.testing.assert_array_equal, after, PARAMS)
            continue
        bound = (3 / 2) ** 0.5
        np.testing.assert_allclose(after["Dense_0"]["kernel"][:, 0], [-bound, bound], rtol=1e-6)
        assert after["Dense_0"]["bias"][0] == after["Dense_1"]["kernel"][0, 0] == 0
        assert (after["Dense_0"]["kernel"][:, 1:] == 1).all()
        assert (after["Dense_1"]["kernel"][1:] == 1).all()
    assert seen == [[1, 1, 1], [2, 2, 2], [0, 3, 3], [1, 4, 4], [2, 5, 5], [0, 6, 6], [1, 7, 7]]
    assert state.replaced["Dense_0"] == 2


@pytest.mark.parametrize(("bound", "gone"), [(None, [0, 1]), (1, [0]), (2, [0, 1]), (5, [0, 1])])
def test_threshold_is_inclusive_and_a_bound_takes_the_least_active(bound, gone):
    h = [[0.0, 1.0, 5.0]]  # scores 0, 0.5, 2.5
    for threshold, expected in ((0.5, gone), (0.49, [0])):
        tx = redo(optax.sgd(0.1), UNITS, threshold=threshold, period=1, key=KEY, max_replacements=bound)
        _, state = step(tx, tx.init(PARAMS), h)
        assert np.flatnonzero(state.age["Dense_0"] == 0).tolist() == expected


def test_running_average_tells_a_silent_unit_from_one_that_rests():
    """Unit 1 is active at every other step; unit 0 at none until it is new, then at all."""
    for decay_rate, gone in ((0.0, [0, 1]), (0.5, [0]), (jnp.array(0.5), [0]), (jnp.array(0.0), [0, 1])):
        tx = redo(optax.sgd(0.1), UNITS, threshold=0.1, period=2, decay_rate=decay_rate, key=KEY)
        state = tx.init(PARAMS)
        for h in ([[0.0, 1.0, 2.0]], [[0.0, 0.0, 2.0]]):
            _, state = step(tx, state, h)
        assert np.flatnonzero(state.age["Dense_0"] == 0).tolist() == gone
    tx = redo(optax.sgd(0.1), UNITS, threshold=0.1, period=2, decay_rate=0.5, key=KEY)
    state = tx.init(PARAMS)
    for h in ([[0.0, 4.0, 2.0]], [[0.0, 0.0, 2.0]], [[3.0, 8.0, 2.0]]):
        _, state = step(tx, state, h)
    np.testing.assert_allclose(state.activity["Dense_0"], [1.5, 4.5, 1.75])  # unit 0 is 1 step old, the others 3


def test_a_silent_layer_starts_afresh_as_a_whole():
    tx = redo(optax.sgd(0.1), UNITS, period=1, key=KEY)
    after, _ = step(tx, tx.init(PARAMS), [[0.0, 0.0, 0.0]])
    assert len(set(after["Dense_0"]["kernel"].ravel().tolist())) == 6
    assert (after["Dense_1"]["kernel"] == 0).all()


def test_between_resets_it_is_inner_bit_for_bit_and_state_of_new_units_is_fresh():
    inner = optax.sgd(0.1, momentum=0.9)
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    tx = redo(inner, UNITS, period=2, key=KEY)
    alone = inner.init(PARAMS)
    state = tx.init(PARAMS)
    for expected_to_act in (False, True):
        updates, state = jax.jit(tx.update)(gradient, state, PARAMS, features={"Dense_0": jnp.array([[0.0, 1.0, 2.0]])})
        expected, alone = jax.jit(inner.update)(gradient, alone, PARAMS)
        if not expected_to_act:
            jax.tree.map(np.testing.assert_array_equal, updates, expected)
    trace = state.inner[0].trace
    assert (trace["Dense_0"]["kernel"][:, 0] == 0).all()
    assert trace["Dense_0"]["bias"][0] == trace["Dense_1"]["kernel"][0, 0] == 0
    assert np.allclose(trace["Dense_0"]["kernel"][:, 1:], 1.9)


def test_scoring_stays_a_branch_under_vmap():
    tx = redo(optax.sgd(0.1), UNITS, key=KEY)
    states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(2))
    features = {"Dense_0": jnp.ones((2, 4, 3))}
    jaxpr = jax.make_jaxpr(jax.vmap(lambda s, f: tx.update(ZEROS, s, PARAMS, features=f)))(states, features)
    outside = [equation.primitive.name for equation in jaxpr.eqns]
    assert outside.count("cond") == 1
    assert not {"random_bits", "sort"} & set(outside)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -0.1}, r"redo: threshold=-0.1 is not in \[0, inf\]"),
        ({"decay_rate": 1.0}, r"redo: decay_rate=1.0 is not in \[0, 1\)"),
        ({"period": 0}, r"redo: period=0 is not in \[1, "),
        ({"period": 2.5}, "redo: period=2.5 is not a whole number"),
        ({"period": "2"}, "redo: period='2' is neither a number nor an array"),
        ({"max_replacements": 0}, "redo: max_replacements=0 is not an integer from 1 on"),
        ({"log_size": -1}, "redo: log_size=-1 is not an integer from 0 on"),
        ({"units": None}, "redo: units is no UnitGraph; see trace_units"),
        ({"initializer": None}, "redo: initializer=None is neither a name nor a function"),
        ({"key": 0}, r"redo: key=0 is no random key; jax.random.key\(0\)"),
        ({"initializer": "kaiming"}, "initializer='kaiming'; allowed: kaiming_uniform"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        redo(optax.sgd(0.1), **({"units": UNITS, "key": KEY} | arguments))


def test_missing_features_are_named():
    tx = redo(optax.sgd(0.1), UNITS, key=KEY)
    with pytest.raises(ValueError, match="redo: update needs `features`"):
        tx.update(ZEROS, tx.init(PARAMS), PARAMS)


# -- two other releases


def seen_again(tx, inner, units, x):
    """`tx` with the features of a pass after the step, as both releases take them."""

    def update(updates, state, params, **extra):
        moved, _ = inner.update(updates, state.inner, params)
        _, features = units.apply(optax.apply_updates(params, moved), x)
        return tx.update(updates, state, params, **extra | {"features": features})

    return optax.GradientTransformationExtraArgs(tx.init, update)


def half(key, n, fan_in, fan_out, dtype):
    """The recordings' rule for a redrawn bias."""
    return jnp.full((n, fan_in), 0.5 / fan_in**0.5, dtype)


def as_timoklein(config, units, x):
    inner = adam(config["base_optimizer"]["lr"])
    how = {"threshold": config["tau"], "period": config["every"], "reset_counts": True, "bias_initializer": half}
    law = Initializer(gain=2**0.5, linspace=True)
    return seen_again(redo(inner, units, initializer=law, key=KEY, **how), inner, units, x)


def as_dopamine(config, units, x):
    inner = optax.adam(config["base_optimizer"]["lr"])
    how = {"zero_last": True, "reset_bias_state": False}
    how |= {"threshold": config["dead_neurons_threshold"], "period": config["reset_period"]}
    law = Initializer("xavier_uniform", linspace=True)
    return seen_again(redo(inner, units, initializer=law, key=KEY, **how), inner, units, x)


@pytest.mark.parametrize(("name", "make_tx"), [("redo_a", as_timoklein), ("redo_dopamine_a", as_dopamine)])
def test_other_releases_are_replayed_reset_by_reset(replay, name, make_tx):
    trace, ours = replay(name, make_tx, extra=lambda trace: trace["x"], see=lambda state: state.age)
    gone = np.stack([ours.seen[f"Dense_{i}"] == 0 for i in range(2)], axis=1)
    np.testing.assert_array_equal(np.argwhere(gone), trace["f64/events"])
    if trace.full and name == "redo_a":
        counts = {n: jnp.minimum(*pair).max() for n, pair in by_name(ours.state.inner).items()}
        for i in range(3):
            for leaf, letter in (("kernel", "W"), ("bias", "b")):
                assert counts[f"Dense_{i}/{leaf}"] == trace[f"f64/opt/step/{letter}{i}"]


def by_name(state):
    """Counts by row and by column of Adam, by the parameter's name."""
    rows, columns = (dict(named_leaves(tree)) for tree in (state.rows, state.columns))
    return {name: (rows[name], columns[name]) for name in rows}


def test_counts_begin_again_in_the_lane_whose_period_it_is():
    """Whether or not a unit goes; the count of the last bias, which no unit has, goes on."""

    def count(period):
        inner = adam(0.1)
        tx = redo(inner, UNITS, threshold=0.0, period=period, reset_counts=True, key=KEY)
        state = tx.init(PARAMS)
        return tx.update(ZEROS, state, PARAMS, features={"Dense_0": jnp.ones((1, 3))})[1].inner.rows

    rows = jax.jit(jax.vmap(count))(jnp.array([1, 2]))
    for layer, leaf, expected in (
        ("Dense_0", "kernel", [0, 1]),
        ("Dense_0", "bias", [0, 1]),
        ("Dense_1", "kernel", [0, 1]),
        ("Dense_1", "bias", [1, 1]),
    ):
        values = rows[layer][leaf].reshape(2, -1)
        assert [set(lane) for lane in values.tolist()] == [{n} for n in expected]
