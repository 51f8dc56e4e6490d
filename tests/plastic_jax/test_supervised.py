from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, trace_units
from plastic_jax.adam import adam
from plastic_jax.learners.supervised import SupervisedLearner

NETWORK = MLP(widths=(4,), outputs=3)
X = jax.random.normal(jax.random.key(0), (6, 5))
LABELS = jnp.array([0, 1, 2, 2, 1, 0])
TARGETS = jax.random.normal(jax.random.key(1), (6, 3))
PARAMS_KEY, METHOD_KEY = jax.random.key(2), jax.random.key(3)
HYPER = {"step_size": 0.1}


class Batch(NamedTuple):
    x: Any = X
    y: Any = LABELS
    boundary: Any = False
    reset_head: Any = False
    class_mask: Any = None


def learner(**change) -> Any:
    shapes = jax.eval_shape(lambda: NETWORK.init(PARAMS_KEY, X)["params"])
    units = trace_units(lambda params, x: NETWORK.apply({"params": params}, x), shapes, X)
    arguments = {
        "network": NETWORK,
        "input_shape": (5,),
        "loss": "cross_entropy",
        "transformation": lambda hyper, key: adam(hyper["step_size"]),
        "units": units,
    }
    return SupervisedLearner(**(arguments | change))


def initial(restarts):
    return NETWORK.init(jax.random.fold_in(PARAMS_KEY, restarts), jnp.zeros((1, 5)))["params"]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def step(learner, state, **fields) -> Any:
    fields = {n: jnp.asarray(v) for n, v in fields.items()}
    batch = Batch()._replace(**({"boundary": jnp.array(False), "reset_head": jnp.array(False)} | fields))
    return jax.jit(lambda state, batch: learner.step(state, HYPER, batch, jnp.int32(0)))(state, batch)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_step_descends_the_loss_it_reports(loss):
    sgd = learner(loss=loss, transformation=lambda hyper, key: optax.sgd(hyper["step_size"]))
    state = sgd.init(PARAMS_KEY, METHOD_KEY, HYPER)
    after, metrics = step(sgd, state, y=TARGETS if loss == "squared_error" else LABELS)
    output = NETWORK.apply({"params": state.params}, X)
    if loss == "squared_error":
        assert set(metrics) == {"squared_error"}
        np.testing.assert_allclose(metrics["squared_error"], np.mean((output - TARGETS) ** 2), rtol=1e-5)
        slope = 2 * (output - TARGETS).sum(0) / output.size
    else:
        p = np.asarray(jax.nn.softmax(output))
        np.testing.assert_allclose(metrics["loss"], -np.log(p[np.arange(6), LABELS]).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["online_accuracy"], (p.argmax(1) == LABELS).mean())
        slope = (p - np.eye(3)[LABELS]).mean(0)
    np.testing.assert_allclose(after.params["Dense_1"]["bias"], -0.1 * slope, atol=1e-6)


def test_restart_gives_a_fresh_network_and_step_zero_the_same_one():
    control = learner(restart=True)
    state = control.init(PARAMS_KEY, METHOD_KEY, HYPER)
    assert_equal(state.params, initial(0))
    plain, _ = step(learner(), state)
    first, _ = step(control, state, boundary=True)
    assert_equal(first.params, plain.params)
    later, _ = step(control, first, boundary=False)
    assert later.restarts == 1
    second, _ = step(control, later, boundary=True)
    fresh, _ = step(learner(), state._replace(params=initial(1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), second.params, fresh.params)
    assert_equal(second.optimizer.count, jax.tree.map(jnp.ones_like, second.optimizer.count))
    assert second.restarts == 2


def test_method_key_and_numbers_do_not_touch_the_initial_weights():
    one, other = (learner().init(PARAMS_KEY, jax.random.key(k), {"step_size": 0.1 * k}) for k in (1, 2))
    assert_equal(one.params, other.params)


def test_head_is_set_to_zero_where_the_batch_says_so():
    headed = learner(head="Dense_1", transformation=lambda hyper, key: optax.sgd(0.0))
    state = headed.init(PARAMS_KEY, METHOD_KEY, HYPER)
    same, _ = step(headed, state)
    assert_equal(same.params, state.params)
    reset, metrics = step(headed, state, reset_head=True)
    assert (reset.params["Dense_1"]["kernel"] == 0).all()
    assert_equal(reset.params["Dense_0"], state.params["Dense_0"])
    np.testing.assert_allclose(metrics["loss"], np.log(3), rtol=1e-6)


def test_masked_classes_are_neither_predicted_nor_learned():
    masked = learner(transformation=lambda hyper, key: optax.sgd(1.0))
    state = masked.init(PARAMS_KEY, METHOD_KEY, HYPER)
    strong = jax.tree.map(jnp.array, state.params)
    strong["Dense_1"]["bias"] = jnp.array([0.0, 0.0, 50.0])
    labels = jnp.array([0, 1, 0, 1, 1, 0])
    after, metrics = step(masked, state._replace(params=strong), y=labels, class_mask=jnp.array([True, True, False]))
    assert 0 < metrics["loss"] < 10
    output = NETWORK.apply({"params": strong}, X)
    np.testing.assert_allclose(metrics["online_accuracy"], (output[:, :2].argmax(1) == labels).mean())
    np.testing.assert_array_equal(after.params["Dense_1"]["kernel"][:, 2], strong["Dense_1"]["kernel"][:, 2])


def test_evaluation_counts_examples_and_leaves_out_labels_below_zero():
    state = learner().init(PARAMS_KEY, METHOD_KEY, HYPER)
    predicted = NETWORK.apply({"params": state.params}, X).argmax(1)
    labels = predicted.at[0].set(-1).at[1].set(-1).at[2].add(1)
    assert [float(v) for v in learner().evaluate(state, X, labels)] == [3, 4]
    total, number = learner(loss="squared_error").evaluate(state, X, TARGETS)
    output = NETWORK.apply({"params": state.params}, X)
    np.testing.assert_allclose(total / number, np.mean((output - TARGETS) ** 2), rtol=1e-5)
    assert number == TARGETS.size


def test_probe_sees_a_known_dead_unit_and_known_ranks():
    state = learner().init(PARAMS_KEY, METHOD_KEY, HYPER)
    # Unit 0 is silent, units 1 to 3 are equal: one of four dead, one direction.
    kernel = jnp.tile(jnp.abs(state.params["Dense_0"]["kernel"][:, :1]), (1, 4))
    params = {
        "Dense_0": {"kernel": kernel, "bias": jnp.array([-100.0, 0.0, 0.0, 0.0])},
        "Dense_1": state.params["Dense_1"],
    }
    seen = jax.jit(learner().probe)(state._replace(params=params), jnp.abs(X))
    np.testing.assert_allclose(
        [seen[n] for n in ("dead_units", "dormant_units", "effective_rank", "stable_rank")], 0.25, rtol=1e-4
    )
    everything = np.concatenate([np.abs(layer["kernel"]).ravel() for layer in params.values()])
    np.testing.assert_allclose(seen["mean_weight_magnitude"], everything.mean(), rtol=1e-5)


def test_without_units_it_learns_and_only_weights_are_seen():
    bare = learner(units=None)
    state = bare.init(PARAMS_KEY, METHOD_KEY, HYPER)
    after, _ = step(bare, state)
    other, _ = step(learner(), state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.params, other.params)
    assert set(bare.probe(state, X)) == {"mean_weight_magnitude"}
