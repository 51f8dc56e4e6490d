"""Pictures by class of which every task shows more than the one before: what such streams share."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.augment import augmented
from tasks.base import Batch, Evaluation, Schedule, Task
from tasks.classes import load_classes
from tasks.pictures import CIFAR100_MEAN, CIFAR100_STD, PictureData, moments, taken

EVALUATED_AT_ONCE = 100
"""Held-out pictures in a batch, as published."""

PROBED = 1000
"""Pictures that the diagnostics see, as published, where there are as many."""

_CLASSES, _ORDER, _AUGMENT, _AUGMENT_TEST, _PROBE = 0, 1, 2, 3, 4


class Stage(NamedTuple):
    """One task: the first `pictures` training pictures of the first `classes` classes, `epochs` times.

    Attributes:
        classes: how many.
        pictures: of each class.
        epochs: passes, each in an order of its own.
        steps: whole batches in a pass.
    """

    classes: int
    pictures: int
    epochs: int
    steps: int


class GrowingState(NamedTuple):
    """Where a stream is.

    Attributes:
        key: typed key of the stream; all chance follows from it and the clock.
        class_order: int32 `[classes]`, the classes in the order in which they come.
        order: int32 `[pictures of the largest task]`, in which this epoch goes through its pictures, the others last;
            a placeholder until `next` has been called at the first step of an epoch. Number `i` is picture `i % n` of
            the class at place `i // n` of `class_order`, with `n` training pictures of each class.
    """

    key: jax.Array
    class_order: jax.Array
    order: jax.Array


class Now(NamedTuple):
    """Where a step lies: its task, the epoch of the task, the step of the epoch; and what `Stage` says of the task."""

    task: jax.Array
    epoch: jax.Array
    step: jax.Array
    stage: Stage

    @property
    def ends_epoch(self) -> jax.Array:
        return self.step == self.stage.steps - 1

    @property
    def ends_task(self) -> jax.Array:
        return self.ends_epoch & (self.epoch == self.stage.epochs - 1)


@dataclasses.dataclass(frozen=True)
class Growing(Task):
    """A stream of tasks of growing size and length; everything but what the tasks are, and what is measured.

    Accuracy on the test pictures is measured at the end of every epoch, and at no other time.
    """

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The tasks."""
        raise NotImplementedError

    @property
    def validation_per_class(self) -> int:
        """How many of the first training pictures of each class are for validation, and never shown."""
        return 0

    @property
    def schedule(self) -> Schedule:
        """In units that divide every epoch of every task: an epoch of the first, where it divides the others."""
        stages = self.stages
        lengths = [stage.epochs * stage.steps for stage in stages]
        starts = (0, *(int(end) for end in np.cumsum(lengths)))
        every = math.gcd(*(stage.steps for stage in stages))
        return Schedule(every, every, every, starts[-1], starts)

    def init(self, key: jax.Array, data: PictureData) -> GrowingState:
        order = jnp.arange(self._most_pictures, dtype=jnp.int32)
        return GrowingState(key, self.class_order(key, data), order)

    def class_order(self, key: jax.Array, data: PictureData) -> jax.Array:
        """The classes in the order in which they come, int32 `[classes]`: a permutation that follows from the key."""
        return jax.random.permutation(jax.random.fold_in(key, _CLASSES), data.train.shape[0]).astype(jnp.int32)

    def now(self, clock: jax.Array | int) -> Now:
        """Where step `clock` lies."""
        starts = np.array(self.schedule.starts, np.int32)
        task = jnp.sum(clock >= starts[1:-1], dtype=jnp.int32)
        stage = Stage(*(jnp.asarray(np.array(column, np.int32))[task] for column in zip(*self.stages, strict=True)))  # pyright: ignore[reportArgumentType]
        epoch, step = jnp.divmod(clock - jnp.asarray(starts)[task], stage.steps)
        return Now(task, epoch, step, stage)

    def order(self, key: jax.Array, now: Now) -> jax.Array:
        """The order of an epoch, int32 `[pictures of the largest task]`; the task's own pictures come first."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, _ORDER), now.task), now.epoch)
        return shuffled(key, self._most_pictures, 0, now.stage.classes * now.stage.pictures)

    def _shown(
        self, state: GrowingState, clock: jax.Array, data: PictureData, augment: bool
    ) -> tuple[GrowingState, jax.Array, jax.Array, Now]:
        """The state after step `clock`, its inputs and labels, and where it lies."""
        now, batch = self.now(clock), self.spec.batch
        order = jax.lax.cond(now.step == 0, lambda: self.order(state.key, now), lambda: state.order)
        index = jax.lax.dynamic_slice_in_dim(order, now.step * batch, batch)
        place, number = jnp.divmod(index, now.stage.pictures)
        label = state.class_order[place]
        x = taken(data.train, label, self.validation_per_class + number, data)
        if augment:
            x = augmented(jax.random.fold_in(jax.random.fold_in(state.key, _AUGMENT), clock), x)
        return state._replace(order=order), x, label, now

    def _tested(
        self,
        state: GrowingState,
        clock: jax.Array,
        data: PictureData,
        each: jax.Array | int,
        metrics: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]],
        class_mask: jax.Array | None,
        augment: bool = False,
    ) -> Evaluation:
        """Accuracy on the first `each` test pictures of every class seen; 0 for no evaluation at all.

        A metric is given by what it counts: `(place in the class order, number of the picture) -> bool`.
        """
        key = jax.random.fold_in(jax.random.fold_in(state.key, _AUGMENT_TEST), clock)
        made = held_out(data.test, state.class_order, self.now(clock - 1).stage.classes, each, data, metrics)

        def batch(i):
            x, labels = made.batch(i)
            return (augmented(jax.random.fold_in(key, i), x) if augment else x), labels

        return Evaluation(made.batches, batch, class_mask)

    @property
    def _most_pictures(self) -> int:
        return max(stage.classes * stage.pictures for stage in self.stages)


def boundary(now: Now) -> jax.Array:
    """Whether a step is the first of a task; 0-d bool."""
    return (now.epoch == 0) & (now.step == 0)


def shown(x: jax.Array, y: jax.Array, now: Now, class_mask=None, step_scale=None) -> Batch:
    """The batch of a stream that never asks for a new output layer."""
    return Batch(x, y, boundary(now), jnp.zeros([], bool), class_mask, step_scale)


def probe_key(key: jax.Array, now: Now) -> jax.Array:
    """The key of what the diagnostics are shown before a task."""
    return jax.random.fold_in(jax.random.fold_in(key, _PROBE), now.task)


def held_out(
    pictures: jax.Array | np.ndarray,
    class_order: jax.Array,
    classes: jax.Array | int,
    each: jax.Array | int,
    data: PictureData,
    metrics: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]],
) -> Evaluation:
    """The first `each` of `pictures` of the first `classes` classes, in batches of which the last may be part empty.

    `metrics` are as in `Growing`; `each` of 0 makes no batch.
    """
    total = classes * each

    def batch(i):
        index = i * EVALUATED_AT_ONCE + jnp.arange(EVALUATED_AT_ONCE, dtype=jnp.int32)
        number, place = jnp.divmod(index, classes)
        label, there = class_order[place], index < total
        x = taken(pictures, label, jnp.minimum(number, pictures.shape[1] - 1), data)
        return x, {name: jnp.where(there & counts(place, number), label, -1) for name, counts in metrics.items()}

    return Evaluation((total + EVALUATED_AT_ONCE - 1) // EVALUATED_AT_ONCE, batch)


def shuffled(key: jax.Array, size: int, low: jax.Array | int, high: jax.Array | int) -> jax.Array:
    """0 to `size`, int32, of which those from `low` to `high` (exclusive) come first, in a random order."""
    # How many come first is known only when this runs, and shapes have to be known before: all are sorted by random
    # numbers, and those that do not count have the largest of all.
    number = jnp.arange(size, dtype=jnp.int32)
    by = jnp.where((number >= low) & (number < high), jax.random.bits(key, (size,)) >> 1, jnp.uint32(2**32 - 1))
    return jax.lax.sort((by, number), num_keys=1, is_stable=False)[1]


def load_growing(
    dataset: str,
    data_dir: str | None,
    train_per_class: int | None,
    test_per_class: int | None,
    classes: int | None = None,
) -> PictureData:
    """The pictures of the first `classes` classes; `None` for all.

    CIFAR-100 is normalised as published, all else by its own mean and deviation.
    """
    found = load_classes(dataset, data_dir, train_per_class, test_per_class)
    train, test = found.train[:classes], found.test[:classes]
    published = np.array([CIFAR100_MEAN, CIFAR100_STD], np.float32) * 255
    mean, std = published if dataset == "cifar100" and train.shape[-1] == 3 else moments(train)
    return PictureData(train, test, mean, std)


def check_sizes(task: Task, limits: Mapping[str, tuple[int, str]]) -> None:
    """ValueError where a field is beyond its limit, which comes with what it is."""
    for name, (limit, what) in limits.items():
        value = getattr(task, name)
        if value is not None and value > limit:
            raise ValueError(f"{name}: got {value}, {what} {limit}")


def chances(classes: int, accuracies: Sequence[str]) -> dict[str, float]:
    """What a diverged lane counts as: accuracies by chance among `classes` classes, and that chance's loss."""
    return dict.fromkeys(accuracies, 1 / classes) | {"loss": math.log(classes)}
