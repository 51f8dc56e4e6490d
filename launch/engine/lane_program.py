"""What the loop runs: a program of pure functions for one lane, built from a task and a learner."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.storage.bins import Mean
from plastic_jax.lanes import any_lane
from plastic_jax.learners.ppo import PPO, Environments
from plastic_jax.learners.supervised import SupervisedLearner
from plastic_jax.paths import leaf_key
from tasks.base import Batch, Environment, Evaluation, Step, Task, gradual

DIVERGED = 1e6
"""A lane whose loss reaches this, or is not a number, has diverged for good."""

SAME_FOR_ALL_INPUTS = (
    "mean_weight_magnitude",
    "log10_step_size",
    "step_size",
    "collapsed_step_sizes",
    "shortened_steps",
)
"""What the names of diagnostics begin with that do not depend on what the network is shown."""


Metrics = dict[str, Mean]


@dataclasses.dataclass(frozen=True)
class Program:
    """One lane's run, as pure functions; the loop, the lanes and the files know nothing else of task and learner.

    Attributes:
        init: `(key, hyper, data) -> carry`, everything there is before step 0.
        step: `(carry, hyper, clock, data) -> (carry, metrics)`, one update, or one iteration of `stride` steps.
        probe: `(carry, hyper, clock, data) -> metrics`, before step `clock` is learned, at multiples of `probe_every`.
        evaluate: `(carry, hyper, clock, data) -> (carry, metrics)`, after step `clock - 1`, at multiples of
            `evaluate_every`.
        diverged: `carry -> 0-d bool`, whether the lane has diverged.
        bin: steps per bin of the metrics.
        probe_every: steps, or `None` for never.
        evaluate_every: steps, or `None` for never.
        probes_at: `clock -> 0-d bool`, at which of the multiples of `probe_every`.
        stride: steps that a call of `step` takes, of which the bin and all periods are multiples.
        handed_on: fields of the learner's state that a lane takes over from one that it goes on from.
        bare: whether a lane alone is computed without an axis of lanes. Around one XLA lays arrays out otherwise, and
            on CPUs chooses slower products for PPO (an iteration takes 1.14 times as long), but faster ones at batch 1.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Metrics]]
    probe: Callable[..., Metrics]
    evaluate: Callable[..., tuple[Any, Metrics]]
    diverged: Callable[[Any], jax.Array]
    bin: int
    probe_every: int | None
    evaluate_every: int | None
    probes_at: Callable[[jax.Array], jax.Array] = lambda clock: jnp.ones([], bool)
    stride: int = 1
    handed_on: tuple[str, ...] = ("params", "variables")
    bare: bool = False


class Carry(NamedTuple):
    """Everything of a lane: the task's state, the learner's, and whether it has diverged (0-d bool)."""

    task: Any
    learner: Any
    diverged: jax.Array


