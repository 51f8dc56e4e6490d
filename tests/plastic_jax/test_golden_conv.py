"""The published code's run of continual backprop on its convolutional network: the same units at the same steps."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import ConvNet, continual_backprop, trace_units

NETWORK = ConvNet()
FLATTENED = (128, 2, 2)  # channels and positions that the first dense layer reads


class Learned(NamedTuple):
    """Per step: losses, logits, ages, utilities and mean activations by layer; and what is there at the end."""

    losses: np.ndarray
    logits: np.ndarray
    age: list[np.ndarray]
    utility: list[np.ndarray]
    mean: list[np.ndarray]
    params: Any
    state: Any


def our_params(trace, prefix, dtype):
    """Recorded weights, in our layout: convolutions HWIO; the flattened map runs over positions, then channels."""
    params = {}
    for i in range(6):
        weights = trace[f"{prefix}/W{i}"]
        if i == 3:
            weights = weights.reshape(-1, *FLATTENED).transpose(2, 3, 1, 0).reshape(math.prod(FLATTENED), -1)
        else:
            weights = weights.transpose(2, 3, 1, 0) if weights.ndim == 4 else weights.T
        name = f"Conv_{i}" if i < 3 else f"Dense_{i - 3}"
        params[name] = {"kernel": jnp.asarray(weights, dtype), "bias": jnp.asarray(trace[f"{prefix}/b{i}"], dtype)}
    return params


def recorded_layout(params):
    """Our weights by their recorded names, in the recorded layout."""
    arrays = {}
    for i in range(6):
        layer = params[f"Conv_{i}" if i < 3 else f"Dense_{i - 3}"]
        weights = np.asarray(layer["kernel"])
        if i == 3:
            channels, *positions = FLATTENED
            weights = weights.reshape(*positions, channels, -1).transpose(3, 2, 0, 1).reshape(-1, math.prod(FLATTENED))
        else:
            weights = weights.transpose(3, 2, 0, 1) if weights.ndim == 4 else weights.T
        arrays |= {f"W{i}": weights, f"b{i}": np.asarray(layer["bias"])}
    return arrays


def recorded_row(key, n, fan_in, fan_out, dtype):
    """`linspace(-b, b, fan_in)`, `b = sqrt(1 / fan_in)`, in the recorded order: channel, then position."""
    row = np.linspace(-math.sqrt(1 / fan_in), math.sqrt(1 / fan_in), fan_in)
    window = {75: (3, 5, 5), 288: (32, 3, 3), 576: (64, 3, 3), 512: FLATTENED}.get(fan_in, (fan_in, 1, 1))
    return jnp.broadcast_to(jnp.asarray(row.reshape(window).transpose(1, 2, 0).ravel(), dtype), (n, fan_in))


@pytest.fixture(scope="module")
def learn(traces):
    load_trace, _, _ = traces
    trace = load_trace("conv_cbp")

    @functools.cache
    def run(precision):
        with jax.enable_x64(precision == "f64"):
            return trace, replay(trace, jnp.dtype("float64" if precision == "f64" else "float32"))

    return run


def replay(trace, dtype):
    config = trace.config
    params = our_params(trace, "init", dtype)
    units = trace_units(
        lambda params, x: NETWORK.apply({"params": params}, x), params, jnp.zeros((1, 32, 32, 3), dtype)
    )
    tx = continual_backprop(
        optax.sgd(config["lr"], momentum=config["momentum"]),
        units,
        replacement_rate=config["rho"],
        maturity_threshold=config["maturity"],
        decay_rate=config["eta"],
        utility=config["util"],
        initializer=recorded_row,
        key=jax.random.key(0),
        count_units="all",
        reset_state=False,
    )

    def objective(params, x, y):
        logits, features = units.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), (logits, features)

    # Many steps of products: here optimizing costs less than it saves.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(params, state, x, y):
        (loss, (logits, features)), gradient = jax.value_and_grad(objective, has_aux=True)(params, x, y)
        updates, state = tx.update(gradient, state, params, features=features)
        return optax.apply_updates(params, updates), state, loss, logits

    state, rows = tx.init(params), []
    for index in trace["batch_index"]:
        x = (trace["images_u8"][index].astype(dtype) / 128 - 1).transpose(0, 2, 3, 1)
        params, state, loss, logits = step(params, state, x, trace["labels"][index])
        of_layer = [(state.age[g.name], state.utility[g.name], state.mean_activation[g.name]) for g in units.groups]
        rows.append(jax.tree.map(np.asarray, (loss, logits, *zip(*of_layer, strict=True))))
    losses, logits, age, utility, mean = jax.tree.map(lambda *r: np.stack(r), *rows)
    return Learned(losses, logits, list(age), list(utility), list(mean), params, state)


def events(ages):
    """Rows (step, layer, unit) of the replacements: a unit of age 0 after a step was made in it."""
    return sorted(
        (step, layer, unit) for layer, age in enumerate(ages) for step, unit in np.argwhere(age == 0).tolist()
    )


def test_float64_is_the_published_run_to_1e9(learn, summaries):
    trace, ours = learn("f64")
    recorded = trace["f64/events"]
    assert len(recorded) == 123
    assert events(ours.age) == sorted(map(tuple, recorded.tolist()))
    np.testing.assert_allclose(ours.losses, trace["f64/loss"], rtol=1e-9)
    np.testing.assert_allclose(ours.logits, trace["f64/logits"], rtol=1e-9, atol=1e-12)
    at = trace["f64/rec_steps"]
    for layer in range(5):
        np.testing.assert_array_equal(ours.age[layer][at], trace[f"f64/age_l{layer}"])
        np.testing.assert_allclose(ours.utility[layer][at], trace[f"f64/util_l{layer}"], rtol=1e-9, atol=1e-12)
        # Recorded per channel; ours is kept for every position that the next layer reads.
        mean = ours.mean[layer][at].mean(-1)
        np.testing.assert_allclose(mean, trace[f"f64/mean_act_l{layer}"], rtol=1e-9, atol=1e-12)
    owed = [float(ours.state.accumulator[name][0]) for name in ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")]
    np.testing.assert_allclose(owed, trace["f64/final_accumulator"], atol=1e-12)
    summaries(trace, "f64/final", recorded_layout(ours.params))


def test_momentum_of_the_full_recording_is_ours(learn, traces, summaries):
    load_trace, _, _ = traces
    full = load_trace("conv_cbp", full=True)
    _, ours = learn("f64")
    summaries(full, "f64/momentum_buffer", recorded_layout(ours.state.inner[0].trace))


def test_float32_is_the_published_run(learn):
    trace, ours = learn("f32")
    assert events(ours.age) == sorted(map(tuple, trace["f32/events"].tolist()))
    np.testing.assert_allclose(ours.losses, trace["f32/loss"], rtol=0, atol=1e-4)  # ten times |float32 - float64|


def test_committed_trace_is_a_part_of_the_full_one(traces):
    load_trace, _, _ = traces
    short, full = load_trace("conv_cbp"), load_trace("conv_cbp", full=True)
    for key, array in short.arrays.items():
        np.testing.assert_array_equal(array, full[key])
