"""The stream of slowly-changing regression against a separate computation of the published rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.slowly_changing_regression import SlowlyChangingRegression

KEYS = jax.vmap(jax.random.key)(jnp.arange(4, dtype=jnp.uint32))


@functools.cache
def _scan(task, length):
    def chunk(state, start):
        def body(state, clock):
            state, batch = task.next(state, clock, ())
            return state, (batch.x[0], batch.y[0, 0], batch.boundary)

        return jax.lax.scan(body, state, start + jnp.arange(length, dtype=jnp.int32))

    return jax.jit(jax.vmap(chunk, in_axes=(0, None)))


def stream(task, steps, chunk, keys=KEYS):
    """`x` [lane, step, 20], `y` and `boundary` [lane, step], and the target network."""
    first = state = jax.vmap(task.init, in_axes=(0, None))(keys, ())
    parts = []
    for start in range(0, steps, chunk):
        state, part = _scan(task, chunk)(state, start)
        parts.append(part)
    x, y, boundary = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return x, y, boundary, jax.tree.map(np.asarray, first.target)


@pytest.fixture(scope="module")
def redraw():
    return stream(SlowlyChangingRegression(change_every=250), 2000, 250)


def published_targets(weights, bias, output, output_bias, x):
    """`y` of inputs `[n, 20]`, and which units fire: loops over units, in float64."""
    y, fires = np.full(len(x), float(output_bias)), np.zeros((len(x), len(bias)), bool)
    for i in range(len(bias)):
        w, b = weights[:, i].astype(float), float(bias[i])
        s = (20 - w.sum() + b) / 2
        tau = 0.7 * 21 - s
        fires[:, i] = x @ w + b > tau
        y += output[i] * fires[:, i]
    return y, fires


def test_targets_follow_the_published_rule(redraw):
    x, y, _, target = redraw
    for lane in range(len(x)):
        mine = [part[lane] for part in target]
        np.testing.assert_array_equal(y[lane], published_targets(*mine, x[lane])[0])
    assert len(np.unique(y)) > 5


def test_the_target_network_is_of_signs_and_differs_between_seeds(redraw):
    target = redraw[3]
    assert target.weights.shape == (4, 20, 100)
    assert target.bias.shape == target.output.shape == (4, 100)
    assert all(set(np.unique(part)) == {-1.0, 1.0} for part in (target.weights, target.bias, target.output))
    assert set(np.unique(target.output_bias)) <= {-1.0, 1.0}
    assert abs(target.weights.mean()) < 4 / np.sqrt(target.weights.size)
    assert not np.array_equal(target.weights[0], target.weights[1])


def test_slow_bits_stay_within_a_task_and_are_redrawn_between(redraw):
    x, _, boundary, _ = redraw
    slow = x[..., :15].reshape(4, 8, 250, 15)
    assert (slow == slow[:, :, :1]).all()
    np.testing.assert_array_equal(boundary, np.broadcast_to(np.arange(2000) % 250 == 0, boundary.shape))
    tasks = slow[:, :, 0]
    assert len(np.unique(tasks.reshape(-1, 15), axis=0)) == 32  # two equal among 32 draws of 2^15: 1.5 %
    flips = (tasks[:, 1:] != tasks[:, :-1]).sum(-1)
    assert abs(flips.mean() - 7.5) < 4 * np.sqrt(15 / 4 / flips.size)


def test_flip_one_toggles_exactly_one_bit_any_of_them():
    task = SlowlyChangingRegression(variant="flip_one", change_every=25)
    x, y, _, target = stream(task, 2000, 250)
    slow = x[..., :15].reshape(4, 80, 25, 15)
    assert (slow == slow[:, :, :1]).all()
    flipped = slow[:, 1:, 0] != slow[:, :-1, 0]
    assert (flipped.sum(-1) == 1).all()
    assert flipped.any((0, 1)).all()  # 316 flips miss a given bit once in 3e9 runs
    np.testing.assert_array_equal(y[0], published_targets(*(part[0] for part in target), x[0])[0])


def test_fast_bits_are_fair_and_independent(redraw):
    fast = redraw[0][..., 15:]
    assert set(np.unique(fast)) == {0.0, 1.0}
    n = fast[..., 0].size
    assert (abs(fast.mean((0, 1)) - 0.5) < 4 * 0.5 / np.sqrt(n)).all()
    signs = (2 * fast - 1).reshape(4, 2000, 5)
    products = np.einsum("lti,ltj->ij", signs, signs) / n - np.eye(5)
    assert abs(products).max() < 4.5 / np.sqrt(n)
    for lag in (1, 6, 32, 192):  # a word holds six steps, a block 192
        assert abs(np.mean(signs[:, lag:] * signs[:, :-lag])) < 4 / np.sqrt(5 * 4 * (2000 - lag)), lag
    settings = np.bincount((fast @ 2 ** np.arange(5)).astype(int).ravel(), minlength=32)
    assert ((settings - n / 32) ** 2 / (n / 32)).sum() < 75  # chi-squared of 31 degrees: exceeded once in 50,000


def test_the_stream_does_not_depend_on_chunks_or_lanes(redraw):
    task = SlowlyChangingRegression(change_every=250)
    x, y, _, _ = stream(task, 2000, 100, KEYS[2:3])
    np.testing.assert_array_equal(x[0], redraw[0][2])
    np.testing.assert_array_equal(y[0], redraw[1][2])


def test_any_block_is_reproduced_without_what_came_before():
    """Where a task and a block of random bits begin together, the fresh state is as good as the one that ran."""
    task = SlowlyChangingRegression(change_every=192)
    x, y, _, _ = stream(task, 768, 192)
    fresh = jax.vmap(task.init, in_axes=(0, None))(KEYS, ())
    _, (later_x, later_y, _) = _scan(task, 192)(fresh, 576)
    np.testing.assert_array_equal(later_x, x[:, 576:])
    np.testing.assert_array_equal(later_y, y[:, 576:])


@pytest.mark.parametrize("variant", ["redraw", "flip_one"])
def test_the_probe_shows_the_upcoming_task_and_changes_nothing(variant):
    task = SlowlyChangingRegression(variant=variant, change_every=250)
    state = jax.vmap(task.init, in_axes=(0, None))(KEYS[:2], ())
    probe = jax.jit(jax.vmap(lambda *asked: task.probe_batches(*asked)[""], in_axes=(0, None, None)))
    next_step = jax.jit(jax.vmap(task.next, in_axes=(0, None, None)))
    for clock in (0, 250, 500):
        seen = np.asarray(probe(state, clock, ()))
        state, batch = next_step(state, clock, ())
        assert seen.shape == (2, 32, 20)
        assert len(np.unique(seen[0], axis=0)) == 32
        for lane in range(2):
            np.testing.assert_array_equal(seen[lane, :, :15], np.repeat(batch.x[lane, :, :15], 32, axis=0))
        np.testing.assert_array_equal(probe(state, clock + 1, ()), seen)  # the same within the task


def test_about_three_percent_of_units_fire_and_the_target_varies_as_published():
    """Over independent bits, against a simulation of the rule with numpy's own random numbers."""
    rng = np.random.default_rng(0)
    fires, variances = [], []
    for _ in range(200):
        w, b, v = (rng.choice([-1.0, 1.0], shape) for shape in ((20, 100), 100, 100))
        y, fired = published_targets(w, b, v, rng.choice([-1.0, 1.0]), rng.integers(0, 2, (300, 20)))
        fires.append(fired.mean())
        variances.append(y.var())
    fires, variances = np.array(fires), np.array(variances)
    assert 0.025 < fires.mean() < 0.035
    assert abs(variances.mean() - 2.8) < 0.4

    keys = jax.vmap(jax.random.key)(jnp.arange(200, dtype=jnp.uint32))
    x, y, _, target = stream(SlowlyChangingRegression(change_every=1), 300, 300, keys)
    ours = y.var(1)
    error = np.sqrt(variances.var() / 200 + ours.var() / 200)
    assert abs(ours.mean() - variances.mean()) < 4 * error
    fired = [published_targets(*(part[i] for part in target), x[i])[1].mean() for i in range(0, 200, 4)]
    assert abs(np.mean(fired) - fires.mean()) < 4 * np.sqrt(fires.var() * (1 / 200 + 1 / 50))


def test_the_inputs_look_like_the_recorded_ones(golden):
    """The recording is of the published stream: 0 and 1, fast bits that change, slow bits that do not."""
    with np.load(golden / "mlp_bp_sgd.npz") as file:
        x = file["x"].reshape(-1, 20)
    assert set(np.unique(x)) <= {0.0, 1.0}
    changes = (x[1:] != x[:-1]).mean(0)
    assert (changes[15:] > 0.4).all()
    assert changes[:15].mean() < 0.1


@pytest.mark.parametrize("settings", [{"variant": "flip"}, {"change_every": 0}, {"change_every": 1.5}])
def test_wrong_settings_are_named(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.*{next(iter(settings.values()))}"):
        SlowlyChangingRegression(**settings)
