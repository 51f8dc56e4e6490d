from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax.methods.shrink_and_perturb import (
    published_shrink_and_perturb,
    shrink_and_perturb,
    shrink_and_perturb_at_boundary,
)
from plastic_jax.paths import leaf_key, normal_like
from plastic_jax.signature import static_args

KEY = jax.random.key(7)
PARAMS: Any = {
    "Dense_0": {"kernel": 3.0 * jax.random.normal(jax.random.key(1), (40, 50)), "bias": jnp.zeros(50)},
    "Norm_0": {"scale": jnp.ones(50)},
}
ZEROS: Any = jax.tree.map(jnp.zeros_like, PARAMS)
GRADIENT: Any = jax.tree.map(jnp.ones_like, PARAMS)


def fresh(key):
    return normal_like(key, PARAMS)


def make(name, inner=None, key: Any = KEY, **change: Any) -> Any:
    inner = inner or optax.sgd(0.1, momentum=0.9)
    if name == "normalised":
        return shrink_and_perturb(inner, **({"shrink": 0.01, "noise": 0.1, "key": key} | change))
    if name == "published":
        arguments = {"weight_decay": 0.01, "noise_std": 0.1, "key": key}
        return published_shrink_and_perturb(inner, **(arguments | change))
    return shrink_and_perturb_at_boundary(
        inner, **({"shrink": 0.4, "perturb": 0.1, "init": fresh, "key": key} | change)
    )


NAMES = ["normalised", "published", "at_boundary"]
OFF = {
    "normalised": {"shrink": 0.0, "noise": 0.0},
    "published": {"weight_decay": 0.0, "noise_std": 0.0},
    "at_boundary": {"shrink": 1.0, "perturb": 0.0},
}


