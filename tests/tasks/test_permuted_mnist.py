"""Online permuted MNIST: the law of the stream, any task from its number, what is measured when."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.permuted_mnist import PermutedMNIST
from tests.tasks.streams import run, stream

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "tfds"
EXAMPLES, TEST, PIXELS = 40, 20, 12


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """Images whose every pixel tells which image and which pixel it is."""
    folder = tmp_path_factory.mktemp("images")
    train = (np.arange(EXAMPLES)[:, None] * 6 + np.arange(PIXELS) * 0).astype(np.uint8)
    train[:, 1:] = np.arange(1, PIXELS)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "tiny.npz",
        train_images=train.reshape(EXAMPLES, 3, 4),
        train_labels=np.arange(EXAMPLES) % 10,
        test_images=rng.integers(0, 256, (TEST, 3, 4), np.uint8),
        test_labels=np.arange(TEST) % 10,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture
def make(folder):
    small = {"dataset": "tiny", "data_dir": str(folder), "probe_size": 5, "evaluation_size": 8}
    return lambda **fields: PermutedMNIST(**(small | fields))


def image_numbers(task, key, batches, task_of_step):
    """Which training image every row is, read back through the task's permutation."""
    permutations = {t: np.asarray(task.permutation(key, t)) for t in set(task_of_step)}
    numbers = []
    for x, t in zip(np.asarray(batches.x), task_of_step, strict=True):
        image = np.empty_like(x)
        image[:, permutations[t]] = x
        np.testing.assert_array_equal(np.rint(image[:, 1:] * 255), np.tile(np.arange(1, PIXELS), (len(x), 1)))
        numbers.append(np.rint(image[:, 0] * 255 / 6).astype(int))
    return np.array(numbers)


