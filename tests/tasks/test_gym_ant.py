"""Gymnasium's ant on MJX beside the same body on MuJoCo itself.

What a contact does with a rounding error is chaotic and no constant of the packages (measured with mujoco 4.0.0,
mujoco-mjx 3.17.0 and jax 0.10.2: single numbers differ by up to 1 within ten steps of a touchdown). So MJX is restarted
from MuJoCo's own states, followed for two steps, and compared in medians wherever something touches the floor.
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tasks import gym_ant
from tasks.brax_environment import BraxEnvironment, BraxState, brax_environment
from tasks.gym_ant import GymAntState, body_file

AT_ONCE, STEPS, STARTS, FRICTIONS = 32, 24, 4, (0.05, 1.0)
ANKLES = slice(8, None, 2)
TASK = BraxEnvironment("gym_ant", "mjx", change="friction", environments=AT_ONCE)


class OnMuJoCo:
    """Ant-v3 of Gym on MuJoCo: `state` before a step, and `step` to observation [111] and reward."""

    def __init__(self, position, velocity, friction=1.0):
        self.model = mujoco.MjModel.from_xml_path(str(body_file()))
        self.model.geom_friction[:, 0] = friction
        self.data = mujoco.MjData(self.model)
        self.data.qpos, self.data.qvel = position, velocity
        mujoco.mj_forward(self.model, self.data)

    @property
    def state(self):
        data = self.data
        copies = (x.copy() for x in (data.qpos, data.qvel, data.qacc_warmstart, data.body("torso").xpos[0]))
        return GymAntState(*copies, np.zeros(111), 0.0, 0.0)

    def step(self, action):
        data, before = self.data, self.data.body("torso").xpos[0].copy()
        data.ctrl = action
        mujoco.mj_step(self.model, data, 5)
        mujoco.mj_rnePostConstraint(self.model, data)
        forces = np.clip(data.cfrc_ext.ravel(), -1, 1)
        along = (data.body("torso").xpos[0] - before) / 0.05
        reward = along + 1 - 0.5 * np.sum(action**2) - 5e-4 * np.sum(forces**2)
        return np.concatenate([data.qpos[2:], data.qvel, forces]), reward


@pytest.fixture(scope="module")
def stepped():
    """One step on MJX of any number of states [n, ...], on the friction of each."""
    step = jax.jit(lambda world, actions: TASK.step(world, actions, jnp.int32(0))[0].physics)
    none = jnp.zeros(AT_ONCE, jnp.int32)

    def padded(tree, first):
        rows = np.minimum(np.arange(first, first + AT_ONCE), len(jax.tree.leaves(tree)[0]) - 1)
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows], jnp.float32), tree)

    def of(states, frictions, actions):
        parts, number = [], len(frictions)
        for first in range(0, number, AT_ONCE):
            physics, friction, action = padded((states, frictions, actions), first)
            world = BraxState(jax.random.key(0), physics, friction, none, none, none, jnp.zeros(AT_ONCE))
            parts.append(step(world, action))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:number], *parts)

    return of


def falls():
    """Falls onto the floor on MuJoCo: states [n, ...], frictions [n], actions, observations and rewards [n, 2, ...] of
    the two steps after each."""
    rng, found = np.random.default_rng(0), []
    sys = brax_environment("gym_ant", "mjx").sys
    for start in range(STARTS):
        position, velocity = np.array(sys.qpos0), np.zeros(sys.nv)
        position[ANKLES] = np.sign(sys.jnt_range[2::2].sum(-1)) * 0.6  # flat: MJX turns the friction of steep legs
        velocity[:2] = rng.uniform(-0.4, 0.4, 2)
        velocity[3:6] = rng.uniform(-0.2, 0.2, 3) * (start > 0)
        actions = rng.uniform(-0.05, 0.05, (STEPS, 8))
        for friction in FRICTIONS:
            ant, states, after = OnMuJoCo(position, velocity, friction), [], []
            for action in actions:
                states.append(ant.state)
                after.append((action, *ant.step(action)))
            found += [(states[i], friction, after[i], after[i + 1]) for i in range(STEPS - 1)]
    states, frictions, *pairs = zip(*found, strict=True)
    two = [[np.array(part) for part in zip(*each, strict=True)] for each in pairs]
    stacked = jax.tree.map(lambda *leaves: np.array(leaves), *states)
    return stacked, np.array(frictions), *(np.stack(both, 1) for both in zip(*two, strict=True))


@pytest.mark.slow
def test_ants_fall_touch_feel_and_earn_as_on_mujoco_each_on_its_friction(stepped):
    assert brax_environment("gym_ant", "mjx").dt == pytest.approx(0.05)
    states, frictions, actions, seen, earned = falls()
    touching = np.abs(seen[..., 27:]).max(axis=-1) > 0
    assert np.all(np.array([touching.mean(), (~touching).mean()]) > 0.15)
    for i in range(2):
        states = stepped(states, frictions, actions[:, i])
        air, ground = ~touching[:, : i + 1].any(axis=1), touching[:, i]
        off = np.abs(states.obs - seen[:, i])
        position, velocity, force = (off[:, part].max(axis=1) for part in (slice(13), slice(13, 27), slice(27, None)))
        assert max(position[air].max(), velocity[air].max()) < 1e-3 and not force[air].any()
        agree = (np.abs(states.obs[:, 27:]).max(axis=1) > 0) == ground
        assert agree.mean() > 0.95  # which touch the floor
        assert np.median(position[ground]) < 1e-4  # metres and radians
        assert np.median(velocity[ground]) < 1e-2
        assert np.median(force[ground]) < 1e-2
        here, there = (np.abs(obs[ground, 27:]).sum() for obs in (states.obs, seen[:, i]))
        assert here == pytest.approx(there, rel=0.02)  # all forces together
        wrong = np.abs(states.reward - earned[:, i])
        assert wrong[air].max() < 1e-3 and np.median(wrong[ground]) < 1e-3
        assert not states.done.any()


@pytest.mark.slow
def test_friction_is_that_of_each_environment(stepped):
    """Which MuJoCo itself would call wrong where the two were mixed up."""
    states, frictions, actions, seen, _ = falls()
    ground = np.abs(seen[:, 0, 27:]).max(axis=-1) > 0
    mixed = stepped(states, np.array(FRICTIONS)[(frictions == FRICTIONS[0]).astype(int)], actions[:, 0])
    assert np.median(np.abs(mixed.obs - seen[:, 0]).max(axis=1)[ground]) > 0.05


@pytest.mark.slow
def test_episodes_start_from_noise_of_their_own_and_end_where_the_torso_is_too_low_or_too_high(stepped):
    env = brax_environment("gym_ant", "mjx")
    started = jax.jit(jax.vmap(env.reset))(jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), 4)))
    moved = np.delete(started.position - env.sys.qpos0, slice(3, 7), axis=1)  # but the direction, which has length 1
    assert 0.05 < np.abs(moved).max() <= gym_ant.NOISE + 1e-6
    assert not np.any(moved[0] == moved[1])
    assert 0.05 < np.std(started.velocity) < 0.2
    np.testing.assert_array_equal(started.obs[:, :27], np.hstack([started.position[:, 2:], started.velocity]))
    np.testing.assert_array_equal(started.done, 0)

    one = jax.tree.map(lambda x: np.stack([x[0]] * 4), started)
    heights, strong = (0.7, -5.0, 1.05, 0.7), np.linspace(-1.5, 1.5, 8)
    one.position[:, 2] = heights
    after = stepped(one, np.ones(4), np.array([strong, strong, strong, [np.nan] * 8]))
    np.testing.assert_array_equal(after.done, [0, 1, 1, 0])
    seen, earned = OnMuJoCo(one.position[0], one.velocity[0]).step(strong)  # motors clip, costs do not
    np.testing.assert_allclose(after.obs[0], seen, atol=1e-3)
    np.testing.assert_allclose(after.reward[0], earned, atol=1e-3)
    still, _ = OnMuJoCo(one.position[0], one.velocity[0]).step(np.zeros(8))
    np.testing.assert_allclose(after.obs[3], still, atol=1e-3)


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gym_ant.importlib.util, "find_spec", lambda name: None)
    brax_environment.cache_clear()
    with pytest.raises(ValueError, match="gym_ant needs the package gymnasium"):
        brax_environment("gym_ant", "mjx")
    brax_environment.cache_clear()


def test_only_its_own_physics_and_friction_are_offered():
    for wrong, words in (
        ({"backend": "spring"}, "allowed is mjx"),
        ({"change": "gravity"}, "allowed are none, friction"),
    ):
        with pytest.raises(ValueError, match=words):
            _ = BraxEnvironment(**{"environment": "gym_ant", "backend": "mjx"} | wrong)
    assert BraxEnvironment("gym_ant", "mjx", change="friction").note.startswith(
        "MuJoCo gym_ant (mjx), 16 at once; frict"
    )
