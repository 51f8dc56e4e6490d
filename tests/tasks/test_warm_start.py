"""Warm start: half of the pictures, then all of them; what is shown, for how long, and what is measured."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.engine import loop
from launch.engine.lane_program import supervised_program
from plastic_jax.learners.supervised import SupervisedLearner
from tasks.warm_start import WarmStart
from tests.tasks.pictures import read, write

CLASSES, TRAIN, TEST = 4, 12, 5
KEY = jax.random.key(3)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write(folder / "tiny.npz", CLASSES, TRAIN, TEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture
def make(folder):
    settings = {"dataset": "tiny", "data_dir": str(folder), "epochs": 2, "batch": 6, "probe_size": 8}
    return lambda **changed: WarmStart(**(settings | changed))


def stream(task, key=KEY):
    """The data, the state after, and the batches of all steps."""
    data = task.load()
    clocks = jnp.arange(task.schedule.length, dtype=jnp.int32)
    scan = jax.jit(lambda s: jax.lax.scan(lambda s, c: task.next(s, c, data), s, clocks))
    state, batches = scan(task.init(key, data))
    return data, state, jax.tree.map(np.asarray, batches)


def everything(classes, numbers):
    return sorted((c, n) for c in range(classes) for n in range(numbers))


def test_first_the_share_of_every_class_and_then_everything_once_per_epoch(make):
    task = make()
    data, _, batches = stream(task)
    assert task.schedule == (4, 4, 4, 24, (0, 8, 24))
    classes, numbers = read(batches.x, data)
    np.testing.assert_array_equal(batches.y, classes)
    orders = []
    for steps, shown in ((4, 6), (4, 6), (8, TRAIN), (8, TRAIN)):
        start = sum(map(len, orders))
        pairs = list(zip(classes[start:][:steps].ravel(), numbers[start:][:steps].ravel(), strict=True))
        assert sorted(pairs) == everything(CLASSES, shown)
        orders.append([pairs[n : n + 6] for n in range(0, len(pairs), 6)])
    assert orders[0] != orders[1]
    assert orders[2] != orders[3]
    assert np.flatnonzero(batches.boundary).tolist() == [0, 8]
    assert not batches.reset_head.any()
    assert batches.class_mask is None
    assert batches.step_scale is None


def test_another_share_fewer_classes_and_what_is_left_over(make):
    task = make(share=0.25, classes=3, batch=5)
    data, _, batches = stream(task)
    # 9 pictures make one batch, 36 seven: the others wait for the next epoch.
    assert task.schedule == (1, 1, 1, 16, (0, 2, 16))
    assert task.spec.outputs == 3
    assert data.test.shape[:2] == (3, TEST)
    classes, numbers = read(batches.x, data)
    assert classes.max() == 2
    assert numbers[:2].max() < 3
    for start, steps in ((0, 1), (1, 1), (2, 7), (9, 7)):
        pairs = list(zip(classes[start:][:steps].ravel(), numbers[start:][:steps].ravel(), strict=True))
        assert len(set(pairs)) == 5 * steps


def test_the_pictures_of_the_first_task_do_not_depend_on_the_seed_but_their_order_does(make):
    (data, _, one), (_, _, other) = stream(make()), stream(make(), jax.random.key(4))
    pairs = [sorted(zip(*(each.ravel() for each in read(b.x[:4], data)), strict=True)) for b in (one, other)]
    assert pairs[0] == pairs[1]
    assert not np.array_equal(one.x[:4], other.x[:4])


def test_augmented_pictures_are_other_pictures_with_the_same_labels(make):
    (_, _, plain), (_, _, changed) = stream(make()), stream(make(augment=True))
    np.testing.assert_array_equal(plain.y, changed.y)
    assert (np.abs(plain.x - changed.x).max((2, 3, 4)) > 1e-3).mean() > 0.9


def test_accuracy_is_measured_on_test_pictures_after_every_epoch_and_every_task(make):
    task = make(evaluation_size_in_task=2)
    data = task.load()
    state = task.init(KEY, data)
    for clock in range(4, 25, 4):
        (one,) = task.evaluations(state, jnp.int32(clock), data)
        assert one.class_mask is None
        assert not one.selects
        if clock in (12, 20):  # within an epoch of the second task
            assert int(one.batches) == 0
            continue
        assert int(one.batches) == 1
        x, labels = one.batch(jnp.int32(0))
        classes, numbers = read(x, data)
        for metric, shown in (("test_accuracy_in_task", 2), ("test_accuracy", TEST if clock in (8, 24) else 0)):
            counted = np.asarray(labels[metric]) >= 0
            np.testing.assert_array_equal(labels[metric][counted], classes[counted])
            assert sorted(zip(classes[counted], numbers[counted], strict=True)) == everything(CLASSES, shown)


def test_the_diagnostics_see_pictures_of_the_upcoming_task(make):
    task = make(probe_size=24)
    data = task.load()
    state = task.init(KEY, data)
    first, second = (task.probe_batches(state, jnp.int32(clock), data)[""] for clock in (0, 8))
    assert sorted(zip(*read(first, data), strict=True)) == everything(CLASSES, 6)
    pairs = set(zip(*read(second, data), strict=True))
    assert len(pairs) == 24
    assert max(number for _, number in pairs) >= 6
    assert len(make(probe_size=None).probe_batches(state, jnp.int32(8), data)[""]) == 24


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(jnp.reshape(x, (len(x), -1)))


def test_the_fresh_network_begins_anew_with_the_second_task_only(make):
    task = make()
    data, hyper, ends = task.load(), {"step_size": jnp.full(1, 0.0)}, []
    for restart in (False, True):
        learner = SupervisedLearner(
            network=Linear(),
            input_shape=task.spec.input_shape,
            loss=task.spec.loss,
            transformation=lambda hyper, key: optax.with_extra_args_support(optax.sgd(hyper["step_size"])),
            restart=restart,
        )
        program = supervised_program(task, learner, 4)
        kernels = {}

        def keep(state, kernels=kernels):
            kernels[state.step] = np.array(state.lanes.learner.params["Dense_0"]["kernel"])

        lanes = loop.initial(program, jax.random.split(KEY, 1), hyper, data)
        state = loop.run_chunks(program, loop.RunState(0, lanes, {}), hyper, data, 4, 24, keep)
        changed = [step for step in range(8, 25, 4) if not np.array_equal(kernels[step], kernels[step - 4])]
        assert changed == ([12] if restart else [])
        ends.append({name: one.count[0].astype(int).tolist() for name, one in state.bins.items()})
    assert ends[0] == ends[1]
    assert ends[0]["test_accuracy"] == [0, 20, 0, 0, 0, 20]
    assert ends[0]["test_accuracy_in_task"] == [20, 20, 0, 20, 0, 20]
    assert ends[0]["mean_weight_magnitude"] == [1, 0, 1, 0, 0, 0]


def test_spec_and_note(make):
    spec = make().spec
    assert (spec.input_shape, spec.outputs, spec.loss, spec.batch) == ((6, 6, 3), CLASSES, "cross_entropy", 6)
    assert spec.failure["test_accuracy"] == spec.failure["online_accuracy"] == 1 / CLASSES
    note = "4 classes of tiny, 6, then 12 pictures a class, 5 to test, 2 epochs each"
    assert make().note == note
    assert make(augment=True).note == f"{note}; augmented"


def test_a_batch_that_nobody_asks_for_fits_the_first_task(folder):
    task = WarmStart("tiny", str(folder))
    assert (task.fitted.batch, task.stages[0].steps) == (24, 1)
    assert WarmStart("tiny", str(folder), share=0.25).fitted.batch == 12


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("epochs", 1.5), ("classes", 0), ("train_per_class", True), ("augment", 1), ("probe_size", "all")]
    + [("share", 0), ("share", 1.0), ("share", "half"), ("share", float("nan")), ("share", True)],
)
def test_wrong_fields(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: got {value!r}, allowed are [^\n]*$"):
        WarmStart(**{field: value})


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"classes": 5}, "classes: got 5, the classes of 'tiny' are 4"),
        ({"share": 0.01}, "share: got 0.01, which is 0 of the 12 training pictures of a class"),
        ({"share": 0.99}, "share: got 0.99, which is 12 of the 12 training pictures of a class"),
        ({"batch": 25}, "batch: got 25, the training pictures of the first task, 6 of each class, are 24"),
        ({"probe_size": 25}, "probe_size: got 25, the training pictures of the first task, 6 of each class, are 24"),
        (
            {"evaluation_size_in_task": 6},
            "evaluation_size_in_task: got 6, the test pictures of a class of 'tiny' are 5",
        ),
        ({"train_per_class": 13}, "train_per_class: got 13, but .* holds 12 train pictures"),
    ],
)
def test_sizes_that_do_not_fit_the_data(make, changed, line):
    task = make(**changed)
    for ask in (task.load, lambda: task.spec, lambda: task.schedule, lambda: task.note):
        with pytest.raises(ValueError, match=rf"^{line}$"):
            ask()
