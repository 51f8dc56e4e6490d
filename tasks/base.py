"""What every task is: a stream that keeps changing, as pure functions of a state, a clock and the data."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

MOST_STEPS = 2**31 - 1
"""The largest number of a step: clocks are int32."""

_MIXED = 0x6D697865
"""Tells the draws of `gradual` from those of the streams, whose own purposes are small numbers."""


class Batch(NamedTuple):
    """What the learner is shown at one step.

    Attributes:
        x: inputs, `[batch, *input_shape]`.
        y: targets, `[batch, outputs]` float (squared error) or `[batch, *target_shape]` int32 labels (cross entropy).
        boundary: 0-d bool, true at the first step of a new task (also at step 0).
        reset_head: 0-d bool, true where the problem itself asks for a new output layer.
        class_mask: `[outputs]` bool, the classes that count now, or a row for every example, `[batch, outputs]`; `None`
            for all.
        step_scale: 0-d float, the problem's schedule of step sizes as a factor; `None` for 1.
    """

    x: jax.Array
    y: jax.Array
    boundary: jax.Array
    reset_head: jax.Array
    class_mask: jax.Array | None = None
    step_scale: jax.Array | None = None


class Evaluation(NamedTuple):
    """Held-out examples in equal batches, made one after the other so that all of them are never in memory at once.

    Attributes:
        batches: how many there are; an int, or a 0-d int32 that may be 0 where there is nothing to measure now.
        batch: number of the batch `-> (x, {metric: y})`; a label below 0 does not count.
        class_mask: `[outputs]`, as in `Batch`.
        selects: whether the network with the highest value of the first metric is the one that the task ends with.
        measure: share of correct answers, or bits (cross entropy) per label.
        sums: in place of `batch`, for what takes more than one look: `(x -> output, number of the batch) ->
            {metric: (sum, number)}`, 0-d float32.
    """

    batches: int | jax.Array
    batch: Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]] | None
    class_mask: jax.Array | None = None
    selects: bool = False
    measure: Literal["accuracy", "bits"] = "accuracy"
    sums: Callable[[Callable[[jax.Array], jax.Array], Any], dict[str, tuple[jax.Array, jax.Array]]] | None = None


class Trial(NamedTuple):
    """Examples by which a clone of the network is tried out: how fast does it learn what it has never seen?

    Attributes:
        metric: name of what is measured, the mean bits per label of the clone's predictions before each update.
        updates: how many, a 0-d int32 that may be 0 where there is no trial now.
        batch: number of the update `-> (x, y)`.
    """

    metric: str
    updates: int | jax.Array
    batch: Callable[[Any], tuple[jax.Array, jax.Array]]


class Schedule(NamedTuple):
    """When the periodic things happen, in steps (one step is one update); `None` is never.

    Attributes:
        change_every: steps per task; where tasks differ in length, a number that divides them all.
        evaluate_every: steps between evaluations; a task may leave some out (`Evaluation.batches` of 0).
        probe_every: steps between looks inside; where tasks differ in length, those that begin no task are left out.
        length: steps that the stream has; `None` for no end.
        starts: where tasks differ in length, the first step of each and, last, the end of the stream.
    """

    change_every: int
    evaluate_every: int | None
    probe_every: int | None
    length: int | None
    starts: tuple[int, ...] | None = None

    def steps_of(self, tasks: int) -> int:
        """Steps of that many tasks; beyond the end of the stream where it has fewer."""
        if self.starts is None:
            return tasks * self.change_every
        return self.starts[tasks] if tasks < len(self.starts) else self.starts[-1] + 1

    def starts_until(self, steps: int) -> tuple[int, ...]:
        """The first step of every task of a run of that many steps, and, last, the run's end."""
        starts = self.starts or range(0, steps, self.change_every)
        return (*(start for start in starts if start < steps), steps)

    def probes_at(self, clock: jax.Array) -> jax.Array:
        """Whether the diagnostics look at step `clock`, one of the multiples of `probe_every`; 0-d bool."""
        return jnp.ones([], bool) if self.starts is None else jnp.any(clock == jnp.asarray(self.starts[:-1]))


