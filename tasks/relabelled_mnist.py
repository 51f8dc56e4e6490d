"""Relabelled images: the same ones for ever, their labels permuted or drawn anew in every task."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Evaluation, Spec, check_fields
from tasks.permuted_mnist import PermutedMNIST, PermutedMNISTData, PermutedMNISTState

_LABELS = 2
_SHOWN_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class RelabelledMNIST(PermutedMNIST):
    """Images whose labels change with every task, and whose pixels do not.

    With `labels="permuted"` task `t` calls class `c` by `P_t(c)`, a uniform permutation of the classes (label-permuted
    EMNIST of Elsayed and Mahmood, ICLR 2024: what was learned of the images is of use, the last layer is not). With
    `labels="random"` every training image gets a label of its own, uniform among the classes, which says nothing of
    the image (Lyle et al., ICML 2023; random-label MNIST of Kumar et al., CoLLAs 2025): the same images have to be
    fitted again in every task, and whoever fits them more slowly than at first has lost plasticity.

    All tasks share one output layer. Task `t` follows from `fold_in(key, t)`, as in `PermutedMNIST`, of which all
    that is not said here is inherited. Random labels have no held-out images: the accuracy at the end of a task is
    that on its training images, `train_accuracy`. The state's `permutation` is `P_t`, int32 `[classes]`, or the label
    of every image, int32 `[training images]`.

    Attributes:
        labels: `"permuted"` or `"random"`.
        examples: how many training images there are in all tasks, always the same ones; `None`: all.
        pictures: inputs `[height, width, channels]`, for convolutional networks, in place of a row of pixels.

    Raises:
        ValueError: a field is none of what is allowed, or beyond the data.
    """

    labels: Literal["permuted", "random"] = "permuted"
    examples: int | None = None
    pictures: bool = False

    def __post_init__(self):
        super().__post_init__()
        choices = {"labels": ("permuted", "random")}
        check_fields(self, ("examples",), ("examples",), ("pictures",), choices)

    @property
    def spec(self) -> Spec:
        spec = super().spec
        chance = spec.failure["online_accuracy"]
        names = ["train_accuracy"] if self.labels == "random" else [n for n in spec.failure if "accuracy" in n]
        failure = dict.fromkeys(["online_accuracy", *names], chance) | {"loss": spec.failure["loss"]}
        return spec._replace(input_shape=self._facts.picture if self.pictures else spec.input_shape, failure=failure)

    def load(self) -> PermutedMNISTData:
        """Flattened images and their labels; of the training images `examples`, chosen by a fixed shuffle."""
        data, number = super().load(), self._facts.examples
        if number == len(data.train_x):
            return data
        chosen = np.random.default_rng(1).permutation(len(data.train_x))[:number]
        return data._replace(train_x=data.train_x[chosen], train_y=data.train_y[chosen])

    def init(self, key: jax.Array, data: PermutedMNISTData) -> PermutedMNISTState:
        examples, classes = len(data.train_x), self._facts.classes
        number = examples if self.labels == "random" else classes
        return PermutedMNISTState(key, jnp.zeros(number, jnp.int32), jnp.arange(examples, dtype=jnp.int32))

    def relabelling(self, key: jax.Array, task_number: jax.Array | int) -> jax.Array:
        """`P_t`, int32 `[classes]`, of task `task_number`; or its label of every image, int32 `[training images]`."""
        key = jax.random.fold_in(jax.random.fold_in(key, task_number), _LABELS)
        if self.labels == "random":
            return jax.random.randint(key, (self._facts.examples,), 0, self._facts.classes)
        return jax.random.permutation(key, self._facts.classes).astype(jnp.int32)

    def evaluations(
        self, state: PermutedMNISTState, clock: jax.Array, data: PermutedMNISTData
    ) -> tuple[Evaluation, ...]:
        """Held-out images under the labels of the task just finished, the one before it and the one ten before it.

        With random labels the training images, under those of the task just finished.
        """
        if not self.evaluate:
            return ()
        finished = (clock - 1) // self.schedule.change_every
        if self.labels == "random":
            return (self._refitted(state, finished, data),)

        def called_in(metric, task_number):
            def batch(_):
                names = self.relabelling(state.key, jnp.maximum(task_number, 0))
                return self._inputs(data.test_x), {
                    metric: jnp.where(task_number >= 0, names[jnp.asarray(data.test_y)], -1)
                }

            return Evaluation(1, batch)

        return (
            called_in("test_accuracy", finished),
            called_in("accuracy_one_task_ago", finished - 1),
            called_in("accuracy_ten_tasks_ago", finished - 10),
        )

    def probe_batches(
        self, state: PermutedMNISTState, clock: jax.Array, data: PermutedMNISTData
    ) -> dict[str, jax.Array]:
        """The first `probe_size` inputs of the task of step `clock`, as inputs are shaped."""
        index = self.order(state.key, clock // self.schedule.change_every)[: self.fitted.probe_size]
        return {"": self._inputs(jnp.asarray(data.train_x)[index])}

    def _change(self, key: jax.Array, task_number: jax.Array | int) -> jax.Array:
        return self.relabelling(key, task_number)

    def _examples(
        self, data: PermutedMNISTData, index: jax.Array, permutation: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        names = index if self.labels == "random" else jnp.asarray(data.train_y)[index]
        return self._inputs(jnp.asarray(data.train_x)[index]), permutation[names]

    def _refitted(self, state: PermutedMNISTState, finished: jax.Array, data: PermutedMNISTData) -> Evaluation:
        """All training images in equal batches; the last is filled up with images that do not count."""
        number = self._facts.examples
        size = min(number, _SHOWN_AT_ONCE)
        labels = self.relabelling(state.key, finished)

        def batch(i):
            index = i * size + jnp.arange(size)
            there = jnp.minimum(index, number - 1)
            y = jnp.where(index < number, labels[there], -1)
            return self._inputs(jnp.asarray(data.train_x)[there]), {"train_accuracy": y}

        return Evaluation(-(-number // size), batch)

    def _inputs(self, x: jax.Array | np.ndarray) -> jax.Array:
        """uint8 `[n, pixels]` to float32 in [0, 1], as inputs are shaped."""
        scaled = jnp.asarray(x).astype(jnp.float32) / 255
        return scaled.reshape(-1, *self._facts.picture) if self.pictures else scaled

    @property
    def _facts(self):
        facts = super()._facts
        if facts.classes < 2:
            raise ValueError(f"dataset: '{self.dataset}' holds 1 class, at least 2 are needed for other labels")
        if (self.examples or 0) > facts.examples:
            raise ValueError(f"examples: got {self.examples}, '{self.dataset}' allows 1 to {facts.examples}")
        number = self.examples or facts.examples
        for name in ("batch", "probe_size"):
            if (getattr(self, name) or 0) > number:
                raise ValueError(f"{name}: got {getattr(self, name)}, {number} training images allow 1 to {number}")
        return facts._replace(examples=number)
