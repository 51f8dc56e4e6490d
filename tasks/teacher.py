"""Targets of a random network, a teacher: fixed, drawn anew, drifting, or moved by an offset; no data."""

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tasks.base import Batch, Schedule, Spec, Task, check_fields

CHANGES = ("redraw", "drift", "offset", "none")
_TEACHER, _OFFSET, _ROWS, _INPUTS, _PROBE = 0, 1, 2, 3, 4
_TANH_SQUARED = 0.3943
"""Mean of `tanh(z)^2` for standard normal `z`."""


class TeacherState(NamedTuple):
    """Where a stream is; teacher and offset are placeholders until `next` has been called at step 0.

    Attributes:
        key: typed key of the stream.
        weights: float32 `[in, out]` of every layer of the teacher of this task.
        offset: float32 `[outputs]`, what is added to its outputs in this task.
        inputs: float32 `[examples, inputs]`, the only ones there are; `None` where every step draws new ones.
    """

    key: jax.Array
    weights: tuple[jax.Array, ...]
    offset: jax.Array
    inputs: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Teacher(Task):
    r"""Regression to the outputs of a random network, generated on the device.

    With inputs `x ~ N(0, 1)^inputs` and weights `W_l ~ N(0, 1 / (n_l m_l))`, `n_l` units of which the mean square is
    `m_l` (1 of inputs, 0.394 of units), so that every output has mean 0 and variance 1 over teachers,

        f(x) = W_L tanh(... tanh(W_1 x)),       y = f(x) + b,       or sin(frequency * f(x)) + b

    What another task changes (`change`):

    - `redraw`: the teacher is another one, drawn anew;
    - `drift`: `W <- sqrt(1 - drift^2) W + drift N`, with fresh `N` of the law of `W`, which so stays as it is;
    - `offset`: `b ~ U(-offset, offset)` for each output; the teacher stays. To move all outputs far is easy and, with a
      network that has adapted to one offset, badly conditioned: the refit is the probe that small changes of the
      function itself do not make;
    - `none`: nothing; a control.

    With `examples` the same inputs come for ever, one drawn with replacement for every place of a batch: how fast the
    same points are fitted again. The loss of the mean of all targets is 1 (0.5 with a `frequency`) within a task.

    Source: after Lyle et al., "Understanding plasticity in neural networks", ICML 2023, whose probes are regressions to
    `sin(1e5 f(x))`; and Lyle et al., "Disentangling the causes of plasticity loss in neural networks", 2024, for
    targets with a large mean. `plastic_jax.trainability` fits such targets beside a run.

    Attributes:
        change: `redraw`, `drift`, `offset` or `none`.
        change_every: steps per task.
        batch: examples per step.
        inputs: how many.
        outputs: how many.
        widths: units of the teacher's hidden layers; `()` for a linear one.
        drift: from 0, nothing, to 1, another teacher; for `change="drift"`.
        offset: the largest; for `change="offset"`.
        frequency: of the sine; 0 for none.
        examples: how many inputs there are; `None`: every step has new ones.
        probe_size: how many inputs the diagnostics see.

    Raises:
        ValueError: a field is none of what is allowed.
    """

    change: Literal["redraw", "drift", "offset", "none"] = "redraw"
    change_every: int = 2000
    batch: int = 16
    inputs: int = 20
    outputs: int = 1
    widths: tuple[int, ...] = (100,)
    drift: float = 0.3
    offset: float = 10.0
    frequency: float = 0.0
    examples: int | None = None
    probe_size: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("change_every", "batch", "inputs", "outputs", "examples", "probe_size")
        check_fields(self, sizes, ("examples",), choices={"change": CHANGES})
        widths: Any = self.widths
        if not isinstance(widths, tuple) or not all(type(width) is int and width > 0 for width in widths):
            raise ValueError(f"widths: got {widths!r}, allowed are positive integers, as in (100,100), or ()")
        for name, most in (("drift", 1.0), ("offset", math.inf), ("frequency", math.inf)):
            value: Any = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 <= value <= most
                or value == math.inf
            ):
                allowed = f"numbers from 0{' to 1' if most == 1 else ' on'}"
                raise ValueError(f"{name}: got {value!r}, allowed are {allowed}")

    @property
    def spec(self) -> Spec:
        # A lane that has diverged counts as one that gives the mean of all targets.
        variance = (0.5 if self.frequency else 1.0) + (self.offset**2 / 3 if self.change == "offset" else 0.0)
        return Spec((self.inputs,), self.outputs, "squared_error", self.batch, {"squared_error": variance})

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.change_every, None, self.change_every, None)

    def init(self, key: jax.Array, data: Any) -> TeacherState:
        weights = tuple(jnp.zeros(shape) for shape in self._shapes)
        inputs = None
        if self.examples is not None:
            inputs = jax.random.normal(jax.random.fold_in(key, _INPUTS), (self.examples, self.inputs))
        return TeacherState(key, weights, jnp.zeros(self.outputs), inputs)

    def teacher(self, key: jax.Array, number: jax.Array | int) -> tuple[jax.Array, ...]:
        """The weights of teacher `number`, drawn from the task's key."""
        key = jax.random.fold_in(jax.random.fold_in(key, _TEACHER), number)
        squares = (1.0, *[_TANH_SQUARED] * len(self.widths))
        keys = jax.random.split(key, len(self._shapes))
        return tuple(
            jax.random.normal(k, shape) / math.sqrt(shape[0] * square)
            for k, shape, square in zip(keys, self._shapes, squares, strict=True)
        )

    def next(self, state: TeacherState, clock: jax.Array, data: Any) -> tuple[TeacherState, Batch]:
        number, step = jnp.divmod(clock, self.change_every)
        old = (state.weights, state.offset)
        weights, offset = jax.lax.cond(step == 0, lambda: self._changed(state, number), lambda: old)
        state = state._replace(weights=weights, offset=offset)
        key = jax.random.fold_in(jax.random.fold_in(state.key, _ROWS), clock)
        if state.inputs is None:
            x = jax.random.normal(key, (self.batch, self.inputs))
        else:
            x = state.inputs[jax.random.randint(key, (self.batch,), 0, len(state.inputs))]
        return state, Batch(x, self.targets(state, x), step == 0, jnp.zeros([], bool))

    def targets(self, state: TeacherState, x: jax.Array) -> jax.Array:
        """What the teacher of the state's task says of inputs `[n, inputs]`: `[n, outputs]`."""
        *hidden, last = state.weights
        for kernel in hidden:
            x = jnp.tanh(x @ kernel)
        y = x @ last
        return (jnp.sin(self.frequency * y) if self.frequency else y) + state.offset

    def probe_batches(self, state: TeacherState, clock: jax.Array, data: Any) -> dict[str, jax.Array]:
        """`probe_size` inputs, always the same ones of a stream, `[probe_size, inputs]`."""
        return {"": jax.random.normal(jax.random.fold_in(state.key, _PROBE), (self.probe_size, self.inputs))}

    def _changed(self, state: TeacherState, number: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Teacher and offset of task `number`, of which the state has those of the task before."""
        fresh = self.teacher(state.key, number if self.change in ("redraw", "drift") else 0)
        if self.change == "drift":
            kept = math.sqrt(1 - self.drift**2)
            moved = (kept * old + self.drift * new for old, new in zip(state.weights, fresh, strict=True))
            fresh = tuple(jnp.where(number == 0, new, each) for new, each in zip(fresh, moved, strict=True))
        if self.change != "offset":
            return fresh, state.offset
        key = jax.random.fold_in(jax.random.fold_in(state.key, _OFFSET), number)
        return fresh, jax.random.uniform(key, (self.outputs,), minval=-self.offset, maxval=self.offset)

    @property
    def _shapes(self) -> tuple[tuple[int, int], ...]:
        sizes = (self.inputs, *self.widths, self.outputs)
        return tuple(itertools.pairwise(sizes))
