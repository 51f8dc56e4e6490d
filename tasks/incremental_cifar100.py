"""Class-incremental CIFAR-100: all pictures seen so far, and every so often those of some more classes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Batch, Evaluation, Spec, check_fields, largest_divisor
from tasks.classes import ClassFacts, class_facts, title
from tasks.growing import (
    PROBED,
    Growing,
    GrowingState,
    Now,
    Stage,
    chances,
    check_sizes,
    held_out,
    load_growing,
    probe_key,
    shown,
    shuffled,
)
from tasks.pictures import PictureData, taken

STEP_SIZES = ("published", "constant")
ACCURACIES = ("selected", "best_epoch")
_SCALES = (1.0, 0.2, 0.04, 0.008)
_SHARES_OF_TEN = (3, 6, 8)
"""Tenths of an increment after which the step size is a fifth of what it was: epochs 60, 120 and 160 of 200."""


@dataclasses.dataclass(frozen=True)
class IncrementalCIFAR100(Growing):
    """Class-incremental CIFAR-100 (Dohare et al. 2024, "Class-incremental CIFAR-100").

    Increment `t` (from 0) adds `classes_per_increment` classes, in an order of classes that follows from the seed
    alone, and shows all training pictures of all classes so far for `epochs` epochs, each in a random order. An epoch
    grows with the classes, from `steps_per_epoch` steps to `increments` times as many. Only the outputs of classes
    seen count (`Batch.class_mask`), in the loss too; a label is the class's own number.

    Of the training pictures of a class the first tenth is for validation (of 500: 50; at least one) and never shown;
    the parameters that do best on those of all classes seen come back at the end of an increment (`select`), and what
    is measured then is the network that they make. Training pictures are augmented as `tasks.augment.augmented` says.

    What is measured, with the labels -1 where a picture does not count:

    - at the end of every epoch: `validation_accuracy` (with `select`) and `test_accuracy_in_task`, on the first
      `evaluation_size_in_task` test pictures of each class seen;
    - at the end of an increment, on all test pictures of the classes seen: `test_accuracy`, and of
      `classes_per_increment` classes each `accuracy_newest_classes`, `accuracy_middle_classes` (those in the middle of
      the order of all seen, which may belong to two increments) and `accuracy_oldest_classes`.

    At the last epoch of an increment `test_accuracy_in_task` too is that of the selected network; with
    `accuracy="best_epoch"` it is that of the epoch itself. A diverged lane counts as if it guessed among all classes of
    the data, however few have come.

    Differs from the published code in where outputs are (there they are in the order in which classes come), and in
    the test pictures, unless `augment_test`. With `train_per_class`, pictures left out are neither trained on nor used
    for validation.

    Attributes:
        dataset: a name that `tasks.classes.load_classes` knows.
        data_dir: where it looks; `None` for the default folder of tensorflow-datasets.
        classes_per_increment: how many classes come at a time; `None`: 5, or all.
        increments: how often; `None`: 20 times, or as often as there are classes for.
        epochs: passes through an increment's pictures.
        train_per_class: training pictures of a class, the tenth for validation included: 500 are 450 + 50, 100 are
            90 + 10; `None` for all that the data have.
        test_per_class: test pictures of a class; `None` for all.
        batch: pictures per step; has to divide the training pictures of `classes_per_increment` classes; `None`: 90, or
            the largest number below that does.
        step_sizes: `published`: times 1, 0.2, 0.04 and 0.008 from epochs 0, 60, 120 and 160 of 200 on, anew in every
            increment, and at the same shares of an increment of another length; `constant`: as they are.
        augment: whether training pictures are augmented.
        augment_test: whether test pictures are too, as in the published code; validation pictures never are.
        accuracy: `selected`: what counts for an increment is `test_accuracy`; `best_epoch`: the highest
            `test_accuracy_in_task` of its epochs, as in the published figures. Here that only decides when and on how
            many pictures the latter is measured; who reads the results takes the highest (`launch.report` does).
        select: whether the parameters that do best in validation come back at the end of an increment.
        probe_in_training: whether the diagnostics look at the network as it is in training, as in the published code.
        cumulative: increment `t` (from 0) lasts `epochs (t + 2) / 2` epochs, which are as many updates as a network
            that goes on from increment to increment has had at its end: the control for a network that begins afresh.
        evaluation_size_in_task: on how many test pictures of each class `test_accuracy_in_task` is measured; `None`:
            all.
        probe_size: how many pictures the diagnostics see: of the next classes, and of all before; `None`: 1000, or
            those that the next classes have.
    """

    dataset: str = "cifar100"
    data_dir: str | None = None
    classes_per_increment: int | None = None
    increments: int | None = None
    epochs: int = 200
    train_per_class: int | None = None
    test_per_class: int | None = None
    batch: int | None = None
    step_sizes: str = "published"
    augment: bool = True
    augment_test: bool = False
    accuracy: str = "selected"
    select: bool = True
    probe_in_training: bool = False  # pyright: ignore[reportIncompatibleMethodOverride]
    cumulative: bool = False
    evaluation_size_in_task: int | None = None
    probe_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        per_class = ("train_per_class", "test_per_class")
        optional = ("classes_per_increment", "increments", "batch", *per_class, "evaluation_size_in_task", "probe_size")
        switches = ("augment", "augment_test", "select", "probe_in_training", "cumulative")
        check_fields(
            self, ("epochs", *optional), optional, switches, {"step_sizes": STEP_SIZES, "accuracy": ACCURACIES}
        )
        if self.cumulative and self.increments != 1 and self.epochs % 2:
            raise ValueError(
                f"epochs: got {self.epochs}, allowed are even numbers with cumulative=True, where the second increment "
                "lasts one and a half times as many"
            )
        if self.accuracy == "best_epoch" and self.evaluation_size_in_task is not None:
            raise ValueError(
                f"evaluation_size_in_task: got {self.evaluation_size_in_task}, allowed is None with "
                "accuracy=best_epoch, for which every epoch is measured on all test pictures"
            )

    @functools.cached_property
    def fitted(self) -> "IncrementalCIFAR100":  # pyright: ignore[reportIncompatibleMethodOverride]
        some, increments, batch = self._sizes(self._facts)
        return dataclasses.replace(self, classes_per_increment=some, increments=increments, batch=batch)

    @property
    def spec(self) -> Spec:
        facts = self._facts
        accuracies = ("online_accuracy", "validation_accuracy", "test_accuracy_in_task", *self._at_the_end)
        classes = len(facts.names)
        return Spec(facts.train[2:], classes, "cross_entropy", self._sizes(facts)[2], chances(classes, accuracies))

    @property
    def stages(self) -> tuple[Stage, ...]:
        some, increments, batch = self._sizes(self._facts)
        pictures = self._facts.train[1] - self.validation_per_class
        numbers = range(1, increments + 1)
        epochs = [self.epochs * (t + 1) // 2 if self.cumulative else self.epochs for t in numbers]
        classes = [some * t for t in numbers]
        return tuple(Stage(c, pictures, e, c * pictures // batch) for c, e in zip(classes, epochs, strict=True))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of the first increment; one of increment `t` (from 0) has `t + 1` times as many."""
        return self.stages[0].steps

    @property
    def validation_per_class(self) -> int:
        return self._validation_of(self._facts.train[1])

    @property
    def selects(self) -> bool:
        return self.select

    @property
    def note(self) -> str:
        facts, validation = self._facts, self.validation_per_class
        each = f"{self.epochs} epochs each"
        epochs = f"increment t lasts {self.epochs} (t + 1) / 2 epochs" if self.cumulative else each
        pictures = f"{facts.train[1] - validation} + {validation} pictures a class, {facts.test[1]} to test"
        some, increments, _ = self._sizes(facts)
        classes = f"{increments} increments of {some} classes of {title(self.dataset)}"
        said = {
            "published: 200 epochs": self.epochs != 200,
            "published: 450 + 50 pictures": facts.train[1] != 500,
            "published: 100 to test": facts.test[1] != 100,
            "cumulative: as many updates as a network that goes on": self.cumulative,
            "step size constant": self.step_sizes == "constant",
            "not augmented": not self.augment,
            "test pictures augmented": self.augment_test,
            "best epoch on test pictures": self.accuracy == "best_epoch",
            "parameters not selected": not self.select,
        }
        return "; ".join([f"{classes}, {epochs}, {pictures}", *(text for text, holds in said.items() if holds)])

    def load(self) -> PictureData:
        """The pictures, and what they are normalised by."""
        self.spec  # noqa: B018 -- raises where a size does not fit this data
        return load_growing(self.dataset, self.data_dir, self.train_per_class, self.test_per_class)

    def next(self, state: GrowingState, clock: jax.Array, data: PictureData) -> tuple[GrowingState, Batch]:
        state, x, y, now = self._shown(state, clock, data, self.augment)
        return state, shown(x, y, now, self._mask(state, now), self._step_scale(now))

    def evaluations(self, state: GrowingState, clock: jax.Array, data: PictureData) -> tuple[Evaluation, ...]:
        """Validation, which selects, then the test pictures, with what is selected where an increment ends.

        For the best epoch every epoch's own network is tested before, too.
        """
        now, held, few = self.now(clock - 1), data.test.shape[1], self.evaluation_size_in_task or data.test.shape[1]
        in_epoch = {"test_accuracy_in_task": lambda place, number: number < few}
        due, in_the_end, due_in_the_end = now.ends_epoch * few, self._counted_in_the_end(now), now.ends_task * held

        def tested(each, metrics):
            return self._tested(state, clock, data, each, metrics, self._mask(state, now), self.augment_test)

        validation = self._validation(state, now, data)
        if self.accuracy == "best_epoch":
            return (tested(due, in_epoch), *validation, tested(due_in_the_end, in_the_end))
        return (*validation, tested(jnp.maximum(due, due_in_the_end), in_epoch | in_the_end))

    def probe_batches(self, state: GrowingState, clock: jax.Array, data: PictureData) -> dict[str, jax.Array]:
        """Pictures of the next classes, and of those before, of which the first increment has none: the same.

        Training and validation pictures, not augmented, `[probe_size, height, width, channels]`.
        """
        now, (classes, each) = self.now(clock), data.train.shape[:2]
        begins = (now.stage.classes - self._some) * each
        number = self.probe_size or min(PROBED, self._some * each)

        def chosen(low, high):
            index = shuffled(probe_key(state.key, now), classes * each, low, high)[:number]
            return taken(data.train, state.class_order[index // each], index % each, data)

        new = (begins, now.stage.classes * each)
        old = [jnp.where(begins > 0, before, of_new) for before, of_new in zip((0, begins), new, strict=True)]
        return {"": chosen(*new), "_old_classes": chosen(*old)}

    def _validation(self, state: GrowingState, now: Now, data: PictureData) -> tuple[Evaluation, ...]:
        if not self.select:
            return ()
        each = now.ends_epoch * self.validation_per_class
        counted = {"validation_accuracy": lambda place, number: place >= 0}
        made = held_out(data.train, state.class_order, now.stage.classes, each, data, counted)
        return (made._replace(class_mask=self._mask(state, now), selects=True),)

    def _counted_in_the_end(self, now: Now):
        """Every metric on all test pictures: of the classes whose place lies in a stretch of so many."""
        seen, some = now.stage.classes, self._some
        stretches = ((0, seen), (seen - some, some), ((seen - some) // 2, some), (0, some))

        def counted(first, length):
            return lambda place, number: now.ends_task & (place >= first) & (place < first + length)

        return {name: counted(*stretch) for name, stretch in zip(self._at_the_end, stretches, strict=True)}

    @property
    def _at_the_end(self) -> tuple[str, str, str, str]:
        return ("test_accuracy", "accuracy_newest_classes", "accuracy_middle_classes", "accuracy_oldest_classes")

    def _mask(self, state: GrowingState, now: Now) -> jax.Array:
        """The classes that have come, bool `[outputs]`."""
        places = jnp.arange(len(state.class_order), dtype=jnp.int32)
        return jnp.zeros(len(places), bool).at[state.class_order].set(places < now.stage.classes)

    def _step_scale(self, now: Now) -> jax.Array | None:
        if self.step_sizes == "constant":
            return None
        passed = 10 * now.epoch >= np.array(_SHARES_OF_TEN, np.int32) * now.stage.epochs
        return jnp.array(_SCALES, jnp.float32)[jnp.sum(passed, dtype=jnp.int32)]

    def _sizes(self, facts: ClassFacts) -> tuple[int, int, int]:
        """Classes of an increment, increments, and pictures of a step, as asked or as the data allow."""
        classes, each = len(facts.names), facts.train[1]
        some = self.classes_per_increment or min(5, classes)
        increments = self.increments or max(1, min(20, classes // some))
        return some, increments, self.batch or largest_divisor(some * (each - self._validation_of(each)), 90)

    def _validation_of(self, each: int) -> int:
        """How many of `each` training pictures are for validation: a tenth, at least one where they select."""
        return each // 10 or int(self.select and each > 1)

    @property
    def _some(self) -> int:
        return self._sizes(self._facts)[0]

    @property
    def _facts(self) -> ClassFacts:
        facts = class_facts(self.dataset, self.data_dir, self.train_per_class, self.test_per_class)
        classes, each, name = len(facts.names), facts.train[1], f"'{self.dataset}'"
        some, increments, batch = self._sizes(facts)
        if some * increments > classes:
            which = "classes_per_increment" if self.increments is None else "increments"
            raise ValueError(f"{which}: got {increments} of {some} classes, {name} has {classes} classes")
        if self.select and each < 2:
            raise ValueError(
                "train_per_class: 1 picture has no part for validation; allowed are 2 and more, or select=False"
            )
        pictures = some * (each - self._validation_of(each))
        if pictures % batch:
            fitting = sorted((n for n in range(1, pictures + 1) if pictures % n == 0), key=lambda n: abs(n - batch))
            raise ValueError(
                f"batch: got {batch}, which does not divide the {pictures} training pictures of {some} classes; "
                f"allowed are for example {', '.join(str(n) for n in sorted(fitting[:4]))}"
            )
        check_sizes(
            self,
            {
                "evaluation_size_in_task": (facts.test[1], f"the test pictures of a class of {name} are"),
                "probe_size": (some * each, f"the training pictures of {some} classes of {name} are"),
            },
        )
        return facts


def updates(task: IncrementalCIFAR100) -> np.ndarray:
    """Updates that a network has had at the end of each increment, int64 `[increments]`.

    One that begins afresh with every increment has had the differences.
    """
    return np.cumsum([stage.epochs * stage.steps for stage in task.stages])


def presentations(task: IncrementalCIFAR100) -> np.ndarray:
    """How often a picture has been shown, int64 `[increments, increments]`.

    Entry `t, k`: by the end of increment `t`, a training picture of a class that came with increment `k`; 0 where it
    had not come. To a network that begins afresh: by row the difference to the row before.
    """
    epochs = np.array([stage.epochs for stage in task.stages])
    return np.cumsum(np.tril(np.broadcast_to(epochs[:, None], (len(epochs), len(epochs)))), axis=0)
