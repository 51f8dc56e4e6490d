import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, ConvNet, ResNet, continual_backprop, metrics, redo, trace_units
from plastic_jax.adam import adam
from plastic_jax.learners.supervised import SupervisedLearner, network_units
from plastic_jax.paths import get_leaf
from plastic_jax.statistics import feature_matrix

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


# -- networks with batch statistics

PICTURES = 2 + jax.random.normal(jax.random.key(4), (6, 4, 4, 2))
RESNET = ResNet(outputs=3, widths=(3,), blocks=(1,))
RESNET_UNITS = network_units(RESNET, (4, 4, 2))
NORMS = {"Conv_0": "BatchNorm_0", "BasicBlock_0/Conv_0": "BasicBlock_0/BatchNorm_0"}


def normed(**change) -> Any:
    arguments = {
        "network": RESNET,
        "input_shape": (4, 4, 2),
        "transformation": lambda hyper, key: optax.sgd(hyper["step_size"]),
        "units": RESNET_UNITS,
    }
    return learner(**(arguments | change))


def run(learner, boundaries=(False,), y=LABELS):
    """The states before and after each step, and the metrics of each."""
    one = jax.jit(lambda s, b: learner.step(s, HYPER, Batch(PICTURES, y, b, jnp.array(False)), jnp.int32(0)))
    states, seen = [jax.jit(lambda: learner.init(PARAMS_KEY, METHOD_KEY, HYPER))()], []
    for boundary in boundaries:
        state, numbers = one(states[-1], jnp.array(boundary))
        states.append(state)
        seen.append(numbers)
    return states, seen


def statistics(state, norm="BatchNorm_0"):
    return tuple(get_leaf(state.variables, f"batch_stats/{norm}/{name}") for name in ("mean", "var"))


def evaluated(params, variables, x):
    return RESNET.apply({"params": params, **variables}, x)


def test_step_learns_from_the_batch_and_keeps_the_statistics_that_the_network_makes():
    (state, after), (seen,) = run(normed())
    collections = {"params": state.params, **state.variables}
    training = jax.jit(lambda c, x: RESNET.apply(c, x, train=True, mutable=["batch_stats"]))
    output, made = training(collections, PICTURES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.variables, made)
    assert np.all(np.abs(statistics(after)[0]) > 0)
    expected = optax.softmax_cross_entropy_with_integer_labels(output, LABELS).mean()
    np.testing.assert_allclose(seen["loss"], expected, rtol=1e-5)


def test_evaluation_and_probe_see_the_network_with_its_running_statistics():
    plain = normed(loss="squared_error")
    (_, state), _ = run(plain, y=TARGETS)
    total, number = jax.jit(plain.evaluate)(state, PICTURES[:2], TARGETS[:2])
    units = trace_units(evaluated, state.params, PICTURES, variables=state.variables, check=False)
    output, features = jax.jit(units.apply)(state.params, state.variables, PICTURES)
    np.testing.assert_allclose(total / number, np.mean((output[:2] - TARGETS[:2]) ** 2), rtol=1e-4)
    seen = jax.jit(plain.probe)(state, PICTURES)
    for name, measure in (("dead_units", metrics.dead_units), ("dormant_units", metrics.dormant_units)):
        counts = [measure(feature_matrix(g, features[g.name])) * g.width for g in units.groups]
        np.testing.assert_allclose(seen[name], sum(counts) / sum(g.width for g in units.groups), rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (continual_backprop, {"replacement_rate": 0.5, "maturity_threshold": 0}),
        (redo, {"threshold": 1.0, "period": 1}),
    ],
)
def test_units_that_were_replaced_have_fresh_statistics_and_no_others(method, options):
    def tx(hyper, key):
        return method(optax.sgd(hyper["step_size"]), RESNET_UNITS, key=key, **options)

    (_, after), (_, kept) = run(normed(transformation=tx))[0], run(normed())[0]
    for group, norm in NORMS.items():
        gone = np.asarray(after.optimizer.age[group] == 0)
        assert 0 < gone.sum() < gone.size
        for ours, theirs, fresh in zip(statistics(after, norm), statistics(kept, norm), (0, 1), strict=True):
            np.testing.assert_allclose(ours, np.where(gone, fresh, theirs), rtol=1e-6)
            assert np.all(theirs != fresh)


