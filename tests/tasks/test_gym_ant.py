"""Gymnasium's ant on MJX beside the same body on MuJoCo itself."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tasks import gym_ant
from tasks.brax_environment import BraxEnvironment, BraxState, brax_environment
from tasks.gym_ant import body_file

STEPS = 18
ANKLES = slice(8, None, 2)
FRICTIONS = (0.05, 1.0)


def on_mujoco(position, velocity, actions, friction=1.0):
    """Observations `[step, 111]` and rewards `[step]` of that start and these actions, as Gym's Ant-v3 has them."""
    model = mujoco.MjModel.from_xml_path(str(body_file()))
    model.geom_friction[:, 0] = friction
    data = mujoco.MjData(model)
    data.qpos, data.qvel = position, velocity
    mujoco.mj_forward(model, data)
    seen, earned = [], []
    for action in actions:
        before, data.ctrl = data.body("torso").xpos[0].copy(), action
        mujoco.mj_step(model, data, 5)
        mujoco.mj_rnePostConstraint(model, data)
        forces = np.clip(data.cfrc_ext.ravel(), -1, 1)
        along = (data.body("torso").xpos[0] - before) / 0.05
        earned.append(along + 1 - 0.5 * np.sum(action**2) - 5e-4 * np.sum(forces**2))
        seen.append(np.concatenate([data.qpos[2:], data.qvel, forces]))
    return np.array(seen), np.array(earned)


def test_ants_that_land_move_feel_and_earn_as_on_mujoco_each_on_its_friction():
    task = BraxEnvironment("gym_ant", "mjx", change="friction")
    env = brax_environment("gym_ant", "mjx")
    assert env.dt == pytest.approx(0.05)
    position, velocity = np.array(env.sys.qpos0), np.zeros(env.sys.nv)
    position[ANKLES] = np.sign(env.sys.jnt_range[2::2].sum(-1)) * 0.6  # flat: MJX turns the friction of steep legs
    velocity[:2] = 0.3, -0.1
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (STEPS, 8))

    @jax.jit
    def played(position, velocity, actions):
        def of(friction):
            env = task._changed(friction)
            step = lambda state, action: (env.step(state, action),) * 2  # noqa: E731
            return jax.lax.scan(step, env.at(position, velocity), actions)[1]

        return jax.vmap(of)(jnp.asarray(FRICTIONS))

    found = played(*(jnp.asarray(each, jnp.float32) for each in (position, velocity, actions)))
    known = [on_mujoco(position, velocity, actions, friction) for friction in FRICTIONS]
    seen, earned = map(np.array, zip(*known, strict=True))
    assert seen.shape[-1] == env.observation_size
    touching = np.abs(seen[..., 27:]).max(axis=-1) > 0
    assert np.all((touching.sum(axis=1) > 5) & ~touching[:, 0])
    assert np.abs(seen[0] - seen[1]).max() > 0.3  # what friction does
    np.testing.assert_allclose(found.obs, seen, atol=0.03)
    np.testing.assert_allclose(found.reward, earned, atol=0.01)
    assert not found.done.any()


def test_episodes_start_from_noise_of_their_own_and_end_where_the_torso_is_too_low_or_too_high():
    env, task = brax_environment("gym_ant", "mjx"), BraxEnvironment("gym_ant", "mjx", environments=4)
    heights, strong = (0.7, -5.0, 1.05), np.linspace(-1.5, 1.5, 8)

    @jax.jit
    def run(rng):
        started = jax.vmap(env.reset)(rng)
        one = jax.tree.map(lambda x: jnp.stack([x[0]] * 4), started)
        states = one._replace(position=one.position.at[:, 2].set(jnp.array([*heights, heights[0]])))
        actions = jnp.array([strong, strong, strong, [jnp.nan] * 8], jnp.float32)
        none = jnp.zeros(4, jnp.int32)
        world = BraxState(jax.random.key(0), states, jnp.ones(4), none, none, none, jnp.zeros(4))
        return started, states, task.step(world, actions, jnp.int32(0))[0].physics

    started, put, after = run(jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0))))
    moved = np.delete(started.position - env.sys.qpos0, slice(3, 7), axis=1)  # but the direction, which has length 1
    assert 0.05 < np.abs(moved).max() <= gym_ant.NOISE + 1e-6
    assert not np.any(moved[0] == moved[1])
    assert 0.05 < np.std(started.velocity) < 0.2
    np.testing.assert_array_equal(started.obs[:, :27], np.hstack([started.position[:, 2:], started.velocity]))
    np.testing.assert_array_equal(started.done, 0)
    np.testing.assert_array_equal(after.done, [0, 1, 1, 0])
    seen, earned = on_mujoco(put.position[0], put.velocity[0], [strong])  # motors clip, costs do not
    np.testing.assert_allclose(after.obs[0], seen[0], atol=1e-3)
    np.testing.assert_allclose(after.reward[0], earned[0], atol=1e-3)
    still, _ = on_mujoco(put.position[0], put.velocity[0], [np.zeros(8)])
    np.testing.assert_allclose(after.obs[3], still[0], atol=1e-3)


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
