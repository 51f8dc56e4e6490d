"""What an optimizer keeps of a replaced unit is what its `init` gives for the weights after the replacement."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.flatten_util import ravel_pytree

from plastic_jax import MLP, adam, continual_backprop, l2_init, muon, redo, trace_units
from plastic_jax.replacement.draw import Replacement, draw_replacement
from plastic_jax.replacement.initializers import unit_initializer
from plastic_jax.replacement.reset import replace_units

NETWORK, X, KEY = MLP(widths=(5, 4), outputs=2), jnp.ones((3, 6)), jax.random.key(0)
PARAMS: Any = jax.tree.map(lambda p: p + 0.1, NETWORK.init(KEY, X)["params"])
UNITS = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), PARAMS, X)
UNIT = {"Dense_0": 3, "Dense_1": 1}
FRESH = {
    g.name: draw_replacement(
        g, jnp.array([UNIT[g.name]]), jnp.array([True]), KEY, unit_initializer("kaiming_uniform", "relu"), PARAMS
    )
    for g in UNITS.groups
}
UPDATES = jax.tree.map(jnp.cos, PARAMS)
MASK: Any = jax.tree.map(lambda p: np.zeros(p.shape, bool), PARAMS)
MASK["Dense_0"]["kernel"][:, 3] = MASK["Dense_0"]["bias"][3] = MASK["Dense_1"]["kernel"][3] = True
MASK["Dense_1"]["kernel"][:, 1] = MASK["Dense_1"]["bias"][1] = MASK["Dense_2"]["kernel"][1] = True


def anchored(init):
    """An optimizer that keeps weights in its state and never changes them."""
    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


contrib = optax.contrib
# fmt: off
PLAIN = (
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion",
    "nadam", "optimistic_adam_v2", "optimistic_gradient_descent", "radam", "rmsprop", "rprop", "sgd", "sign_sgd",
    "yogi",
)
# fmt: on
OPTIMIZERS: Any = {name: getattr(optax, name)(0.1) for name in PLAIN}
OPTIMIZERS |= {
    "adam with counts per weight": adam(0.1),
    "muon with counts per weight": muon(0.1),
    "l2_init": l2_init(adam(0.1), strength=0.1),
    "noisy_sgd": optax.noisy_sgd(0.1, key=KEY),
    "novograd": optax.novograd(0.1),  # its second moment is one number a layer, which stays
    "ema": optax.chain(optax.ema(0.9), optax.trace(0.9)),
    "params_ema": optax.chain(optax.sgd(0.1), anchored(lambda p: optax.EmaState(jnp.zeros([], jnp.int32), p))),
    "acprop": contrib.acprop(0.1),
    "ademamix": contrib.ademamix(0.1),
    "adopt": contrib.adopt(0.1),
    "cocob": contrib.cocob(),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dog": contrib.dog(1.0),
    "dowg": contrib.dowg(1.0),
    "madgrad": contrib.madgrad(0.1),
    "mechanize": contrib.mechanize(optax.adam(0.1)),
    "momo": contrib.momo(),
    "momo_adam": contrib.momo_adam(),
    "muon": contrib.muon(0.1),
    "prodigy": contrib.prodigy(),
    "sam": contrib.sam(optax.adam(0.1), optax.sgd(0.1)),
    "schedule_free": contrib.schedule_free(optax.sgd(0.1), 0.1),
    "schedule_free_adamw": contrib.schedule_free_adamw(0.1),
    "injected": optax.inject_hyperparams(contrib.schedule_free_sgd)(learning_rate=0.1),
    "gathering": optax.MultiSteps(contrib.cocob(), 2).gradient_transformation(),
    "if finite": optax.apply_if_finite(contrib.cocob(), 2),
    "masked": optax.masked(contrib.cocob(), {"Dense_0": True, "Dense_1": False, "Dense_2": True}),
    "flattened": optax.flatten(optax.chain(optax.adam(0.1), anchored(lambda p: p))),
    "anchor": anchored(lambda p: jax.tree.map(jnp.copy, p)),
    "anchor and its norm": anchored(lambda p: {"at": p, "norm": optax.tree.norm(p)}),
    "anchor as a list": anchored(lambda p: [2 * leaf for leaf in jax.tree.leaves(p)]),
    "anchor as a vector": anchored(lambda p: ravel_pytree(p)[0]),
    "anchor by layer": anchored(lambda p: {"at": {n: p[n] for n in ("Dense_0", "Dense_1", "Dense_2")}}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_a_replaced_unit_is_that_of_its_new_weights_and_all_other_state_stays(name):
    inner = OPTIMIZERS[name]
    learned = jax.tree.map(
        lambda leaf: leaf + 3 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, inner.init(PARAMS)
    )
    updates, state = replace_units(inner, UNITS, FRESH, PARAMS, UPDATES, learned, True)
    new = optax.apply_updates(PARAMS, updates)
    assert not np.allclose(new["Dense_0"]["kernel"][:, 3], PARAMS["Dense_0"]["kernel"][:, 3])
    fresh = inner.init(new)
    shapes = [leaf.shape for leaf in jax.tree.leaves(PARAMS)]
    masks, flat = jax.tree.leaves(MASK), np.concatenate([mask.ravel() for mask in jax.tree.leaves(MASK)])
    found = 0

    def compare(old, now, init):
        nonlocal found
        if old.shape in shapes:
            # Statistics come in the order of the parameters, all six shapes of which differ.
            mask = masks[shapes.index(old.shape)]
        elif old.shape == flat.shape:
            mask = flat
        else:
            mask = np.zeros(old.shape, bool)
        found += mask.sum()
        np.testing.assert_array_equal(now, np.where(mask, init, old))

    comparable = lambda leaf: not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    for old, now, init in zip(*map(jax.tree.leaves, (learned, state, fresh)), strict=True):
        if comparable(old):
            compare(old, now, init)
    if name in (
        "adam",
        "cocob",
        "l2_init",
        "muon with counts per weight",
        "schedule_free",
        "anchor",
        "anchor as a vector",
        "anchor by layer",
    ):
        assert found >= flat.sum()


@pytest.mark.parametrize("inner", [optax.adafactor(0.1, min_dim_size_to_factor=2), optax.sm3(0.1), optax.lbfgs()])
def test_statistics_of_other_shapes_are_refused(inner):
    with pytest.raises(ValueError, match="per-unit resets need statistics of the parameter's shape"):
        replace_units(inner, UNITS, FRESH, PARAMS, UPDATES, inner.init(PARAMS), True)
    replace_units(inner, UNITS, FRESH, PARAMS, UPDATES, inner.init(PARAMS), False)


METHODS = {
    "continual_backprop": lambda inner, units: continual_backprop(
        inner, units, replacement_rate=0.5, maturity_threshold=0, max_replacements=9, transfer_bias=True, key=KEY
    ),
    "redo": lambda inner, units: redo(inner, units, threshold=1.0, period=1, key=KEY),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_new_unit_stays_where_it_was_put_under_a_penalty_toward_its_first_weights(method):
    """The gradient is 0, so that whatever moves a replaced unit comes from the optimizer's state."""

    def toward_start(updates, start, params):
        return jax.tree.map(lambda g, w, w0: g - 0.1 * (w - w0), updates, params, start), start

    tx = METHODS[method](optax.GradientTransformation(lambda params: params, toward_start), UNITS)
    state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = tx.update(zeros, state, PARAMS, features=UNITS.apply(PARAMS, X)[1])
    assert sum(map(int, state.replaced.values())) > 0
    new = optax.apply_updates(PARAMS, updates)
    later, _ = toward_start(zeros, state.inner, new)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0), later)


