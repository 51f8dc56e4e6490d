"""IDBD, K1 and Autostep on linear units: released code's recordings, closed forms, and what bounds a step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP
from plastic_jax.optimizers.autostep import autostep
from plastic_jax.optimizers.curvature import local_curvature
from plastic_jax.optimizers.idbd import idbd, k1

OPTIMIZERS: Any = {"idbd": idbd, "k1": k1, "autostep": autostep}
PARAMS = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}


def learn(tx, params, x, y):
    """Errors of a linear unit `[steps]`, its weights and state; the loss is 1/2 e^2."""

    def step(carry, now):
        params, state = carry
        x, y = now
        error = y - jnp.sum(params["kernel"][:, 0] * x) - jnp.sum(params.get("bias", 0.0))
        inputs = {"kernel": x[:, None], "bias": jnp.ones(1, x.dtype)}
        inputs = {name: inputs[name] for name in params}
        gradient = jax.tree.map(lambda x: -error * x, inputs)
        updates, state = tx.update(gradient, state, params, curvature=jax.tree.map(jnp.square, inputs))
        return (optax.apply_updates(params, updates), state), error

    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), (x, y)))
    (params, state), errors = run(params)
    return np.asarray(errors), params, state


def replayed(trace, make_tx, precision):
    with jax.enable_x64(precision == "f64"):
        dtype = np.dtype(f"float{precision[1:]}")
        first = trace.arrays.get("init/w", np.zeros(trace["x"].shape[-1]))
        params = {"kernel": jnp.asarray(first[:, None], dtype)}
        if "init/w" not in trace.arrays:
            params["bias"] = jnp.zeros(1, dtype)
        x, y = trace["x"].astype(dtype), trace["y"].astype(dtype)
        return jax.tree.map(np.asarray, learn(make_tx(trace.config), params, x, y))


RECORDINGS = {
    "idbd_a": (
        lambda c: idbd(float(np.exp(c["initial_beta"])), c["meta_step_size"]),
        {"log_step_size": ("final/beta", None), "trace": ("final/memory_vector", None)},
    ),
    "idbd_alberta_a": (
        lambda c: idbd(c["initial_step_size"], c["meta_step_size"]),
        {"log_step_size": ("state/log_step_sizes", None), "trace": ("state/traces", "state/bias_trace")},
    ),
    "autostep_a": (
        lambda c: autostep(c["initial_step_size"], c["meta_step_size"], c["tau"]),
        {
            "step_size": ("state/step_sizes", "state/bias_step_size"),
            "trace": ("state/traces", "state/bias_trace"),
            "normalizer": ("state/normalizers", "state/bias_normalizer"),
        },
    ),
}


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("full", [False, True])
def test_replays_released_code(name, full, traces):
    load_trace, _, _ = traces
    trace, (make_tx, kept) = load_trace(name, full), RECORDINGS[name]
    errors, _, state = replayed(trace, make_tx, "f64")
    recorded = trace.arrays.get("f64/error")
    if recorded is None:
        errors, recorded = errors**2, trace["f64/squared_error"]
    np.testing.assert_allclose(errors, recorded, rtol=1e-9, atol=1e-12)
    if not full:
        return
    for field, (kernel, bias) in kept.items():
        np.testing.assert_allclose(getattr(state, field)["kernel"][:, 0], trace[f"f64/{kernel}"], rtol=1e-9)
        if bias is not None:
            np.testing.assert_allclose(getattr(state, field)["bias"][0], trace[f"f64/{bias}"], rtol=1e-9)
    if "f32/error" in trace.arrays:
        single, _, _ = replayed(trace, make_tx, "f32")
        np.testing.assert_allclose(single, trace["f32/error"], rtol=0, atol=1e-5 * np.abs(trace["f32/error"]).max())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_relevant_inputs_get_larger_step_sizes_than_irrelevant_ones(name):
    """A target that follows a drifting weight of the first input alone."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (4000, 2))
    drift = jnp.cumsum(0.1 * jax.random.normal(jax.random.key(1), (4000,)))
    y = drift * x[:, 0] + 0.3 * jax.random.normal(jax.random.key(2), (4000,))
    _, _, state = learn(OPTIMIZERS[name](0.05, 0.01), PARAMS, x, y)
    sizes = np.asarray(state[0]["kernel"][:, 0])
    sizes = sizes if name == "autostep" else np.exp(sizes)
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loss_scaled_by_s_is_the_same_learner_at_step_sizes_divided_by_s(name):
    """Gradient and curvature grow by s alike; K1's noise does so too, and Autostep's meta step has no unit."""
    scale, factory = 4.0, OPTIMIZERS[name]
    meta = 0.05 if name == "autostep" else 0.05 / scale
    gradients = [{"kernel": jnp.array([[g], [1 - g]]), "bias": jnp.array([g])} for g in (0.5, -0.2, 0.7)]
    curvature = {"kernel": jnp.array([[0.5], [1.0]]), "bias": jnp.ones(1)}
    one, other = factory(0.4, 0.05), factory(0.4 / scale, meta)
    times = lambda tree: jax.tree.map(lambda leaf: scale * leaf, tree)  # noqa: E731

    def steps():
        state, scaled = one.init(PARAMS), other.init(PARAMS)
        for gradient in gradients:
            updates, state = one.update(gradient, state, PARAMS, curvature=curvature)
            expected, scaled = other.update(times(gradient), scaled, PARAMS, curvature=times(curvature))
            yield updates, expected

    for updates, expected in jax.jit(lambda: list(steps()))():
        jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5), updates, expected)