def one_step(tx, gradient=ZEROS, state=None, params=PARAMS, **extra) -> tuple[Any, Any]:
    """Parameters after one step, and the state; under the given gradient, by default 0."""
    updates, state = tx.update(gradient, tx.init(params) if state is None else state, params, **extra)
    return optax.apply_updates(params, updates), state


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def equal_trees(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


# -- each form does what its equation says


def test_published_noise_has_the_same_spread_everywhere():
    after, _ = one_step(make("published", weight_decay=0.0, noise_std=0.1))
    noise = jax.tree.map(jnp.subtract, after, PARAMS)
    np.testing.assert_allclose(noise["Dense_0"]["kernel"].std(), 0.1, rtol=0.05)
    np.testing.assert_allclose(noise["Dense_0"]["bias"].std(), 0.1, rtol=0.35)
    np.testing.assert_allclose(noise["Norm_0"]["scale"].std(), 0.1, rtol=0.35)


def test_published_shrink_is_the_coupled_decay():
    after, _ = one_step(make("published", inner=optax.sgd(0.1), weight_decay=0.5, noise_std=0.0))
    jax.tree.map(lambda a, p: np.testing.assert_allclose(a, 0.95 * p, rtol=1e-6), after, PARAMS)


def test_normalised_noise_follows_the_initial_spread_and_spares_constant_leaves():
    tx = make("normalised", shrink=0.0, noise=0.1)
    state = tx.init(PARAMS)
    moved = jax.tree.map(lambda leaf: leaf + 5.0, PARAMS)
    after, _ = one_step(tx, state=state, params=moved)
    np.testing.assert_allclose((after["Dense_0"]["kernel"] - moved["Dense_0"]["kernel"]).std(), 0.3, rtol=0.05)
    np.testing.assert_allclose(after["Dense_0"]["bias"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(after["Norm_0"]["scale"], 6.0, rtol=1e-6)


def test_normalised_shrinks_towards_what_a_fresh_network_has():
    tx = make("normalised", shrink=0.2, noise=0.0)
    moved = jax.tree.map(lambda leaf: leaf + 5.0, PARAMS)
    after, _ = one_step(tx, state=tx.init(PARAMS), params=moved)
    np.testing.assert_allclose(after["Dense_0"]["kernel"], 0.8 * moved["Dense_0"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(after["Dense_0"]["bias"], 4.0, rtol=1e-6)
    np.testing.assert_allclose(after["Norm_0"]["scale"], 5.0, rtol=1e-6)


def test_normalised_keeps_the_initial_spread_when_noise_matches_shrink():
    tx = make("normalised", inner=optax.sgd(0.1), shrink=0.1, noise=(2 * 0.1 - 0.1**2) ** 0.5)

    def step(carry, _):
        return one_step(tx, params=carry[0], state=carry[1]), None

    (params, _), _ = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=60)
    np.testing.assert_allclose(params["Dense_0"]["kernel"].std(), PARAMS["Dense_0"]["kernel"].std(), rtol=0.06)


def test_normalised_takes_a_given_spread():
    given = {"Dense_0": {"kernel": 1.0, "bias": 2.0}, "Norm_0": {"scale": 0.0}}
    after, state = one_step(make("normalised", shrink=0.0, noise=1.0, initial_std=given))
    np.testing.assert_allclose(state.initial_std, [2.0, 1.0, 0.0])
    np.testing.assert_allclose(after["Dense_0"]["bias"].std(), 2.0, rtol=0.35)
    with pytest.raises(ValueError, match="initial_std must be a tree like the parameters"):
        make("normalised", initial_std={"Dense_0": 1.0}).init(PARAMS)
    with pytest.raises(ValueError, match="one number per leaf"):
        make("normalised", initial_std=PARAMS).init(PARAMS)


def test_boundary_mixes_with_a_fresh_network_at_boundaries_after_the_first_step():
    tx = make("at_boundary", inner=optax.sgd(0.1))
    step = jax.jit(lambda state, boundary: one_step(tx, state=state, boundary=boundary))
    after, state = step(tx.init(PARAMS), True)
    assert_trees_equal(after, PARAMS)
    after, _ = step(state, False)
    assert_trees_equal(after, PARAMS)
    after, _ = step(state, True)
    mixed = fresh(jax.random.fold_in(leaf_key(KEY, "shrink_and_perturb"), 1))
    jax.tree.map(lambda a, p, f: np.testing.assert_allclose(a, 0.4 * p + 0.1 * f, atol=1e-6), after, PARAMS, mixed)


# -- the contract all three share


@pytest.mark.parametrize("name", NAMES)
def test_switched_off_it_is_inner_bit_for_bit(name):
    inner = optax.adam(0.1)
    off, state, inner_state = (make(name, inner=inner, **OFF[name]), None, inner.init(PARAMS))
    for clock in range(3):
        updates, inner_state = inner.update(GRADIENT, inner_state, PARAMS)
        expected = optax.apply_updates(PARAMS, updates)
        after, state = one_step(off, GRADIENT, state, boundary=jnp.array(clock == 1))
        compare = np.testing.assert_array_equal if name != "at_boundary" or clock != 1 else np.testing.assert_allclose
        jax.tree.map(compare, after, expected)
        assert_trees_equal(state.inner, inner_state)


@pytest.mark.parametrize("name", NAMES)
def test_draws_depend_on_key_and_step_only(name):
    @jax.jit
    def at(clock, key=KEY, earlier=1):
        tx = make(name, key=key)
        state = tx.init(PARAMS)._replace(count=jnp.int32(earlier))
        return one_step(tx, state=state, boundary=jnp.array(True), clock=jnp.int32(clock))[0]

    assert_trees_equal(at(5), at(5, earlier=3))
    assert not equal_trees(at(5), at(6))
    assert not equal_trees(at(5), at(5, key=jax.random.key(8)))


@pytest.mark.parametrize("name", NAMES)
def test_scan_is_the_python_loop_and_vmap_is_the_loop_over_lanes(name):
    change = {"normalised": {"every": 2}, "published": {"noise_every": 2}, "at_boundary": {}}[name]

    def run(key, scan):
        tx = make(name, key=key, **change)

        def step(carry, clock):
            return one_step(tx, GRADIENT, params=carry[0], state=carry[1], boundary=clock == 2, clock=clock), None

        carry = (PARAMS, tx.init(PARAMS))
        if scan:
            return jax.lax.scan(step, carry, jnp.arange(4))[0]
        compiled = jax.jit(step)
        for clock in range(4):
            carry, _ = compiled(carry, jnp.int32(clock))
        return carry

    keys = jax.random.split(KEY, 2)
    mapped, mapped_state = jax.jit(jax.vmap(lambda key: run(key, True)))(keys)
    assert mapped_state.count.tolist() == [4, 4]
    looped, _ = run(keys[1], False)
    jax.tree.map(lambda m, one: np.testing.assert_allclose(m[1], one, rtol=1e-5, atol=1e-6), mapped, looped)


@pytest.mark.parametrize(("name", "argument"), [("normalised", "every"), ("published", "noise_every")])
@pytest.mark.parametrize("with_clock", [True, False])
def test_rare_perturbation_stays_a_branch_under_vmap(name, argument, with_clock):
    tx = make(name, **{argument: 3})

    def run(state, clock):
        return one_step(tx, state=state, **({"clock": clock} if with_clock else {}))[0]

    states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(2))
    jaxpr = jax.make_jaxpr(lambda states, clock: jax.vmap(run, (0, None))(states, clock))(states, jnp.int32(0))
    outside = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert "cond" in outside
    assert "random_bits" not in outside


def test_noise_comes_every_k_steps_with_the_variance_of_k_steps():
    tx = make("published", inner=optax.sgd(0.1), weight_decay=0.0, noise_std=0.1, noise_every=4)

    def step(carry, _):
        after, state = one_step(tx, params=carry[0], state=carry[1])
        return (after, state), (after["Dense_0"]["kernel"] - carry[0]["Dense_0"]["kernel"]).std()

    _, spreads = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=8)
    np.testing.assert_allclose(spreads, [0, 0, 0, 0.2] * 2, rtol=0.1)


def test_lanes_with_counts_of_their_own_are_perturbed_each_in_its_turn():
    tx = make("published", inner=optax.sgd(0.1), weight_decay=0.0, noise_every=2)
    state = tx.init(PARAMS)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)._replace(count=jnp.array([0, 1], jnp.int32))
    after = jax.vmap(lambda state: one_step(tx, state=state)[0])(states)
    assert equal_trees(jax.tree.map(lambda leaf: leaf[0], after), PARAMS)
    assert not equal_trees(jax.tree.map(lambda leaf: leaf[1], after), PARAMS)


@pytest.mark.parametrize("name", NAMES)
def test_state_keeps_types_can_be_donated_and_mapped(name):
    tx = make(name)
    params = optax.tree.cast(PARAMS, jnp.bfloat16)
    state = tx.init(params)
    gradient = optax.tree.cast(ZEROS, jnp.bfloat16)
    _, new = jax.jit(tx.update, donate_argnums=1)(gradient, state, params, boundary=jnp.array(True))
    tx.init(params)  # the key the caller gave is still there
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, tx.init(params))
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    reset: Any = optax.tree.map_params(tx, lambda leaf, mask: jnp.where(mask, 0, leaf), new, masks)
    assert reset.count == 1
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(reset.inner))