class Spec(NamedTuple):
    """What a learner must know of a stream: shapes, loss, and what a diverged lane counts as, per metric.

    Attributes:
        input_shape: shape of one input.
        outputs: numbers in a prediction; the classes, with cross entropy.
        loss: what is minimised.
        batch: examples per step.
        failure: by metric.
        input_type: `"int32"` where inputs are tokens.
        target_shape: shape of the labels of one input, such as `(length,)` with a label at every position.
    """

    input_shape: tuple[int, ...]
    outputs: int
    loss: Literal["squared_error", "cross_entropy"]
    batch: int
    failure: dict[str, float]
    input_type: Literal["float32", "int32"] = "float32"
    target_shape: tuple[int, ...] = ()


class ControlSpec(NamedTuple):
    """What a learner must know of environments, and what a diverged lane counts as, per metric.

    Attributes:
        input_shape: that of an observation.
        outputs: values in an action; of discrete ones, how many there are to choose from.
        environments: how many there are at once.
        failure: by metric.
        discrete: whether an action is one of `outputs`, a whole number from 0 on.
    """

    input_shape: tuple[int, ...]
    outputs: int
    environments: int
    failure: dict[str, float]
    discrete: bool = False


class Step(NamedTuple):
    """What a step of `E` environments gives.

    Attributes:
        reward: float `[E]`.
        observation: `[E, *input_shape]`, where the step led, before a new episode begins.
        terminated: bool `[E]`, whether the episode is over because nothing can follow.
        truncated: bool `[E]`, whether it is over because its time is.
        renews: 0-d bool, whether `Environment.renew` has anything to do now.
        seen: what the environments measure of themselves: sum and number by name, 0-d float32.
    """

    reward: jax.Array
    observation: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    renews: jax.Array
    seen: dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What streams and environments have in common. All but `load` are pure."""

    @property
    def schedule(self) -> Schedule:
        raise NotImplementedError

    @property
    def fitted(self) -> Self:
        """The same task with every size that is `None`, and so left to the data, as a number that fits them."""
        return self

    def load(self) -> Any:
        """The data, as host arrays; the loop puts them on the device once, shared by all lanes."""
        return ()

    def init(self, key: jax.Array, data: Any) -> Any:
        """The state before step 0."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """What a figure must say of it, in words; empty for nothing."""
        return ""


@dataclasses.dataclass(frozen=True)
class Environment(Problem):
    """`E` environments that are acted on. Clocks count the steps of all of them together, and are unbatched."""

    @property
    def spec(self) -> ControlSpec:
        raise NotImplementedError

    @property
    def changes(self) -> bool:
        """Whether anything changes at the multiples of `schedule.change_every`."""
        return False

    def changes_until(self, key: jax.Array, steps: int) -> list[tuple[int, float]]:
        """The step at which each change before `steps` is due, the first at 0, and the value it brings, from `key`."""
        return []

    def observe(self, state: Any) -> jax.Array:
        """What is seen now, `[E, *input_shape]`."""
        raise NotImplementedError

    def step(self, state: Any, action: jax.Array, clock: jax.Array) -> tuple[Any, Step]:
        """The state after and what is given for actions `[E, outputs]`, or int32 `[E]` of discrete ones, at `clock`.

        Episodes end, none begins.
        """
        raise NotImplementedError

    def renew(self, state: Any, step: Step, clock: jax.Array) -> Any:
        """The state in which the next step is taken: with a new episode where `step`, taken at `clock`, ended one.

        Called where `step.renews` in any lane, so that it must leave alone what has nothing to renew.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Task(Problem):
    """A stream of examples. The caller maps it over lanes with `clock` and `data` unbatched.

    At clock `c` the order is: `probe_batches`, `previews` and `trials` (what the upcoming task looks like, before
    anything is learned from it), `next` (the batch of step `c`), learning, and, when `c + 1` is a multiple of
    `evaluate_every`, `evaluations` with clock `c + 1` and the state of the task just finished.

    These functions are those of the stream that changes at once; `gradual` makes of it the one with its `abruptness`,
    and whoever trains calls that.

    Attributes:
        abruptness: how suddenly a task follows another: 1, at once; less, examples of the task before are mixed in over
            the first share `1 - abruptness` of every task but the first, with a probability that falls from 1 to 0.

    Raises:
        ValueError: `abruptness` is not between 0 and 1.
    """

    _: dataclasses.KW_ONLY
    abruptness: float = 1.0

    def __post_init__(self) -> None:
        value: Any = self.abruptness
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"abruptness: got {value!r}, allowed are numbers from 0 to 1")

    @property
    def spec(self) -> Spec:
        raise NotImplementedError

    @property
    def resets_head(self) -> bool:
        """Whether `Batch.reset_head` is ever true."""
        return False

    @property
    def selects(self) -> bool:
        """Whether an evaluation selects the network that a task ends with (`Evaluation.selects`)."""
        return False

    @property
    def probe_in_training(self) -> bool:
        """Whether the diagnostics look at the network as it is in training."""
        return False

    def next(self, state: Any, clock: jax.Array, data: Any) -> tuple[Any, Batch]:
        """The state after and the batch of step `clock`."""
        raise NotImplementedError

    def evaluations(self, state: Any, clock: jax.Array, data: Any) -> tuple[Evaluation, ...]:
        """What is measured on held-out examples, in this order."""
        return ()

    def ends_task(self, clock: jax.Array) -> jax.Array:
        """Whether step `clock - 1` is the last of a task; 0-d bool."""
        if self.schedule.starts is None:
            return clock % self.schedule.change_every == 0
        return jnp.any(clock == jnp.asarray(self.schedule.starts[1:]))

    def previews(self, state: Any, clock: jax.Array, data: Any) -> tuple[Evaluation, ...]:
        """What is measured of the task that starts at `clock` before anything is learned from it."""
        return ()

    def trials(self, state: Any, clock: jax.Array, data: Any) -> tuple[Trial, ...]:
        """What clones of the network are tried out by before the task that starts at `clock`."""
        return ()

    def probe_batches(self, state: Any, clock: jax.Array, data: Any) -> dict[str, jax.Array]:
        """Inputs for the diagnostics by what is added to their names: `""` for the task that starts at `clock`."""
        raise NotImplementedError


