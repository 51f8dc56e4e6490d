"""The published code's runs of continual backprop, step by step: the same units at the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import Initializer, continual_backprop
from plastic_jax.optimizers.adam import adam

NAMES = ["adam", "adaptable_contribution", "adaptation", "bernoulli", "contribution", "nll", "rho_exact", "weight"]


def make_tx(config, units, uniforms):
    inner = optax.sgd(config["lr"]) if config["opt"] == "sgd" else adam(config["lr"])
    layers = iter(range(len(units.groups)))

    def recorded_draw(key, expected):
        u = uniforms[next(layers)]
        return jnp.where(expected < 1, (u <= expected) & (expected > 0), jnp.floor(expected)).astype(jnp.int32)

    return continual_backprop(
        inner,
        units,
        replacement_rate=config["rho"],
        maturity_threshold=config["maturity"],
        decay_rate=config["eta"],
        utility=config["util"],
        initializer=Initializer("kaiming_uniform", 2**0.5, linspace=True),
        key=jax.random.key(0),
        count="accumulate" if config["accumulate"] else recorded_draw,
        reset_state=False,
    )


def see(state):
    return state.age, state.utility, state.mean_activation


def uniforms(trace):
    """`[steps, layers]`: the recorded uniform numbers, 0 where none was used."""
    table = np.zeros((len(trace["x"]), 2))
    if not trace.config["accumulate"]:
        used = dict.fromkeys(trace["f64/uniform_step"].tolist(), 0)
        for step, value in zip(trace["f64/uniform_step"].tolist(), trace["f64/uniform_value"], strict=True):
            table[step, used[step]] = value
            used[step] += 1
    return table


def events(ours):
    """Rows (step, layer, unit) of the replacements: a unit of age 0 after a step was made in it."""
    found = [np.argwhere(age == 0) for age in ours.seen[0].values()]
    rows = [np.insert(pairs, 1, layer, axis=1) for layer, pairs in enumerate(found)]
    return np.array(sorted(np.concatenate(rows).tolist()))


@pytest.mark.parametrize("full", [False, True], ids=["committed", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_float64_is_the_published_run_to_1e9(name, full, traces):
    load_trace, replay_trace, assert_tree_close = traces
    trace = load_trace(f"mlp_cbp_{name}", full)
    ours = replay_trace(trace, make_tx, extra=uniforms(trace), see=see)
    recorded = trace["f64/events"]
    assert len(recorded) >= 100
    np.testing.assert_array_equal(events(ours), sorted(recorded.tolist()))
    np.testing.assert_allclose(ours.losses, trace["f64/loss"], rtol=1e-9)
    age, utility, mean = (list(tree.values()) for tree in ours.seen)
    at = trace["f64/rec_steps"]
    for layer in range(2):
        np.testing.assert_array_equal(age[layer][at], trace[f"f64/age_l{layer}"])
        np.testing.assert_allclose(utility[layer][at], trace[f"f64/util_l{layer}"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mean[layer][at, :, 0], trace[f"f64/mean_act_l{layer}"], rtol=1e-9, atol=1e-12)
    assert [int(n) for n in ours.state.replaced.values()] == np.bincount(recorded[:, 1]).tolist()
    if not full:
        return
    assert_tree_close(ours.params, trace.tree("f64/final"))
    if trace.config["accumulate"]:
        owed = [float(a[0]) for a in ours.state.accumulator.values()]
        np.testing.assert_allclose(owed, trace["f64/final_accumulator"], atol=1e-12)
    if name == "adam":
        moments = ours.state.inner
        assert_tree_close(moments.mu, trace.tree("f64/opt/exp_avg"))
        assert_tree_close(moments.nu, trace.tree("f64/opt/exp_avg_sq"))


@pytest.mark.parametrize("full", [False, True], ids=["committed", "full"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "rho_exact"])
def test_float32_is_the_published_run_to_1e5(name, full, traces):
    load_trace, replay_trace, _ = traces
    trace = load_trace(f"mlp_cbp_{name}", full)
    ours = replay_trace(trace, make_tx, precision="f32", extra=uniforms(trace), see=see)
    np.testing.assert_array_equal(events(ours), sorted(trace["f64/events"].tolist()))
    np.testing.assert_allclose(ours.losses, trace["f32/loss"], rtol=1e-5, atol=1e-6)


def test_float32_sum_that_falls_on_integers_is_at_most_one_step_late(traces):
    # The recording sums in double precision; a rate of 0.01 makes the sum an integer up to rounding again and again.
    load_trace, replay_trace, _ = traces
    trace = load_trace("mlp_cbp_rho_exact")
    ours = replay_trace(trace, make_tx, precision="f32", extra=uniforms(trace), see=see)
    found, recorded = events(ours), trace["f64/events"]
    for layer in range(2):
        steps, expected = (rows[rows[:, 1] == layer][:, 0] for rows in (found, recorded))
        late = steps - expected[: len(steps)]
        assert len(expected) - len(steps) <= 1
        assert set(late) <= {0, 1}
        assert np.sum(late) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_committed_trace_is_the_beginning_of_the_full_one(name, traces):
    load_trace, _, _ = traces
    short, full = load_trace(f"mlp_cbp_{name}"), load_trace(f"mlp_cbp_{name}", full=True)
    for key in ("x", "y", "f64/loss", "f32/loss", "f64/events"):
        np.testing.assert_array_equal(short[key], full[key][: len(short[key])])
