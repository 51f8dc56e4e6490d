"""Continual ImageNet: one pair of classes after the other, to be told apart."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Batch, Evaluation, Schedule, Spec, Task, check_fields, largest_divisor
from tasks.classes import ClassFacts, class_facts, load_classes, title
from tasks.pictures import PictureData, moments, taken

_PAIRS, _SWAP, _ORDER = 0, 1, 2
HEADS = ("reset", "keep", "multi")
NORMALISATIONS = ("raw", "unit", "centred", "standardised")


class ContinualImageNetState(NamedTuple):
    """Where a stream is; placeholders until `next` has been called at the first step of an epoch.

    Attributes:
        key: typed key of the stream; every task follows from it and the task's number.
        pair: int32 `[2]`, the classes of this task; those of the first have label 0.
        order: int32 `[2 * training pictures of a class]`, in which this epoch goes through them.
    """

    key: jax.Array
    pair: jax.Array
    order: jax.Array


@dataclasses.dataclass(frozen=True)
class ContinualImageNet(Task):
    """Continual ImageNet (Dohare et al. 2024, "Continual ImageNet"): a sequence of binary tasks over pairs of classes.

    Task `t` shows all training pictures of two classes for `epochs` epochs, in a new order each. No pair comes twice;
    when all `classes * (classes - 1) / 2` have been used, the stream ends. The sequence follows from the seed alone,
    and so is the same for all methods.

    Differs from the published code: there the sequence is read from a file that is not published.

    Attributes:
        dataset: a name that `tasks.classes.load_classes` knows: `imagenet_resized`, a folder with one `.npy` a class,
            `cifar100`, ...
        data_dir: where it looks; `None` for the default folder of tensorflow-datasets.
        train_per_class: training pictures of a class; `None`: 600, or what the data have.
        test_per_class: test pictures of a class; `None`: 100, or up to half of what the data have.
        batch: pictures per step; those left over where it does not divide a task's pictures wait for the next epoch;
            `None`: 100, or as many as a task has.
        epochs: passes through a task's pictures.
        head: `reset`: weights and biases of the output layer are set to zero at the first step of every task, as
            published; `keep`: they are not, and nothing but `Batch.boundary` tells of a change; `multi`: every class
            has an output of its own, and the two of the task compete.
        normalisation: of a pixel `p` from 0 to 255: `raw` p; `unit` p / 255; `centred` p / 128 - 1; `standardised`
            (p - mean) / std of its channel over all training pictures. The published one is not documented.
        evaluations_per_task: how often accuracy on the test pictures is measured in a task, at equal distances; `None`:
            25 times, or as often as divides its steps, at most once an epoch.
        probe_size: how many inputs of the upcoming task the diagnostics see; `None`: 200, or as many as there are.
    """

    dataset: str = "imagenet_resized"
    data_dir: str | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    batch: int | None = None
    epochs: int = 250
    head: str = "reset"
    normalisation: str = "standardised"
    evaluations_per_task: int | None = None
    probe_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("train_per_class", "test_per_class", "batch", "evaluations_per_task", "probe_size")
        check_fields(self, ("epochs", *sizes), sizes, (), {"head": HEADS, "normalisation": NORMALISATIONS})

    @functools.cached_property
    def fitted(self) -> "ContinualImageNet":  # pyright: ignore[reportIncompatibleMethodOverride]
        pictures = 2 * self._facts.train[1]
        batch = self.batch or min(100, pictures)
        steps = self.epochs * (pictures // batch)
        return dataclasses.replace(
            self,
            batch=batch,
            evaluations_per_task=self.evaluations_per_task or largest_divisor(steps, min(25, self.epochs)),
            probe_size=self.probe_size or min(200, pictures),
        )

    @property
    def spec(self) -> Spec:
        facts = self._facts
        outputs = len(facts.names) if self.head == "multi" else 2
        accuracies = ("online_accuracy", "test_accuracy", "test_accuracy_in_task")
        failure = dict.fromkeys(accuracies, 0.5) | {"loss": math.log(2)}
        return Spec(facts.train[2:], outputs, "cross_entropy", self._batch, failure)

    @property
    def schedule(self) -> Schedule:
        change_every, evaluations = self.epochs * self.steps_per_epoch, self.fitted.evaluations_per_task
        assert evaluations is not None
        if change_every % evaluations:
            raise ValueError(
                f"evaluations_per_task: got {evaluations}, which does not divide the {change_every} steps of a task "
                f"({self.epochs} epochs of {self.steps_per_epoch})"
            )
        every = change_every // evaluations
        return Schedule(change_every, every, change_every, self.pairs * change_every)

    @property
    def resets_head(self) -> bool:
        return self.head == "reset"

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the pictures of a task."""
        return 2 * self._facts.train[1] // self._batch

    @property
    def pairs(self) -> int:
        """How many tasks there are."""
        classes = len(self._facts.names)
        return classes * (classes - 1) // 2

    @property
    def note(self) -> str:
        facts = self._facts
        told = {
            "reset": "output layer set to 0 at every change",
            "keep": "output layer kept",
            "multi": "an output for every class",
        }
        pictures = f"{facts.train[1]} + {facts.test[1]} pictures a class"
        classes = f"pairs of {len(facts.names)} classes of {title(self.dataset)} ({pictures})"
        return f"{classes}, {self.epochs} epochs a task; {told[self.head]}"

    def load(self) -> PictureData:
        """The pictures, and what they are normalised by."""
        found = load_classes(self.dataset, self.data_dir, self.train_per_class, self.test_per_class)
        if self.normalisation == "standardised":
            mean, std = moments(found.train)
        else:
            mean, scale = {"raw": (0.0, 1.0), "unit": (0.0, 255.0), "centred": (128.0, 128.0)}[self.normalisation]
            channels = found.train.shape[-1]
            mean, std = np.full(channels, mean, np.float32), np.full(channels, scale, np.float32)
        return PictureData(found.train, found.test, mean, std)

    def init(self, key: jax.Array, data: PictureData) -> ContinualImageNetState:
        pictures = 2 * data.train.shape[1]
        return ContinualImageNetState(key, jnp.zeros(2, jnp.int32), jnp.arange(pictures, dtype=jnp.int32))

    def pair(self, key: jax.Array, task_number: jax.Array | int) -> jax.Array:
        """The two classes of task `task_number`, int32 `[2]`; the first has label 0."""
        shuffled = jax.random.permutation(jax.random.fold_in(key, _PAIRS), self.pairs)
        pair = _unranked(shuffled[task_number].astype(jnp.int32))
        swap = jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, _SWAP), task_number))
        return jnp.where(swap, pair[::-1], pair)

    def next(
        self, state: ContinualImageNetState, clock: jax.Array, data: PictureData
    ) -> tuple[ContinualImageNetState, Batch]:
        task_number, step = jnp.divmod(clock, self.schedule.change_every)
        epoch, position = jnp.divmod(step, self.steps_per_epoch)
        pair = jax.lax.cond(step == 0, lambda: self.pair(state.key, task_number), lambda: state.pair)
        order = jax.lax.cond(position == 0, lambda: self._order(state.key, task_number, epoch), lambda: state.order)
        index = jax.lax.dynamic_slice_in_dim(order, position * self._batch, self._batch)
        x, label = self._pictures(data.train, pair, index, data)
        state = ContinualImageNetState(state.key, pair, order)
        reset_head = (step == 0) if self.head == "reset" else jnp.zeros([], bool)
        return state, Batch(x, self._target(pair, label), step == 0, reset_head, self._mask(pair))

    def evaluations(self, state: ContinualImageNetState, clock: jax.Array, data: PictureData) -> tuple[Evaluation, ...]:
        """Accuracy on the test pictures of the two classes: on the way, and once the task is over."""
        held_out = jnp.arange(2 * data.test.shape[1], dtype=jnp.int32)

        def batch(_):
            x, label = self._pictures(data.test, state.pair, held_out, data)
            y = self._target(state.pair, label)
            return x, {"test_accuracy_in_task": y, "test_accuracy": jnp.where(self.ends_task(clock), y, -1)}

        return (Evaluation(1, batch, self._mask(state.pair)),)

    def probe_batches(self, state: ContinualImageNetState, clock: jax.Array, data: PictureData) -> dict[str, jax.Array]:
        """The first `probe_size` inputs of the task of step `clock`, `[probe_size, height, width, channels]`."""
        task_number = clock // self.schedule.change_every
        index = self._order(state.key, task_number, 0)[: self.fitted.probe_size]
        return {"": self._pictures(data.train, self.pair(state.key, task_number), index, data)[0]}

    def _order(self, key: jax.Array, task_number: jax.Array | int, epoch: jax.Array | int) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, _ORDER), task_number), epoch)
        return jax.random.permutation(key, 2 * self._facts.train[1]).astype(jnp.int32)

    def _pictures(
        self, pictures: jax.Array | np.ndarray, pair: jax.Array, index: jax.Array, data: PictureData
    ) -> tuple[jax.Array, jax.Array]:
        """Normalised inputs and labels 0 and 1 of pictures `index` of the two classes, one class after the other."""
        label, number = jnp.divmod(index, pictures.shape[1])
        return taken(pictures, pair[label], number, data), label

    def _target(self, pair: jax.Array, label: jax.Array) -> jax.Array:
        return pair[label] if self.head == "multi" else label

    def _mask(self, pair: jax.Array) -> jax.Array | None:
        return jnp.zeros(self.spec.outputs, bool).at[pair].set(True) if self.head == "multi" else None

    @property
    def _batch(self) -> int:
        batch = self.fitted.batch
        assert batch is not None
        return batch

    @property
    def _facts(self) -> ClassFacts:
        facts = class_facts(self.dataset, self.data_dir, self.train_per_class, self.test_per_class)
        pictures = 2 * facts.train[1]
        for name in ("batch", "probe_size"):
            if (getattr(self, name) or 0) > pictures:
                raise ValueError(
                    f"{name}: got {getattr(self, name)}, a task of '{self.dataset}' has {pictures} pictures"
                )
        return facts


def _unranked(number: jax.Array) -> jax.Array:
    """Pair `number` of (0, 1), (0, 2), (1, 2), (0, 3), ...: int32 `[2]`, the smaller class first."""
    high = jnp.floor((1 + jnp.sqrt(1 + 8 * number.astype(jnp.float32))) / 2).astype(jnp.int32)
    before = lambda n: n * (n - 1) // 2  # noqa: E731 -- pairs in which both classes are below n
    high = jnp.where(before(high) > number, high - 1, high)  # the root is rounded
    high = jnp.where(before(high + 1) <= number, high + 1, high)
    return jnp.stack([number - before(high), high])
