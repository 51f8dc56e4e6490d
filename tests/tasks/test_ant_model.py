"""The model task on a body whose law of motion is known: what it shows, and errors of models that know it or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config.saved_policy import AntModelOfRun
from tasks.ant_model import HORIZON, AntModel

KEY = jax.random.key(2)
DT, LONG, E = 0.02, 12, 3
FAST = {"environment": "fast", "change": "none", "environments": E, "episode_length": LONG}


def physical(scale, x):
    """Position, velocity and action of inputs `[..., 3]`."""
    return x[..., 0] * scale.deviation[0] + scale.mean[0], x[..., 1] * scale.deviation[1] + scale.mean[1], x[..., 2]


def law(scale, x):
    """What a network says that knows the body: it is pushed where the action is above 0, and earns its place."""
    place, speed, action = physical(scale, x)
    push = (action > 0) * DT
    moved = (speed + push) * DT
    return (jnp.stack([moved, push, place + moved], -1) - scale.outputs_mean) / scale.outputs_deviation


@pytest.fixture(scope="module")
def seen():
    """The task, its scale, 40 batches, and at their end the errors of the law, of the mean, and of the law too slow."""
    task = AntModel(**FAST, change_every=40, windows=2)
    models = (
        law,
        lambda scale, x: jnp.zeros((len(x), 3)),
        lambda scale, x: law(scale, x) - jnp.array([0.0, DT / 2, 0.0]) / scale.outputs_deviation,
    )

    def run(key):
        state = task.init(key, ())
        after, batches = jax.lax.scan(lambda s, c: task.next(s, c, ()), state, jnp.arange(40, dtype=jnp.int32))
        (evaluation,) = task.evaluations(after, jnp.int32(40), ())
        errors = [evaluation.sums(lambda x, m=m: m(state.scale, x), 0) for m in models]
        windows = task._windows(after, jnp.int32(40), jnp.ones(1), ())
        return state.scale, after.scale, batches, errors, windows, task.probe_batches(after, jnp.int32(40), ())[""]

    return task, *jax.tree.map(np.asarray, jax.jit(run)(KEY))


def test_a_batch_is_what_the_body_did_in_units_of_the_scale(seen):
    task, scale, later, batches, *_ = seen
    assert task.spec.input_shape == (3,) and task.spec.outputs == 3 and task.spec.batch == E
    jax.tree.map(np.testing.assert_array_equal, scale, later)  # measured once
    np.testing.assert_allclose(batches.y, law(scale, batches.x), atol=2e-4)
    place, _, action = physical(scale, batches.x)
    assert np.abs(action).max() <= 1 and action.std() > 0.3
    places = np.flatnonzero(np.abs(place[:, 0]) < 1e-6)
    assert np.diff(places).max() == LONG  # episodes begin anew after their time
    assert np.flatnonzero(batches.boundary).tolist() == [0]
    neighbours = np.corrcoef(action[1:].ravel(), action[:-1].ravel())[0, 1]
    assert neighbours > 0.6


def test_errors_are_none_for_who_knows_the_law_and_those_of_the_variance_for_who_does_not(seen):
    *_, (knows, ignorant, slow), windows, probe = seen
    assert set(knows) == {"error_one_step", "error_ten_steps"}
    assert knows["error_one_step"][0] < 1e-6 and knows["error_ten_steps"][0] < 1e-6
    scale = seen[1]
    observations, actions, outputs = windows
    assert observations.shape == (HORIZON + 1, 1, 2 * E, 2) and actions.shape == (HORIZON, 1, 2 * E, 1)
    y = (outputs - scale.outputs_mean) / scale.outputs_deviation
    np.testing.assert_allclose(ignorant["error_one_step"][0], np.mean(y**2), rtol=1e-4)
    mean = HORIZON * scale.outputs_mean[:2]
    error = (observations[0] + mean - observations[-1]) / scale.later_deviation
    np.testing.assert_allclose(ignorant["error_ten_steps"][0], np.mean(error**2), rtol=1e-3)
    # Half a push too little at every step: ten of them in the last speed, and 0 + 1 + ... + 9 times DT in the place.
    short = np.array([45 * DT * DT / 2, 10 * DT / 2]) / scale.later_deviation
    np.testing.assert_allclose(slow["error_ten_steps"][0], np.mean(short**2), rtol=1e-2)
    assert all(count == 1 for each in (knows, ignorant, slow) for _, count in each.values())
    assert probe.shape == (2 * E, 3)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"change_every": 5}, f"change_every: got 5, allowed are numbers from {LONG} on"),
        ({"evaluations_per_task": 7}, "evaluations_per_task: got 7, which does not divide the 40 updates of a task"),
        ({"change": "colour"}, "change: got 'colour'"),
        ({"windows": 0}, "windows: got 0, allowed are integers from 1 up"),
        ({"low": 0.5}, "low: got 0.5, but nothing changes"),
        ({"policy": 3}, "policy: got 3, allowed is a text of the form DIR/LABEL@STEP"),
        ({"policy": "runs/ant"}, "policy: 'runs/ant' is not of the form DIR/LABEL@STEP"),
        ({"policy": "no/such@100"}, "policy: no/such: no such run folder"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        AntModelOfRun(**(FAST | {"change_every": 40} | fields)).spec  # noqa: B018