def test_restart_makes_fresh_statistics():
    control = normed(restart=True, transformation=lambda hyper, key: optax.sgd(0.0))
    (_, first, drifted, again), _ = run(control, (False, False, True))
    # Restart 0 is the network of the beginning.
    np.testing.assert_allclose(statistics(again)[0], statistics(first)[0], rtol=1e-5)
    assert np.all(np.abs(statistics(drifted)[0]) > 1.5 * np.abs(statistics(first)[0]))


class Told(nn.Module):
    """A network that always wants to be told whether it is trained."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.BatchNorm(not train)(nn.Conv(3, (3, 3))(x)))
        return nn.Dense(3)(jnp.mean(x, (1, 2)))


@pytest.mark.parametrize(
    ("network", "collections"), [(Told(), {"batch_stats"}), (ConvNet(3, (4,), (3,), (5,)), set())], ids=["told", "conv"]
)
def test_convolutional_networks_learn_with_and_without_units(network, collections):
    known = normed(network=network, units=network_units(network, (4, 4, 2)))
    states, seen = run(known, [False] * 20)
    assert set(states[-1].variables) == collections
    assert seen[-1]["loss"] < seen[0]["loss"]
    bare, _ = run(dataclasses.replace(known, units=None), [False] * 20)
    ours, theirs = ((s.params, s.variables) for s in (bare[-1], states[-1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_network_without_statistics_is_told_too_whether_it_is_trained():
    class Shifted(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return nn.Dense(3)(nn.relu(nn.Dense(4)(x.reshape(x.shape[0], -1)))) + (1.0 if train else 0.0)

    for units in (network_units(Shifted(), (4, 4, 2)), None):
        told = normed(network=Shifted(), loss="squared_error", units=units)
        (state, _), (seen,) = run(told, y=TARGETS)
        output = Shifted().apply({"params": state.params}, PICTURES, False)
        np.testing.assert_allclose(seen["squared_error"], jnp.mean((output + 1 - TARGETS) ** 2), rtol=1e-5)
        total, number = told.evaluate(state, PICTURES, TARGETS)
        np.testing.assert_allclose(total / number, jnp.mean((output - TARGETS) ** 2), rtol=1e-5)
        assert units is None or "dead_units" in told.probe(state, PICTURES)


# -- several devices (see also test_data_parallel.py)


def test_metrics_and_weights_under_a_mapped_axis_are_those_of_the_whole_batch():
    one, halves = learner(), learner(axis_name="device")
    state = one.init(PARAMS_KEY, METHOD_KEY, HYPER)
    expected, whole = step(one, state)

    def update(x, y):
        batch = Batch(x, y, jnp.array(False), jnp.array(False))
        return halves.step(state, HYPER, batch, jnp.int32(0))

    after, seen = jax.jit(jax.vmap(update, axis_name="device"))(X.reshape(2, 3, 5), LABELS.reshape(2, 3))
    for device in range(2):
        jax.tree.map(lambda a, b, d=device: np.testing.assert_allclose(a[d], b, rtol=1e-5, atol=1e-6), seen, whole)
        ours = jax.tree.map(lambda leaf, d=device: leaf[d], after.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, expected.params)


@pytest.mark.parametrize(("network", "learning"), [(None, "devices"), ("devices", None), ("other", "devices")])
def test_network_that_averages_over_another_axis_is_refused(network, learning):
    with pytest.raises(ValueError, match=f"axis_name={learning!r}, but ResNet has axis_name={network!r}"):
        normed(network=ResNet(axis_name=network), axis_name=learning, units=None)
