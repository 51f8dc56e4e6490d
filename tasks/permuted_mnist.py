"""Online permuted MNIST: the same images for ever, their pixels in a new order in every task."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Batch, Evaluation, Schedule, Spec, Task, check_fields
from tasks.data import load_images, number_of_classes

_PERMUTATION, _ORDER = 0, 1


class PermutedMNISTState(NamedTuple):
    """Where a stream is; placeholders until `next` has been called at the first step of a pass.

    Attributes:
        key: typed key of the stream; every task follows from it and the task's number.
        permutation: int32 `[pixels]`; pixel `i` of an input is pixel `permutation[i]` of the image.
        order: int32 `[training images]`, in which this pass goes through them.
    """

    key: jax.Array
    permutation: jax.Array
    order: jax.Array


class PermutedMNISTData(NamedTuple):
    """Images uint8 `[n, pixels]` and labels int32 `[n]`; the test images are those used in evaluation."""

    train_x: jax.Array | np.ndarray
    train_y: jax.Array | np.ndarray
    test_x: jax.Array | np.ndarray
    test_y: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class PermutedMNIST(Task):
    """Online permuted MNIST (Dohare et al. 2024, "Online Permuted MNIST"; Goodfellow et al. 2013).

    Task `t` shows every training image once, in an order of its own, with its pixels permuted by `P_t`; the first
    task too is permuted. Pixels are in [0, 1] and not normalised; all tasks share one output layer; nothing but
    `Batch.boundary` tells of a change.

    Differs from the published code in how a permutation is drawn, not in its law: there each is applied on top of the
    one before, `Q_t = P_0 P_1 ... P_t`. A uniform permutation composed with anything independent of it is uniform and
    independent of that again, so the `Q_t` are independent and uniform, just as permutations drawn directly are.
    Drawing `P_t` from `fold_in(key, t)` lets any task be rebuilt from its number. The order of the images likewise.
    It also differs where `change_every` is longer than a pass: there every pass repeats the first one's order, here
    each pass has its own; and the images left over when `batch` does not divide their number wait for the next pass
    rather than forming a smaller batch.

    Attributes:
        dataset: a name that `tasks.data.load_images` knows.
        data_dir: where it looks; `None` for the default folder of tensorflow-datasets.
        batch: images per step.
        change_every: steps per task; `None` for one pass through the training images.
        evaluate: whether to measure accuracy on held-out images at the end of every task.
        evaluation_size: how many test images that uses, always the same; `None`: 1000, or all.
        probe_size: how many inputs of the upcoming task the diagnostics see; `None`: 2000, or all.
    """

    dataset: str = "mnist"
    data_dir: str | None = None
    batch: int = 1
    change_every: int | None = None
    evaluate: bool = True
    evaluation_size: int | None = None
    probe_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        sizes = ("batch", "change_every", "evaluation_size", "probe_size")
        check_fields(self, sizes, sizes[1:], ("evaluate",))

    @functools.cached_property
    def fitted(self) -> "PermutedMNIST":  # pyright: ignore[reportIncompatibleMethodOverride]
        facts = self._facts
        return dataclasses.replace(
            self,
            evaluation_size=self.evaluation_size or min(1000, facts.test_examples),
            probe_size=self.probe_size or min(2000, facts.examples),
        )

    @property
    def spec(self) -> Spec:
        facts = self._facts
        chance = 1 / facts.classes
        accuracies = ("online_accuracy", "test_accuracy", "accuracy_one_task_ago", "accuracy_ten_tasks_ago")
        failure = dict.fromkeys(accuracies, chance) | {"loss": math.log(facts.classes)}
        return Spec((facts.pixels,), facts.classes, "cross_entropy", self.batch, failure)

    @property
    def schedule(self) -> Schedule:
        change_every = self.change_every or self._steps_per_pass
        return Schedule(change_every, change_every if self.evaluate else None, change_every, None)

    @property
    def examples_per_task(self) -> int:
        """How many examples a task shows."""
        return self.schedule.change_every * self.batch

    def load(self) -> PermutedMNISTData:
        """Flattened images and their labels, the evaluation's test images chosen by a fixed shuffle."""
        images = load_images(self.dataset, self.data_dir)
        self._facts  # noqa: B018 -- raises where a size does not fit this data
        chosen = np.random.default_rng(0).permutation(len(images.test_x))[: self.fitted.evaluation_size]
        test_x = images.test_x[chosen].reshape(len(chosen), -1)
        train_x = images.train_x.reshape(len(images.train_x), -1)
        return PermutedMNISTData(train_x, np.asarray(images.train_y), test_x, np.asarray(images.test_y[chosen]))

    def init(self, key: jax.Array, data: PermutedMNISTData) -> PermutedMNISTState:
        examples, pixels = data.train_x.shape
        return PermutedMNISTState(key, jnp.arange(pixels, dtype=jnp.int32), jnp.arange(examples, dtype=jnp.int32))

    def permutation(self, key: jax.Array, task_number: jax.Array | int) -> jax.Array:
        """`P_t`, int32 `[pixels]`, of task `task_number`: pixel `i` of its inputs is pixel `P_t[i]` of the image."""
        key = jax.random.fold_in(jax.random.fold_in(key, task_number), _PERMUTATION)
        return jax.random.permutation(key, self._facts.pixels).astype(jnp.int32)

    def order(self, key: jax.Array, task_number: jax.Array | int, pass_number: jax.Array | int = 0) -> jax.Array:
        """The order, int32 `[training images]`, of pass `pass_number` of task `task_number` through the images."""
        key = jax.random.fold_in(jax.random.fold_in(key, task_number), _ORDER)
        return jax.random.permutation(jax.random.fold_in(key, pass_number), self._facts.examples).astype(jnp.int32)

    def next(self, state: PermutedMNISTState, clock: jax.Array, data: PermutedMNISTData):
        task_number, step = jnp.divmod(clock, self.schedule.change_every)
        pass_number, position = jnp.divmod(step, self._steps_per_pass)

        def redraw(_):
            return self._change(state.key, task_number), self.order(state.key, task_number, pass_number)

        old = (state.permutation, state.order)
        permutation, order = jax.lax.cond(position == 0, redraw, lambda old: old, old)
        index = jax.lax.dynamic_slice_in_dim(order, position * self.batch, self.batch)
        x, y = self._examples(data, index, permutation)
        return PermutedMNISTState(state.key, permutation, order), Batch(x, y, step == 0, jnp.zeros((), bool))

    def evaluations(
        self, state: PermutedMNISTState, clock: jax.Array, data: PermutedMNISTData
    ) -> tuple[Evaluation, ...]:
        """The held-out images as the task just finished, the one before it and the one ten before it showed them.

        A label of -1 says "do not count": all labels of a task before the first are -1. The accuracy is to be taken
        over labels >= 0, and is not a number where there are none.
        """
        if not self.evaluate:
            return ()
        finished = (clock - 1) // self.schedule.change_every

        def shown_in(metric, task_number):
            def batch(_):
                x = _permuted(data.test_x, self.permutation(state.key, jnp.maximum(task_number, 0)))
                return x, {metric: jnp.where(task_number >= 0, data.test_y, -1)}

            return Evaluation(1, batch)

        return (
            shown_in("test_accuracy", finished),
            shown_in("accuracy_one_task_ago", finished - 1),
            shown_in("accuracy_ten_tasks_ago", finished - 10),
        )

    def probe_batches(
        self, state: PermutedMNISTState, clock: jax.Array, data: PermutedMNISTData
    ) -> dict[str, jax.Array]:
        """The first `probe_size` inputs of the task of step `clock`, `[probe_size, pixels]`."""
        task_number = clock // self.schedule.change_every
        index = self.order(state.key, task_number)[: self.fitted.probe_size]
        return {"": _permuted(_rows(data.train_x, index), self.permutation(state.key, task_number))}

    def _change(self, key: jax.Array, task_number: jax.Array | int) -> jax.Array:
        """What makes the task another one, as the state holds it."""
        return self.permutation(key, task_number)

    def _examples(
        self, data: PermutedMNISTData, index: jax.Array, permutation: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Inputs and labels of training images `index`, as the task shows them."""
        return _permuted(_rows(data.train_x, index), permutation), _rows(data.train_y, index)

    @property
    def _steps_per_pass(self) -> int:
        return self._facts.examples // self.batch

    @property
    def _facts(self) -> "_Facts":
        facts = _facts(self.dataset, self.data_dir)
        limits = {"batch": facts.examples, "probe_size": facts.examples, "evaluation_size": facts.test_examples}
        for name, limit in limits.items():
            if (getattr(self, name) or 0) > limit:
                raise ValueError(f"{name}: got {getattr(self, name)}, '{self.dataset}' allows 1 to {limit}")
        return facts


class _Facts(NamedTuple):
    examples: int
    test_examples: int
    pixels: int
    classes: int
    picture: tuple[int, int, int]  # height, width, channels


@functools.cache
def _facts(dataset: str, data_dir: str | None) -> _Facts:
    images = load_images(dataset, data_dir)
    height, width, channels = (*images.train_x.shape[1:], 1)[:3]
    pixels, classes = height * width * channels, number_of_classes(dataset, images)
    return _Facts(len(images.train_x), len(images.test_x), pixels, classes, (height, width, channels))


def _rows(array: jax.Array | np.ndarray, index: jax.Array) -> jax.Array:
    return jnp.asarray(array).at[index].get(mode="promise_in_bounds")


def _permuted(x: jax.Array | np.ndarray, permutation: jax.Array) -> jax.Array:
    """uint8 `[n, pixels]` to float32 in [0, 1], permuted while a pixel is still one byte."""
    # On a CPU, a batch of 16 or more takes a third to a half of the time that gathering along the rows takes.
    pixels = jnp.asarray(x).T.at[permutation].get(mode="promise_in_bounds", unique_indices=True)
    return pixels.T.astype(jnp.float32) / 255