@pytest.mark.parametrize("name", ["k1", "autostep"])
def test_no_step_goes_beyond_a_unit_s_target(name):
    """However large the step sizes: the sum over a unit's weights, bias included, of what a step does to the output."""
    tx = OPTIMIZERS[name](100.0)
    x, error = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.ones(1)}, 2.0
    gradient = jax.tree.map(lambda x: -error * x, x)
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS, curvature=jax.tree.map(jnp.square, x))
    moved = sum(float(jnp.sum(updates[name] * x[name])) for name in x)
    assert 0.99 * error < moved <= error * (1 + 1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_in_bfloat16_keep_their_type_and_statistics_are_float32(name):
    params: Any = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = OPTIMIZERS[name](jnp.float32(0.1))
    ones = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(ones, tx.init(params), params, curvature=ones)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_missing_is_said(name):
    tx = OPTIMIZERS[name](0.1)
    with pytest.raises(ValueError, match=f"{name}: update needs the extra argument curvature"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=rf"{name}: curvature of 'bias' must have its shape \(1,\), got nothing"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, curvature={"kernel": PARAMS["kernel"]})
    with pytest.raises(ValueError, match=f"{name}: meta_step_size=-1.0 is not in"):
        OPTIMIZERS[name](0.1, -1.0)
    with pytest.raises(ValueError, match=f"{name}: step_size=-1.0 is not in"):
        OPTIMIZERS[name](-1.0)


def test_a_masked_optimizer_takes_its_part_of_the_curvature():
    tx = optax.masked(idbd(0.1), {"kernel": True, "bias": False})
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(ones, tx.init(PARAMS), PARAMS, curvature=ones)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 1.0)


def test_every_layer_of_a_network_learns_by_local_targets():
    """Each layer's step is that of linear units with the layer's own inputs and the errors of their targets."""
    network, x, y = MLP(widths=(4,), outputs=2), jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.ones((2, 2))
    params: Any = jax.jit(network.init)(jax.random.key(0), x)["params"]
    apply = lambda params, x: network.apply({"params": params}, x)  # noqa: E731
    loss = lambda params: 0.5 * jnp.mean(jnp.sum((apply(params, x) - y) ** 2, 1))  # noqa: E731
    tx = autostep(10.0)

    @jax.jit
    def step(params):
        gradient, curvature = jax.grad(loss)(params), local_curvature(apply, params, x)
        return gradient, tx.update(gradient, tx.init(params), params, curvature=curvature)[0]

    gradient, updates = step(params)
    inputs = {"Dense_0": x, "Dense_1": jax.nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])}
    for name, values in inputs.items():
        squares = jnp.mean(values**2, 0)
        step = 10.0 / jnp.maximum(10.0 * (jnp.sum(squares) + 1), 1)
        np.testing.assert_allclose(updates[name]["kernel"], -step * gradient[name]["kernel"], rtol=1e-5)
        np.testing.assert_allclose(updates[name]["bias"], -step * gradient[name]["bias"], rtol=1e-5)