def test_numbers_can_be_injected():
    inject = optax.inject_hyperparams(
        published_shrink_and_perturb, static_args=static_args(published_shrink_and_perturb)
    )
    tx = inject(optax.sgd(0.1), weight_decay=0.01, noise_std=0.1, key=KEY, noise_every=2)
    _, state = tx.update(ZEROS, tx.init(PARAMS), PARAMS)
    after, _ = one_step(tx, state=state)
    assert float((after["Norm_0"]["scale"] - PARAMS["Norm_0"]["scale"]).std()) > 0.05


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("normalised", {"shrink": 1.5}, "shrink=1.5 is not"),
        ("normalised", {"noise": -1.0}, "noise=-1.0 is not"),
        ("normalised", {"every": 0}, "every=0 is not"),
        ("published", {"noise_std": -1.0}, "noise_std=-1.0 is not"),
        ("published", {"noise_every": 0}, "noise_every=0 is not"),
        ("published", {"weight_decay": -1.0}, "weight_decay=-1.0 is not"),
        ("at_boundary", {"perturb": -0.1}, "perturb=-0.1 is not"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


def test_missing_boundary_params_or_leaves_are_named():
    tx = make("at_boundary")
    with pytest.raises(ValueError, match="needs the extra argument boundary"):
        tx.update(ZEROS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="params"):
        tx.update(ZEROS, tx.init(PARAMS), boundary=jnp.array(True))
    other = make("at_boundary", init=lambda key: {"kernel": jnp.ones(3)})
    with pytest.raises(ValueError, match="init must be a tree like the parameters"):
        other.update(ZEROS, other.init(PARAMS), PARAMS, boundary=jnp.array(True))


def test_one_draw_gives_every_leaf_its_own_normal_numbers():
    drawn = normal_like(KEY, PARAMS)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, PARAMS)
    everything = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(drawn)])
    assert len(set(everything.tolist())) == len(everything)
    np.testing.assert_allclose([everything.mean(), everything.std()], [0, 1], atol=0.06)


def test_recorded_noise_replays_the_published_code(replay):
    def make_tx(config, units, noise):
        return published_shrink_and_perturb(
            optax.sgd(config["lr"]),
            weight_decay=config["weight_decay"],
            noise_std=1.0,
            key=KEY,
            noise=lambda key, now, params: noise,
        )

    replay("mlp_sp", make_tx, extra=lambda trace: trace.tree("noise"))


def test_noise_scaled_by_the_step_size_replays_another_published_code(replay):
    """p -= lr * sigma * noise: a noise_std of lr * sigma."""

    def make_tx(config, units, noise):
        return published_shrink_and_perturb(
            optax.sgd(config["lr"]),
            weight_decay=config["weight_decay"],
            noise_std=config["lr"] * config["sigma"],
            noise=lambda key, step, params: jax.tree.map(jnp.negative, noise),
            key=jax.random.key(0),
        )

    replay("shrink_perturb_wc_a", make_tx, extra=lambda trace: trace.table("noise_table"))
