"""Proximal policy optimisation, with any method that keeps a network able to learn."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from plastic_jax.diagnostics import metrics
from plastic_jax.diagnostics.step_sizes import step_size_metrics
from plastic_jax.learners.moments import Moments, deviation, no_moments, normalised, taken_in
from plastic_jax.learners.policies import CATEGORICAL, GAUSSIAN, Policy
from plastic_jax.learners.supervised import curvatures, gradients
from plastic_jax.paths import leaf_key
from plastic_jax.replacement.reset import number_replaced
from plastic_jax.replacement.statistics import feature_matrix
from plastic_jax.units.graph import UnitGraph
from plastic_jax.units.trace import trace_units

RECENT = 1000
"""Steps that the diagnostics look at, as published."""

MOST_STEPS = 2**31 - 1
"""The largest number of a step: clocks are int32."""

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Per name, the sum and the number of what was measured, 0-d float32."""


class Environments(NamedTuple):
    """`E` environments that begin new episodes by themselves, as pure functions of a state and a clock.

    Attributes:
        number: `E`.
        observation_size: values in an observation.
        action_size: values in an action; of discrete ones, how many there are to choose from.
        observe: `state -> [E, observation_size]`.
        step: `(state, actions [E, action_size], clock) -> (state, given)`, or int32 actions `[E]`; the clock counts the
            steps of all environments before this one, 0-d int32. `given` has `reward` `[E]`; `observation`, where the
            step led, before a new episode begins; bool `[E]` `terminated`, nothing can follow, and `truncated`, time is
            over; and `seen`, what the environments measure of themselves, as `Sums`.
        discrete: whether an action is one of `action_size`, drawn from a categorical distribution.
    """

    number: int
    observation_size: int
    action_size: int
    observe: Callable[[Any], jax.Array]
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, Any]]
    discrete: bool = False


class Rollout(NamedTuple):
    """Steps of `E` environments, `[steps, E, ...]`; `next_observation` is where each led.

    `memory` and `next_memory` are a recurrent network's before and after each step; `None` of another.
    """

    observation: jax.Array
    action: jax.Array
    log_probability: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    memory: Any = None
    next_memory: Any = None


