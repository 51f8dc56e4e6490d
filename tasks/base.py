"""What every task is: a stream that keeps changing, as pure functions of a state, a clock and the data."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax


class Batch(NamedTuple):
    """What the learner is shown at one step.

    Attributes:
        x: inputs, `[batch, *input_shape]`.
        y: targets, `[batch, outputs]` float (squared error) or `[batch]` int32 labels (cross entropy).
        boundary: 0-d bool, true at the first step of a new task (also at step 0).
        reset_head: 0-d bool, true where the problem itself asks for a new output layer.
        class_mask: `[outputs]` bool, the classes that count now; `None` for all.
    """

    x: jax.Array
    y: jax.Array
    boundary: jax.Array
    reset_head: jax.Array
    class_mask: jax.Array | None = None


class Schedule(NamedTuple):
    """When the periodic things happen, in steps (one step is one update); `None` is never."""

    change_every: int
    evaluate_every: int | None
    probe_every: int | None
    length: int | None


class Spec(NamedTuple):
    """What a learner must know of a task: shapes, loss, and what a diverged lane counts as, per metric."""

    input_shape: tuple[int, ...]
    outputs: int
    loss: Literal["squared_error", "cross_entropy"]
    batch: int
    failure: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """A stream. All but `load` are pure; the caller maps them over lanes with `clock` and `data` unbatched.

    At clock `c` the order is: `probe_batch` (what the upcoming task looks like, before anything is learned from
    it), `next` (the batch of step `c`), learning, and, when `c + 1` is a multiple of `evaluate_every`,
    `evaluation_batches` with clock `c + 1` and the state of the task just finished.
    """

    @property
    def spec(self) -> Spec:
        raise NotImplementedError

    @property
    def schedule(self) -> Schedule:
        raise NotImplementedError

    def load(self) -> Any:
        """The data, as host arrays; the loop puts them on the device once, shared by all lanes."""
        return ()

    def init(self, key: jax.Array, data: Any) -> Any:
        """The state of the stream before step 0."""
        raise NotImplementedError

    def next(self, state: Any, clock: jax.Array, data: Any) -> tuple[Any, Batch]:
        """The state after and the batch of step `clock`."""
        raise NotImplementedError

    def evaluation_batches(self, state: Any, clock: jax.Array, data: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Held-out inputs and targets by the name of the metric they give; empty for none."""
        return {}

    def probe_batch(self, state: Any, clock: jax.Array, data: Any) -> jax.Array:
        """Inputs of the task that starts at `clock`, for the diagnostics."""
        raise NotImplementedError