def test_every_image_once_per_task_and_its_own_label(make):
    task, key = make(), jax.random.key(1)
    _, _, batches = stream(task, key, 3 * EXAMPLES)
    assert batches.x.shape == (3 * EXAMPLES, 1, PIXELS)
    assert batches.x.dtype == jnp.float32
    assert batches.y.dtype == jnp.int32
    numbers = image_numbers(task, key, batches, np.arange(3 * EXAMPLES) // EXAMPLES)
    np.testing.assert_array_equal(batches.y, numbers % 10)
    by_task = numbers.reshape(3, EXAMPLES)
    for order in by_task:
        assert sorted(order) == list(range(EXAMPLES))
    assert not np.array_equal(by_task[0], by_task[1])
    boundaries = np.flatnonzero(batches.boundary)
    assert boundaries.tolist() == [0, EXAMPLES, 2 * EXAMPLES]
    assert not np.any(batches.reset_head)
    assert batches.class_mask is None


def test_pixels_are_bytes_over_255(make):
    task, key = make(), jax.random.key(1)
    data, _, batches = stream(task, key, 1)
    permutation, first = task.permutation(key, 0), task.order(key, 0)[0]
    expected = np.asarray(data.train_x)[first][permutation].astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(batches.x[0, 0], expected, rtol=1e-7)
    assert data.train_x.dtype == np.uint8


def test_any_task_is_rebuilt_from_its_number(make):
    task, key = make(), jax.random.key(2)
    _, state, batches = stream(task, key, 8 * EXAMPLES)
    _, rebuilt_state, rebuilt = stream(task, key, EXAMPLES, clock=7 * EXAMPLES)
    for whole, part in zip(jax.tree.leaves(batches), jax.tree.leaves(rebuilt), strict=True):
        np.testing.assert_array_equal(whole[7 * EXAMPLES :], part)
    np.testing.assert_array_equal(state.permutation, rebuilt_state.permutation)
    np.testing.assert_array_equal(state.permutation, task.permutation(key, 7))
    np.testing.assert_array_equal(state.order, task.order(key, 7))


def test_every_task_is_permuted_anew_the_first_too(make):
    task = make()
    permutations = {tuple(map(int, task.permutation(jax.random.key(k), t))) for k in range(2) for t in range(5)}
    assert len(permutations) == 10
    assert tuple(range(PIXELS)) not in permutations
    assert all(sorted(p) == list(range(PIXELS)) for p in permutations)


def test_a_pixel_goes_everywhere_equally_often(make):
    task, draws = make(), 6000
    permutations = np.asarray(jax.vmap(lambda t: task.permutation(jax.random.key(3), t))(jnp.arange(draws)))
    counts = np.stack([np.bincount(column, minlength=PIXELS) for column in permutations.T])
    expected = draws / PIXELS
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 190  # 121 degrees of freedom: exceeded once in 10,000
    # Independent of the task before: the two agree in one pixel on average.
    agreements = (permutations[1:] == permutations[:-1]).sum(1).mean()
    assert agreements == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(("batch", "change_every"), [(1, 100), (7, 12), (8, 5), (7, 3)])
def test_passes_wrap_around_and_short_tasks_stop_early(make, batch, change_every):
    task, key = make(batch=batch, change_every=change_every), jax.random.key(4)
    steps = 3 * change_every
    _, _, batches = stream(task, key, steps)
    assert task.examples_per_task == batch * change_every
    assert np.flatnonzero(batches.boundary).tolist() == [0, change_every, 2 * change_every]
    numbers = image_numbers(task, key, batches, np.arange(steps) // change_every)
    per_pass = EXAMPLES // batch
    orders = []
    for start in range(0, steps, change_every):
        for begin in range(start, start + change_every, per_pass):
            seen = numbers[begin : min(begin + per_pass, start + change_every)].ravel()
            assert len(set(seen)) == len(seen)  # never twice in a pass
            orders.append(tuple(seen[:8]))
    assert len(set(orders)) == len(orders)  # every pass in its own order


def test_lanes_of_one_key_see_one_stream(make):
    task = make()
    data = task.load()
    keys = jnp.stack([jax.random.key(5), jax.random.key(5), jax.random.key(6)])
    states = jax.vmap(lambda key: task.init(key, data))(keys)
    lanes = jax.vmap(lambda state: run(task, state, jnp.int32(0), data, EXAMPLES + 3)[1])(states)
    np.testing.assert_array_equal(lanes.x[0], lanes.x[1])
    np.testing.assert_array_equal(lanes.y[0], lanes.y[1])
    assert not np.array_equal(lanes.x[0], lanes.x[2])
    alone = stream(task, keys[2], EXAMPLES + 3)[2]
    np.testing.assert_array_equal(lanes.x[2], alone.x)


def test_the_redraw_stays_a_branch_under_vmap(make):
    task = make()
    data = task.load()
    states = jax.vmap(lambda key: task.init(key, data))(jax.random.split(jax.random.key(0), 2))
    step = jax.vmap(lambda state, clock: task.next(state, clock, data), in_axes=(0, None))
    assert any(e.primitive.name == "cond" for e in jax.make_jaxpr(step)(states, jnp.int32(1)).jaxpr.eqns)


def test_evaluation_shows_the_finished_task_and_earlier_ones(make):
    task, key = make(), jax.random.key(7)
    data = task.load()
    state = task.init(key, data)
    for finished in (0, 1, 12):
        batches = {}
        for one in task.evaluations(state, jnp.int32((finished + 1) * EXAMPLES), data):
            x, targets = one.batch(0)
            batches |= {metric: (x, y) for metric, y in targets.items()}
        assert list(batches) == ["test_accuracy", "accuracy_one_task_ago", "accuracy_ten_tasks_ago"]
        for (x, y), ago in zip(batches.values(), (0, 1, 10), strict=True):
            assert x.shape == (8, PIXELS)
            if finished < ago:
                assert np.all(y == -1)
                continue
            np.testing.assert_array_equal(y, data.test_y)
            expected = np.asarray(data.test_x)[:, task.permutation(key, finished - ago)] / np.float32(255)
            np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_held_out_images_are_always_the_same_and_from_the_test_set(make):
    first, second = make().load(), make(batch=2).load()
    np.testing.assert_array_equal(first.test_x, second.test_x)
    everything = make(evaluation_size=TEST).load()
    np.testing.assert_array_equal(everything.test_x[:8], first.test_x)
    assert sorted(everything.test_y.tolist()) == sorted(np.arange(TEST) % 10)


def test_probe_is_what_the_upcoming_task_begins_with(make):
    task, key = make(), jax.random.key(8)
    data, state, _ = stream(task, key, EXAMPLES)
    probe = task.probe_batches(state, jnp.int32(EXAMPLES), data)[""]
    upcoming = stream(task, key, 5, clock=EXAMPLES)[2]
    np.testing.assert_allclose(probe, upcoming.x[:, 0], rtol=1e-6)  # pixels / 255, compiled twice


def test_spec_and_schedule(make):
    spec = make(batch=4).spec
    assert (spec.input_shape, spec.outputs, spec.loss, spec.batch) == ((PIXELS,), 10, "cross_entropy", 4)
    assert spec.failure["online_accuracy"] == spec.failure["accuracy_ten_tasks_ago"] == 0.1
    assert spec.failure["loss"] == pytest.approx(math.log(10))
    assert make().schedule == (EXAMPLES, EXAMPLES, EXAMPLES, None, None)
    assert make(batch=7, change_every=9).schedule == (9, 9, 9, None, None)
    silent = make(evaluate=False)
    assert silent.schedule == (EXAMPLES, None, EXAMPLES, None, None)
    assert silent.evaluations(None, None, None) == ()


def test_sizes_that_nobody_asks_for_fit_the_data(folder):
    fitted = PermutedMNIST("tiny", str(folder)).fitted
    assert (fitted.probe_size, fitted.evaluation_size) == (EXAMPLES, TEST)
    assert len(PermutedMNIST("tiny", str(folder)).load().test_x) == TEST


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("batch", 1.5), ("change_every", 0), ("change_every", "60000"), ("evaluation_size", -1)]
    + [("probe_size", True), ("evaluate", "yes")],
)
def test_wrong_fields(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: got {value!r}, allowed are [^\n]*$"):
        PermutedMNIST(**{field: value})


@pytest.mark.parametrize(("field", "limit"), [("batch", EXAMPLES), ("probe_size", EXAMPLES), ("evaluation_size", TEST)])
def test_sizes_beyond_the_data(make, field, limit):
    make(**{field: limit}).load()
    task = make(**{field: limit + 1})
    for ask in (task.load, lambda: task.spec, lambda: task.schedule):
        with pytest.raises(ValueError, match=rf"^{field}: got {limit + 1}, 'tiny' allows 1 to {limit}$"):
            ask()


def test_missing_data_is_said_before_anything_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tasks\.prepare mnist"):
        PermutedMNIST(data_dir=str(tmp_path)).load()


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason=f"REAL MNIST NOT TESTED: no {REAL}/mnist")
def test_real_mnist():
    task, key = PermutedMNIST(data_dir=str(REAL)), jax.random.key(0)
    assert task.spec.input_shape == (784,)
    assert task.schedule == (60000, 60000, 60000, None, None)
    data, _, batches = stream(task, key, 50, clock=799 * 60000)
    assert data.train_x.shape == (60000, 784)
    assert data.test_x.shape == (1000, 784)
    np.testing.assert_array_equal(batches.y[:, 0], data.train_y[task.order(key, 799)[:50]])
    assert float(batches.x.min()) == 0
    assert float(batches.x.max()) == 1
    assert 0.09 < float(batches.x.mean()) < 0.17
