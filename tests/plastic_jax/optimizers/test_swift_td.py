"""SwiftTD: recordings of the three released classes, learned step sizes, and the ends of episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.optimizers.swift_td import swift_td


def learned(tx, x, rewards, start):
    """The predictions before every step, and the weights and state at the end."""

    def step(carry, now):
        w, state = carry
        f, reward = now
        updates, state = tx.update({"w": f}, state, w, reward=reward)
        return (optax.apply_updates(w, updates), state), f @ w["w"]

    w = {"w": start}
    ((w, state), values) = jax.jit(functools.partial(jax.lax.scan, step))((w, tx.init(w)), (x, rewards))
    return values, w["w"], state


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", ["dense", "sparse", "binary"])
def test_the_published_code_is_replayed(name, precision, traces):
    load_trace, *_ = traces
    trace, close = load_trace(f"swifttd_{name}_a"), {"f64": 1e-9, "f32": 1e-5}[precision]
    config = trace.config
    with jax.enable_x64(precision == "f64"):
        dtype = jnp.dtype({"f64": "float64", "f32": "float32"}[precision])
        tx = swift_td(
            config["alpha"],
            discount=config["gamma"],
            td_lambda=config["lam"],
            meta_step_size=config["meta_step_size"],
            largest_rate=config["eta"],
            shrink=config["decay"],
            least_trace=config["epsilon"],
            features="dense" if name == "dense" else "sparse",
        )
        x, rewards = (jnp.asarray(trace[key], dtype) for key in ("x", "reward"))
        values, w, state = learned(tx, x, rewards, jnp.zeros(x.shape[1], dtype))
    np.testing.assert_allclose(values, trace["f64/value"], rtol=close, atol=close)
    np.testing.assert_allclose(w, trace["f64/final/w"], rtol=close, atol=close)
    for key, ours in (("beta", "beta"), ("z", "z"), ("h", "h"), ("p", "p"), ("z_bar", "z_bar"), ("h_temp", "h_next")):
        np.testing.assert_allclose(
            getattr(state.traces, ours)["w"], trace[f"f64/final/{key}"], rtol=close, atol=close, err_msg=key
        )


def test_step_sizes_of_what_predicts_rise_above_those_of_noise():
    """The reward is the first of ten features one step before; the others are noise."""
    x = jax.random.normal(jax.random.key(0), (4000, 10))
    rewards = jnp.concatenate([jnp.zeros(1), x[:-1, 0]])
    tx = swift_td(1e-3, discount=0.0, meta_step_size=1e-2, largest_rate=0.5, features="dense")
    _, w, state = learned(tx, x, rewards, jnp.zeros(10))
    beta = np.asarray(state.traces.beta["w"])
    assert abs(w[0] - 1) < 0.05 and np.abs(w[1:]).max() < 0.1
    assert beta[0] > beta[1:].max()


def test_nothing_passes_the_end_of_an_episode():
    """Two episodes of one feature: the second is learned as if it were alone, with the step size of the first."""
    tx = swift_td(0.1, discount=0.9, td_lambda=0.9)
    update = jax.jit(lambda f, state, w, reward, reset: tx.update(f, state, w, reward=reward, reset=reset))
    w, state = jnp.zeros(2), tx.init(jnp.zeros(2))
    for f, reward, ends in (((1.0, 0.0), 0.0, False), ((5.0, 5.0), 1.0, True)):
        updates, state = update(jnp.array(f), state, w, reward, ends)
        w = w + updates
    np.testing.assert_allclose(w, [0.1, 0.0], atol=1e-7)  # the features of the end do not count
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.traces._replace(beta={}))) and state.value == 0
    updates, _ = update(jnp.array([0.0, 1.0]), state, w, 3.0, False)
    np.testing.assert_array_equal(updates, 0.0)  # the first reward of an episode follows from nothing


def test_lanes_of_given_away_state_are_those_alone():
    """Step sizes of two lanes, in bfloat16: types stay, and no buffer is given away twice."""
    features, w = jnp.arange(6.0).reshape(2, 3).astype(jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16)
    sizes = jnp.array([0.01, 0.1])
    alone = [
        swift_td(size).update(features[i], swift_td(size).init(w[i]), w[i], reward=1.0) for i, size in enumerate(sizes)
    ]
    step = jax.vmap(lambda size, f, state, w: swift_td(size).update(f, state, w, reward=1.0))
    state = jax.vmap(lambda size, w: swift_td(size).init(w))(sizes, w)
    one = swift_td(0.1).init(w[0])
    jax.jit(lambda state: state, donate_argnums=0)(one)  # fails where two leaves share a buffer
    updates, after = jax.jit(step)(sizes, features, state, w)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert updates.dtype == jnp.bfloat16
    for i, (moved, kept) in enumerate(alone):
        np.testing.assert_array_equal(updates[i], moved)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), after, kept)


def test_what_update_needs_is_said():
    tx = swift_td()
    with pytest.raises(ValueError, match="needs the parameters and the extra argument reward"):
        tx.update(jnp.ones(2), tx.init(jnp.zeros(2)), jnp.zeros(2))
