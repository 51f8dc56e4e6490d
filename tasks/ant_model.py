"""The ant's transition model: what an action leads to and earns, learned while the ground changes under a behaviour."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tasks.base import MOST_STEPS, Batch, Evaluation, Schedule, Spec, Task, check_fields
from tasks.brax_environment import BraxEnvironment, BraxState

HORIZON = 10
"""Steps that a model looks ahead."""

_ACTIONS, _PROBED, _WINDOWS = 11, 12, 13
_KEPT = 0.9
_MEASURED_BEFORE = 200
_FARTHEST = 10.0


class Scale(NamedTuple):
    """What the network's inputs and outputs are measured in, float32; `n` values in an observation.

    Attributes:
        mean: `[n]`, of observations.
        deviation: `[n]`, of observations.
        outputs_mean: `[n + 1]`, of what one step changes in the observation, and of the reward.
        outputs_deviation: `[n + 1]`, likewise.
        later_deviation: `[n]`, of what `HORIZON` steps change.
    """

    mean: jax.Array
    deviation: jax.Array
    outputs_mean: jax.Array
    outputs_deviation: jax.Array
    later_deviation: jax.Array


class AntModelState(NamedTuple):
    """Where a stream is.

    Attributes:
        key: typed key of the stream.
        world: where the environments are.
        noise: float32 `[E, actions]`, from which actions are made.
        scale: measured before step 0.
    """

    key: jax.Array
    world: BraxState
    noise: jax.Array
    scale: Scale


@dataclasses.dataclass(frozen=True)
class AntModel(Task):
    """Learn what one step of an environment of Brax leads to, while something of it changes.

    At every step all `environments` take one action, and the batch is what came of it. With an observation `o`, an
    action `a`, where it led `o'` and the reward `r`, the network maps `((o - m) / s, a)` to `(o' - o, r)`, less its
    mean and divided by its deviation. Mean and deviation are those of 200 steps of all environments on the first
    ground, before step 0, and stay. The loss is the mean squared error: a network that knows nothing has 1 on such
    steps, and more where the body moves more.

    Actions come from a behaviour that follows from the seed, and not from what is learned, so all methods of a seed
    see the same stream: `clip(z, -1, 1)` with `z <- 0.9 z + sqrt(0.19) N(0, 1)` for each action of each environment.
    Episodes end as in `BraxEnvironment`. The change is made in all environments at once, that of masses at the ends
    of episodes.

    Measured `evaluations_per_task` times in a task, on new actions from where the environments are, `windows` times
    each of `HORIZON` = 10 steps:

    - `error_one_step`: the loss, on the ground of the task just learned;
    - `error_ten_steps`: of the observation after 10 steps, each predicted from the prediction before, given the
      actions; in units of the variance of what 10 steps change. Predictions further from the mean than 10 deviations
      are taken to there;
    - at the end of a task `error_one_step_after_change` and `error_ten_steps_after_change`: the same on the ground of
      the next task, before anything is learned of it.

    A network that goes on learning does, at the end of a task, no worse than the method `fresh_network`, which begins
    afresh with every task.

    Attributes:
        environment: Brax's name.
        backend: its physics, as in `BraxEnvironment`.
        environments: how many at once; the batch.
        episode_length: steps after which an episode is cut off.
        change: what changes: `friction`, `mass`, `gravity`, `actuator_strength`, or `none`.
        change_every: updates per task, each a step of every environment; not fewer than `episode_length`.
        low: smallest value of what changes; `None`: as in `tasks.brax_environment.CHANGES`.
        high: largest value, likewise.
        evaluations_per_task: how often; has to divide `change_every`.
        windows: of an evaluation, from where each environment is.

    Raises:
        ValueError: a field is none of what is allowed, or no environment can be made of them.
    """

    environment: str = "ant"
    backend: str = "spring"
    environments: int = 16
    episode_length: int = 1000
    change: str = "friction"
    change_every: int = 10_000
    low: float | None = None
    high: float | None = None
    evaluations_per_task: int = 4
    windows: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ("environments", "episode_length", "change_every", "evaluations_per_task", "windows"))
        if self.change_every < self.episode_length:
            raise ValueError(
                f"change_every: got {self.change_every}, allowed are numbers from {self.episode_length} on, an episode"
            )
        if self.change_every % self.evaluations_per_task:
            raise ValueError(
                f"evaluations_per_task: got {self.evaluations_per_task}, which does not divide the {self.change_every} "
                "updates of a task"
            )
        self._worlds  # noqa: B018 -- raises where they cannot be made

    @property
    def _worlds(self) -> BraxEnvironment:
        return BraxEnvironment(
            self.environment,
            self.backend,
            self.environments,
            self.episode_length,
            self.change,
            self.change_every * self.environments,
            "episode_end" if self.change == "mass" else "once",
            self.low,
            self.high,
        )

    @property
    def spec(self) -> Spec:
        world = self._worlds.spec
        (size,) = world.input_shape
        errors = ("error_one_step", "error_ten_steps")
        names = errors if self.change == "none" else (*errors, *(f"{name}_after_change" for name in errors))
        # A lane that has diverged counts as one that knows nothing.
        failure = dict.fromkeys(("squared_error", *names), 1.0)
        return Spec((size + world.outputs,), size + 1, "squared_error", self.environments, failure)

    @property
    def schedule(self) -> Schedule:
        every = self.change_every
        return Schedule(every, every // self.evaluations_per_task, every, MOST_STEPS // self.environments)

    @property
    def note(self) -> str:
        return f"{self._worlds.note}; {self.environments} steps an update"

    def init(self, key: jax.Array, data: Any) -> AntModelState:
        world = self._worlds.init(key, None)
        noise = jax.random.normal(jax.random.fold_in(key, _ACTIONS), (self.environments, self._worlds.spec.outputs))
        size = world.physics.obs.shape[-1]
        unit = Scale(jnp.zeros(size), jnp.ones(size), jnp.zeros(size + 1), jnp.ones(size + 1), jnp.ones(size))
        state = AntModelState(key, world, noise, unit)

        def step(state: AntModelState, clock: jax.Array) -> tuple[AntModelState, Any]:
            before = state.world.physics.obs
            state, _, outputs, ended = self._stepped(state, clock, data)
            return state, (before, outputs, ended)

        # Clocks below 0: draws of their own, and nothing changes.
        _, seen = jax.lax.scan(step, state, jnp.arange(-_MEASURED_BEFORE, 0, dtype=jnp.int32))
        return state._replace(scale=_scale(*seen))

    def actions(self, state: AntModelState, observation: jax.Array, noise: jax.Array, data: Any) -> jax.Array:
        """What the behaviour does where `observation` `[..., n]` is seen, given its noise `[..., actions]`."""
        return jnp.clip(noise, -1, 1)

    def renewed(self, noise: jax.Array, drawn: jax.Array) -> jax.Array:
        """The noise of the next step, given standard normal draws of its shape."""
        return _KEPT * noise + math.sqrt(1 - _KEPT**2) * drawn

    def next(self, state: AntModelState, clock: jax.Array, data: Any) -> tuple[AntModelState, Batch]:
        state, x, outputs, _ = self._stepped(state, clock, data)
        y = (outputs - state.scale.outputs_mean) / state.scale.outputs_deviation
        return state, Batch(x, y, clock % self.change_every == 0, jnp.zeros([], bool))

    def _stepped(
        self, state: AntModelState, clock: jax.Array, data: Any
    ) -> tuple[AntModelState, jax.Array, jax.Array, jax.Array]:
        """The state after a step, the network's input, what it led to `[E, n + 1]`, and which episodes ended `[E]`."""
        key = jax.random.fold_in(jax.random.fold_in(state.key, _ACTIONS), clock)
        noise = self.renewed(state.noise, jax.random.normal(key, state.noise.shape))
        before = state.world.physics.obs
        action = self.actions(state, before, noise, data)
        at = jnp.maximum(clock, 0) * self.environments
        world, given = self._worlds.step(state.world, action, at)
        world = jax.lax.cond(given.renews, lambda: self._worlds.renew(world, given, at), lambda: world)
        x = self._inputs(state.scale, before, action)
        outputs = jnp.concatenate([given.observation - before, given.reward[:, None]], axis=-1)
        return state._replace(world=world, noise=noise), x, outputs, given.terminated | given.truncated

    def _inputs(self, scale: Scale, observation: jax.Array, action: jax.Array) -> jax.Array:
        bounded = jnp.clip((observation - scale.mean) / scale.deviation, -_FARTHEST, _FARTHEST)
        return jnp.concatenate([bounded, action], axis=-1)

    def evaluations(self, state: AntModelState, clock: jax.Array, data: Any) -> tuple[Evaluation, ...]:
        """The errors on the ground of the task just learned and, at its end, on that of the next."""
        grounds = [("", (clock - 1) // self.change_every)]
        if self.change != "none":
            grounds.append(("_after_change", clock // self.change_every))
        counted = (jnp.ones([], bool), self.ends_task(clock))

        def measure(predict: Callable[[jax.Array], jax.Array], _: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
            numbers = jnp.stack([number for _, number in grounds])
            conditions = self._worlds.condition(state.world.key, numbers)
            observations, actions, outputs = self._windows(state, clock, conditions, data)
            errors = {
                "error_one_step": self._one_step(state.scale, predict, observations, actions, outputs),
                "error_ten_steps": self._ten_steps(state.scale, predict, observations, actions),
            }
            found = {}
            for place, (ending, _number) in enumerate(grounds):
                counts = counted[place].astype(jnp.float32)
                found |= {f"{name}{ending}": (each[place] * counts, counts) for name, each in errors.items()}
            return found

        return (Evaluation(1, None, sums=measure),)

    def _windows(
        self, state: AntModelState, clock: jax.Array, conditions: jax.Array, data: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What new actions lead to from where the environments are, `[HORIZON (+ 1), grounds, windows * E, ...]`."""
        shape = (len(conditions), self.windows * self.environments)

        def repeated(leaf: jax.Array) -> jax.Array:
            return jnp.broadcast_to(jnp.tile(leaf, (self.windows, *(1,) * (leaf.ndim - 1))), (*shape, *leaf.shape[1:]))

        physics, noise = jax.tree.map(repeated, (state.world.physics, state.noise))
        key = jax.random.fold_in(jax.random.fold_in(state.key, _WINDOWS), clock)
        drawn = jax.random.normal(key, (HORIZON, 1, *noise.shape[1:]))  # the same on every ground
        conditions = jnp.broadcast_to(conditions[:, None], shape)

        def step(now: tuple[Any, jax.Array], drawn: jax.Array) -> tuple[tuple[Any, jax.Array], Any]:
            physics, noise = now
            noise, before = self.renewed(noise, drawn), physics.obs
            action = self.actions(state, before, noise, data)
            physics = jax.vmap(jax.vmap(self._worlds.stepped))(physics, action, conditions)
            outputs = jnp.concatenate([physics.obs - before, physics.reward[..., None]], axis=-1)
            return (physics, noise), (before, action, jnp.nan_to_num(outputs))

        (physics, _), (before, actions, outputs) = jax.lax.scan(step, (physics, noise), drawn)
        return jnp.concatenate([before, physics.obs[None]]), actions, outputs

    def _one_step(
        self, scale: Scale, predict: Callable[..., Any], observations: Any, actions: Any, outputs: Any
    ) -> jax.Array:
        """The loss over all steps of all windows, `[grounds]`."""
        x = self._inputs(scale, observations[:-1], actions)
        y = (outputs - scale.outputs_mean) / scale.outputs_deviation
        guess = predict(x.reshape(-1, x.shape[-1])).reshape(y.shape)
        return jnp.mean(jnp.square(guess - y), axis=(0, 2, 3))

    def _ten_steps(self, scale: Scale, predict: Callable[..., Any], observations: Any, actions: Any) -> jax.Array:
        """The squared error of the last observation, from the first and the actions alone, `[grounds]`."""

        def step(observation: jax.Array, action: jax.Array) -> tuple[jax.Array, None]:
            x = self._inputs(scale, observation, action)
            guess = predict(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
            change = (guess * scale.outputs_deviation + scale.outputs_mean)[..., :-1]
            bound = _FARTHEST * scale.deviation
            return jnp.clip(observation + change, scale.mean - bound, scale.mean + bound), None

        last, _ = jax.lax.scan(step, observations[0], actions)
        error = (last - observations[-1]) / scale.later_deviation
        return jnp.mean(jnp.square(jnp.nan_to_num(error)), axis=(1, 2))

    def probe_batches(self, state: AntModelState, clock: jax.Array, data: Any) -> dict[str, jax.Array]:
        """Inputs of where the environments are, with `windows` actions of each, `[windows * E, n + actions]`."""
        key = jax.random.fold_in(jax.random.fold_in(state.key, _PROBED), clock)
        drawn = jax.random.normal(key, (self.windows, *state.noise.shape))
        noise = self.renewed(state.noise, drawn)
        observation = jnp.broadcast_to(state.world.physics.obs, (self.windows, *state.world.physics.obs.shape))
        x = self._inputs(state.scale, observation, self.actions(state, observation, noise, data))
        return {"": x.reshape(-1, x.shape[-1])}


def _scale(observations: jax.Array, outputs: jax.Array, ended: jax.Array) -> Scale:
    """From `[steps, E, ...]`: what came of 10 steps counts where no episode ended among them."""

    def moments(values: jax.Array, weights: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        weights = jnp.ones(values.shape[:2]) if weights is None else weights
        total = jnp.maximum(jnp.sum(weights), 1.0)
        mean = jnp.einsum("se,sen->n", weights, values) / total
        deviation = jnp.sqrt(jnp.einsum("se,sen->n", weights, jnp.square(values - mean)) / total)
        return mean, jnp.where(deviation > 1e-4, deviation, 1.0)

    ends = jnp.cumsum(ended.astype(jnp.int32), axis=0)
    before = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])  # episodes that ended before each step
    whole = (before[HORIZON:] == before[:-HORIZON]).astype(jnp.float32)
    later = moments(observations[HORIZON:] - observations[:-HORIZON], whole)[1]
    return Scale(*moments(observations), *moments(outputs), later)