class GradualState(NamedTuple):
    """A stream twice: where it is, and a task behind.

    Attributes:
        key: typed key of the draws that say which task an example is of.
        now: state of the stream at this step.
        before: state in which it shows the task before once more, from that task's first step on.
    """

    key: jax.Array
    now: Any
    before: Any


@dataclasses.dataclass(frozen=True)
class _Gradual(Task):
    """The stream of `task` with its abruptness; see `gradual`."""

    task: Task

    @property
    def spec(self) -> Spec:
        return self.task.spec

    @property
    def schedule(self) -> Schedule:
        return self.task.schedule

    def load(self) -> Any:
        return self.task.load()

    def init(self, key: jax.Array, data: Any) -> GradualState:
        now = self.task.init(key, data)
        return GradualState(jax.random.fold_in(key, _MIXED), now, now)

    def next(self, state: GradualState, clock: jax.Array, data: Any) -> tuple[GradualState, Batch]:
        start, length, earlier, lasted = self._tasks_at(clock)
        now, batch = self.task.next(state.now, clock, data)
        rows, step = len(batch.x), clock - start
        if batch.class_mask is not None:
            batch = batch._replace(class_mask=jnp.broadcast_to(batch.class_mask, (rows, *batch.class_mask.shape)))

        def mixed() -> tuple[Any, Batch]:
            before, old = self.task.next(state.before, earlier + step % lasted, data)
            share = 1 - (step + 0.5) / ((1 - self.task.abruptness) * length)
            of_old = jax.random.uniform(jax.random.fold_in(state.key, clock), (rows,)) < share

            def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(of_old.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

            both = batch._replace(x=chosen(batch.x, old.x), y=chosen(batch.y, old.y))
            if batch.class_mask is not None and old.class_mask is not None:
                both = both._replace(class_mask=chosen(batch.class_mask, old.class_mask))
            return before, both

        # The first task has none before it. After it the copy goes through every step, as tasks may follow from those
        # before them.
        before, batch = jax.lax.cond(start > 0, mixed, lambda: (state.before, batch))
        return GradualState(state.key, now, before), batch

    def evaluations(self, state: GradualState, clock: jax.Array, data: Any) -> tuple[Evaluation, ...]:
        return self.task.evaluations(state.now, clock, data)

    def previews(self, state: GradualState, clock: jax.Array, data: Any) -> tuple[Evaluation, ...]:
        return self.task.previews(state.now, clock, data)

    def trials(self, state: GradualState, clock: jax.Array, data: Any) -> tuple[Trial, ...]:
        return self.task.trials(state.now, clock, data)

    def probe_batches(self, state: GradualState, clock: jax.Array, data: Any) -> dict[str, jax.Array]:
        return self.task.probe_batches(state.now, clock, data)

    def _tasks_at(self, clock: jax.Array) -> tuple[jax.Array, jax.Array | int, jax.Array, jax.Array | int]:
        """First step and length of the task of step `clock`, and those of the task before it."""
        starts, every = self.schedule.starts, self.schedule.change_every
        if starts is None:
            start = clock // every * every
            return start, every, jnp.maximum(start - every, 0), every
        at = jnp.asarray(starts, jnp.int32)
        number = jnp.sum(clock >= at[1:-1], dtype=jnp.int32)
        before = jnp.maximum(number - 1, 0)
        return at[number], at[number + 1] - at[number], at[before], at[before + 1] - at[before]


def gradual(task: Task) -> Task:
    """The stream of a task with its `abruptness`: with 1 the task itself, below tasks that come slowly.

    At step `s` of a task of `L` steps, each example of a batch is one of the task before with probability

        max(0, 1 - (s + 1/2) / ((1 - abruptness) L))

    drawn from the seed; so half of the examples of the first `(1 - abruptness) L` steps are. They are those that the
    task before showed at its own step `s`, at the same place of the batch, with the classes that counted there; where
    the task before was shorter, it begins again. A task begins, for methods that see boundaries, evaluations and
    diagnostics, where its first example may come, and tasks themselves are the same for every abruptness.

    Raises:
        ValueError: `abruptness` is not between 0 and 1.
    """
    Task.__post_init__(task)
    return task if task.abruptness == 1 else _Gradual(task)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is not above the limit."""
    return next(n for n in range(min(number, limit), 0, -1) if number % n == 0)


def check_fields(
    task: Problem,
    positive: Sequence[str],
    optional: Collection[str] = (),
    switches: Sequence[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """ValueError where a field is not a positive integer (or `None`, if optional), a bool, or one of its words."""
    for name in positive:
        value: Any = getattr(task, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, allowed are integers from 1 up")
        if value > MOST_STEPS:
            raise ValueError(f"{name}: got {value}, allowed are integers up to {MOST_STEPS}")
    for name in switches:
        if not isinstance(getattr(task, name), bool):
            raise ValueError(f"{name}: got {getattr(task, name)!r}, allowed are True and False")
    for name, allowed in (choices or {}).items():
        if getattr(task, name) not in allowed:
            raise ValueError(f"{name}: got {getattr(task, name)!r}, allowed are {', '.join(allowed)}")
