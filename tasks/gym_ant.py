"""The ant of Gymnasium, the body of the published problem, on MuJoCo's physics in JAX (MJX)."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

TORSO = 1
FRAMES = 5
NOISE = 0.1
HEIGHTS = (0.2, 1.0)
CONTROL_COST, CONTACT_COST, SURVIVAL = 0.5, 5e-4, 1.0
LINE_SEARCH = 10
"""Most steps of a line search, all of which MJX makes. MuJoCo's are 50; on 512 states they found the same to 1e-8."""
FILE = "envs/mujoco/assets/ant.xml"


class GymAntState(NamedTuple):
    """Where an ant is, and what its last step gave.

    Attributes:
        position: `[15]`, MuJoCo's `qpos`, metres and radians.
        velocity: `[14]`, `qvel`, per second.
        warmstart: `[14]`, the accelerations from which the solver of contacts starts.
        along: `[]`, x of the torso, metres, as Ant-v3 takes it: before the last part of the last step of 10 ms.
        obs: `[111]`.
        reward: `[]`.
        done: `[]`, 1 where the torso is too low, too high, or nowhere.
    """

    position: jax.Array
    velocity: jax.Array
    warmstart: jax.Array
    along: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class GymAnt:
    """Ant-v3 of Gym, with the contact forces that it sees: `reset` and `step` as Brax's environments have them.

    `obs` is the position without x and y (13), the velocity (14) and the external force and torque on each of 14
    bodies, clipped to [-1, 1] (84). With the position `x` of the torso, `dt` = 0.05 s and an action `a` of 8 torques,
    which motors clip to [-1, 1] and costs do not,

        reward = (x' - x) / dt + 1 - 0.5 |a|^2 - 0.0005 |forces|^2

    Its body is read from the package gymnasium. Physics is MuJoCo's own in single precision: Runge-Kutta of order four
    in 5 steps of 10 ms, contacts solved until they converge. It is for accelerators; see the speed in
    `docs/reinforcement_learning.md`. Where a leg is more than 60 degrees steep, which is a third of contacts, MJX lays
    the pyramid of friction along the world's axes and MuJoCo along the leg's: accelerations then differ by 3 % in the
    median, elsewhere by rounding. (Both were measured once, on 512 states of random
    actions, 192 of them with a steep leg.)

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation"; Ant-v3.

    Attributes:
        sys: MJX's model; a copy of this environment may have another.
        dt: seconds of one step.
    """

    observation_size, action_size = 111, 8

    def __init__(self) -> None:
        model = mujoco.MjModel.from_xml_path(str(body_file()))
        model.opt.ls_iterations = LINE_SEARCH
        self.sys = mjx.put_model(model)
        self.dt = FRAMES * float(self.sys.opt.timestep)

    def reset(self, rng: jax.Array) -> GymAntState:
        """The start of an episode: uniform noise of 0.1 on positions, normal of 0.1 on velocities."""
        place, speed = jax.random.split(rng)
        start = jnp.asarray(self.sys.qpos0, jnp.float32)
        position = start + jax.random.uniform(place, start.shape, minval=-NOISE, maxval=NOISE)
        return self.at(position, NOISE * jax.random.normal(speed, (self.sys.nv,)))

    def at(self, position: jax.Array, velocity: jax.Array) -> GymAntState:
        """The start of an episode from there."""
        data = mjx.forward(self.sys, mjx.make_data(self.sys).replace(qpos=position, qvel=velocity))
        zero = jnp.zeros([])
        return self._seen(data, zero, zero)

    def step(self, state: GymAntState, action: jax.Array) -> GymAntState:
        """0.05 seconds later."""
        data = mjx.make_data(self.sys).replace(
            qpos=state.position,
            qvel=state.velocity,
            qacc_warmstart=state.warmstart,
            ctrl=action,
        )
        data = jax.lax.fori_loop(0, FRAMES, lambda _, data: mjx.step(self.sys, data), data)
        forward = (data.xpos[TORSO, 0] - state.along) / self.dt
        reward = forward + SURVIVAL - CONTROL_COST * jnp.sum(action**2)
        healthy = (data.qpos[2] >= HEIGHTS[0]) & (data.qpos[2] <= HEIGHTS[1])
        return self._seen(data, reward, 1.0 - healthy)

    def _seen(self, data: Any, reward: jax.Array, done: jax.Array) -> GymAntState:
        data = mjx.rne_postconstraint(self.sys, data)
        forces = jnp.clip(getattr(data, "_impl", data).cfrc_ext, -1, 1)
        obs = jnp.concatenate([data.qpos[2:], data.qvel, forces.reshape(-1)])
        reward = reward - CONTACT_COST * jnp.sum(forces**2)
        return GymAntState(data.qpos, data.qvel, data.qacc_warmstart, data.xpos[TORSO, 0], obs, reward, done)


def body_file() -> Path:
    """The file of the body.

    Raises:
        ImportError: gymnasium is not installed, or has it elsewhere.
    """
    found = importlib.util.find_spec("gymnasium")
    if found is None or found.origin is None:
        raise ImportError("No module named 'gymnasium'", name="gymnasium")
    path = Path(found.origin).parent / FILE
    if not path.is_file():
        raise ImportError(f"gymnasium has no {FILE}")
    return path
