"""Relabelled MNIST: the law of the labels, any task from its number, what is measured when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.relabelled_mnist import RelabelledMNIST
from tests.tasks.streams import stream

EXAMPLES, TEST, PIXELS, CLASSES = 40, 20, 12, 10


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """Images whose first pixel tells which image it is."""
    folder = tmp_path_factory.mktemp("images")
    train = np.tile(np.arange(EXAMPLES, dtype=np.uint8)[:, None], (1, PIXELS))
    np.savez(
        folder / "tiny.npz",
        train_images=train.reshape(EXAMPLES, 3, 4),
        train_labels=np.arange(EXAMPLES) % CLASSES,
        test_images=100 + train[:TEST].reshape(TEST, 3, 4),
        test_labels=np.arange(TEST) % CLASSES,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture
def make(folder):
    small = {"dataset": "tiny", "data_dir": str(folder), "probe_size": 5, "evaluation_size": 8}
    return lambda labels="permuted", **fields: RelabelledMNIST(labels=labels, **(small | fields))


def numbers(batches):
    """Which image of the file every input is."""
    return np.rint(np.asarray(batches.x)[..., 0] * 255).astype(int)


def test_classes_are_permuted_anew_in_every_task_and_pixels_are_not(make):
    task, key = make(batch=4), jax.random.key(1)
    _, _, batches = stream(task, key, 3 * EXAMPLES // 4)
    names = np.stack([task.relabelling(key, t) for t in range(3)])
    assert all(sorted(each) == list(range(CLASSES)) for each in names) and len({tuple(each) for each in names}) == 3
    seen = numbers(batches).reshape(3, EXAMPLES)
    assert all(sorted(each) == list(range(EXAMPLES)) for each in seen)
    np.testing.assert_array_equal(batches.y.reshape(3, EXAMPLES), np.take_along_axis(names, seen % CLASSES, 1))
    assert np.flatnonzero(batches.boundary).tolist() == [0, 10, 20]


def test_a_class_is_called_everything_equally_often(make):
    task, draws = make(), 4000
    names = np.asarray(jax.vmap(lambda t: task.relabelling(jax.random.key(3), t))(jnp.arange(draws)))
    counts = np.stack([np.bincount(column, minlength=CLASSES) for column in names.T])
    assert ((counts - draws / CLASSES) ** 2).sum() / (draws / CLASSES) < 144  # 81 degrees of freedom: 1 in 50,000


def test_random_labels_stay_for_a_task_and_say_nothing_of_the_image(make):
    task, key = make("random", examples=20, batch=5, change_every=12), jax.random.key(1)
    data, state, batches = stream(task, key, 36)
    images, y = numbers(batches).reshape(3, -1), np.asarray(batches.y).reshape(3, -1)
    files = np.rint(np.asarray(data.train_x)[:, 0]).astype(int)
    assert len(set(files)) == 20 and all(set(each) == set(files) for each in images)
    for t in range(3):  # three passes a task: every image has one label in all of them
        label = dict(zip(files, np.asarray(task.relabelling(key, t)), strict=True))
        np.testing.assert_array_equal(y[t], [label[image] for image in images[t]])
    np.testing.assert_array_equal(state.permutation, task.relabelling(key, 2))
    drawn = np.asarray(jax.vmap(lambda t: task.relabelling(key, t))(jnp.arange(2000)))
    counts = np.bincount(drawn.ravel(), minlength=CLASSES)
    assert ((counts - 4000) ** 2).sum() / 4000 < 34  # 9 degrees of freedom: 1 in 10,000
    assert (drawn[1:] == drawn[:-1]).mean() == pytest.approx(0.1, abs=0.01)  # independent of the task before


@pytest.mark.parametrize("labels", ["permuted", "random"])
def test_any_task_is_rebuilt_from_its_number(make, labels):
    task, key = make(labels, batch=2, change_every=8), jax.random.key(2)
    _, _, batches = stream(task, key, 24)
    _, _, rebuilt = stream(task, key, 8, clock=16)
    for whole, part in zip(jax.tree.leaves(batches), jax.tree.leaves(rebuilt), strict=True):
        np.testing.assert_array_equal(whole[16:], part)


def test_held_out_images_have_the_names_of_the_tasks_finished(make):
    task, key = make(), jax.random.key(7)
    data = task.load()
    state = task.init(key, data)
    for finished in (0, 12):
        for one, ago in zip(
            task.evaluations(state, jnp.int32((finished + 1) * EXAMPLES), data), (0, 1, 10), strict=True
        ):
            x, targets = one.batch(0)
            (y,) = targets.values()
            np.testing.assert_array_equal(np.rint(x * 255), data.test_x)
            names = np.asarray(task.relabelling(key, max(finished - ago, 0)))
            np.testing.assert_array_equal(y, names[data.test_y] if finished >= ago else -1)


def test_random_labels_are_evaluated_on_every_training_image_once(make, monkeypatch):
    monkeypatch.setattr("tasks.relabelled_mnist._SHOWN_AT_ONCE", 15)
    task, key = make("random"), jax.random.key(7)
    data = task.load()
    (one,) = task.evaluations(task.init(key, data), jnp.int32(3 * EXAMPLES), data)
    assert one.batches == 3
    seen = [one.batch(i) for i in range(3)]
    images = np.rint(np.concatenate([x for x, _ in seen])[:, 0] * 255).astype(int)
    y = np.concatenate([targets["train_accuracy"] for _, targets in seen])
    assert images[y >= 0].tolist() == list(range(EXAMPLES))
    np.testing.assert_array_equal(y[y >= 0], task.relabelling(key, 2))


@pytest.mark.parametrize("labels", ["permuted", "random"])
def test_pictures_are_the_same_pixels_as_convolutional_networks_take_them(make, labels):
    flat, pictures = make(labels), make(labels, pictures=True)
    assert pictures.spec.input_shape == (3, 4, 1)
    data, key = flat.load(), jax.random.key(7)
    state, clock = flat.init(key, data), jnp.int32(EXAMPLES)
    both = [
        [
            t.probe_batches(state, clock, data)[""],
            t.evaluations(state, clock, data)[0].batch(0)[0],
            t._inputs(data.train_x[:4]),
        ]
        for t in (flat, pictures)
    ]
    for one, two in zip(*both, strict=True):
        np.testing.assert_array_equal(np.reshape(one, (-1, 3, 4, 1)), two)


def test_labels_of_one_class_cannot_be_others(folder):
    x = np.zeros((4, 3, 4), np.uint8)
    labels = np.zeros(4, int)
    np.savez(folder / "one.npz", train_images=x, train_labels=labels, test_images=x, test_labels=labels)
    with pytest.raises(ValueError, match="dataset: 'one' holds 1 class, at least 2 are needed"):
        RelabelledMNIST(dataset="one", data_dir=str(folder)).spec  # noqa: B018


def test_probe_is_what_the_upcoming_task_begins_with(make):
    task, key = make("random", examples=20), jax.random.key(8)
    data, state, _ = stream(task, key, 20)
    probe = task.probe_batches(state, jnp.int32(20), data)[""]
    np.testing.assert_allclose(probe, stream(task, key, 5, clock=20)[2].x[:, 0], rtol=1e-6)


def test_what_a_diverged_lane_counts_as(make):
    permuted, random = make().spec.failure, make("random").spec.failure
    assert set(permuted) > {"online_accuracy", "test_accuracy", "accuracy_ten_tasks_ago"}
    assert set(random) == {"online_accuracy", "train_accuracy", "loss"} and random["train_accuracy"] == 0.1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"labels": "shuffled"}, "labels: got 'shuffled', allowed are permuted, random"),
        ({"examples": 0}, "examples: got 0, allowed are integers from 1 up"),
        ({"examples": 41}, "examples: got 41, 'tiny' allows 1 to 40"),
        ({"examples": 4, "probe_size": 5}, "probe_size: got 5, 4 training images allow 1 to 4"),
        ({"examples": 6, "batch": 7}, "batch: got 7, 6 training images allow 1 to 6"),
    ],
)
def test_wrong_fields(make, fields, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        make(**fields).spec  # noqa: B018
