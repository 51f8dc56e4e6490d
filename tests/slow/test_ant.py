"""Brax's ant: how far it slides on every kind of physics, and what PPO has to earn on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from launch.experiment import Experiment
from tasks.brax_environment import BraxEnvironment, brax_environment
from tests.tasks.test_brax_environment import FRICTIONS, slid

# Metres that an ant slides that is pushed at 3 m/s, by friction, measured once with brax 0.14.2.
KNOWN = {
    "spring": {0.02: 7.98, 0.1: 4.49, 0.5: 0.92, 2.0: 0.17},
    "positional": {0.02: 8.02, 0.1: 4.71, 0.5: 0.85, 2.0: 0.16},
    "generalized": {0.02: 8.85, 0.1: 8.81, 0.5: 2.65, 2.0: 0.21},
}
GYMS = {0.02: 8.38, 0.5: 1.45, 1.0: 0.86}
"""The same of Gym's ant on MuJoCo itself, from the first step on."""
STEPS, LEAST_RETURN = 3_000_000, 1_500.0
"""Two seeds came to 2,332 and 2,406 (results/ant); one that does not learn to walk stays below 1,000."""


@pytest.mark.parametrize("backend", KNOWN)
def test_an_ant_slides_as_far_as_it_did(backend):
    np.testing.assert_allclose(slid(backend), [KNOWN[backend][friction] for friction in FRICTIONS], rtol=0.2)


def test_gyms_ant_slides_on_mjx_as_far_as_on_mujoco():
    task = BraxEnvironment("gym_ant", "mjx", environments=len(GYMS), change="friction")
    env = brax_environment("gym_ant", "mjx")
    place, speed = jnp.asarray(env.sys.qpos0, jnp.float32), jnp.zeros(env.sys.nv).at[0].set(3.0)

    @jax.jit
    def slide(frictions):
        state = task.init(jax.random.key(0), ())._replace(condition=frictions)
        physics = jax.vmap(lambda friction: task._changed(friction).at(place, speed))(frictions)
        step = lambda _, state: task.step(state, jnp.zeros((len(GYMS), 8)), jnp.int32(0))[0]  # noqa: E731
        return jax.lax.fori_loop(0, 60, step, state._replace(physics=physics)).physics.position[:, 0]

    np.testing.assert_allclose(slide(jnp.asarray(list(GYMS))), list(GYMS.values()), rtol=0.2)


def test_ppo_walks_after_three_million_steps(tmp_path):
    asked = Experiment("ant", "standard", (0,), steps=STEPS, preset="published_wide")
    (run,) = launch.run(asked, tmp_path, workers=1).values()
    assert run.meta["diverged"] == []
    assert np.nanmean(run.metrics["episode_return"][:, -4:]) > LEAST_RETURN