def supervised_program(task: Task, learner: SupervisedLearner, bin_size: int) -> Program:
    """A task's stream shown to a supervised learner; under its mapped axis every device learns from a part of a batch.

    The lane's key gives one key for each purpose; those of the task and of the initial weights know neither the method
    nor its numbers, so that all methods of a seed see the same stream and start from the same weights.
    """
    task = gradual(task)
    failure, schedule = task.spec.failure, task.schedule

    def init(key: jax.Array, hyper: Mapping[str, Any], data: Any) -> Carry:
        stream = task.init(task_key(key), data)
        state = learner.init(leaf_key(key, "params"), leaf_key(key, "method"), hyper)
        return Carry(stream, state, jnp.zeros([], bool))

    def step(carry: Carry, hyper: Mapping[str, Any], clock: jax.Array, data: Any) -> tuple[Carry, Metrics]:
        stream, batch = task.next(carry.task, clock, data)
        batch = _own_part(batch, learner.axis_name)
        batch = jax.lax.optimization_barrier(batch)  # else XLA repeats the making of x in every pass over the weights
        state, seen = learner.step(carry.learner, hyper, batch, clock)
        loss = seen["squared_error" if "squared_error" in seen else "loss"]
        diverged = carry.diverged | ~(loss < DIVERGED)
        one = jnp.ones([], jnp.float32)
        metrics = {n: Mean(_unless(diverged, v, failure.get(n)), one) for n, v in seen.items()}
        return Carry(stream, state, diverged), metrics

    def probe(carry: Carry, hyper: Mapping[str, Any], clock: jax.Array, data: Any) -> Metrics:
        metrics = {}
        for ending, x in task.probe_batches(carry.task, clock, data).items():
            seen = {
                n if n.startswith(SAME_FOR_ALL_INPUTS) else n + ending: v
                for n, v in learner.probe(carry.learner, x, hyper).items()
            }
            metrics |= _seen_inside(carry.diverged, seen)
        for one in task.previews(carry.task, clock, data):
            sums = _measured(learner, carry.learner, one)
            metrics |= counted(carry.diverged, sums)
        for one in task.trials(carry.task, clock, data):
            sums = {one.metric: learner.trial(carry.learner, one.batch, one.updates)}
            metrics |= counted(carry.diverged, sums)
        return metrics

    def counted(diverged: jax.Array, sums: Mapping[str, tuple[jax.Array, jax.Array]]) -> Metrics:
        return {
            name: Mean(_unless(diverged, total, failure.get(name), count), count)
            for name, (total, count) in sums.items()
        }

    def evaluate(carry: Carry, hyper: Mapping[str, Any], clock: jax.Array, data: Any) -> tuple[Carry, Metrics]:
        state, metrics = carry.learner, {}
        for one in task.evaluations(carry.task, clock, data):
            sums = _measured(learner, state, one)
            if one.selects and learner.selects:
                state = _selected(learner, state, next(iter(sums.values())), task.ends_task(clock))
            metrics |= counted(carry.diverged, sums)
        return carry._replace(learner=state), metrics

    return Program(
        init=init,
        step=step,
        probe=probe,
        evaluate=evaluate,
        diverged=lambda carry: carry.diverged,
        bin=bin_size,
        probe_every=schedule.probe_every,
        evaluate_every=schedule.evaluate_every,
        probes_at=schedule.probes_at,
    )


def task_key(key: jax.Array) -> jax.Array:
    """The key of a lane's stream or environments, which knows neither the method nor its numbers."""
    return leaf_key(key, "task")


def acting(task: Environment) -> Environments:
    """A task's environments as a learner takes them: episodes that are over are followed by new ones."""

    def step(state: Any, action: jax.Array, clock: jax.Array) -> tuple[Any, Step]:
        state, given = task.step(state, action, clock)
        return jax.lax.cond(any_lane(given.renews), lambda: task.renew(state, given, clock), lambda: state), given

    spec = task.spec
    size = math.prod(spec.input_shape)
    return Environments(spec.environments, size, spec.outputs, task.observe, step, spec.discrete)


