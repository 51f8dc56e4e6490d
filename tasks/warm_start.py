"""Warm start: a part of the pictures first, then all of them; does what was learned before help or hurt?"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from tasks.base import Batch, Evaluation, Spec, check_fields
from tasks.classes import ClassFacts, class_facts, title
from tasks.growing import (
    PROBED,
    Growing,
    GrowingState,
    Stage,
    chances,
    check_sizes,
    load_growing,
    probe_key,
    shown,
    shuffled,
)
from tasks.pictures import PictureData, taken


@dataclasses.dataclass(frozen=True)
class WarmStart(Growing):
    """Warm starting (Ash & Adams 2020, "On Warm-Starting Neural Network Training").

    Two tasks over the same classes: the first `share` of the training pictures of every class for `epochs` epochs, then
    all of them for as many. Its question is whether a network that has had the first task does worse after the second
    than one that begins afresh with the second (the method `fresh_network`); nothing but the pictures changes, and
    nothing but `Batch.boundary` tells of it. Every epoch has a random order of its own; pictures left over where
    `batch` does not divide their number wait for the next epoch.

    On the test pictures: `test_accuracy_in_task` at the end of every epoch, on the first `evaluation_size_in_task` of
    each class, and `test_accuracy` at the end of a task, on all.

    Differs from the published experiment, by default, in the data, there CIFAR-10 first of all (ResNet-18, batches of
    128, 350 epochs each, no augmentation), and in the optimizer: the methods' numbers here are those of
    class-incremental CIFAR-100 (step size 0.1, momentum 0.9; L2 of 5e-4 for `l2` and `fresh_network`, so compare these
    two).

    Attributes:
        dataset: a name that `tasks.classes.load_classes` knows.
        data_dir: where it looks; `None` for the default folder of tensorflow-datasets.
        classes: how many, the first of the data; `None` for all.
        train_per_class: training pictures of a class; `None` for all.
        test_per_class: test pictures of a class; `None` for all.
        share: of the training pictures of every class, which the first task shows; rounded to whole pictures.
        epochs: passes through a task's pictures.
        batch: pictures per step; `None`: 128, or as many as the first task has.
        augment: whether training pictures are augmented, as `tasks.augment.augmented` says.
        evaluation_size_in_task: on how many test pictures of each class `test_accuracy_in_task` is measured; `None`:
            all.
        probe_size: how many pictures of the upcoming task the diagnostics see; `None`: 1000, or those that
            the first task has.
    """

    dataset: str = "cifar100"
    data_dir: str | None = None
    classes: int | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    share: float = 0.5
    epochs: int = 350
    batch: int | None = None
    augment: bool = False
    evaluation_size_in_task: int | None = None
    probe_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        optional = ("classes", "batch", "train_per_class", "test_per_class", "evaluation_size_in_task", "probe_size")
        check_fields(self, ("epochs", *optional), optional, ("augment",))
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not number or not 0 < self.share < 1:
            raise ValueError(f"share: got {self.share!r}, allowed are numbers between 0 and 1, both excluded")

    @functools.cached_property
    def fitted(self) -> "WarmStart":  # pyright: ignore[reportIncompatibleMethodOverride]
        return dataclasses.replace(self, batch=self._batch)

    @property
    def spec(self) -> Spec:
        facts, classes = self._facts, self._number
        failure = chances(classes, ("online_accuracy", "test_accuracy", "test_accuracy_in_task"))
        return Spec(facts.train[2:], classes, "cross_entropy", self._batch, failure)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        classes, each = self._number, self._facts.train[1]
        first, all_of_them = (
            Stage(classes, n, self.epochs, classes * n // self._batch) for n in (_part(each, self.share), each)
        )
        return first, all_of_them

    @property
    def note(self) -> str:
        facts, first = self._facts, self.stages[0]
        classes = f"{self._number} classes of {title(self.dataset)}"
        pictures = f"{first.pictures}, then {facts.train[1]} pictures a class, {facts.test[1]} to test"
        return f"{classes}, {pictures}, {self.epochs} epochs each" + "; augmented" * self.augment

    def load(self) -> PictureData:
        """The pictures of the classes, and what they are normalised by."""
        self.spec  # noqa: B018 -- raises where a size does not fit this data
        return load_growing(self.dataset, self.data_dir, self.train_per_class, self.test_per_class, self.classes)

    def class_order(self, key: jax.Array, data: PictureData) -> jax.Array:
        """That of the data, int32 `[classes]`: all classes come at once."""
        return jnp.arange(data.train.shape[0], dtype=jnp.int32)

    def next(self, state: GrowingState, clock: jax.Array, data: PictureData) -> tuple[GrowingState, Batch]:
        state, x, y, now = self._shown(state, clock, data, self.augment)
        return state, shown(x, y, now)

    def evaluations(self, state: GrowingState, clock: jax.Array, data: PictureData) -> tuple[Evaluation, ...]:
        """Accuracy on the test pictures of all classes: on the way, and once the task is over."""
        now, every = self.now(clock - 1), data.test.shape[1]
        few = self.evaluation_size_in_task or every
        each = jnp.maximum(now.ends_epoch * few, now.ends_task * every)
        counted = {
            "test_accuracy_in_task": lambda place, number: number < few,
            "test_accuracy": lambda place, number: now.ends_task & (number >= 0),
        }
        return (self._tested(state, clock, data, each, counted, None),)

    def probe_batches(self, state: GrowingState, clock: jax.Array, data: PictureData) -> dict[str, jax.Array]:
        """`probe_size` training pictures of the task of step `clock`, not augmented, as inputs are shaped."""
        now, first = self.now(clock), self.stages[0]
        size = self.probe_size or min(PROBED, first.classes * first.pictures)
        index = shuffled(probe_key(state.key, now), self._most_pictures, 0, now.stage.classes * now.stage.pictures)
        place, number = jnp.divmod(index[:size], now.stage.pictures)
        return {"": taken(data.train, state.class_order[place], number, data)}

    @property
    def _number(self) -> int:
        return self.classes or len(self._facts.names)

    @property
    def _batch(self) -> int:
        return self.batch or min(128, self._number * _part(self._facts.train[1], self.share))

    @property
    def _facts(self) -> ClassFacts:
        facts = class_facts(self.dataset, self.data_dir, self.train_per_class, self.test_per_class)
        name, each = f"'{self.dataset}'", facts.train[1]
        check_sizes(
            self,
            {
                "classes": (len(facts.names), f"the classes of {name} are"),
                "evaluation_size_in_task": (facts.test[1], f"the test pictures of a class of {name} are"),
            },
        )
        part = _part(each, self.share)
        if not 0 < part < each:
            raise ValueError(f"share: got {self.share:g}, which is {part} of the {each} training pictures of a class")
        pictures = (self.classes or len(facts.names)) * part
        what = f"the training pictures of the first task, {part} of each class, are"
        check_sizes(self, {"batch": (pictures, what), "probe_size": (pictures, what)})
        return facts


def _part(pictures: int, share: float) -> int:
    return round(share * pictures)
