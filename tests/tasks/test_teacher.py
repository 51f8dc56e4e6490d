"""The teacher: the law of its targets, what another task changes, any task from its number, bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.teacher import Teacher

KEY = jax.random.key(4)
TASKS, STEPS, BATCH = 12, 5, 4


def stream(**fields):
    """The task, the state of every step, and what each showed, host arrays."""
    task = Teacher(change_every=STEPS, batch=BATCH, inputs=3, widths=(8,), **fields)

    def body(state, clock):
        state, batch = task.next(state, clock, ())
        return state, (state._replace(key=jax.random.key_data(state.key)), batch)

    clocks = jnp.arange(TASKS * STEPS, dtype=jnp.int32)
    scan = jax.jit(lambda clocks: jax.lax.scan(body, task.init(KEY, ()), clocks)[1])
    return task, *jax.tree.map(np.asarray, scan(clocks))


@pytest.mark.parametrize("change", ["redraw", "drift", "offset"])
def test_targets_are_the_teachers_and_a_task_changes_what_it_says(change):
    frequency, examples = (3.0 if change == "redraw" else 0.0), (6 if change == "offset" else None)
    task, states, batches = stream(change=change, frequency=frequency, examples=examples, outputs=2)
    first, last = states.weights
    y = np.einsum("sbi,sio->sbo", np.tanh(np.einsum("sbi,sio->sbo", batches.x, first)), last)
    expected = (np.sin(3 * y) if frequency else y) + states.offset[:, None]
    np.testing.assert_allclose(batches.y, expected, rtol=1e-4, atol=1e-5)
    assert np.flatnonzero(batches.boundary).tolist() == list(range(0, TASKS * STEPS, STEPS))
    teachers, offsets = first[::STEPS], states.offset[::STEPS]
    for step in range(TASKS * STEPS):  # nothing changes within a task
        np.testing.assert_array_equal(first[step], teachers[step // STEPS])
        np.testing.assert_array_equal(states.offset[step], offsets[step // STEPS])
    moves = np.abs(np.diff(teachers, axis=0)).max((1, 2)) > 0
    assert moves.all() if change in ("redraw", "drift") else not moves.any()
    assert (len({tuple(each) for each in offsets}) == TASKS) == (change == "offset") and np.abs(offsets).max() < 10
    shown = {tuple(row) for row in batches.x.reshape(-1, 3)}
    assert len(shown) == (examples or TASKS * STEPS * BATCH)
    assert examples is None or shown == {tuple(row) for row in states.inputs[0]}
    if change != "drift":
        number = 7 if change == "redraw" else 0
        np.testing.assert_allclose(teachers[7], task.teacher(KEY, number)[0], rtol=1e-6)


def test_outputs_have_mean_zero_and_variance_one_over_teachers():
    task = Teacher(inputs=10, widths=(30,))
    x = jax.random.normal(jax.random.key(1), (50, 10))

    def outputs(key):
        return task.targets(task.init(key, ())._replace(weights=task.teacher(key, 0)), x)

    keys = jax.random.split(KEY, 2000)
    y = np.asarray(jax.jit(jax.vmap(outputs))(keys))
    assert abs(y.mean()) < 0.05
    assert y.var() == pytest.approx(1, abs=0.08)


def test_a_drifting_teacher_keeps_its_law_and_is_like_the_one_before():
    task = Teacher(inputs=20, widths=(500,), change="drift", drift=0.6)
    state, found = task.init(KEY, ()), []
    for number in range(4):
        weights, _ = task._changed(state, jnp.int32(number))
        state = state._replace(weights=weights)
        found.append(np.asarray(weights[0]).ravel() * np.sqrt(20))
    assert [each.std() for each in found] == pytest.approx([1] * 4, abs=0.03)
    correlations = np.corrcoef(found)
    assert correlations[0, 1:].tolist() == pytest.approx([0.8, 0.64, 0.512], abs=0.03)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"change": "walk"}, "change: got 'walk', allowed are redraw, drift, offset, none"),
        ({"drift": 1.5}, "drift: got 1.5, allowed are numbers from 0 to 1"),
        ({"offset": -1.0}, "offset: got -1.0, allowed are numbers from 0 on"),
        ({"frequency": float("inf")}, "frequency: got inf, allowed are numbers from 0 on"),
        ({"offset": float("nan")}, "offset: got nan"),
        ({"widths": (0,)}, r"widths: got \(0,\), allowed are positive integers"),
        ({"widths": 5}, "widths: got 5"),
        ({"examples": 0}, "examples: got 0, allowed are integers from 1 up"),
        ({"batch": True}, "batch: got True"),
        ({"abruptness": 2}, "abruptness: got 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        Teacher(**fields)


def test_a_diverged_lane_counts_as_the_mean_of_all_targets():
    assert Teacher().spec.failure == {"squared_error": 1.0}
    assert Teacher(change="offset", offset=3.0, frequency=2.0).spec.failure == {"squared_error": 3.5}