def ppo_program(task: Environment, learner: PPO, bin_size: int) -> Program:
    """Iterations of PPO on a task's environments; the clock counts environment steps.

    A new task begins, for what is told of it, with the first iteration after a change was due.
    """
    failure, rollout, every = task.spec.failure, learner.settings.rollout, task.schedule.change_every

    def init(key: jax.Array, hyper: Mapping[str, Any], data: Any) -> Carry:
        world = task.init(task_key(key), data)
        keys = (leaf_key(key, name) for name in ("params", "method", "policy"))
        return Carry(world, learner.init(*keys, hyper), jnp.zeros([], bool))

    def step(carry: Carry, hyper: Mapping[str, Any], clock: jax.Array, data: Any) -> tuple[Carry, Metrics]:
        due = (clock // every != (clock - rollout) // every) & task.changes
        state, world, seen = learner.step(carry.learner, carry.task, hyper, clock, due | (clock == 0))
        diverged = carry.diverged | ~jnp.isfinite(seen["loss"][0])
        metrics = {
            name: Mean(_unless(diverged, total, failure.get(name), count), count)
            for name, (total, count) in seen.items()
        }
        return Carry(world, state, diverged), metrics

    def evaluate(carry: Carry, hyper: Mapping[str, Any], clock: jax.Array, data: Any) -> tuple[Carry, Metrics]:
        return carry, _seen_inside(carry.diverged, learner.probe(carry.learner, hyper))

    return Program(
        init=init,
        step=step,
        probe=lambda carry, hyper, clock, data: {},
        evaluate=evaluate,
        diverged=lambda carry: carry.diverged,
        bin=bin_size,
        probe_every=None,
        evaluate_every=rollout * learner.settings.probe_every,
        stride=rollout,
        handed_on=("params", "recent", "observations", "rewards", "discounted", "memory", "recent_memory"),
        bare=True,
    )


def _measured(learner: SupervisedLearner, state: Any, evaluation: Evaluation) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums and numbers over all batches."""

    def measure(i: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        if evaluation.sums is not None:
            return evaluation.sums(functools.partial(learner.outputs, state), i)
        assert evaluation.batch is not None
        x, targets = evaluation.batch(i)
        return learner.evaluate(state, x, targets, evaluation.class_mask, evaluation.measure)

    if isinstance(evaluation.batches, int) and evaluation.batches == 1:
        return measure(0)
    names = jax.eval_shape(measure, 0)
    nothing = {name: (jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32)) for name in names}
    return jax.lax.fori_loop(0, evaluation.batches, lambda i, sums: jax.tree.map(jnp.add, sums, measure(i)), nothing)


def _selected(learner: SupervisedLearner, state: Any, seen: tuple[jax.Array, jax.Array], ends_task: jax.Array) -> Any:
    total, count = seen
    keep = lambda: learner.keep_best(state, total / jnp.maximum(count, 1.0), ends_task)  # noqa: E731
    return jax.lax.cond(any_lane(count > 0), keep, lambda: state)


def _own_part(batch: Batch, axis_name: str | None) -> Batch:
    """This device's examples: as many consecutive ones as every other device has; the rest is for all."""
    if axis_name is None:
        return batch
    rows = len(batch.x) // jax.lax.axis_size(axis_name)
    start = jax.lax.axis_index(axis_name) * rows
    mask = batch.class_mask
    by_example = {"x": batch.x, "y": batch.y} | ({"class_mask": mask} if mask is not None and mask.ndim > 1 else {})
    own = {name: jax.lax.dynamic_slice_in_dim(values, start, rows) for name, values in by_example.items()}
    return batch._replace(**own)


def continued(program: Program, carry: Carry, earlier: Carry) -> Carry:
    """A lane that goes on with the stream and the very network of `earlier`, and with all else of its own."""
    network = {name: getattr(earlier.learner, name) for name in program.handed_on}
    network["restarts"] = jnp.ones_like(carry.learner.restarts)  # network 0 is the one with which the seed began
    return carry._replace(task=earlier.task, diverged=earlier.diverged, learner=carry.learner._replace(**network))


def _seen_inside(diverged: jax.Array, seen: Mapping[str, jax.Array]) -> Metrics:
    """Diagnostics, not counted where they are not finite and for a diverged network, in which no unit is dormant."""

    def counted(value: jax.Array) -> Mean:
        counts = jnp.isfinite(value) & ~diverged
        return Mean(jnp.where(counts, value.astype(jnp.float32), 0), counts.astype(jnp.float32))

    return {name: counted(value) for name, value in seen.items()}


def _unless(diverged: jax.Array, value: jax.Array, failure: float | None, count: jax.Array | float = 1.0) -> jax.Array:
    value = value.astype(jnp.float32)
    return value if failure is None else jnp.where(diverged, failure * count, value)
