"""Brax's environments as tasks: many at once, with fresh episodes, on a body or a ground that changes."""

import contextlib
import copy
import dataclasses
import difflib
import functools
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tasks.base import ControlSpec, Environment, Schedule, Step, check_fields

BACKENDS = ("spring", "positional", "generalized", "mjx")
CHANGES: dict[str, tuple[float, float]] = {
    "none": (1.0, 1.0),
    "friction": (0.02, 2.0),
    "mass": (0.5, 2.0),
    "gravity": (0.5, 2.0),
    "actuator_strength": (0.25, 1.0),
}
"""What may change, and between which values: friction itself, of all others a factor on what it was."""

GYM_ANT = "gym_ant"
"""The one environment that is not Brax's own: Gymnasium's ant, see `tasks/gym_ant.py`."""

_GROUND, _RESET = 0, 1


class BraxState(NamedTuple):
    """Where the environments of a lane are, `E` of them.

    Attributes:
        key: typed key; all chance follows from it.
        physics: Brax's own state, `[E, ...]`.
        condition: float32 `[E]`, the value of what changes.
        changes: int32 `[E]`, how often it has changed.
        episodes: int32 `[E]`, episodes before this one.
        length: int32 `[E]`, steps of this episode.
        total: float32 `[E]`, rewards of this episode.
    """

    key: jax.Array
    physics: Any
    condition: jax.Array
    changes: jax.Array
    episodes: jax.Array
    length: jax.Array
    total: jax.Array


