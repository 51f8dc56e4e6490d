"""Sparse networks: the number of connections, RigL as a program of its own, what is new and what is protected."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, continual_backprop, trace_units
from plastic_jax.matrices import Kernel
from plastic_jax.methods.sparse import _densities, _exchange_row, connected, sparse
from plastic_jax.optimizers.adam import adam
from plastic_jax.replacement.inner_state import reset_inner_state

KEY = jax.random.key(0)
NETWORK = MLP(widths=(5,), outputs=4)
X = jax.random.normal(jax.random.key(1), (6, 8))
PARAMS = NETWORK.init(jax.random.key(2), X)["params"]
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X)
SIZES = {"Dense_0/kernel": 40, "Dense_1/kernel": 20}
KERNEL = {"kernel": jnp.array([[4.0, -0.5], [0.25, 2.0]]), "bias": jnp.array([0.0, 1.0])}
ZEROS = jax.tree.map(jnp.zeros_like, KERNEL)


def train(tx, params, steps):
    """Parameters, gradients and states after every step, stacked."""
    update = optax.with_extra_args_support(tx).update

    def step(carry, clock):
        params, state = carry
        gradients, features = UNITS.grad(lambda y: jnp.mean((y - jnp.sin(clock)) ** 2))(params, X.astype(dtype))
        updates, state = update(gradients, state, params, features=features)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, gradients, state)

    dtype = params["Dense_0"]["kernel"].dtype
    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jnp.arange(steps))[1])
    return run(params)


def kernels(tree):
    return {f"{name}/kernel": np.asarray(layer["kernel"]) for name, layer in tree.items()}


def one_step(grads=ZEROS, params=KERNEL, inner=None, state=None, **settings):
    settings = {"density": 1.0, "exchange_rate": 0.25, "exchange_period": 1, "connection_maturity": 0} | settings
    tx = sparse(inner or optax.sgd(1.0), key=KEY, **settings)
    state = state or tx.init(params)
    updates, state = jax.jit(tx.update)(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"utility_decay": 0.5}, jnp.float32),
        ({"drop": "magnitude", "grow": "gradient", "exchange_over": "network"}, jnp.bfloat16),
    ],
)
def test_the_number_of_connections_stays_and_all_other_weights_are_zero(settings, dtype):
    """Around weight decay, momentum, and in the first case continual backprop, which draws all weights of a unit."""
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    around = "exchange_over" not in settings
    if around:
        inner = continual_backprop(inner, UNITS, replacement_rate=0.2, maturity_threshold=2, key=KEY)
    settings = {"density": 0.4, "exchange_rate": 0.3, "exchange_period": 2, "connection_maturity": 1} | settings
    tx, start = sparse(inner, UNITS, key=KEY, **settings), optax.tree.cast(PARAMS, dtype)
    params, _, states = train(tx, start, 20)
    first = {name: mask.sum() for name, mask in tx.init(start).mask.items()}
    now = {name: np.sum(mask, (1, 2)) for name, mask in states.mask.items()}
    assert sum(first.values()) == 24
    np.testing.assert_array_equal(sum(now.values()), 24)
    kept = [set(n.tolist()) == {int(first[name])} for name, n in now.items()]
    assert all(kept) == around
    for name, leaf in kernels(params).items():
        assert leaf.dtype == dtype
        assert not leaf[~states.mask[name]].any()
    assert states.exchanged[-1] > 20
    if not around:
        return
    assert sum(int(n[-1]) for n in states.inner.replaced.values()) > 2
    for name, axis in (("Dense_0/kernel", 1), ("Dense_1/kernel", 0)):
        ages = np.moveaxis(np.asarray(states.ages[name]), axis + 1, 1)
        assert (ages.max(2) <= states.inner.age["Dense_0"]).all()  # connections of a new unit are new
        assert ages.max() > 5


def test_rigl_is_that_of_a_program_of_its_own():
    """Momentum and every exchange in NumPy, with the gradients of the run; half of the connections go."""
    rigl = {"drop": "magnitude", "grow": "gradient", "exchange_rate": 0.5, "connection_maturity": 0}
    tx = sparse(optax.sgd(0.1, momentum=0.9), density=0.5, distribution="uniform", exchange_period=3, key=KEY, **rigl)
    state = tx.init(PARAMS)
    start = connected(PARAMS, state)
    params, gradients, states = train(tx, start, 9)
    gradients, ours = kernels(gradients), kernels(params)
    for name, weights in kernels(start).items():
        mask, speed = np.asarray(state.mask[name]).ravel(), np.zeros(SIZES[name])
        weights = weights.ravel().astype(float)
        for step, gradient in enumerate(gradients[name].reshape(9, -1)):
            speed = 0.9 * speed + np.where(mask, gradient, 0)
            weights = weights - 0.1 * speed
            if (step + 1) % 3 == 0:
                there = np.flatnonzero(mask)
                kept = there[np.argsort(np.abs(weights[there]))][len(there) // 2 :]
                free = np.setdiff1d(np.arange(len(mask)), kept)
                grown = free[np.argsort(-np.abs(gradient[free]))][: len(there) // 2]
                after = np.zeros_like(mask)
                after[kept] = after[grown] = True
                weights, speed = (np.where(mask & after, x, 0) for x in (weights, speed))
                mask = after
            np.testing.assert_array_equal(states.mask[name][step].ravel(), mask)
            np.testing.assert_allclose(ours[name][step].ravel(), weights, rtol=1e-5, atol=1e-7)
    assert states.exchanged[-1] > 15


def test_density_of_layers_by_size():
    """The densities of RigL, by a loop: layers whose share would be above 1 are dense, and the rest has more."""
    shapes = [(300, 784), (100, 300), (10, 100), (3, 3, 8, 16)]
    axes = ["io", "io", "io", "ttio"]
    found = _densities([Kernel(str(s), s, a) for s, a in zip(shapes, axes, strict=True)], 0.2, "erk")
    ratios, n = [sum(s) / math.prod(s) for s in shapes], [math.prod(s) for s in shapes]
    dense = set()
    while True:
        rest = [i for i in range(4) if i not in dense]
        scale = (0.2 * sum(n) - sum(n[i] for i in dense)) / sum(ratios[i] * n[i] for i in rest)
        above = [i for i in rest if scale * ratios[i] > 1]
        if not above:
            break
        dense.add(max(above, key=lambda i: ratios[i]))
    assert dense
    np.testing.assert_allclose(found, [1.0 if i in dense else scale * ratios[i] for i in range(4)], rtol=1e-5)
    assert np.dot(found, n) == pytest.approx(0.2 * sum(n), rel=1e-5)


def test_the_least_of_the_mature_connections_goes_and_the_largest_gradient_comes():
    mask, mature = jnp.array([1, 1, 1, 0, 0], bool), jnp.array([1, 0, 1, 1, 1], bool)
    chance, ties = 0.9, jnp.zeros(5, jnp.uint32)
    worth, gradient = jnp.array([3.0, 1.0, 2.0, 0.0, 0.0]), jnp.array([9.0, 9.0, 1.0, 4.0, 5.0])
    after = _exchange_row(1 / 3, chance, mask, mature, worth, gradient, ties, ties)
    assert after.tolist() == [True, True, False, False, True]
    none = _exchange_row(1.0, chance, mask, jnp.zeros(5, bool), worth, gradient, ties, ties)
    assert none.tolist() == mask.tolist()
    nans = _exchange_row(1.0, chance, mask, mature, worth * jnp.nan, gradient * jnp.nan, ties, ties)
    assert nans.sum() == 3
    for chance, kept in ((0.7, 2), (0.8, 3)):  # 3 * 0.25 = 0.75 connections go
        after = _exchange_row(0.25, jnp.array(chance), mask, mask, worth, gradient * ~mask, ties, ties)
        assert (after & mask).sum() == kept


def test_a_new_connection_has_a_new_weight_and_new_statistics():
    grads = {"kernel": jnp.array([[1.0, 1.0], [9.0, 1.0]]), "bias": jnp.ones(2)}
    settings = {"drop": "magnitude", "grow": "gradient", "density": 0.75, "exchange_rate": 1 / 3}
    settings |= {"new_weight": "sample", "init": lambda key: jax.tree.map(lambda p: jnp.full_like(p, 7.0), KERNEL)}
    tx = sparse(adam(0.01), key=KEY, exchange_period=2, connection_maturity=0, **settings)
    state, params = tx.init(KERNEL), KERNEL
    state = state._replace(mask={"kernel": jnp.array([[True, True], [False, True]])})
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert state.mask["kernel"].tolist() == [[True, False], [True, True]]
    assert params["kernel"][1, 0] == 7.0
    assert params["kernel"][0, 1] == 0
    counts = jnp.minimum(state.inner.rows["kernel"], state.inner.columns["kernel"])
    assert counts.tolist() == [[2, 0], [0, 2]]
    assert state.inner.mu["kernel"][1, 0] == 0


def test_layers_of_a_stack_have_their_own_number_and_other_parameters_stay_dense():
    params = {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5)), "embedding": jnp.ones((7, 2))}
    state = sparse(optax.sgd(1.0), density=0.5, axes={"kernel": "sio"}, key=KEY).init(params)
    assert state.mask["kernel"].sum((1, 2)).tolist() == [10, 10, 10]
    assert list(state.mask) == ["kernel"]


def test_a_method_around_it_resets_ages_and_leaves_the_mask():
    tx = sparse(optax.sgd(0.1), density=0.5, key=KEY)
    state = tx.init(KERNEL)._replace(ages={"kernel": jnp.full((2, 2), 9)})
    gone = {"kernel": jnp.array([[True, False], [True, False]]), "bias": jnp.array([True, False])}
    after = reset_inner_state(tx, state, KERNEL, gone)
    assert after.ages["kernel"].tolist() == [[0, 9], [0, 9]]
    np.testing.assert_array_equal(after.mask["kernel"], state.mask["kernel"])


def test_curvature_is_that_of_the_connections():
    def needs_curvature(updates, state, params, *, hvp):
        return hvp(jax.tree.map(jnp.ones_like, updates)), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), needs_curvature)
    tx = sparse(inner, density=0.5, exchange_rate=0.0, key=KEY)
    state, params = tx.init(KERNEL), jax.tree.map(jnp.zeros_like, KERNEL)
    sums = lambda tree: jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.sum()), tree)  # noqa: E731
    with jax.disable_jit():
        updates, _ = tx.update(ZEROS, state, params, hvp=sums)
    np.testing.assert_array_equal(updates["kernel"], 2 * state.mask["kernel"])  # two ones are summed, at two places


def test_frozen_kernels_stay_dense():
    frozen = optax.masked(optax.set_to_zero(), {"kernel": True, "bias": False})
    after, state = one_step(inner=optax.chain(optax.sgd(1.0), frozen), density=0.5)
    assert after["kernel"].tolist() == KERNEL["kernel"].tolist()
    assert int(state.exchanged) == 0


def test_lookahead_has_no_connection_in_the_fast_and_the_slow_weights():
    tx = sparse(optax.lookahead(optax.sgd(0.1), 2, 0.5), density=0.5, exchange_period=1, key=KEY)
    params = optax.LookaheadParams(KERNEL, jax.tree.map(lambda p: p - 5, KERNEL))
    state = tx.init(params)
    updates, _ = jax.jit(tx.update)(ZEROS, state, params)
    for weights in optax.apply_updates(params, updates):
        assert ((weights["kernel"] == 0) == ~state.mask["kernel"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.5}, r"sparse: density=1.5 is not in \[0"),
        ({"exchange_period": 0}, "sparse: exchange_period=0 is not in"),
        ({"grow": "momentum"}, "sparse: grow='momentum'; allowed: random, gradient"),
        ({"new_weight": "sample"}, "sparse: new_weight='sample' needs init"),
        ({"new_weight": "sample", "init": lambda key: {}}, "sparse: init must be a tree like the parameters"),
        ({"exclude": "Dens"}, "sparse: exclude: no parameter matches 'Dens'"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        one_step(**settings)


def test_parameters_are_needed():
    tx = sparse(optax.sgd(1.0), key=KEY)
    with pytest.raises(ValueError, match="sparse: update needs `params`"):
        tx.update(ZEROS, tx.init(KERNEL))
