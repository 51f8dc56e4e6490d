"""FADE: the published code's recordings, and what the option of its scope does."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.optimizers.adam import adam
from plastic_jax.optimizers.fade import fade
from plastic_jax.optimizers.idbd import idbd


def test_the_output_layers_decay_replays_the_published_code(replay):
    """Its curvature is the mean square of the last hidden layer's units, and 1 for the bias."""

    def make_tx(config, units, extra):
        tx = fade(
            config["lr"],
            decay_meta_step_size=config["theta_lambda"],
            first_decay=math.exp(config["initial_gamma"]),
            decaying="Dense_2/*",
        )

        def update(updates, state, params=None, *, features, **more):
            square = jnp.mean(features["Dense_1"] ** 2, axis=0)[:, None]
            curvature = jax.tree.map(jnp.zeros_like, params)
            head = {"kernel": jnp.broadcast_to(square, params["Dense_2"]["kernel"].shape), "bias": jnp.ones(4)}
            return tx.update(updates, state, params, curvature=curvature | {"Dense_2": head})

        return optax.GradientTransformationExtraArgs(tx.init, update)

    trace, ours = replay("fade_a", make_tx)
    if trace.full:
        for recorded, kept in (("gamma", ours.state.log_decay), ("g_trace", ours.state.decay_trace)):
            head = kept["Dense_2"]
            np.testing.assert_allclose(head["kernel"].T, trace[f"f64/opt/{recorded}/W2"], rtol=1e-9)
            np.testing.assert_allclose(head["bias"], trace[f"f64/opt/{recorded}/b2"], rtol=1e-9)


LINEAR = {
    "fade_linear_a": lambda c: fade(
        c["lr"], decay_meta_step_size=c["meta_step_size"], first_decay=math.exp(c["initial_gamma"])
    ),
    "fade_idbd_a": lambda c: fade(
        math.exp(c["initial_beta"]),
        base="idbd",
        decay_meta_step_size=c["meta_step_size_lambda"],
        first_decay=math.exp(c["initial_gamma"]),
        idbd_meta_step_size=c["meta_step_size_alpha"],
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_units_replay_the_published_code(name, traces):
    load_trace = traces[0]
    short = load_trace(name)
    try:
        trace = load_trace(name, full=True)
    except pytest.skip.Exception:
        trace = short
    with jax.enable_x64(True):
        tx = LINEAR[name](trace.config)

        def step(carry, now):
            w, state = carry
            x, y = now
            error = y - w @ x
            updates, state = tx.update(-error * x, state, w, curvature=x**2)
            return (w + updates, state), error**2

        w = jnp.asarray(trace["init/w"], jnp.float64)
        stream = jnp.asarray(trace["x"], jnp.float64), jnp.asarray(trace["y"], jnp.float64)
        (w, state), errors = jax.jit(functools.partial(jax.lax.scan, step))((w, tx.init(w)), stream)
        np.testing.assert_allclose(errors[: len(short["f64/squared_error"])], short["f64/squared_error"], rtol=1e-9)
        if trace.full:
            np.testing.assert_allclose(errors, trace["f64/squared_error"], rtol=1e-9, atol=1e-14)
            kept = {"w": w, "gamma": state.log_decay, "g": state.decay_trace}
            kept |= {} if state.base == () else {"beta": state.base.log_step_size, "h": state.base.trace}
            for key, ours in kept.items():
                np.testing.assert_allclose(ours, trace[f"f64/final/{key}"], rtol=1e-9, err_msg=key)


PARAMS = {"hidden": jnp.array([[1.0, -2.0]]), "out": jnp.array([[0.5], [3.0]])}
GRADS = jax.tree.map(jnp.cos, PARAMS)
CURVATURE = jax.tree.map(jnp.ones_like, PARAMS)


@pytest.mark.parametrize("base", ["sgd", "adam", "idbd"])
def test_what_does_not_decay_has_the_base_optimizers_step(base):
    """Every parameter with a first decay rate of 0, and by a pattern all but the output layer."""
    other = {"sgd": optax.sgd(0.1), "adam": adam(0.1), "idbd": idbd(0.1)}[base]
    none, some = fade(0.1, base=base, first_decay=0.0), fade(0.1, base=base, decaying="out")

    def run(*transformations):
        found = []
        for tx in map(optax.with_extra_args_support, transformations):
            state = tx.init(PARAMS)
            for factor in (1.0, 0.5):
                grads = jax.tree.map(lambda g, f=factor: f * g, GRADS)
                updates, state = tx.update(grads, state, PARAMS, curvature=CURVATURE)
            found.append(updates)
        return found

    expected, off, partly = jax.jit(lambda: run(other, none, some))()
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4), off, jax.tree.map(np.asarray, expected))
    np.testing.assert_allclose(partly["hidden"], expected["hidden"], rtol=1e-5)
    assert (np.abs(partly["out"] - expected["out"]) > 1e-4).all()


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="fade: decaying='head' fits no parameter; there are hidden, out"):
        fade(0.1, decaying="head").init(PARAMS)
    tx = fade(0.1)
    with pytest.raises(ValueError, match="fade: update needs the extra argument curvature"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="fade: update needs `params`"):
        tx.update(GRADS, tx.init(PARAMS), curvature=CURVATURE)
