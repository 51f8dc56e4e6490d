import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastic_jax import MLP, ConvNet, ResNet, continual_backprop, metrics, redo, trace_units
from plastic_jax.learners.supervised import SupervisedLearner, network_units
from plastic_jax.networks import dropped
from plastic_jax.networks.convolutions import as_products
from plastic_jax.optimizers.adam import adam
from plastic_jax.paths import get_leaf
from plastic_jax.replacement.statistics import feature_matrix
from plastic_jax.units import jaxprs

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
    step_scale: Any = None


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
    assert_equal(second.optimizer.rows, jax.tree.map(jnp.ones_like, second.optimizer.rows))
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
    assert [float(v) for v in learner().evaluate(state, X, {"a": labels})["a"]] == [3, 4]
    total, number = learner(loss="squared_error").evaluate(state, X, {"a": TARGETS})["a"]
    output = NETWORK.apply({"params": state.params}, X)
    np.testing.assert_allclose(total / number, np.mean((output - TARGETS) ** 2), rtol=1e-5)
    assert number == TARGETS.size


class Bigram(nn.Module):
    """The logits of the next token are a row of a table."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Embed(3, 3, embedding_init=nn.initializers.zeros, name="table")(tokens)


TOKENS = jnp.array([[0, 1, 2, 0], [1, 2, 0, 2]])


def bigram(**change) -> Any:
    given = {"network": Bigram(), "input_shape": (4,), "input_type": jnp.int32, "units": None}
    return learner(**(given | {"transformation": lambda hyper, key: optax.sgd(hyper["step_size"])} | change))


def test_a_sequence_has_a_label_at_every_position():
    state = bigram().init(PARAMS_KEY, METHOD_KEY, HYPER)
    following = (TOKENS + 1) % 3
    after, metrics = step(bigram(), state, x=TOKENS, y=following)
    np.testing.assert_allclose(metrics["loss"], np.log(3), rtol=1e-6)
    assert metrics["online_accuracy"] == np.mean(np.asarray(following) == 0)
    counts = np.bincount(np.ravel(TOKENS), minlength=3) / 8
    wanted = 0.1 * counts[:, None] * (np.roll(np.eye(3), 1, axis=1) - 1 / 3)
    np.testing.assert_allclose(after.params["table"]["embedding"], wanted, rtol=1e-5, atol=1e-8)


def test_bits_are_the_logarithms_of_the_labels_probabilities_at_the_positions_that_count():
    table = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]]))
    state = bigram().init(PARAMS_KEY, METHOD_KEY, HYPER)
    state = state._replace(params={"table": {"embedding": table}})
    labels = jnp.array([[0, 0, 2, -1], [-1, 0, 1, 2]])
    total, number = bigram().evaluate(state, TOKENS, {"a": labels}, measure="bits")["a"]
    np.testing.assert_allclose([total, number], [1 + 3 + 1 + 2 + 2 + 1, 6], rtol=1e-6)


def test_a_trial_is_the_loss_of_a_clone_that_adam_teaches_and_leaves_the_network_alone():
    state = bigram().init(PARAMS_KEY, METHOD_KEY, HYPER)
    batches = [(TOKENS, (TOKENS + 1) % 3), (TOKENS[::-1], TOKENS)]
    x, y = (jnp.stack(each) for each in zip(*batches, strict=True))
    total, number = jax.jit(lambda s, n: bigram().trial(s, lambda i: (x[i], y[i]), n))(state, 2)
    params, tx, losses = state.params, optax.adam(1e-3), []
    moments = tx.init(params)
    for x, y in batches:
        output = lambda p: Bigram().apply({"params": p}, x)  # noqa: B023, E731
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(output(p), y).mean()  # noqa: B023, E731
        losses.append(loss(params))
        updates, moments = tx.update(jax.grad(loss)(params), moments, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose([total, number], [np.sum(losses) / np.log(2), 2], rtol=1e-6)
    assert losses[0] != losses[1]


def test_tokens_cannot_be_normalised():
    with pytest.raises(ValueError, match="normalise_inputs needs numbers as inputs, these are tokens"):
        bigram(normalise_inputs=True)


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
    total, number = jax.jit(plain.evaluate)(state, PICTURES[:2], {"a": TARGETS[:2]})["a"]
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
        total, number = told.evaluate(state, PICTURES, {"a": TARGETS})["a"]
        np.testing.assert_allclose(total / number, jnp.mean((output - TARGETS) ** 2), rtol=1e-5)
        assert units is None or "dead_units" in told.probe(state, PICTURES)


# -- what a problem or a method asks of the learner beside the gradient step


def descending(**change) -> Any:
    return learner(**({"transformation": lambda hyper, key: optax.sgd(hyper["step_size"])} | change))


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


def moved(before, after):
    return jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), before.params, after.params)


def test_step_scale_multiplies_the_step_size_of_that_step():
    state = descending().init(PARAMS_KEY, METHOD_KEY, HYPER)
    whole, _ = step(descending(), state)
    fifth, _ = step(descending(), state, step_scale=0.2)
    assert any(leaf.any() for leaf in jax.tree.leaves(moved(state, whole)))
    assert_close(moved(state, fifth), jax.tree.map(lambda d: 0.2 * d, moved(state, whole)))
    none, _ = step(descending(), state, step_scale=0.0)
    assert_equal(none.params, state.params)


def test_at_a_reset_weights_and_biases_of_the_head_are_zero_and_its_momentum_goes_on():
    headed = learner(head="Dense_1", transformation=lambda hyper, key: optax.sgd(0.0, momentum=0.9))
    state = headed.init(PARAMS_KEY, METHOD_KEY, HYPER)
    state = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    for _ in range(2):
        state, _ = step(headed, state)
    before = state.optimizer[0].trace
    after, _ = step(headed, state, reset_head=True)
    assert not after.params["Dense_1"]["kernel"].any()
    assert not after.params["Dense_1"]["bias"].any()
    assert_equal(after.params["Dense_0"], state.params["Dense_0"])

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(NETWORK.apply({"params": params}, X), LABELS).mean()

    grads = jax.grad(loss)(after.params)
    assert_close(after.optimizer[0].trace, jax.tree.map(lambda m, g: 0.9 * m + g, before, grads))
    assert np.abs(before["Dense_1"]["kernel"]).max() > 0.01


def test_a_fresh_head_is_drawn_by_the_initial_law_at_every_boundary_and_nothing_else_is():
    fresh = learner(head="Dense_1", fresh_head=True, transformation=lambda hyper, key: optax.sgd(0.0, momentum=0.9))
    state = fresh.init(PARAMS_KEY, METHOD_KEY, HYPER)
    start = jax.tree.map(lambda leaf: leaf + 1, state.params)
    state = state._replace(params=start)
    for number, boundary in ((0, True), (0, False), (1, True), (1, False), (2, True)):
        before = state
        state, _ = step(fresh, state, boundary=boundary)
        assert_equal(state.params["Dense_1"], initial(number)["Dense_1"])
        assert_equal(state.params["Dense_0"], start["Dense_0"])
        assert state.restarts == number + 1
        if np.abs(before.optimizer[0].trace["Dense_1"]["kernel"]).max() > 0:
            assert np.abs(state.optimizer[0].trace["Dense_1"]["kernel"]).max() > 0
    zeroed, _ = step(fresh, state, boundary=True, reset_head=True)
    assert not zeroed.params["Dense_1"]["kernel"].any()


def test_a_restart_of_the_weights_alone_keeps_statistics_and_optimizer():
    def tx(hyper, key):
        return optax.sgd(0.0, momentum=0.9)

    partly = normed(restart=True, restart_all=False, transformation=tx)
    (state, one, again), _ = run(partly, (False, True))
    # Restart 0 has the initial weights, and with a step size of 0 they stay: both steps see the same.
    assert_equal(again.params, state.params)
    assert (one.restarts, again.restarts) == (0, 1)
    before, after = (s.optimizer[0].trace["Dense_0"]["bias"] for s in (one, again))
    np.testing.assert_allclose(after, 1.9 * before, rtol=1e-4)
    np.testing.assert_allclose(statistics(again)[0], 1.9 * statistics(one)[0], rtol=1e-4)
    assert np.all(np.abs(statistics(one)[0]) > 0)


def test_the_best_network_of_a_task_is_the_one_it_ends_with():
    chooses = normed(selects=True)
    state = jax.jit(lambda: chooses.init(PARAMS_KEY, METHOD_KEY, HYPER))()
    keep = jax.jit(chooses.keep_best)

    def now(state, value):
        params, variables = (jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), t) for t in state[:2])
        return state._replace(params=params, variables=variables)

    def value(tree):
        (found,) = {float(v) for leaf in jax.tree.leaves(tree) for v in np.unique(leaf)}
        return found

    # Score and number of the network at every evaluation of two tasks; which one there is after it.
    tasks = [
        [(0.3, 1, 1), (0.5, 2, 2), (0.5, 3, 3), (0.4, 4, 2)],  # the first of equals
        [(0.0, 5, 5), (0.1, 6, 6), (float("nan"), 7, 6)],  # lower than all of the task before
        [(0.2, 8, 8), (0.9, 9, 9)],  # the last is the best
    ]
    for task in tasks:
        for i, (score, number, expected) in enumerate(task):
            state = keep(now(state, number), jnp.float32(score), jnp.array(i == len(task) - 1))
            assert (value(state.params), value(state.variables)) == (expected, expected)
    assert state.best.score == -1
    assert learner().init(PARAMS_KEY, METHOD_KEY, HYPER).best is None


# -- dropout


def dropping(rate, clock=0, state=None, key=METHOD_KEY, **change):
    """The state and metrics after one step."""
    one = descending(dropout=True, **change)
    state = one.init(PARAMS_KEY, key, HYPER) if state is None else state
    hyper = HYPER | {"dropout_rate": jnp.float32(rate)}
    batch = Batch(X, LABELS, jnp.array(False), jnp.array(False))
    return jax.jit(one.step)(state, hyper, batch, jnp.int32(clock))


def test_dropout_at_rate_zero_is_none():
    state = descending().init(PARAMS_KEY, METHOD_KEY, HYPER)
    (after, seen), (plain, expected) = dropping(0.0), step(descending(), state)
    assert_close((after.params, seen), (plain.params, expected))


def test_dropout_is_drawn_anew_at_every_step_and_repeats_by_clock_and_key():
    (first, seen), again = dropping(0.5), dropping(0.5)
    assert_equal((first.params, seen), (again[0].params, again[1]))
    assert seen["loss"] != dropping(0.5, clock=1)[1]["loss"]
    assert seen["loss"] != dropping(0.5, key=jax.random.key(9))[1]["loss"]
    one = descending(dropout=True)
    evaluated, plain = (each.evaluate(first, X, {"a": LABELS})["a"] for each in (one, descending()))
    assert_equal(evaluated, plain)
    assert_equal(one.probe(first, X), descending().probe(first, X))


def test_dropped_units_are_dropped_at_the_rate_and_the_output_is_right_on_average():
    params = NETWORK.init(PARAMS_KEY, X)["params"]
    keys = jax.random.split(jax.random.key(5), 4000)

    def output(key):
        return NETWORK.apply({"params": params}, X, dropout_rate=0.3, rngs={"dropout": key})

    outputs = jax.jit(jax.vmap(output))(keys)
    expected = NETWORK.apply({"params": params}, X)
    error = outputs.std(0) / len(keys) ** 0.5
    assert np.all(np.abs(outputs.mean(0) - expected) < 5 * error + 1e-6)

    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, rate):
            return dropped(self, x, rate)

    ones = Dropped().apply({}, jnp.ones((100, 100)), jnp.float32(0.3), rngs={"dropout": keys[0]})
    assert isinstance(ones, jax.Array)
    np.testing.assert_allclose(np.mean(ones == 0), 0.3, atol=0.02)
    np.testing.assert_allclose(np.unique(ones), [0, 1 / 0.7], rtol=1e-6)


def test_each_device_drops_units_of_its_own():
    halves = descending(dropout=True, axis_name="device")
    state = halves.init(PARAMS_KEY, METHOD_KEY, HYPER)

    def loss(x, y, rate):
        batch = Batch(x, y, jnp.array(False), jnp.array(False))
        own = halves._training(state, {"dropout_rate": rate}, jnp.int32(0))
        after, _ = halves.step(state, HYPER | {"dropout_rate": rate}, batch, jnp.int32(0))
        return own(state.params, {}, x)[0], after.params

    mapped = jax.jit(jax.vmap(loss, axis_name="device", in_axes=(0, 0, None)))
    outputs, params = mapped(jnp.stack([X, X]), jnp.stack([LABELS, LABELS]), jnp.float32(0.5))
    assert np.any(outputs[0] != outputs[1])
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), params)


# -- what is measured


def test_evaluation_answers_for_every_target_and_among_the_classes_that_count():
    state = learner().init(PARAMS_KEY, METHOD_KEY, HYPER)
    output = np.asarray(NETWORK.apply({"params": state.params}, X))
    mask = np.array([True, False, True])
    among = np.where(mask, output, -np.inf).argmax(1)
    assert (among != output.argmax(1)).any()
    targets = {
        "all": jnp.asarray(among),
        "first": jnp.where(jnp.arange(6) < 2, among, -1),
        "wrong": jnp.where(jnp.arange(6) == 5, 2 - among, -1),
        "none": jnp.full(6, -1),
    }
    counts = jax.jit(learner().evaluate)(state, X, targets, jnp.asarray(mask))
    found = {n: tuple(map(float, pair)) for n, pair in counts.items()}
    assert found == {"all": (6, 6), "first": (2, 2), "wrong": (0, 1), "none": (0, 0)}


def test_ranks_are_those_of_layers_with_one_value_for_each_example():
    network = ConvNet(3, (4,), (3,), (5, 6))
    plain = normed(network=network, units=network_units(network, (8, 8, 2)), input_shape=(8, 8, 2))
    x = jax.random.normal(jax.random.key(6), (7, 8, 8, 2))
    state = jax.jit(lambda: plain.init(PARAMS_KEY, METHOD_KEY, HYPER))()
    seen, (_, features) = jax.jit(lambda s: (plain.probe(s, x), plain.units.apply(s.params, x)))(state)
    matrices = {g.name: np.asarray(feature_matrix(g, features[g.name])) for g in plain.units.groups}
    assert [m.shape for m in matrices.values()] == [(7 * 9, 4), (7, 5), (7, 6)]
    dense = list(matrices.values())[1:]
    for name, of in (("effective_rank", metrics.effective_rank), ("stable_rank", metrics.stable_rank)):
        np.testing.assert_allclose(seen[name], sum(float(of(m)) for m in dense) / 11, rtol=1e-4)
    dead = [float(metrics.dead_units(m)) * m.shape[1] for m in matrices.values()]
    np.testing.assert_allclose(seen["dead_units"], sum(dead) / 15, rtol=1e-5)
    flat = ConvNet(3, (4,), (3,), ())
    bare = normed(network=flat, units=network_units(flat, (8, 8, 2)), input_shape=(8, 8, 2))
    names = set(jax.eval_shape(lambda: bare.probe(bare.init(PARAMS_KEY, METHOD_KEY, HYPER), x)))
    assert names == {"mean_weight_magnitude", "dead_units", "dormant_units"}


def test_a_probe_in_training_looks_with_the_statistics_of_what_it_is_shown():
    as_trained = normed(probe_in_training=True)
    state = jax.jit(lambda: as_trained.init(PARAMS_KEY, METHOD_KEY, HYPER))()
    shifted = 5 * PICTURES - 20  # far from the running statistics
    seen, otherwise = (jax.jit(one.probe)(state, shifted) for one in (as_trained, normed()))
    _, features = jax.jit(RESNET_UNITS.apply)(state.params, state.variables, shifted)
    for name, measure in (("dead_units", metrics.dead_units), ("dormant_units", metrics.dormant_units)):
        counts = [measure(feature_matrix(g, features[g.name])) * g.width for g in RESNET_UNITS.groups]
        np.testing.assert_allclose(seen[name], sum(counts) / sum(g.width for g in RESNET_UNITS.groups), rtol=1e-5)
    assert seen["effective_rank"] != otherwise["effective_rank"]


# -- how convolutions are computed


def convolutions(function, *arguments):
    """How many multiplications are left to convolutions."""
    return jaxprs.multiplications(jaxprs.trace(function, *arguments)[0]).get("conv_general_dilated", 0)


@pytest.mark.parametrize("units", [RESNET_UNITS, None], ids=["units", "none"])
def test_the_network_that_is_learned_evaluated_and_probed_is_the_transformed_one(units):
    plain, products = normed(units=units), normed(units=units, transform=as_products)
    state = jax.eval_shape(lambda: plain.init(PARAMS_KEY, METHOD_KEY, HYPER))
    batch = Batch(PICTURES, LABELS, jnp.array(False), jnp.array(False))
    calls = {
        "step": lambda one: (lambda s: one.step(s, HYPER, batch, jnp.int32(0)), state),
        "evaluate": lambda one: (lambda s: one.evaluate(s, PICTURES, {"a": LABELS}), state),
        "probe": lambda one: (lambda s: one.probe(s, PICTURES), state),
    }
    for name, call in calls.items():
        if units is not None or name != "probe":
            assert convolutions(*call(plain)) > 0, name
        assert convolutions(*call(products)) == 0, name
    (_, one), (metrics_of_one,) = run(plain)
    (_, other), (metrics_of_other,) = run(products)
    assert_close((one.params, one.variables), (other.params, other.variables), rtol=1e-4, atol=1e-5)
    assert_close(metrics_of_one, metrics_of_other, rtol=1e-4)


def test_dropout_is_of_the_transformed_network_too():
    network = ConvNet(3, (4,), (3,), (5,))
    state = jax.jit(lambda: normed(network=network, units=None).init(PARAMS_KEY, METHOD_KEY, HYPER))()
    batch = Batch(PICTURES, LABELS, jnp.array(False), jnp.array(False))
    seen = []
    for transform in (lambda apply: apply, as_products):
        one = normed(network=network, units=None, dropout=True, transform=transform)
        hyper = HYPER | {"dropout_rate": jnp.float32(0.5)}
        seen.append(jax.jit(one.step)(state, hyper, batch, jnp.int32(0)))
    assert_close((seen[0][0].params, seen[0][1]), (seen[1][0].params, seen[1][1]), rtol=1e-4)
    assert convolutions(lambda s: one.step(s, hyper, batch, jnp.int32(0)), state) == 0


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