@pytest.mark.parametrize("method", METHODS)
def test_lookahead_replaces_the_fast_and_the_slow_weights(method):
    tx = METHODS[method](optax.lookahead(optax.adam(0.1), 2, 0.5), UNITS)
    params: Any = optax.LookaheadParams(PARAMS, jax.tree.map(lambda p: p - 5, PARAMS))
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = tx.update(zeros, state, params, features=UNITS.apply(PARAMS, X)[1])
    fast, slow = optax.apply_updates(params, updates)
    gone = state.age["Dense_1"] == 0
    assert gone.any() and not gone.all()
    for name, at in (("Dense_1", (slice(None), gone)), ("Dense_2", (gone,))):
        np.testing.assert_allclose(fast[name]["kernel"][at], slow[name]["kernel"][at], atol=1e-6)
        assert not np.isclose(fast[name]["kernel"], slow[name]["kernel"]).all()


def test_methods_inside_of_methods_know_each_other_s_new_units():
    inner = METHODS["continual_backprop"](optax.adam(0.1), UNITS)
    tx = redo(inner, UNITS, threshold=0.0, period=1, key=KEY)
    state = tx.init(PARAMS)
    old = inner.init(PARAMS)._replace(age={n: a + 7 for n, a in state.age.items()})
    old = old._replace(utility={n: u + 1e9 for n, u in old.utility.items()})
    features: Any = {n: f.at[:, 0].set(0.0) for n, f in UNITS.apply(PARAMS, X)[1].items()}  # ReDo takes unit 0
    params: Any = jax.tree.map(jnp.zeros_like, PARAMS)
    _, after = tx.update(params, state._replace(inner=old), PARAMS, features=features)
    for name, ages in after.inner.age.items():
        assert after.age[name][0] == ages[0] == after.inner.utility[name][0] == 0
        assert set(ages[1:].tolist()) <= {0, 8}
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_nothing_replaced_leaves_all_state_as_it_was():
    inner = contrib.schedule_free(optax.adam(0.1), 0.1)
    none = {name: Replacement.of_none() for name in FRESH}
    state = jax.tree.map(lambda leaf: leaf + 3, inner.init(PARAMS))
    updates, after = replace_units(inner, UNITS, none, PARAMS, UPDATES, state, True)
    jax.tree.map(np.testing.assert_array_equal, (updates, after), (UPDATES, state))
