"""Gymnasium's ant on MJX beside the same body on MuJoCo itself."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tasks import gym_ant
from tasks.brax_environment import BraxEnvironment, brax_environment
from tasks.gym_ant import body_file

STEPS = 25
ANKLES = slice(8, None, 2)


def on_mujoco(position, velocity, actions):
    """Observations and rewards of that start and these actions, as Gym's Ant-v3 has them."""
    model = mujoco.MjModel.from_xml_path(str(body_file()))
    data = mujoco.MjData(model)
    data.qpos, data.qvel = position, velocity
    for action in actions:
        before, data.ctrl = data.qpos[0], action
        mujoco.mj_step(model, data, 5)
        mujoco.mj_rnePostConstraint(model, data)
        forces = np.clip(data.cfrc_ext.ravel(), -1, 1)
        reward = (data.qpos[0] - before) / 0.05 + 1 - 0.5 * np.sum(action**2) - 5e-4 * np.sum(forces**2)
        yield np.concatenate([data.qpos[2:], data.qvel, forces]), reward


def test_an_ant_that_lands_moves_feels_and_earns_as_on_mujoco():
    env = brax_environment("gym_ant", "mjx")
    assert env.dt == pytest.approx(0.05)
    position, velocity = np.array(env.sys.qpos0), np.zeros(env.sys.nv)
    position[ANKLES] = np.sign(env.sys.jnt_range[2::2].sum(-1)) * 0.6  # flat: MJX turns the friction of steep legs
    velocity[:2] = 0.3, -0.1
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (STEPS, 8))

    @jax.jit
    def played(position, velocity, actions):
        return jax.lax.scan(lambda s, a: (lambda s: (s, s))(env.step(s, a)), env.at(position, velocity), actions)[1]

    found = played(*(jnp.asarray(each, jnp.float32) for each in (position, velocity, actions)))
    seen, earned = map(np.array, zip(*on_mujoco(position, velocity, actions), strict=True))
    assert found.obs.shape[1] == env.observation_size == seen.shape[1]
    touching = np.abs(seen[:, 27:]).max(axis=1) > 0
    assert 5 < touching.sum() < STEPS
    np.testing.assert_allclose(found.obs, seen, atol=2e-3)
    np.testing.assert_allclose(found.reward, earned, atol=2e-3)
    assert not found.done.any()


def test_episodes_start_from_noise_of_their_own_and_end_where_the_torso_is_too_high():
    env = brax_environment("gym_ant", "mjx")

    @jax.jit
    def run(rng):
        started = env.reset(rng)
        above = env.at(started.position.at[2].set(1.05), started.velocity)
        return started, env.step(above, jnp.zeros(8))

    (one, high), (two, _) = (run(jax.random.key_data(jax.random.key(seed))) for seed in range(2))
    moved = np.array([each.position - env.sys.qpos0 for each in (one, two)])
    moved = np.delete(moved, slice(3, 7), axis=1)  # but the torso's direction, which has length 1
    assert 0.05 < np.abs(moved).max() <= gym_ant.NOISE + 1e-6
    assert not np.any(moved[0] == moved[1])
    assert 0.05 < np.std(one.velocity) < 0.2
    np.testing.assert_array_equal(one.obs[:27], np.concatenate([one.position[2:], one.velocity]))
    assert (one.done, high.done) == (0, 1)


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gym_ant.importlib.util, "find_spec", lambda name: None)
    brax_environment.cache_clear()
    with pytest.raises(ValueError, match="environment: gym_ant needs gymnasium"):
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