class Samples(NamedTuple):
    """What is learned from, `[n, ...]`; observations as the network sees them.

    For a recurrent network the steps of every environment stay together, `[E, steps, ...]`: `memory` `[E, ...]` is its
    memory before the first, and `starts` says which begin an episode.
    """

    observation: jax.Array
    action: jax.Array
    log_probability: jax.Array
    advantage: jax.Array
    target: jax.Array
    memory: Any = None
    starts: jax.Array | None = None

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the network is shown."""
        return (self.observation,) if self.memory is None else (self.observation, self.memory, self.starts)


class PPOState(NamedTuple):
    """State of one learner.

    Attributes:
        params: the network's parameters.
        optimizer: the transformation's state.
        params_key: typed key of the initial weights; restart `r` draws from `fold_in(params_key, r)`.
        method_key: typed key of the method's own draws.
        policy_key: typed key of actions and minibatches.
        restarts: int32 scalar, how often a new task has begun.
        recent: `[RECENT, observation_size]`, the last observations; infinite before there are as many.
        observations: moments of each observation, `[observation_size]`; `None` where they are not normalised.
        rewards: moments of the discounted sum of rewards, 0-d; `None` where they are not normalised.
        discounted: `[E]`, that sum in every environment; `None` likewise.
        memory: a recurrent network's memory, `[E, ...]`, 0 where an episode begins; `None` for another.
        recent_memory: `[RECENT, ...]`, what it was before the last observations; `None` likewise.
    """

    params: Any
    optimizer: Any
    params_key: jax.Array
    method_key: jax.Array
    policy_key: jax.Array
    restarts: jax.Array
    recent: jax.Array
    observations: Moments | None = None
    rewards: Moments | None = None
    discounted: jax.Array | None = None
    memory: Any = None
    recent_memory: Any = None


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """How `PPO` learns, as far as it shapes the program.

    Attributes:
        rollout: environment steps in an iteration, a multiple of the number of environments and of `minibatches`.
        epochs: passes through the steps of an iteration.
        minibatches: updates in a pass; a recurrent network has minibatches of whole environments.
        time_limit: what follows an episode whose time is over: `"bootstrap"`, the value of where it led; `"terminal"`,
            nothing, as published.
        normalise_advantages: over the whole `"rollout"`, as published, every `"minibatch"`, or `"none"`.
        normalise_observations: by their running mean and deviation, clipped to 10 deviations; over all of them, or
            with a number `input_decay` (see `moments.taken_in`) over the last.
        normalise_rewards: by the running deviation of their discounted sum, clipped to 10.
        max_gradient_norm: gradients above this Euclidean norm, over all parameters, are scaled down to it; `None`: no
            bound.
        decay_steps: environment steps over which the step size falls to 0 on a straight line; `None`: it stays.
        probe_every: iterations between two looks inside.

    Raises:
        ValueError: a setting is not one of those allowed.
    """

    rollout: int = 2048
    epochs: int = 10
    minibatches: int = 16
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    normalise_advantages: Literal["rollout", "minibatch", "none"] = "rollout"
    normalise_observations: bool = False
    normalise_rewards: bool = False
    max_gradient_norm: float | None = None
    decay_steps: int | None = None
    probe_every: int = 25

    def __post_init__(self) -> None:
        for name in ("rollout", "epochs", "minibatches", "probe_every", "decay_steps"):
            value: Any = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if not whole and (name, value) != ("decay_steps", None):
                raise ValueError(f"{name}: got {value!r}, allowed are integers from 1 up")
            if whole and value > MOST_STEPS:
                raise ValueError(f"{name}: got {value}, allowed are at most {MOST_STEPS}")
        steps = self.probe_every * self.rollout
        if steps > MOST_STEPS:
            raise ValueError(
                f"probe_every: got {self.probe_every}, which are {steps} steps, allowed are at most {MOST_STEPS}"
            )
        for name, allowed in (
            ("time_limit", ("bootstrap", "terminal")),
            ("normalise_advantages", ("rollout", "minibatch", "none")),
            ("normalise_observations", (True, False)),
            ("normalise_rewards", (True, False)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, allowed are {', '.join(map(str, allowed))}")
        norm: Any = self.max_gradient_norm
        if norm is not None and (isinstance(norm, bool) or not isinstance(norm, int | float) or not norm > 0):
            raise ValueError(f"max_gradient_norm: got {norm!r}, allowed are numbers above 0")
        if self.rollout % self.minibatches:
            raise ValueError(f"rollout: {self.rollout} steps do not divide into {self.minibatches} minibatches")
        samples = {"rollout": self.rollout, "minibatch": self.rollout // self.minibatches}
        if samples.get(self.normalise_advantages) == 1:
            raise ValueError("normalise_advantages: over one step there is no deviation; allowed is none")

    @property
    def updates(self) -> int:
        """Updates in an iteration."""
        return self.epochs * self.minibatches


@dataclasses.dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation (Schulman et al. 2017) as used by Dohare et al. 2024, Nature 632, for Ant.

    An iteration takes `rollout` steps, spread evenly over the environments, and learns from them: `epochs` times, in
    an order of its own each time, in `minibatches` equal parts. With the ratio `r = policy(a | x) / policy_old(a | x)`,
    the advantage `A` and the target `R = A + v_old(x)`, every update lowers

    `mean(max(-r A, -clip(r, 1 - c, 1 + c) A)) + value_coefficient * mean((R - v(x))^2) - entropy_coefficient * entropy`

    by the transformation, over all parameters. Actions are drawn from the policy and given to the environment as drawn.

    A recurrent network goes on from step to step, over the ends of iterations, and begins at 0 with every episode. Its
    minibatches are whole environments: an update follows their steps from the memory that the network had before the
    iteration, through which no gradient flows.

    Numbers of `hyper` beside the method's: `discount`, `gae_lambda`, `clip_range` (c), `value_coefficient`,
    `entropy_coefficient`.

    Attributes:
        network: a Flax module from `[n, observation_size]` to mean `[n, action_size]`, logarithm of the standard
            deviation, of a shape that broadcasts to it, and value `[n]`; of discrete actions to logits
            `[n, action_size]` and value. Recurrent is one with a method `initial_memory(n)` that does not give `None`,
            as `ActorCritic` has it.
        environments: what is acted on.
        transformation: `(hyper, key) -> optax transformation`; called inside the compiled step.
        settings: how it learns.
        units: the unit graph of `ppo_units`, for methods and diagnostics that look at hidden units; `None` without.
        restart: begin every task with a new network (the fresh-network control).
        restart_all: whether a restart also begins the optimizer's state and the running moments.
        feature_gradients: give the method the gradients in the features too, from the same backward pass (`regrama`).
        curvature: give the optimizer the curvature of every weight by local targets of scale 1 (`idbd`).
        hvp: give the optimizer the product of the loss's curvature with any direction, as that of `gauss_newton`
            (`smd`); the loss is not convex in the outputs, so that it may be negative.

    Raises:
        ValueError: `rollout` is not a multiple of the number of environments; the environments do not divide into the
            minibatches of a recurrent network; gradients in features without `units`.
    """

    network: nn.Module
    environments: Environments
    transformation: Callable[[Mapping[str, Any], jax.Array], optax.GradientTransformationExtraArgs]
    settings: PPOSettings = PPOSettings()
    units: UnitGraph | None = None
    restart: bool = False
    restart_all: bool = True
    feature_gradients: bool = False
    curvature: bool = False
    hvp: bool = False

    def __post_init__(self) -> None:
        if self.feature_gradients and self.units is None:
            raise ValueError("PPO: feature_gradients needs units, those of ppo_units")
        if self.settings.rollout % self.environments.number:
            raise ValueError(
                f"rollout: {self.settings.rollout} steps do not divide into {self.environments.number} environments"
            )
        if self._recurrent and self.environments.number % self.settings.minibatches:
            raise ValueError(
                f"minibatches: {self.environments.number} environments do not divide into {self.settings.minibatches} "
                "minibatches, which a recurrent network has of whole environments"
            )

    @property
    def policy(self) -> Policy:
        """The distribution of actions."""
        return CATEGORICAL if self.environments.discrete else GAUSSIAN

    @property
    def _recurrent(self) -> bool:
        return initial_memory(self.network, 1) is not None

    def init(self, params_key: jax.Array, method_key: jax.Array, policy_key: jax.Array, hyper: Any) -> PPOState:
        """The state before the first iteration; `params_key` alone decides the initial weights."""
        restarts = jnp.zeros([], jnp.int32)
        params = self._fresh(params_key, restarts)
        optimizer = self.transformation(hyper, method_key).init(params)
        return PPOState(
            params,
            optimizer,
            params_key,
            method_key,
            policy_key,
            restarts,
            # Infinite: NaN would end runs with jax_debug_nans. Typed: a weak type would have the step compiled twice.
            jnp.full((RECENT, self.environments.observation_size), jnp.inf, jnp.float32),
            **self._empty_moments(),
            memory=initial_memory(self.network, self.environments.number),
            recent_memory=initial_memory(self.network, RECENT),
        )

    def step(
        self, state: PPOState, world: Any, hyper: Mapping[str, Any], clock: jax.Array, boundary: jax.Array
    ) -> tuple[PPOState, Any, Sums]:
        """One iteration: collect, advantages, updates.

        Args:
            state: the learner.
            world: the environments' state.
            hyper: numbers, which may be traced.
            clock: environment steps before this iteration, unbatched int32.
            boundary: whether a new task has begun since the last iteration, 0-d bool.
        """
        hyper = self._now(hyper, clock)
        state = self._begun(state, hyper, boundary)
        world, rollout, seen = self.collect(state, world, hyper, clock)
        state, samples = self.samples(state, rollout, hyper)
        order = self.order(state, clock)
        before = state
        state, losses = self.learn(state, samples, order, hyper, clock, boundary)
        policies = _policy(before.params), _policy(state.params)
        seen |= {name: (jnp.sum(values), jnp.float32(len(values))) for name, values in losses.items()}
        for measure in (metrics.weight_change, metrics.largest_weight_change):
            seen[measure.__name__] = (measure(*policies), jnp.float32(1))
        if self.units is not None:
            new = number_replaced(state.optimizer) - number_replaced(before.optimizer)
            seen |= {"units_replaced": (new.astype(jnp.float32), jnp.float32(1))}
        return state, world, seen

    def collect(
        self, state: PPOState, world: Any, hyper: Mapping[str, Any], clock: jax.Array
    ) -> tuple[Any, Rollout, Sums]:
        """The environments' state after the steps of an iteration, the steps, and what was measured on the way."""
        number, size = self.environments.number, self.environments.action_size
        key = jax.random.fold_in(leaf_key(state.policy_key, "actions"), clock)
        noise = self.policy.noise(key, (self.settings.rollout // number, number, size))

        def act(carry: tuple[Any, Any], now: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[Rollout, Sums]]:
            (world, memory), (step, noise) = carry, now
            x = self.environments.observe(world)
            (*parameters, _), after = self._act(state.params, self._seen(state, x), memory)
            action = self.policy.act(noise, *parameters)
            world, given = self.environments.step(world, action, step)
            log_probability = self.policy.log_probability(action, *parameters)
            led = given.reward, given.observation, given.terminated, given.truncated
            rollout = Rollout(x, action, log_probability, *led, memory, after)
            return (world, _forgotten(after, given.terminated | given.truncated)), (rollout, given.seen)

        steps = clock + number * jnp.arange(self.settings.rollout // number, dtype=jnp.int32)
        (world, _), (rollout, seen) = jax.lax.scan(act, (world, state.memory), (steps, noise))
        return world, rollout, jax.tree.map(jnp.sum, seen)

    def samples(self, state: PPOState, rollout: Rollout, hyper: Mapping[str, Any]) -> tuple[PPOState, Samples]:
        """What is learned from, and the state with the last observations and the moments of all."""
        x, following = (self._seen(state, each) for each in (rollout.observation, rollout.next_observation))
        value = self._values(state.params, x, rollout.memory)
        next_value = self._values(state.params, following, rollout.next_memory)
        ended = rollout.terminated | rollout.truncated
        terminated = ended if self.settings.time_limit == "terminal" else rollout.terminated
        state, reward = self._rewards(state, rollout.reward, ended, hyper["discount"])
        found = advantages(reward, value, next_value, terminated, ended, hyper["discount"], hyper["gae_lambda"])
        target = found + value
        if self.settings.normalise_advantages == "rollout":
            found = standardised(found)
        made = Samples(x, rollout.action, rollout.log_probability, found, target)
        state = state._replace(
            recent=_last(state.recent, rollout.observation),
            memory=_forgotten(jax.tree.map(lambda leaf: leaf[-1], rollout.next_memory), ended[-1]),
            recent_memory=jax.tree.map(_last, state.recent_memory, rollout.memory),
        )
        if state.observations is not None:
            raw = rollout.observation.reshape(-1, x.shape[-1])
            state = state._replace(observations=taken_in(state.observations, raw, hyper.get("input_decay")))
        if not self._recurrent:
            return state, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)
        starts = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])  # the memory before the first step is 0 there
        made = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), made._replace(starts=starts))
        return state, made._replace(memory=jax.tree.map(lambda leaf: leaf[0], rollout.memory))

    def order(self, state: PPOState, clock: jax.Array) -> jax.Array:
        """Which samples each update sees, int32 `[updates, rollout / minibatches]`; with a recurrent network, which
        environments, `[updates, E / minibatches]`."""
        key = jax.random.fold_in(leaf_key(state.policy_key, "minibatches"), clock)
        number = self.environments.number if self._recurrent else self.settings.rollout
        shuffled = jax.vmap(lambda key: jax.random.permutation(key, number))(
            jax.random.split(key, self.settings.epochs)
        )
        return shuffled.astype(jnp.int32).reshape(self.settings.updates, -1)

    def learn(
        self,
        state: PPOState,
        samples: Samples,
        order: jax.Array,
        hyper: Mapping[str, Any],
        clock: jax.Array,
        boundary: jax.Array,
    ) -> tuple[PPOState, dict[str, jax.Array]]:
        """All updates of an iteration; the metrics `[updates]` are those of the predictions before each."""
        transformation = self.transformation(hyper, state.method_key)
        first = clock // self.settings.rollout * self.settings.updates

        def update(state: PPOState, now: tuple[jax.Array, jax.Array]) -> tuple[PPOState, dict[str, jax.Array]]:
            number, rows = now
            batch = jax.tree.map(lambda leaf: leaf[rows], samples)
            begins = boundary & (number == 0)
            return self.minibatch_update(state, transformation, batch, hyper, first + number, begins)

        numbers = jnp.arange(len(order), dtype=jnp.int32)
        return jax.lax.scan(update, state, (numbers, order))

    def minibatch_update(
        self,
        state: PPOState,
        transformation: optax.GradientTransformationExtraArgs,
        batch: Samples,
        hyper: Mapping[str, Any],
        clock: jax.Array,
        boundary: jax.Array,
    ) -> tuple[PPOState, dict[str, jax.Array]]:
        """One update; `clock` counts updates."""

        def objective(params: Any, *perturbations: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
            output, features = self._forward(params, batch.inputs, *perturbations)
            loss, seen = self.loss(output, batch, hyper)
            return loss, (seen, features)

        zeros = None
        if self.feature_gradients and self.units is not None:
            zeros = self.units.perturbations(state.params, *batch.inputs)
        (loss, (seen, features)), grads, more = gradients(objective, state.params, zeros)
        scale: Any = 1.0
        if self.settings.max_gradient_norm is not None:
            norm = optax.tree.norm(grads)
            scale = jnp.minimum(1.0, self.settings.max_gradient_norm / jnp.maximum(norm, 1e-6))
            grads = jax.tree.map(lambda g: g * scale, grads)
        given = {"features": features, "boundary": boundary, "loss": loss, "clock": clock, **more}
        given |= curvatures(
            self,
            lambda params: self._forward(params, batch.inputs)[0],
            lambda output: scale * self.loss(output, batch, hyper)[0],
            state.params,
            batch.observation,
            scale,
        )
        updates, optimizer = transformation.update(grads, state.optimizer, state.params, **given)
        return state._replace(params=optax.apply_updates(state.params, updates), optimizer=optimizer), seen

    def loss(self, output: Any, batch: Samples, hyper: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a minibatch, 0-d, and what is told of it."""
        *parameters, value = output
        log_ratio = self.policy.log_probability(batch.action, *parameters) - batch.log_probability
        ratio, limit = jnp.exp(log_ratio), hyper["clip_range"]
        advantage = (
            standardised(batch.advantage) if self.settings.normalise_advantages == "minibatch" else batch.advantage
        )
        policy_loss = jnp.mean(clipped_surrogate(ratio, advantage, limit))
        value_loss = jnp.mean(jnp.square(batch.target - value))
        entropy = jnp.mean(self.policy.entropy(*parameters))
        loss = policy_loss + hyper["value_coefficient"] * value_loss - hyper["entropy_coefficient"] * entropy
        return loss, {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approximate_kl": jnp.mean(ratio - 1 - log_ratio),
            "clip_fraction": jnp.mean((jnp.abs(ratio - 1) > limit).astype(jnp.float32)),
        }

    def probe(self, state: PPOState, hyper: Mapping[str, Any] | None = None) -> dict[str, jax.Array]:
        """What is seen inside on the last observations: of the policy, where the network has a part of that name.

        `dormant_units` is the share, over all hidden layers, of units above 0 on at most 1 % of the observations, and
        ranks are those of the last hidden layer, divided by its width (both as published). They are NaN before there
        are `RECENT` observations.
        """
        seen = {"mean_weight_magnitude": metrics.mean_weight_magnitude(_policy(state.params))}
        seen |= step_size_metrics(state.optimizer, self.units, (hyper or {}).get("step_size"))
        if self.units is None or not self.units.groups:
            return seen
        groups = [g for g in self.units.groups if g.name.startswith("policy/")] or list(self.units.groups)
        _, features = self.units.apply(state.params, *steps_of(self._seen(state, state.recent), state.recent_memory))
        matrices = [feature_matrix(group, features[group.name]) for group in groups]
        dormant = [metrics.dormant_units(m, rule="positive") * m.shape[1] for m in matrices]
        sigma, width = metrics.singular_values(matrices[-1]), matrices[-1].shape[1]
        inside = {
            "dormant_units": jnp.sum(jnp.stack(dormant)) / sum(m.shape[1] for m in matrices),
            "effective_rank": metrics.effective_rank_of(sigma) / width,
            "stable_rank": metrics.stable_rank_of(sigma) / width,
        }
        enough = jnp.all(jnp.isfinite(state.recent))
        return seen | {name: jnp.where(enough, value, jnp.nan) for name, value in inside.items()}

    def _act(self, params: Any, x: jax.Array, memory: Any) -> tuple[Any, Any]:
        """The network's output for one step, `[n, ...]`, and the memory after it."""
        if memory is None:
            return self.network.apply({"params": params}, x), None
        return self.network.apply({"params": params}, x, memory)  # pyright: ignore[reportReturnType]

    def _forward(
        self, params: Any, inputs: tuple[Any, ...], perturbations: Any = None
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The network's output for what is learned from, and the features."""
        if self.units is None:
            return output_of(self.network, params, *inputs), {}
        return self.units.apply(params, *inputs, **({} if perturbations is None else {"perturbations": perturbations}))

    def _values(self, params: Any, x: jax.Array, memory: Any) -> jax.Array:
        """Values `[steps, E]` of observations `[steps, E, observation_size]`, with the memory before each."""
        x_, memory_ = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (x, memory))
        return self._act(params, x_, memory_)[0][-1].reshape(x.shape[:2])

    def _fresh(self, key: jax.Array, restarts: jax.Array) -> Any:
        x = jnp.zeros((1, self.environments.observation_size))
        return self.network.init(jax.random.fold_in(key, restarts), x)["params"]

    def _now(self, hyper: Mapping[str, Any], clock: jax.Array) -> Mapping[str, Any]:
        """The numbers with the step size as it is at that step."""
        if self.settings.decay_steps is None:
            return hyper
        left = jnp.maximum(1 - clock / self.settings.decay_steps, 0.0)
        return {**hyper, "step_size": hyper["step_size"] * left}

    def _begun(self, state: PPOState, hyper: Mapping[str, Any], boundary: jax.Array) -> PPOState:
        """The state in which an iteration begins: new where a task is."""
        if not self.restart:
            return state

        def restarted() -> PPOState:
            params = self._fresh(state.params_key, state.restarts)
            memory = initial_memory(self.network, self.environments.number)
            begun = state._replace(params=params, restarts=state.restarts + 1, memory=memory)
            if not self.restart_all:
                return begun
            optimizer = self.transformation(hyper, state.method_key).init(params)
            return begun._replace(optimizer=optimizer, **self._empty_moments())

        return jax.lax.cond(boundary, restarted, lambda: state)

    def _empty_moments(self) -> dict[str, Any]:
        """What of the state runs along with observations and rewards, before there are any."""
        size, number = self.environments.observation_size, self.environments.number
        rewards = self.settings.normalise_rewards
        return {
            "observations": no_moments((size,)) if self.settings.normalise_observations else None,
            "rewards": no_moments(()) if rewards else None,
            "discounted": jnp.zeros(number) if rewards else None,
        }

    def _seen(self, state: PPOState, x: jax.Array) -> jax.Array:
        """Observations as the network sees them."""
        return normalised(state.observations, x)

    def _rewards(
        self, state: PPOState, reward: jax.Array, ended: jax.Array, discount: jax.Array
    ) -> tuple[PPOState, jax.Array]:
        """Rewards as they are learned from."""
        if state.rewards is None or state.discounted is None:
            return state, reward

        def add(total: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            reward, ended = now
            total = discount * total + reward
            return jnp.where(ended, 0.0, total), total

        discounted, totals = jax.lax.scan(add, state.discounted, (reward, ended))
        moments = taken_in(state.rewards, totals.reshape(-1))
        state = state._replace(rewards=moments, discounted=discounted)
        return state, jnp.clip(reward / deviation(moments), -10, 10)


def advantages(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    discount: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> jax.Array:
    """Generalised advantage estimates (Schulman et al. 2016), of steps in order, `[steps, ...]` as all arguments.

    `delta_t = r_t + discount (1 - terminated_t) v(x'_t) - v(x_t)`, where `x'_t` is where step `t` led;
    `A_t = delta_t + discount lambda (1 - ended_t) A_{t+1}`, with 0 after the last step.

    Args:
        reward: `r`.
        value: `v(x_t)`.
        next_value: `v(x'_t)`, that of the next step's observation unless the episode ended.
        terminated: bool; nothing follows the step.
        ended: bool; the next step is another episode's, for whatever reason.
        discount: in [0, 1].
        gae_lambda: in [0, 1]; 0 is one step of temporal differences, 1 is the whole return.
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value

    def back(following: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, ended = now
        found = delta + discount * gae_lambda * jnp.where(ended, 0.0, following)
        return found, found

    return jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)[1]


def clipped_surrogate(ratio: jax.Array, advantage: jax.Array, clip_range: float | jax.Array) -> jax.Array:
    """PPO's loss of each sample, `max(-r A, -clip(r, 1 - c, 1 + c) A)`, of the arguments' shape.

    Its derivative by the ratio is `-A` up to the limit, the limit included, as in the published code, and 0 beyond.
    (`jnp.maximum` and `jnp.clip` halve the derivative where their arguments are equal: together they would give
    `-0.75 A` at the limit.)

    Args:
        ratio: `r`, probability of the action over what it was when it was taken.
        advantage: `A`.
        clip_range: `c`, at least 0.
    """
    beyond = jnp.where(advantage > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    limit = jnp.where(advantage > 0, 1 + clip_range, 1 - clip_range)
    return -jnp.where(beyond, limit, ratio) * advantage


def standardised(x: jax.Array) -> jax.Array:
    """`(x - mean) / std`, with the unbiased deviation (n - 1), over all elements; close to 0 where all are equal.

    Where all are equal, their mean is rounded, and so is the deviation: it is taken to be at least `1e-5 max |x|`.
    """
    least = 1e-5 * jnp.max(jnp.abs(x)) + 1e-8
    return (x - jnp.mean(x)) / jnp.maximum(jnp.std(x, ddof=1), least)


def ppo_units(network: nn.Module, observation_size: int) -> UnitGraph:
    """The hidden units of a network as `PPO` calls it, policy and value together, found from shapes alone.

    Raises:
        NotImplementedError: an operation on hidden units that has no rule.
    """
    x = jax.ShapeDtypeStruct((1, observation_size), jnp.float32)
    params = jax.eval_shape(lambda x: network.init(jax.random.key(0), x)["params"], x)
    inputs = jax.eval_shape(lambda x: steps_of(x, initial_memory(network, 1)), x)
    return trace_units(functools.partial(output_of, network), params, *inputs)


def initial_memory(network: nn.Module, number: int) -> Any:
    """The memory of a recurrent network at the start of that many episodes; `None` of another network."""
    made = getattr(network, "initial_memory", None)
    return None if made is None else made(number)


def output_of(network: nn.Module, params: Any, *inputs: Any) -> Any:
    """Parameters of the policy and value; of a recurrent network for `inputs` of observations, memory and starts."""
    output = network.apply({"params": params}, *inputs)
    return output if len(inputs) == 1 else output[0]


def steps_of(x: jax.Array, memory: Any) -> tuple[Any, ...]:
    """Observations `[n, observation_size]`, with the memory before each, as inputs of sequences of one step."""
    return (x,) if memory is None else (x[:, None], memory, jnp.zeros((len(x), 1), bool))


def _forgotten(memory: Any, ended: jax.Array) -> Any:
    """The memory after a step, 0 where it was an episode's last."""
    return jax.tree.map(lambda leaf: jnp.where(ended.reshape(-1, *(1,) * (leaf.ndim - 1)), 0, leaf), memory)


def _last(recent: jax.Array, new: jax.Array) -> jax.Array:
    """The last of what there was and of new steps `[steps, E, ...]`."""
    return jnp.concatenate([recent, new.reshape(-1, *recent.shape[1:])])[-RECENT:]


def _policy(params: Any) -> Any:
    """The policy's parameters, where they have that name; else all."""
    return params.get("policy", params)
