"""What every optimizer that learns step sizes promises as an optax transformation, alone and inside a method."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest
from flax import serialization

from plastic_jax import MLP
from plastic_jax.optimizers.autostep import autostep
from plastic_jax.optimizers.curvature import gauss_newton, local_curvature
from plastic_jax.optimizers.fade import fade
from plastic_jax.optimizers.hypergradient import hypergradient
from plastic_jax.optimizers.idbd import idbd, k1
from plastic_jax.optimizers.intentional import intentional
from plastic_jax.optimizers.metaoptimize import metaoptimize
from plastic_jax.optimizers.obgd import obgd
from plastic_jax.optimizers.parameter_free import dog, mechanic, prodigy
from plastic_jax.optimizers.smd import smd
from plastic_jax.replacement.inner_state import reset_inner_state
from plastic_jax.signature import static_args

OPTIMIZERS = {
    "metaoptimize": (metaoptimize, {"meta_step_size": 0.01}, {}),
    "metaoptimize of weights": (metaoptimize, {"decoupled_decay": 0.1}, {"blocks": "weight", "meta_optimizer": "adam"}),
    "metaoptimize of layers": (metaoptimize, {"b1": 0.5}, {"blocks": "layer", "base": "lion", "meta_optimizer": "sgd"}),
    "hypergradient": (hypergradient, {"meta_step_size": 0.01}, {"base": "adam"}),
    "obgd": (obgd, {"overshooting_bound": 3.0, "trace_decay": 0.5}, {}),
    "adaptive obgd": (obgd, {"b2": 0.9}, {"adaptive": True}),
    "intentional": (intentional, {"trace_decay": 0.5}, {}),
    "fade": (fade, {"decay_meta_step_size": 0.1}, {"base": "adam", "decaying": "*/kernel"}),
    "fade of idbd": (fade, {"first_decay": 0.1}, {"base": "idbd"}),
    "prodigy": (prodigy, {"b1": 0.8}, {}),
    "dog": (dog, {"first_movement": 1e-3}, {}),
    "mechanic": (mechanic, {"first_scale": 1e-3}, {}),
    "idbd": (idbd, {"meta_step_size": 0.1}, {}),
    "k1": (k1, {"meta_step_size": 0.1}, {}),
    "autostep": (autostep, {"tau": 100.0}, {}),
    "smd": (smd, {"meta_step_size": 0.1, "trace_decay": 0.9}, {}),
    "published smd": (smd, {"least_factor": 0.2}, {"shorten": False}),
}
NETWORK = MLP(widths=(4,), outputs=2)
X = jax.random.normal(jax.random.key(0), (5, 3))
PARAMS = NETWORK.init(jax.random.key(1), X)["params"]
NEW = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), PARAMS)
NEW["Dense_0"] = {"kernel": NEW["Dense_0"]["kernel"].at[:, 2].set(True), "bias": NEW["Dense_0"]["bias"].at[2].set(True)}
NEW["Dense_1"]["kernel"] = NEW["Dense_1"]["kernel"].at[2].set(True)


def learned(tx, steps=3):
    """Parameters and state after some steps."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(objective)(params)
        curvature = local_curvature(output, params, X)
        hvp = gauss_newton(lambda params: output(params, X), distance, params)
        updates, state = tx.update(gradient, state, params, loss=loss, curvature=curvature, hvp=hvp)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=steps)[0]


def output(params, x):
    return NETWORK.apply({"params": params}, x)


def distance(z):
    return jnp.mean((z - 1) ** 2)


def objective(params):
    return distance(output(params, X))


def numbers(name, step_size=0.1):
    return jax.tree.map(jnp.float32, {"step_size": step_size, **OPTIMIZERS[name][1]})


@pytest.fixture(scope="module")
def runs():
    """Every optimizer in one program: two lanes together, the second of them alone, and that with some weights new."""

    def run():
        found = {}
        for name, (make, _, static) in OPTIMIZERS.items():
            lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), numbers(name), numbers(name, 0.05))
            together = jax.vmap(lambda h, make=make, static=static: learned(make(**h, **static)))(lanes)
            tx = make(**numbers(name, 0.05), **static)
            params, state = learned(tx)
            found[name] = together, (params, state), reset_inner_state(tx, state, params, NEW), tx.init(params)
        return found

    return jax.jit(run)()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lanes_are_independent(name, runs):
    together, alone = runs[name][:2]
    first, second = (jax.tree.map(lambda leaf, lane=lane: leaf[lane], together) for lane in range(2))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6), second, alone)
    for params, _ in (first, second):
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (params, PARAMS)), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_weights_have_a_new_state_and_the_others_the_old_one(name, runs):
    _, (_, state), reset, first = runs[name]
    seen = 0
    for new, old, now in zip(*map(jax.tree.leaves, (first, state, reset)), strict=True):
        if old.shape == (3, 4):  # of a kernel whose third column is new
            np.testing.assert_array_equal(now, np.where(np.arange(4) == 2, new, old))
            seen += 1
        elif old.shape == (4, 2):  # of one whose third row is
            np.testing.assert_array_equal(now, np.where(np.arange(4)[:, None] == 2, new, old))
        elif old.ndim == 0:  # of a layer, or of the whole
            np.testing.assert_array_equal(now, old)
    assert seen


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_types_and_shapes_stay_and_what_it_does_not_know_is_left_alone(name, dtype):
    make, _, static = OPTIMIZERS[name]

    def run(h):
        tx, params = optax.with_extra_args_support(make(**h, **static)), optax.tree.cast(PARAMS, dtype)
        state = tx.init(params)
        given = {"loss": jnp.float32(1), "curvature": params, "hvp": lambda direction: direction, "surprise": 1}
        updates, after = tx.update(params, state, params, **given)
        return (params, state), (updates, after)

    before, after = jax.eval_shape(run, numbers(name))
    injected = optax.inject_hyperparams(make, static_args=static_args(make))(**numbers(name), **static)
    assert jax.eval_shape(injected.init, PARAMS).inner_state is not None
    types = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)  # noqa: E731
    assert types(before) == types(after)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_state_comes_back_from_disk_and_shares_nothing_with_the_parameters(name, runs):
    make, _, static = OPTIMIZERS[name]
    state = runs[name][1][1]
    for restored in (serialization.from_bytes(state, serialization.to_bytes(state)), pickle.loads(pickle.dumps(state))):
        jax.tree.map(np.testing.assert_array_equal, restored, state)
    first = make(**numbers(name), **static).init(PARAMS)
    theirs = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(PARAMS)}
    assert not theirs & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(first)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_number_outside_its_range_is_named(name):
    make, _, static = OPTIMIZERS[name]
    with pytest.raises(ValueError, match=rf"{make.__name__}: step_size=-1 is not in \[0"):
        make(step_size=-1, **static)


def test_the_baselines_are_those_of_optax():
    """With numbers that are not traced, bit for bit."""
    theirs = {prodigy: optax.contrib.prodigy(1.0), dog: optax.contrib.dog(1.0)}
    theirs[mechanic] = optax.contrib.mechanize(optax.adam(1.0))
    for make, other in theirs.items():
        gradient = jax.tree.map(jnp.cos, PARAMS)
        pair = [jax.jit(tx.update)(gradient, tx.init(PARAMS), PARAMS) for tx in (make(), other)]
        jax.tree.map(np.testing.assert_array_equal, *pair)
