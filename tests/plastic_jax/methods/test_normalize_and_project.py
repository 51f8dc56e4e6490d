"""Normalise-and-project: closed forms, and a recording of a public implementation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import normalize_and_project, trace_units

KEY = jax.random.key(0)
PARAMS = {
    "Dense_0": {"kernel": jax.random.normal(KEY, (2, 3, 4)), "bias": jnp.ones((2, 4))},
    "LayerNorm_0": {"scale": jnp.full((2, 4), 3.0), "bias": jnp.full((2, 4), 4.0)},
    "RMSNorm_0": {"scale": jnp.full(4, 3.0)},
    "head": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)},
}


def after(**options):
    """The parameters after a step of 1 along the gradient 1 and the projection."""
    tx = normalize_and_project(optax.sgd(1.0), **options)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    return optax.apply_updates(PARAMS, updates)


def test_every_layer_of_a_stack_keeps_a_norm_of_its_own_and_a_layer_of_zeros_is_left_alone():
    done = after(radius=2.0, affine="free")
    for before, kernel in zip(PARAMS["Dense_0"]["kernel"], done["Dense_0"]["kernel"], strict=True):
        np.testing.assert_allclose(np.linalg.norm(kernel), 2 * np.linalg.norm(before), rtol=1e-6)
        np.testing.assert_allclose(
            kernel / np.linalg.norm(kernel), (before - 1) / np.linalg.norm(before - 1), rtol=1e-5
        )
    np.testing.assert_array_equal(done["head"]["kernel"], -1.0)
    np.testing.assert_array_equal(done["Dense_0"]["bias"], 0.0)
    np.testing.assert_array_equal(done["LayerNorm_0"]["bias"], 3.0)


def test_learned_scales_and_shifts_decay_to_1_and_0_or_keep_their_joint_norm():
    decayed, joint = after(affine="decay", affine_decay=0.25), after(affine="project")
    np.testing.assert_allclose(decayed["LayerNorm_0"]["scale"], 0.75 * 2 + 0.25)
    np.testing.assert_allclose(decayed["LayerNorm_0"]["bias"], 0.75 * 3)
    pair = np.stack([joint["LayerNorm_0"]["scale"], joint["LayerNorm_0"]["bias"]])
    np.testing.assert_allclose((pair**2).sum(axis=(0, 2)), 4.0, rtol=1e-6)
    np.testing.assert_allclose(pair[0] / pair[1], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(joint["RMSNorm_0"]["scale"], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(joint["head"]["bias"], -1.0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="normalize_and_project: affine='none'; allowed: decay, project, free"):
        normalize_and_project(optax.sgd(0.1), affine="none")
    with pytest.raises(ValueError, match="normalize_and_project: period=0 is not in"):
        normalize_and_project(optax.sgd(0.1), period=0)


class Normalised(nn.Module):
    """The recorded network: layer norm before every nonlinearity."""

    @nn.compact
    def __call__(self, x):
        for width in (16, 16):
            x = nn.Dense(width, use_bias=False)(x)
            x = nn.relu(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(x))
        return nn.Dense(4)(x)


def params_of(trace, prefix, dtype):
    names = {"Dense_0": {"kernel": "W0"}, "LayerNorm_0": {"scale": "g0", "bias": "s0"}, "Dense_1": {"kernel": "W1"},
             "LayerNorm_1": {"scale": "g1", "bias": "s1"}, "Dense_2": {"kernel": "W2", "bias": "b2"}}  # fmt: skip
    return jax.tree.map(lambda name: np.asarray(trace[f"{prefix}/{name}"].T, dtype), names)


@pytest.mark.parametrize("full", [False, True], ids=["committed", "full"])
def test_momentum_replays_a_public_implementation(full, traces):
    load_trace, _, assert_tree_close = traces
    trace = load_trace("nap_a", full)
    config, network = trace.config, Normalised()
    shapes = jax.eval_shape(lambda: network.init(KEY, jnp.zeros((1, 8)))["params"])
    units = trace_units(lambda params, x: network.apply({"params": params}, x), shapes, jnp.zeros((1, 8)))
    tx = normalize_and_project(
        optax.sgd(config["base_optimizer"]["lr"], config["base_optimizer"]["momentum"]),
        units,
        radius=config["radius_multiplier"],
        affine={"init_decay": "decay", "joint_project": "project", "free": "free"}[config["affine_policy"]],
        affine_decay=config["affine_decay"],
        period=config["every_updates"],
        layers="all" if config["parameter_scope"] == "network" else "hidden",
    )

    @jax.jit
    def step(carry, batch):
        params, state = carry
        x, y = batch
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean((network.apply({"params": p}, x) - y) ** 2))(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    for precision, dtype in (("f64", jnp.float64), ("f32", jnp.float32))[: 1 + full]:
        with jax.enable_x64(precision == "f64"):
            params = jax.tree.map(jnp.asarray, params_of(trace, "init", dtype))
            batches = [jnp.asarray(trace[name], dtype) for name in "xy"]
            (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), tuple(batches))
        if precision == "f64":
            np.testing.assert_allclose(losses, trace["f64/loss"], rtol=1e-9)
        else:
            np.testing.assert_allclose(losses, trace["f32/loss"], rtol=0, atol=1e-5 * trace["f32/loss"].max())
        if full and precision == "f64":
            assert_tree_close(params, params_of(trace, "f64/final", np.float64))
