"""Which extra arguments an optimizer is given, and which parameters it freezes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from plastic_jax import continual_backprop, redo, shrink_and_perturb, trace_units, weight_decay
from plastic_jax.inner import frozen_leaves, with_extra_args

PARAMS = {"encoder": jnp.ones((3, 8)), "hidden": jnp.ones((8, 8)), "head": jnp.ones((8, 1))}
FROZEN = {"encoder": True, "hidden": False, "head": False}
LABELS = {"encoder": "frozen", "hidden": "trained", "head": "trained"}
NOT = {name: not frozen for name, frozen in FROZEN.items()}
KEY = jax.random.key(0)


def by_labels(trained):
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, LABELS)


FREEZING = {
    "multi_transform": by_labels(optax.adam(0.1)),
    "labels by a function": optax.multi_transform(
        {"trained": optax.adam(0.1), "frozen": optax.set_to_zero()}, lambda tree: LABELS
    ),
    "selective_transform": optax.selective_transform(optax.adam(0.1), freeze_mask=FROZEN),
    "after adam": optax.chain(optax.adam(0.1), optax.masked(optax.set_to_zero(), FROZEN)),
    "before adam": optax.chain(optax.masked(optax.set_to_zero(), FROZEN), optax.adam(0.1)),
    "before momentum and clipping": optax.chain(
        optax.transforms.freeze(FROZEN), optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "if finite": optax.apply_if_finite(by_labels(optax.adam(0.1)), 3),
    "every second step": optax.MultiSteps(by_labels(optax.adam(0.1)), 2).gradient_transformation(),
    "lookahead": optax.lookahead(by_labels(optax.sgd(0.1)), 5, 0.5),
    "injected": optax.inject_hyperparams(lambda step_size: by_labels(optax.adam(step_size)))(step_size=0.1),
}
MOVING = {
    "adam": optax.adam(0.1),
    "step size 0": optax.sgd(0.0),
    "schedule that ends at 0": optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    "schedule of 0": optax.sgd(optax.constant_schedule(0.0)),
    "frozen gradients under weight decay": optax.chain(optax.masked(optax.set_to_zero(), FROZEN), optax.adamw(0.1)),
    "masked": optax.masked(optax.adam(0.1), NOT),
}


@pytest.mark.parametrize("name", FREEZING)
def test_parameters_that_a_mask_freezes_are_found(name):
    params = optax.LookaheadParams(PARAMS, PARAMS) if name == "lookahead" else PARAMS
    assert frozen_leaves(with_extra_args(FREEZING[name]))(params, {}) == {"encoder"}


@pytest.mark.parametrize("name", MOVING)
def test_parameters_that_may_move_are_not_frozen(name):
    assert frozen_leaves(with_extra_args(MOVING[name]))(PARAMS, {}) == set()


def forward(params, x):
    return jax.nn.relu(jax.nn.relu(x @ params["encoder"]) @ params["hidden"]) @ params["head"]


X = jax.random.normal(KEY, (16, 3))
WEIGHTS = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape), PARAMS)
UNITS = trace_units(forward, WEIGHTS, X)
METHODS = {
    "continual_backprop": lambda inner: continual_backprop(
        inner, UNITS, replacement_rate=0.5, maturity_threshold=0, max_replacements=4, key=KEY, transfer_bias=True
    ),
    "redo": lambda inner: redo(inner, UNITS, threshold=1.0, period=1, key=KEY),
    "shrink_and_perturb": lambda inner: shrink_and_perturb(inner, shrink=0.1, noise=0.1, key=KEY),
    "weight_decay": lambda inner: weight_decay(inner, 0.1),
    "decoupled weight_decay": lambda inner: weight_decay(inner, 0.1, coupled=False, step_size=0.1),
}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_moves_a_frozen_layer(method):
    """Units that a frozen layer makes stay as they are, with their outgoing weights; those of other layers go."""
    tx = optax.with_extra_args_support(METHODS[method](by_labels(optax.sgd(0.1))))
    state, zeros = tx.init(WEIGHTS), jax.tree.map(jnp.zeros_like, WEIGHTS)
    updates, state = tx.update(zeros, state, WEIGHTS, features=UNITS.apply(WEIGHTS, X)[1])
    assert not updates["encoder"].any()
    assert updates["head"].any()
    if hasattr(state, "replaced"):
        assert state.replaced["encoder"] == 0 and state.replaced["hidden"] > 0
        kept = state.age["hidden"] > 0  # their rows in `hidden`, which the encoder's units are read by
        np.testing.assert_array_equal(updates["hidden"][:, kept], 0)


def named_only():
    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: -value * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("method", METHODS)
def test_inner_gets_the_extra_arguments_that_it_names_and_no_other(method):
    tx = METHODS[method](named_only())
    features = UNITS.apply(WEIGHTS, X)[1]
    tx.update(WEIGHTS, tx.init(WEIGHTS), WEIGHTS, value=jnp.float32(0.5), features=features, clock=jnp.int32(0))
    with pytest.raises(TypeError, match="value"):
        tx.update(WEIGHTS, tx.init(WEIGHTS), WEIGHTS, features=features)


def test_all_extra_arguments_are_passed_on_to_an_inner_that_takes_any():
    inner = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    assert with_extra_args(inner) is inner
    assert not hasattr(optax.sgd(0.1).update, "__wrapped__")
    updates, _ = with_extra_args(optax.sgd(0.1)).update(PARAMS, optax.sgd(0.1).init(PARAMS), PARAMS, surprise=1)
    np.testing.assert_allclose(updates["head"], -0.1)
