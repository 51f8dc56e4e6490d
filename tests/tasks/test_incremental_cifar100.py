"""Class-incremental CIFAR-100: what is shown when, how often, with which step size; what is measured, and of whom."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.engine import loop
from launch.engine.lane_program import supervised_program
from plastic_jax.learners.supervised import SupervisedLearner
from tasks.incremental_cifar100 import IncrementalCIFAR100, presentations, updates
from tests.tasks.pictures import read, write

CLASSES, TRAIN, VALIDATION, TEST = 8, 20, 2, 7
SHOWN = TRAIN - VALIDATION
STEPS = 4  # of an epoch of the first increment: 2 classes of 18 pictures in batches of 9
KEY = jax.random.key(3)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write(folder / "tiny.npz", CLASSES, TRAIN, TEST)
    write(folder / "whole.npz", 100, 500, 100, size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def make(folder):
    settings = {
        "dataset": "tiny",
        "data_dir": str(folder),
        "classes_per_increment": 2,
        "increments": 3,
        "epochs": 2,
        "batch": 9,
        "augment": False,
        "probe_size": 12,
    }
    return lambda **changed: IncrementalCIFAR100(**(settings | changed))


@functools.lru_cache
def stream(task, steps, key=3, start=0):
    """The data, the state after, and the batches of all steps."""
    data = task.load()
    state = task.init(jax.random.key(key), data)
    clocks = jnp.arange(start, start + steps, dtype=jnp.int32)
    state, batches = jax.jit(lambda s: jax.lax.scan(lambda s, c: task.next(s, c, data), s, clocks))(state)
    return data, state, jax.tree.map(np.asarray, batches)


def order_of(task, key=KEY):
    return np.asarray(task.class_order(key, task.load()))


def measured(task, clock, state, data):
    """Of every evaluation the numbers of batches, and by metric the (class, number) of the pictures that count."""
    found = []
    for one in task.evaluations(state, jnp.int32(clock), data):
        counted = {}
        for i in range(int(one.batches)):
            x, labels = one.batch(jnp.int32(i))
            classes, numbers = read(x, data)
            for metric, label in labels.items():
                there = np.asarray(label) >= 0
                np.testing.assert_array_equal(np.asarray(label)[there], classes[there])
                counted.setdefault(metric, []).extend(zip(classes[there], numbers[there], strict=True))
        found.append((one, {metric: sorted(pairs) for metric, pairs in counted.items()}))
    return found


def pictures_of(classes, numbers):
    return sorted((c, n) for c in classes for n in numbers)


# What is shown


def test_an_epoch_shows_every_picture_of_the_classes_so_far_once_and_no_other(make):
    task = make()
    data, _, batches = stream(task, 48)
    classes, numbers = read(batches.x, data)
    np.testing.assert_array_equal(batches.y, classes)
    order, orders, start = order_of(task), [], 0
    for increment, epochs in ((0, 2), (1, 2), (2, 2)):
        for _ in range(epochs):
            steps = slice(start, start + STEPS * (increment + 1))
            pairs = list(zip(classes[steps].ravel(), numbers[steps].ravel(), strict=True))
            assert sorted(pairs) == pictures_of(order[: 2 * increment + 2], range(VALIDATION, TRAIN))
            orders.append(tuple(pairs[:12]))
            start = steps.stop
    assert start == task.schedule.length == 48
    assert len(set(orders)) == len(orders)


def test_pictures_are_mixed_over_classes(make):
    batches = stream(make(), 48)[2]
    assert all(len(set(y)) > 2 for y in batches.y[24:])


def test_the_order_of_classes_follows_from_the_seed_alone(make):
    order = order_of(make()).tolist()
    assert sorted(order) == list(range(CLASSES))
    assert order_of(make(epochs=4, batch=6, cumulative=True, train_per_class=10, select=False)).tolist() == order
    assert len({tuple(order_of(make(), jax.random.key(k)).tolist()) for k in range(9)}) == 9


def test_boundaries_and_masks(make):
    task = make()
    _, _, batches = stream(task, 48)
    assert task.schedule.starts == (0, 8, 24, 48)
    assert np.flatnonzero(batches.boundary).tolist() == [0, 8, 24]
    assert not batches.reset_head.any()
    assert not task.resets_head
    order = order_of(task)
    for step in range(48):
        seen = 2 if step < 8 else 4 if step < 24 else 6
        assert set(np.flatnonzero(batches.class_mask[step])) == set(order[:seen])


def test_pictures_are_normalised_by_channel(make):
    task = make()
    data, _, batches = stream(task, 48)
    shown = np.asarray(data.train, np.float64)
    np.testing.assert_allclose(data.mean, shown.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(data.std, shown.std((0, 1, 2, 3)), rtol=1e-5)
    classes, numbers = read(batches.x[5], data)
    expected = (np.asarray(data.train)[classes, numbers] - data.mean) / data.std
    np.testing.assert_allclose(batches.x[5], expected, rtol=1e-4, atol=1e-5)


def test_cifar100_is_normalised_as_published(folder, make):
    write(folder / "cifar100.npz", 100, 10, 2)
    data = make(dataset="cifar100", train_per_class=10).load()
    np.testing.assert_allclose(data.mean / 255, (0.5071, 0.4865, 0.4409), rtol=1e-6)
    np.testing.assert_allclose(data.std / 255, (0.2673, 0.2564, 0.2762), rtol=1e-6)


def test_training_pictures_are_augmented_anew_at_every_step(make):
    plain, changed = (stream(make(augment=augment), 48)[2] for augment in (False, True))
    np.testing.assert_array_equal(plain.y, changed.y)
    differs = np.abs(plain.x - changed.x).max((2, 3, 4)) > 1e-3
    assert differs.mean() > 0.9
    # The same picture in the next epoch looks another way.
    data, ways = make().load(), {}
    for epoch in range(2):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            for name, x in zip(zip(*read(plain.x[step], data), strict=True), changed.x[step], strict=True):
                ways.setdefault(name, []).append(x)
    assert len(ways) == 36
    assert sum(np.array_equal(*pair) for pair in ways.values()) < 6


@pytest.mark.parametrize(("epochs", "changes"), [(10, (3, 6, 8)), (20, (6, 12, 16)), (4, (2, 3, 4)), (1, ())])
def test_the_step_size_falls_at_the_published_shares_of_every_increment(make, epochs, changes):
    task = make(epochs=epochs, increments=2)
    scale = jax.jit(jax.vmap(lambda clock: task._step_scale(task.now(clock))))(jnp.arange(task.schedule.length))
    of_epoch = [0.2 ** sum(epoch >= change for change in changes) for epoch in range(epochs)]
    np.testing.assert_allclose(scale, np.concatenate([np.repeat(of_epoch, STEPS), np.repeat(of_epoch, 2 * STEPS)]))


def test_a_constant_step_size_is_not_scaled(make):
    task = make(step_sizes="constant")
    assert stream(task, 48)[2].step_scale is None


def test_any_epoch_is_rebuilt_from_its_clock(make):
    whole, part = stream(make(augment=True), 48)[2], stream(make(augment=True), 12, start=36)[2]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_allclose(one[36:], other, rtol=1e-6)


def test_mapped_over_lanes_every_lane_has_the_stream_of_its_own_key(make):
    task = make(augment=True)
    data, keys = task.load(), jnp.stack([jax.random.key(3), jax.random.key(4)])
    states = jax.vmap(task.init, in_axes=(0, None))(keys, data)
    step = jax.vmap(task.next, in_axes=(0, None, None))
    _, batches = jax.jit(lambda s: jax.lax.scan(lambda s, c: step(s, c, data), s, jnp.arange(24)))(states)
    for lane, key in enumerate((3, 4)):
        alone = stream(task, 24, key)[2]
        np.testing.assert_array_equal(batches.y[:, lane], alone.y)
        np.testing.assert_allclose(batches.x[:, lane], alone.x, rtol=1e-6)
    # Sorting all pictures at every step would cost as much as learning.
    jaxpr = jax.make_jaxpr(step)(states, jnp.int32(1), data).jaxpr
    assert any(e.primitive.name == "cond" for e in jaxpr.eqns)
    assert not any(e.primitive.name == "sort" for e in jaxpr.eqns)


# How long, how often


def test_the_published_stream_is_as_long_as_published(folder):
    task = IncrementalCIFAR100("whole", str(folder))
    assert task.spec.outputs == 100
    assert task.steps_per_epoch == 25
    assert task.schedule[:4] == (25, 25, 25, 1_050_000)
    assert task.schedule.starts[:3] == (0, 5000, 15000)
    assert len(task.schedule.starts) == 21
    short = IncrementalCIFAR100("whole", str(folder), train_per_class=100, epochs=20)
    assert short.steps_per_epoch == 5
    assert short.schedule.length == 20 * 5 * 210


def test_cumulative_increments_take_what_a_network_that_goes_on_has_had(make):
    task, control = make(epochs=6, increments=4), make(epochs=6, increments=4, cumulative=True)
    np.testing.assert_array_equal(np.diff(updates(control), prepend=0), updates(task))
    assert updates(task).tolist() == [24, 72, 144, 240]


def test_presentations_are_those_of_the_stream(make):
    for task in (make(), make(cumulative=True)):
        data, _, batches = stream(task, task.schedule.length)
        classes, order = read(batches.x, data)[0], order_of(task)
        for increment, end in enumerate(updates(task)):
            shown = np.bincount(classes[:end].ravel(), minlength=CLASSES)[order]
            expected = np.zeros(CLASSES)
            expected[:6] = np.repeat(presentations(task)[increment], 2)
            np.testing.assert_array_equal(shown, SHOWN * expected)


# What is measured


def test_an_epoch_ends_with_validation_and_the_test_pictures_of_the_classes_seen(make):
    task = make(evaluation_size_in_task=3)
    data, state, _ = stream(task, 48)
    order = order_of(task)
    for clock in range(STEPS, 49, STEPS):
        (validation, chosen), (tested, counted) = measured(task, clock, state, data)
        assert validation.selects
        assert not tested.selects
        seen = order[: 2 if clock <= 8 else 4 if clock <= 24 else 6]
        if clock not in (4, 8, 16, 24, 36, 48):
            assert int(validation.batches) == int(tested.batches) == 0
            continue
        assert chosen == {"validation_accuracy": pictures_of(seen, range(VALIDATION))}
        assert counted["test_accuracy_in_task"] == pictures_of(seen, range(3))
        for evaluation in (validation, tested):
            assert set(np.flatnonzero(evaluation.class_mask)) == set(seen)
        at_the_end = {
            "test_accuracy": seen,
            "accuracy_newest_classes": seen[-2:],
            "accuracy_middle_classes": seen[len(seen) // 2 - 1 : len(seen) // 2 + 1],
            "accuracy_oldest_classes": seen[:2],
        }
        for metric, classes in at_the_end.items():
            expected = pictures_of(classes, range(TEST)) if clock in task.schedule.starts[1:] else []
            assert counted.get(metric, []) == expected, (clock, metric)
        assert bool(task.ends_task(jnp.int32(clock))) == (clock in task.schedule.starts[1:])


def test_more_pictures_than_one_batch_holds_count_once_each(folder):
    task = IncrementalCIFAR100("whole", str(folder), train_per_class=100, epochs=1, increments=3)
    data = task.load()
    state = task.init(KEY, data)
    order = np.asarray(state.class_order)
    *_, (validation, chosen), (tested, counted) = measured(task, 30, state, data)
    assert int(validation.batches) == 2
    assert chosen["validation_accuracy"] == pictures_of(order[:15], range(10))
    assert int(tested.batches) == 15
    assert counted["test_accuracy"] == counted["test_accuracy_in_task"] == pictures_of(order[:15], range(100))
    assert counted["accuracy_middle_classes"] == pictures_of(order[5:10], range(100))


def test_for_the_best_epoch_a_network_is_tested_before_another_may_be_selected(make):
    task = make(accuracy="best_epoch")
    data, state, _ = stream(task, 48)
    for clock in (4, 8):
        (first, counted), (validation, chosen), (_, end) = measured(task, clock, state, data)
        assert list(counted) == ["test_accuracy_in_task"]
        assert counted["test_accuracy_in_task"] == pictures_of(order_of(task)[:2], range(TEST))
        assert validation.selects
        assert not first.selects
        assert list(chosen) == ["validation_accuracy"]
        assert "test_accuracy_in_task" not in end
        assert ("test_accuracy" in end) == (clock == 8)


def test_without_selection_nothing_is_validated(make):
    task = make(select=False)
    data, state, _ = stream(task, 48)
    assert make().selects
    assert not task.selects
    assert [next(iter(counted)) for _, counted in measured(task, 4, state, data)] == ["test_accuracy_in_task"]


def test_only_test_pictures_are_augmented_in_evaluation_and_only_if_asked(make):
    data, state, _ = stream(make(), 48)
    plain, changed = (make(augment_test=a).evaluations(state, jnp.int32(48), data) for a in (False, True))
    np.testing.assert_array_equal(plain[0].batch(0)[0], changed[0].batch(0)[0])
    (x, y), (x_changed, y_changed) = plain[1].batch(0), changed[1].batch(0)
    np.testing.assert_array_equal(y["test_accuracy"], y_changed["test_accuracy"])
    assert (np.abs(x - x_changed).max((1, 2, 3)) > 1e-3).mean() > 0.9
    other = make(augment_test=True).evaluations(state, jnp.int32(36), data)[1].batch(0)[0]
    assert not np.array_equal(other, x_changed)


def test_the_diagnostics_see_the_next_classes_and_those_before(make):
    task = make()
    data, state, _ = stream(task, 24)
    order = order_of(task)
    for clock, old, new in ((0, order[:2], order[:2]), (8, order[:2], order[2:4]), (24, order[:4], order[4:6])):
        probes = task.probe_batches(state, jnp.int32(clock), data)
        assert list(probes) == ["", "_old_classes"]
        for x, classes in zip(probes.values(), (new, old), strict=True):
            assert x.shape == (12, 6, 6, 3)
            pairs = list(zip(*read(x, data), strict=True))
            assert len(set(pairs)) == 12
            assert {c for c, _ in pairs} == set(classes)
    everything = make(probe_size=None).probe_batches(state, jnp.int32(8), data)[""]
    assert sorted(zip(*read(everything, data), strict=True)) == pictures_of(order[2:4], range(TRAIN))
    assert [bool(task.schedule.probes_at(jnp.int32(c))) for c in (0, 4, 8, 24, 28)] == [True, False, True, True, False]


def test_spec_counts_a_diverged_lane_as_chance_among_all_classes(make):
    spec = make().spec
    assert (spec.input_shape, spec.outputs, spec.loss, spec.batch) == ((6, 6, 3), CLASSES, "cross_entropy", 9)
    assert spec.failure.pop("loss") == pytest.approx(math.log(CLASSES))
    assert set(spec.failure.values()) == {1 / CLASSES}
    names = "online validation test in_task newest middle oldest"
    assert all(any(name in metric for metric in spec.failure) for name in names.split())


def test_the_note_says_what_is_not_as_published(folder):
    make = functools.partial(IncrementalCIFAR100, "whole", str(folder))
    plain = "20 increments of 5 classes of whole, 200 epochs each, 450 + 50 pictures a class, 100 to test"
    assert make().note == plain
    reduced = make(epochs=20, train_per_class=100).note
    assert "20 epochs each, 90 + 10 pictures" in reduced
    assert "published: 200 epochs; published: 450 + 50 pictures" in reduced
    assert "test pictures augmented" in make(augment_test=True).note
    assert "as many updates" in make(cumulative=True).note


# Learning


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(jnp.reshape(x, (len(x), -1))))
        return nn.Dense(CLASSES)(x)


def lane_of(task, step_size=0.3):
    learner = SupervisedLearner(
        network=Tiny(),
        input_shape=task.spec.input_shape,
        loss=task.spec.loss,
        transformation=lambda hyper, key: optax.with_extra_args_support(optax.sgd(hyper["step_size"])),
        selects=task.selects,
        probe_in_training=task.probe_in_training,
    )
    program = supervised_program(task, learner, task.schedule.evaluate_every)
    keys, hyper = jax.random.split(KEY, 2), {"step_size": jnp.full(2, step_size)}
    data = task.load()
    return program, loop.initial(program, keys, hyper, data), hyper, data


def accuracy(params, pictures, seen, data, classes=None):
    """Of a network that chooses among the classes seen, on `pictures` of `classes`; `None`: of all seen."""
    classes = seen if classes is None else classes
    x = np.concatenate([pictures[c] for c in classes]).astype(np.float32)
    output = Tiny().apply({"params": params}, (x - data.mean) / data.std)
    output = np.where(np.isin(np.arange(CLASSES), seen), output, -np.inf)
    return np.mean(output.argmax(1) == np.repeat(classes, pictures.shape[1]))


def test_the_parameters_best_in_validation_are_those_measured_and_learned_from_after_an_increment(make):
    # A large step: accuracy goes up and down, and the last epoch is not the best.
    task = make(epochs=6, increments=2, train_per_class=20, step_sizes="constant", evaluation_size_in_task=2)
    program, lanes, hyper, data = lane_of(task)
    kept = {}

    def keep(state):
        kept[state.step] = jax.tree.map(np.array, state.lanes.learner.params)

    state = loop.run_chunks(program, loop.RunState(0, lanes, {}), hyper, data, STEPS, 72, keep)
    bins = {name: one.sum / np.where(one.count, one.count, np.nan) for name, one in state.bins.items()}
    epochs = {24: range(4, 25, 4), 72: range(32, 73, 8)}  # where they end, by the end of the increment
    restored = 0
    for lane, order in enumerate(np.asarray(state.lanes.task.class_order)):
        network = {step: jax.tree.map(lambda p, lane=lane: p[lane], params) for step, params in kept.items()}
        at = {name: dict(zip(range(STEPS, 73, STEPS), values[lane], strict=True)) for name, values in bins.items()}
        for last, seen in ((24, order[:2]), (72, order[:4])):
            score = {step: at["validation_accuracy"][step] for step in epochs[last]}
            for step in epochs[last][:-1]:  # after the last one the network is another
                assert score[step] == pytest.approx(accuracy(network[step], data.train[:, :VALIDATION], seen, data))
            best = max(epochs[last], key=score.__getitem__)
            jax.tree.map(np.testing.assert_array_equal, network[last], network[best])
            restored += best < last
            for metric, classes in (("test_accuracy", seen), ("accuracy_newest_classes", seen[-2:])):
                expected = accuracy(network[best], data.test, seen, data, classes)
                assert at[metric][last] == pytest.approx(expected)
    assert restored, "a test of nothing: the last epoch was always the best"
    ends = {metric: (np.flatnonzero(np.isfinite(bins[metric][0])) + 1) * STEPS for metric in bins}
    assert ends["test_accuracy_in_task"].tolist() == [*epochs[24], *epochs[72]]
    assert ends["test_accuracy"].tolist() == [24, 72]


def test_a_run_in_which_every_choice_is_as_published_goes_through(make):
    published = {"augment": True, "augment_test": True, "accuracy": "best_epoch", "probe_in_training": True}
    task = make(increments=2, **published)
    program, lanes, hyper, data = lane_of(task)
    state = loop.run_chunks(program, loop.RunState(0, lanes, {}), hyper, data, STEPS, 24)
    counts = {name: one.count[0].astype(int).tolist() for name, one in state.bins.items()}
    assert counts["validation_accuracy"] == [4, 4, 0, 8, 0, 8]
    assert counts["test_accuracy_in_task"] == [14, 14, 0, 28, 0, 28]
    assert counts["test_accuracy"] == [0, 14, 0, 0, 0, 28]
    assert counts["accuracy_oldest_classes"] == [0, 14, 0, 0, 0, 14]
    assert counts["mean_weight_magnitude"] == [1, 0, 1, 0, 0, 0]


# What is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("epochs", 1.5), ("increments", True), ("classes_per_increment", "5"), ("train_per_class", 0)]
    + [("test_per_class", -1), ("evaluation_size_in_task", 0), ("probe_size", 0.5), ("step_sizes", "falling")]
    + [("accuracy", "best"), ("augment", 1), ("select", "yes"), ("cumulative", None), ("augment_test", 0)],
)
def test_wrong_fields(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: got {value!r}, allowed are [^\n]*$"):
        IncrementalCIFAR100(**{field: value})


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"increments": 5}, "increments: got 5 of 2 classes, 'tiny' has 8 classes"),
        ({"batch": 10}, "batch: got 10, which does not divide the 36 training pictures .* for example 4, 6, 9, 12"),
        ({"train_per_class": 1, "batch": 1}, "train_per_class: 1 picture has no part for validation; .* select=False"),
        ({"increments": None, "classes_per_increment": 9}, "classes_per_increment: got 1 of 9 classes, 'tiny' has 8"),
        ({"train_per_class": 21}, "train_per_class: got 21, but .* holds 20 train pictures"),
        ({"test_per_class": 8}, "test_per_class: got 8, but .* holds 7 test pictures"),
        ({"evaluation_size_in_task": 8}, "evaluation_size_in_task: got 8, .* of 'tiny' are 7"),
        ({"probe_size": 41}, "probe_size: got 41, the training pictures of 2 classes of 'tiny' are 40"),
    ],
)
def test_sizes_that_do_not_fit_the_data(make, changed, line):
    task = make(**changed)
    for ask in (task.load, lambda: task.spec, lambda: task.schedule, lambda: task.note):
        with pytest.raises(ValueError, match=rf"^{line}[^\n]*$"):
            ask()


def test_choices_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"^epochs: got 5, allowed are even numbers with cumulative=True[^\n]*$"):
        IncrementalCIFAR100(epochs=5, cumulative=True)
    with pytest.raises(ValueError, match=r"^evaluation_size_in_task: got 20, allowed is None with[^\n]*$"):
        IncrementalCIFAR100(accuracy="best_epoch", evaluation_size_in_task=20)


def test_without_selection_a_class_may_have_too_few_pictures_for_validation(make):
    task = make(train_per_class=9, select=False, probe_size=9)
    assert task.steps_per_epoch == 2
    data, _, batches = stream(task, 6)
    assert set(read(batches.x, data)[1].ravel()) == set(range(9))


@pytest.mark.parametrize(
    ("changed", "sizes"),
    [
        ({}, (5, 1, 90)),  # 5 of 8 classes, 18 of their 20 pictures
        ({"classes_per_increment": 3}, (3, 2, 54)),
        ({"train_per_class": 9}, (5, 1, 40)),  # one of the nine is for validation
        ({"batch": 6}, (5, 1, 6)),
    ],
)
def test_sizes_that_nobody_asks_for_fit_the_data(folder, changed, sizes):
    task = IncrementalCIFAR100("tiny", str(folder), **changed).fitted
    assert (task.classes_per_increment, task.increments, task.batch) == sizes
    assert task.stages == IncrementalCIFAR100("tiny", str(folder), **changed).stages
    assert task.spec.batch == sizes[2] and task.fitted == task


def test_the_published_sizes_are_those_of_the_published_data(folder):
    task = IncrementalCIFAR100("whole", str(folder)).fitted
    assert (task.classes_per_increment, task.increments, task.batch, task.validation_per_class) == (5, 20, 90, 50)


def test_missing_data_is_said_before_anything_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar100"):
        IncrementalCIFAR100(data_dir=str(tmp_path)).load()