@dataclasses.dataclass(frozen=True)
class BraxEnvironment(Environment):
    """One of Brax's environments, `environments` times, of which something changes every `change_every` steps.

    Change `k` draws the new value log-uniformly from `low` to `high`, from the seed and `k` alone, the first (`k = 0`)
    at the start; so all methods of a seed have the same sequence. It is due at step `k * change_every` of all
    environments together, and made in each at the end of its episode, or at once.

    Every episode starts from noise of its own, as `env.reset` draws it, and is over when the environment says so or
    after `episode_length` steps. Physics that is no longer finite ends it too, with reward 0.

    Measured: `episode_return` and `episode_length` of episodes that end; `condition`, the value of what
    changes; `change_delay`, the steps from when a change was due until an environment made it.

    Source: Dohare et al. 2024, "Reinforcement learning": SlipperyAnt, `environment="ant"`, `change="friction"`.

    Differs from the published problem in the body (see `docs/reinforcement_learning.md`) and in that friction follows
    from the seed, where the authors read it from a file with the same law.

    Attributes:
        environment: Brax's name, or `gym_ant`: Gymnasium's ant, with `backend="mjx"` and friction alone to change.
        backend: its physics: `spring`, `positional`, `generalized` or, where nothing changes, `mjx`.
        environments: how many at once.
        episode_length: steps after which an episode is cut off.
        change: what changes: `friction` of all bodies, `mass` of all links, `gravity`, `actuator_strength`, or `none`.
        change_every: steps of all environments together between changes; not shorter than an episode of each; `None`:
            2,000,000, or an episode of each if that is longer.
        change_at: `episode_end`, as published, or `once`, in the middle of an episode.
        low: smallest value; `None`: as in `CHANGES`.
        high: largest value, likewise.
        cycle: how many values there are; change `k` has that of change `k mod cycle`, so that with 2 they are A, B, A,
            B, ... and every lane is its own control. `None`: every change has a value of its own.
    """

    environment: str = "ant"
    backend: str = "spring"
    environments: int = 16
    episode_length: int = 1000
    change: str = "none"
    change_every: int | None = None
    change_at: str = "episode_end"
    low: float | None = None
    high: float | None = None
    cycle: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            ("environments", "episode_length", "change_every", "cycle"),
            ("change_every", "cycle"),
            choices={"backend": BACKENDS, "change": tuple(CHANGES), "change_at": ("episode_end", "once")},
        )
        least = self.episode_length * self.environments
        if self.change != "none" and self._change_every < least:
            raise ValueError(
                f"change_every: got {self.change_every}, allowed are numbers from {least} on: an episode of "
                f"{self.episode_length} steps in each of {self.environments} environments"
            )
        if self.cycle is not None and self.change == "none":
            raise ValueError(f"cycle: got {self.cycle}, but nothing changes; give change=friction or another too")
        for name in ("low", "high"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise ValueError(f"{name}: got {value!r}, {self.change} must be above 0")
            if value is not None and self.change == "none":
                raise ValueError(f"{name}: got {value!r}, but nothing changes; give change=friction or another too")
        low, high = self.limits
        if low > high:
            raise ValueError(f"low: got {low:g}, above high, {high:g}")
        if self.change == "mass" and self.change_at == "once":
            raise ValueError("change_at: got 'once', but bodies keep their mass for an episode; allowed is episode_end")
        if self.environment == GYM_ANT:
            if self.backend != "mjx":
                raise ValueError(f"backend: got '{self.backend}', but {GYM_ANT} is MuJoCo's; allowed is mjx")
            if self.change not in ("none", "friction"):
                raise ValueError(f"change: got '{self.change}'; of {GYM_ANT} allowed are none, friction")
        elif self.change != "none" and self.backend == "mjx":
            # Brax gives the solver a single iteration: sliding distance is off by a factor of 100 on ice.
            why = {"friction": "slides wrongly: on friction 0.02 an ant comes to rest after 0.06 m instead of 8 m"}
            reason = why.get(self.change, f"has no {self.change} that can be changed while it runs")
            raise ValueError(f"backend: got 'mjx', which {reason}; allowed are {', '.join(BACKENDS[:-1])}")

    @property
    def _change_every(self) -> int:
        return self.change_every or max(2_000_000, self.episode_length * self.environments)

    @property
    def fitted(self) -> "BraxEnvironment":  # pyright: ignore[reportIncompatibleMethodOverride]
        return dataclasses.replace(self, change_every=self._change_every)

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value of what changes."""
        low, high = CHANGES[self.change]
        return (low if self.low is None else self.low), (high if self.high is None else self.high)

    @property
    def spec(self) -> ControlSpec:
        env = brax_environment(self.environment, self.backend)
        if self.changes and not hasattr(env, "sys"):
            raise ValueError(f"change: got '{self.change}', but {self.environment} has no bodies; allowed is none")
        # A lane that has diverged counts as one that earns nothing. Effort costs, so a bad policy may earn less.
        return ControlSpec(_observation_shape(env), int(env.action_size), self.environments, _NOTHING)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self._change_every, None, None, None)

    @property
    def note(self) -> str:
        low, high = self.limits
        owner = "MuJoCo" if self.environment == GYM_ANT else "Brax"
        about = f"{owner} {self.environment} ({self.backend}), {self.environments} at once"
        if self.change == "none":
            return about
        when = "at the end of an episode" if self.change_at == "episode_end" else "at once"
        name = self.change.replace("_", " ")
        again = "" if self.cycle is None else f", {self.cycle} in turn"
        return f"{about}; {name} from [{low:g}, {high:g}]{again} every {self._change_every:,} steps, {when}"

    @property
    def changes(self) -> bool:
        return self.change != "none"

    def init(self, key: jax.Array, data: Any) -> BraxState:
        none = jnp.zeros(self.environments, jnp.int32)
        condition = jnp.broadcast_to(self.condition(key, 0), none.shape)
        physics = self._reset(key, none, condition)
        return BraxState(key, physics, condition, none, none, none, jnp.zeros(self.environments))

    def condition(self, key: jax.Array, change: jax.Array | int) -> jax.Array:
        """The value after change number `change` of what changes, from the task's key; float32 of the same shape."""
        low, high = self.limits

        def draw(number: jax.Array) -> jax.Array:
            own = jax.random.fold_in(jax.random.fold_in(key, _GROUND), number)
            return jnp.exp(jax.random.uniform(own, minval=math.log(low), maxval=math.log(high)))

        number = jnp.asarray(change, jnp.int32)
        return jnp.vectorize(draw)(number if self.cycle is None else number % self.cycle)

    def changes_until(self, key: jax.Array, steps: int) -> list[tuple[int, float]]:
        if not self.changes:
            return []
        due = range(0, steps, self._change_every)
        return list(zip(due, self.condition(key, jnp.arange(len(due))).tolist(), strict=True))

    def observe(self, state: BraxState) -> jax.Array:
        """What is seen now, `[E, n]`."""
        return state.physics.obs

    def step(self, state: BraxState, action: jax.Array, clock: jax.Array) -> tuple[BraxState, Step]:
        """One step of all environments; `clock` counts their steps together before it. Episodes end, none begins.

        An action that is not finite moves nothing, so that a lane that has diverged does not end an episode a step.
        """
        action = jnp.where(jnp.all(jnp.isfinite(action), axis=-1, keepdims=True), action, 0.0)
        physics = jax.vmap(self.stepped)(state.physics, action, state.condition)
        sound = jnp.isfinite(physics.reward) & jnp.all(jnp.isfinite(physics.obs), axis=-1)
        reward = jnp.where(sound, physics.reward, 0.0)
        observation = jnp.where(sound[:, None], physics.obs, 0.0)
        state = state._replace(physics=physics, length=state.length + 1, total=state.total + reward)
        terminated = (physics.done > 0) | ~sound
        truncated = (state.length >= self.episode_length) & ~terminated
        ended = terminated | truncated
        number = jnp.sum(ended, dtype=jnp.float32)
        seen = {
            "episode_return": (jnp.sum(jnp.where(ended, state.total, 0)), number),
            "episode_length": (jnp.sum(jnp.where(ended, state.length, 0), dtype=jnp.float32), number),
        }
        changes = self._changes(state, ended, clock)
        changed = changes != state.changes
        if self.change != "none":
            late = jnp.where(changed, clock + self.environments - changes * self._change_every, 0)
            seen |= {
                "condition": (jnp.sum(state.condition), jnp.float32(self.environments)),
                "change_delay": (jnp.sum(late, dtype=jnp.float32), jnp.sum(changed, dtype=jnp.float32)),
            }
        renews = jnp.any(ended | changed)
        return state, Step(reward, observation, terminated, truncated, renews, seen)

    def renew(self, state: BraxState, step: Step, clock: jax.Array) -> BraxState:
        """A new episode where one has ended, and the value of what changes as it is from now on."""
        ended = step.terminated | step.truncated
        changes = self._changes(state, ended, clock)
        condition = jnp.where(changes == state.changes, state.condition, self.condition(state.key, changes))
        episodes = state.episodes + ended
        fresh = self._reset(state.key, episodes, condition)
        return BraxState(
            state.key,
            jax.tree.map(functools.partial(_where, ended), fresh, state.physics),
            condition,
            changes,
            episodes,
            jnp.where(ended, 0, state.length),
            jnp.where(ended, 0.0, state.total),
        )

    def _changes(self, state: BraxState, ended: jax.Array, clock: jax.Array) -> jax.Array:
        """How often what changes has changed after the step at `clock`, `[E]`."""
        if self.change == "none":
            return state.changes
        due = (clock + self.environments) // self._change_every
        return jnp.where(ended | (self.change_at == "once"), due, state.changes)

    def _reset(self, key: jax.Array, episodes: jax.Array, condition: jax.Array) -> Any:
        """The start of episode number `episodes` of every environment."""
        key = jax.random.fold_in(key, _RESET)
        places = jnp.arange(self.environments, dtype=jnp.int32)

        def one(place: jax.Array, episode: jax.Array, value: jax.Array) -> Any:
            own = jax.random.fold_in(jax.random.fold_in(key, place), episode)
            return _strong(self._changed(value).reset(jax.random.key_data(own)))

        return jax.vmap(one)(places, episodes, condition)

    def stepped(self, physics: Any, action: jax.Array, value: jax.Array) -> Any:
        """Brax's state of one environment after an action, where what changes has that value."""
        return _strong(self._changed(value).step(physics, action))

    def _changed(self, value: jax.Array) -> Any:
        """Brax's environment with what changes at that value, which may be traced."""
        env = brax_environment(self.environment, self.backend)
        if self.change == "none":
            return env
        changed = copy.copy(env)
        changed.sys = _CHANGED[self.change](env.sys, value, self.backend)
        return changed


def _friction(system: Any, value: jax.Array, backend: str) -> Any:
    # A contact has the larger friction of its two bodies, so that the floor's alone would not do.
    return system.replace(geom_friction=system.geom_friction.at[:, 0].set(value))


def _mass(system: Any, factor: jax.Array, backend: str) -> Any:
    inertia, of_mass, of_inertia = system.link.inertia, 1.0, 1.0
    if backend != "generalized":  # the others take a mass m for m^x, which is 1 for some bodies, the ant's too
        of_mass, of_inertia = 1 - system.spring_mass_scale, 1 - system.spring_inertia_scale
    inertia = inertia.replace(mass=inertia.mass**of_mass * factor, i=inertia.i**of_inertia * factor)
    return system.replace(link=system.link.replace(inertia=inertia), spring_mass_scale=0.0, spring_inertia_scale=0.0)


def _gravity(system: Any, factor: jax.Array, backend: str) -> Any:
    return system.replace(gravity=system.gravity * factor)


def _actuator_strength(system: Any, factor: jax.Array, backend: str) -> Any:
    return system.replace(actuator=system.actuator.replace(gear=system.actuator.gear * factor))


_CHANGED = {"friction": _friction, "mass": _mass, "gravity": _gravity, "actuator_strength": _actuator_strength}
_NOTHING = {"episode_return": 0.0, "episode_length": 1.0}


@functools.lru_cache
def brax_environment(name: str, backend: str) -> Any:
    """Brax's environment of that name, without wrappers, or Gymnasium's ant.

    Raises:
        ValueError: Brax has none, or not with that backend; a package is missing.
    """
    if name == GYM_ANT:
        try:
            with _quiet(), jax.ensure_compile_time_eval():
                from tasks.gym_ant import GymAnt  # takes seconds

                return GymAnt()
        except ImportError as error:
            what = error.name or "gymnasium"
            raise ValueError(f"environment: {name} needs the package {what} ({error}); pip install {what}") from None
    try:
        with _quiet():
            from brax import envs  # takes seconds
    except ImportError as error:
        raise ValueError(f"environment: {name} needs the package brax ({error}); pip install brax") from None
    known = envs._envs  # the only list there is
    if name not in known:
        close = difflib.get_close_matches(name, (*known, GYM_ANT), 1)
        hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join((*known, GYM_ANT))}"
        raise ValueError(f"environment: Brax has no '{name}'{hint}")
    try:
        # Kept for all programs, so it must not belong to the trace of one.
        with _quiet(), jax.ensure_compile_time_eval():
            env = envs.get_environment(name, backend=backend)
        # Some can be made and not be used, where they call what is no longer in JAX.
        action = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
        key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        jax.eval_shape(lambda key, action: env.step(env.reset(key), action), key, action)
        return env
    except Exception as error:  # noqa: BLE001 -- whatever an environment says to a backend it was not made for
        raise ValueError(f"backend: '{backend}' does not do for {name}: {' '.join(str(error).split())[:200]}") from None


@functools.lru_cache
def _observation_shape(env: Any) -> tuple[int, ...]:
    """Its own `observation_size` computes a whole reset, one operation after the other: seconds."""
    return jax.eval_shape(env.reset, jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))).obs.shape


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Brax and its packages print and warn of, which nobody who uses an environment can mend."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import mujoco  # of Brax; its own warnings go to the terminal and to a file in the working directory

        told = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(told)


def _strong(tree: Any) -> Any:
    """The same values without weak types, which Brax leaves in some states and not in others."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tree)


def _where(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
