"""The stream of pairs of classes: which, in what order, with which targets, measured when."""

import functools
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import Spec
from tasks.continual_imagenet import HEADS, ContinualImageNet, _unranked

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet32"
CLASSES, TRAIN, TEST = 5, 6, 2
PAIRS = CLASSES * (CLASSES - 1) // 2
STEPS, EPOCH = 6, 3  # of a task: two epochs of three batches of four
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Classes whose pictures say in their first pixel which they are: (class, number)."""
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(CLASSES):
        pictures = np.random.default_rng(k).integers(0, 256, (TRAIN + TEST, 4, 5, 3), np.uint8)
        pictures[:, 0, 0, 0], pictures[:, 0, 0, 1] = k, np.arange(TRAIN + TEST)
        np.save(folder / f"{k}.npy", pictures)
    return folder


@pytest.fixture
def make(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {
        "dataset": str(folder),
        "train_per_class": TRAIN,
        "test_per_class": TEST,
        "batch": 4,
        "epochs": 2,
        "normalisation": "raw",
        "evaluations_per_task": 3,
        "probe_size": 8,
    }
    return lambda **changed: ContinualImageNet(**(settings | changed))


def stream(task, steps, key=KEY, start=0) -> tuple:
    """The data, the state after, and the states and batches of all steps."""
    data = task.load()

    def body(state, clock):
        state, batch = task.next(state, clock, data)
        return state, (state.pair, batch)

    clocks = jnp.arange(start, start + steps, dtype=jnp.int32)
    state, (pairs, batches) = jax.jit(lambda: jax.lax.scan(body, task.init(key, data), clocks))()
    return data, state, np.asarray(pairs), jax.tree.map(np.asarray, batches)


def said(x):
    """Class and number of every picture, from its first pixel."""
    return x[..., 0, 0, 0].astype(int), x[..., 0, 0, 1].astype(int)


# The sequence of pairs


def test_every_number_is_the_pair_of_its_place_and_none_is_missing_for_a_thousand_classes():
    pairs = np.asarray(jax.jit(jax.vmap(_unranked))(jnp.arange(499_500, dtype=jnp.int32)))
    expected = [(low, high) for high in range(1000) for low in range(high)]
    np.testing.assert_array_equal(pairs, expected)


def test_the_pair_of_a_number_beyond_what_floats_hold_is_exact():
    high = np.arange(9000, 9100)
    before = high * (high - 1) // 2
    for number, pair in ((before, (0 * high, high)), (before - 1, (high - 2, high - 1))):
        found = jax.vmap(_unranked)(jnp.asarray(number, jnp.int32))
        np.testing.assert_array_equal(found, np.stack(pair, 1))


def test_no_pair_comes_twice_and_all_come(make):
    _, _, pairs, batches = stream(make(), PAIRS * STEPS)
    each = pairs.reshape(PAIRS, STEPS, 2)
    assert (each == each[:, :1]).all()
    assert {tuple(sorted(pair)) for pair in each[:, 0].tolist()} == {(a, b) for b in range(CLASSES) for a in range(b)}
    assert 0 < (each[:, 0, 0] > each[:, 0, 1]).sum() < PAIRS  # either class may have label 0
    np.testing.assert_array_equal(np.flatnonzero(batches.boundary), np.arange(PAIRS) * STEPS)


def test_the_sequence_follows_from_the_seed_alone(make):
    def pairs(task, key=KEY):
        return np.asarray(jax.jit(jax.vmap(functools.partial(task.pair, key)))(jnp.arange(PAIRS))).tolist()

    whole = pairs(make())
    others = {"batch": 3, "epochs": 1, "head": "multi", "normalisation": "unit", "train_per_class": 3, "probe_size": 2}
    assert pairs(make(**others, evaluations_per_task=1)) == whole
    assert pairs(make(), jax.random.key(4)) != whole


def test_mapped_over_lanes_every_lane_has_the_stream_of_its_own_key(make):
    task = make()
    data, keys = task.load(), jax.random.split(KEY, 2)

    def body(states, clock):
        states, batches = jax.vmap(task.next, in_axes=(0, None, None))(states, clock, data)
        return states, (batches.x, batches.y)

    states = jax.vmap(task.init, in_axes=(0, None))(keys, data)
    _, (x, y) = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(2 * STEPS, dtype=jnp.int32)))(states)
    for lane in range(2):
        alone = stream(task, 2 * STEPS, keys[lane])[3]
        np.testing.assert_array_equal(x[:, lane], alone.x)
        np.testing.assert_array_equal(y[:, lane], alone.y)


# What a step is shown


def test_every_picture_is_shown_once_an_epoch_in_a_new_order_with_its_label(make, folder):
    _, _, pairs, batches = stream(make(), 2 * STEPS)
    classes, numbers = said(batches.x)
    np.testing.assert_array_equal(classes, np.take_along_axis(pairs, batches.y, 1))
    assert batches.y.dtype == np.int32
    orders = []
    for epoch in range(4):
        own = slice(epoch * EPOCH, (epoch + 1) * EPOCH)
        shown = list(zip(classes[own].ravel().tolist(), numbers[own].ravel().tolist(), strict=True))
        pair = pairs[epoch * EPOCH].tolist()
        assert sorted(shown) == sorted((k, n) for k in pair for n in range(TRAIN))
        orders.append([(pair.index(k), n) for k, n in shown])
    assert len(set(map(tuple, orders))) == 4
    held = [np.load(folder / f"{k}.npy") for k in range(CLASSES)]
    for x, k, n in zip(batches.x[0], classes[0], numbers[0], strict=True):
        np.testing.assert_array_equal(x, held[k][n])


def test_pictures_left_over_wait_for_the_next_epoch(make):
    task = make(batch=5, epochs=6, evaluations_per_task=4)
    assert task.steps_per_epoch == 2
    assert task.schedule[:3] == (12, 3, 12)
    classes, numbers = said(stream(task, 12)[3].x)
    shown = [set(zip(classes[e : e + 2].ravel(), numbers[e : e + 2].ravel(), strict=True)) for e in range(0, 12, 2)]
    assert [len(epoch) for epoch in shown] == [10] * 6
    assert len(set.union(*shown)) == 2 * TRAIN


@pytest.mark.parametrize("head", HEADS)
def test_a_new_output_layer_is_asked_for_at_the_first_step_of_a_task_with_reset_only(make, head):
    task = make(head=head)
    _, _, pairs, batches = stream(task, 2 * STEPS)
    first = np.arange(2 * STEPS) % STEPS == 0
    np.testing.assert_array_equal(batches.boundary, first)
    np.testing.assert_array_equal(batches.reset_head, first & (head == "reset"))
    assert task.resets_head == (head == "reset")
    assert (batches.step_scale, task.selects, task.probe_in_training) == (None, False, False)
    if head != "multi":
        assert task.spec.outputs == 2
        assert batches.class_mask is None
        return
    assert task.spec.outputs == CLASSES
    np.testing.assert_array_equal(batches.y, said(batches.x)[0])
    for mask, pair in zip(batches.class_mask, pairs, strict=True):
        assert np.flatnonzero(mask).tolist() == sorted(pair)


def test_any_task_is_reproduced_without_what_came_before(make):
    whole = stream(make(), 3 * STEPS)[3]
    alone = stream(make(), STEPS, start=2 * STEPS)[3]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2 * STEPS :], b), whole, alone)


# What is measured


@pytest.mark.parametrize("head", ["reset", "multi"])
def test_accuracy_is_measured_on_all_test_pictures_and_counts_at_the_end(make, head):
    task = make(head=head)
    for steps, ends in ((2, False), (4, False), (6, True)):
        data, state, pairs, _ = stream(task, STEPS + steps)
        (one,) = task.evaluations(state, jnp.int32(STEPS + steps), data)
        assert (one.batches, one.selects) == (1, False)
        x, targets = one.batch(0)
        classes, numbers = said(np.asarray(x))
        pair = pairs[-1].tolist()
        shown = sorted(zip(classes.tolist(), numbers.tolist(), strict=True))
        assert shown == sorted((k, n) for k in pair for n in (TRAIN, TRAIN + 1))
        right = classes if head == "multi" else np.array([pair.index(k) for k in classes])
        assert set(targets) == {"test_accuracy", "test_accuracy_in_task"}
        np.testing.assert_array_equal(targets["test_accuracy_in_task"], right)
        np.testing.assert_array_equal(targets["test_accuracy"], right if ends else np.full(2 * TEST, -1))
        if head == "reset":
            assert one.class_mask is None
        else:
            assert np.flatnonzero(one.class_mask).tolist() == sorted(pair)


def test_the_probe_is_what_the_upcoming_task_begins_with(make):
    task = make()
    data, state, _, _ = stream(task, STEPS)
    probe = task.probe_batches(state, jnp.int32(STEPS), data)
    upcoming = stream(task, EPOCH, start=STEPS)[3].x.reshape(12, 4, 5, 3)
    assert set(probe) == {""}
    np.testing.assert_array_equal(probe[""], upcoming[:8])


def test_spec_schedule_and_note(make, folder):
    task = make()
    failure = {"online_accuracy": 0.5, "test_accuracy": 0.5, "test_accuracy_in_task": 0.5, "loss": math.log(2)}
    assert task.spec == Spec((4, 5, 3), 2, "cross_entropy", 4, failure)
    assert make(head="multi").spec.failure == task.spec.failure
    assert task.schedule == (STEPS, 2, STEPS, PAIRS * STEPS, None)
    assert task.pairs == PAIRS
    assert task.note == (
        f"pairs of 5 classes of {folder.name} (6 + 2 pictures a class), 2 epochs a task; "
        "output layer set to 0 at every change"
    )
    assert len({make(head=head).note for head in HEADS}) == 3
    assert make(dataset=f"{folder}/").note == task.note


def test_pixels_are_normalised_as_asked(make, folder):
    raw = stream(make(), 1)[3].x
    held = np.stack([np.load(folder / f"{k}.npy")[:TRAIN] for k in range(CLASSES)]).astype(np.float64)
    assert raw.max() > 200
    wanted = {
        "unit": raw / 255,
        "centred": raw / 128 - 1,
        "standardised": (raw - held.mean((0, 1, 2, 3))) / held.std((0, 1, 2, 3)),
    }
    for name, values in wanted.items():
        x = stream(make(normalisation=name), 1)[3].x
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, values, rtol=1e-5, atol=1e-6)


def test_a_channel_of_one_value_does_no_harm(make, tmp_path):
    for k in range(2):
        pictures = np.random.default_rng(k).integers(0, 256, (TRAIN + TEST, 4, 5, 3), np.uint8)
        pictures[..., 2] = 77
        np.save(tmp_path / f"{k}.npy", pictures)
    x = stream(make(dataset=str(tmp_path), normalisation="standardised"), 1)[3].x
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x[..., 2], 0)


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": "rest"}, ["head", "'rest'", "reset, keep, multi"]),
        ({"normalisation": "unity"}, ["normalisation", "'unity'", "raw, unit, centred, standardised"]),
        ({"batch": 0}, ["batch", "0", "from 1 up"]),
        ({"epochs": -1}, ["epochs", "-1", "from 1 up"]),
        ({"epochs": 1.5}, ["epochs", "1.5", "integers"]),
        ({"evaluations_per_task": True}, ["evaluations_per_task", "True", "integers"]),
        ({"probe_size": "all"}, ["probe_size", "'all'", "integers"]),
        ({"train_per_class": 0}, ["train_per_class", "0"]),
        ({"test_per_class": False}, ["test_per_class", "False"]),
    ],
)
def test_wrong_settings_are_one_line_at_once(make, settings, words):
    with pytest.raises(ValueError) as error:
        make(**settings)
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 13}, ["batch", "13", "12 pictures"]),
        ({"probe_size": 13}, ["probe_size", "13", "12 pictures"]),
        ({"train_per_class": 7}, ["train_per_class", "7 training and 2 test", "holds 8"]),
        ({"test_per_class": 8, "train_per_class": None}, ["test_per_class", "8"]),
        ({"evaluations_per_task": 4}, ["evaluations_per_task", "4", "6 steps", "2 epochs of 3"]),
        ({"evaluations_per_task": 12}, ["evaluations_per_task", "12", "6 steps"]),
    ],
)
def test_settings_that_the_data_do_not_allow_are_one_line(make, settings, words):
    task = make(**settings)
    with pytest.raises(ValueError) as error:
        _ = task.spec, task.schedule
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, (12, 5, 12)),  # all pictures of a pair at once; one evaluation an epoch
        ({"batch": 4}, (4, 5, 12)),
        ({"batch": 4, "epochs": 60}, (4, 20, 12)),  # the largest divisor of 180 steps below 25
        ({"train_per_class": 3}, (6, 5, 6)),
        ({"probe_size": 2, "evaluations_per_task": 1}, (12, 1, 2)),
    ],
)
def test_sizes_that_nobody_asks_for_fit_the_data(folder, tmp_path, monkeypatch, settings, sizes):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task = ContinualImageNet(**({"dataset": str(folder), "test_per_class": TEST, "epochs": 5} | settings))
    fitted = task.fitted
    assert (fitted.batch, fitted.evaluations_per_task, fitted.probe_size) == sizes
    assert (task.schedule, task.spec) == (fitted.schedule, fitted.spec)


def test_missing_pictures_are_said(tmp_path):
    for task in (ContinualImageNet(data_dir=str(tmp_path)), ContinualImageNet(dataset=str(tmp_path / "none"))):
        with pytest.raises(FileNotFoundError) as error:
            _ = task.spec
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)


# -- real pictures


@pytest.mark.skipif(not REAL.is_dir(), reason=f"REAL PICTURES NOT TESTED: no {REAL}")
def test_forty_real_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unpack = [sys.executable, REAL.parent / "unpack.py", tmp_path, REAL.name]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL)
    task = ContinualImageNet(dataset=REAL.name, data_dir=str(tmp_path))
    assert (task.pairs, task.spec.outputs, task.spec.input_shape) == (780, 2, (32, 32, 3))
    assert task.schedule == (2250, 90, 2250, 780 * 2250, None)
    assert task.note.startswith("pairs of 40 classes of imagenet32 (450 + 100 pictures a class), 250 epochs a task")
    data, _, _, batches = stream(task, 9)
    assert data.train.shape == (40, 450, 32, 32, 3)
    assert data.test.shape == (40, 100, 32, 32, 3)
    np.testing.assert_allclose(batches.x.mean((0, 1, 2, 3)), 0, atol=0.6)
    np.testing.assert_allclose(batches.x.std((0, 1, 2, 3)), 1, atol=0.4)
    assert batches.y.mean() == 0.5
