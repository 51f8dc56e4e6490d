"""Slowly-changing regression: a random target network seen through slowly changing input bits."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import Batch, Schedule, Spec, Task

_STEPS_PER_WORD = 6
_WORDS = 32
_BLOCK = _STEPS_PER_WORD * _WORDS


class Target(NamedTuple):
    """The network that makes the targets: 100 threshold units and a linear sum of them, all weights -1 or 1."""

    weights: jax.Array
    bias: jax.Array
    output: jax.Array
    output_bias: jax.Array


class State(NamedTuple):
    """State of the stream of one lane.

    Attributes:
        key: typed key, never changed.
        target: the target network, fixed for the run.
        slow: float32 `[15]`, the slow bits of the current task.
        table: float32 `[32]`, the target for every setting of the fast bits.
        words: uint32 `[32]`, random bits of the current block of steps, six steps a word.
    """

    key: jax.Array
    target: Target
    slow: jax.Array
    table: jax.Array
    words: jax.Array


@dataclasses.dataclass(frozen=True)
class SlowlyChangingRegression(Task):
    """20 bits in, one number out; 15 bits change only every `change_every` steps, 5 are drawn at every step.

    A target unit fires where `w x + b > tau`, `tau = 0.7 * 21 - (20 - sum(w) + b) / 2`; the target is
    `sum_i v_i fired_i + c`, without noise, fixed for a run (Dohare et al. 2024, methods, "slowly-changing regression").

    Attributes:
        variant: what changes between tasks: `"redraw"`, all slow bits are drawn anew (the published code's default
            data and figure); `"flip_one"`, one of them toggles (the paper's text).
        change_every: steps per task.

    Differs from the published code in that the stream is a function of the key and drawn on the device; each task's
    32 possible targets are computed once.

    Raises:
        ValueError: unknown variant, or `change_every` is not positive.
    """

    variant: Literal["redraw", "flip_one"] = "redraw"
    change_every: int = 10_000

    inputs = 20
    slow_bits = 15
    hidden = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("redraw", "flip_one"):
            raise ValueError(f"slowly_changing_regression: variant='{self.variant}'; allowed: redraw, flip_one")
        if not isinstance(self.change_every, int) or self.change_every < 1:
            raise ValueError(
                f"slowly_changing_regression: change_every={self.change_every!r} is not a positive integer"
            )

    @property
    def spec(self) -> Spec:
        return Spec((self.inputs,), 1, "squared_error", 1, {"squared_error": 0.9})

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.change_every, None, self.change_every, None)

    def init(self, key: jax.Array, data: Any) -> State:
        del data
        target_key, stream_key = jax.random.split(key)
        shapes = Target((self.inputs, self.hidden), (self.hidden,), (self.hidden,), ())
        keys = Target(*jax.random.split(target_key, 4))
        target = Target(*(jax.random.rademacher(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=True)))
        blank = (jnp.zeros(self.slow_bits), jnp.zeros(2**self._fast), jnp.zeros(_WORDS, jnp.uint32))
        return State(stream_key, target, *blank)

    def next(self, state: State, clock: jax.Array, data: Any) -> tuple[State, Batch]:
        del data
        boundary = clock % self.change_every == 0
        slow, table = jax.lax.cond(boundary, lambda: self._renew(state, clock), lambda: (state.slow, state.table))
        words = jax.lax.cond(clock % _BLOCK == 0, lambda: self._draw(state, clock), lambda: state.words)
        within = clock % _BLOCK
        word = jax.lax.dynamic_index_in_dim(words, within // _STEPS_PER_WORD, keepdims=False)
        fast = (word >> (self._fast * (within % _STEPS_PER_WORD)).astype(jnp.uint32)) & (2**self._fast - 1)
        x = jnp.concatenate([slow, self._bits(fast)])[None]
        y = table[fast][None, None]
        return state._replace(slow=slow, table=table, words=words), Batch(x, y, boundary, jnp.zeros([], bool))

    def probe_batches(self, state: State, clock: jax.Array, data: Any) -> dict[str, jax.Array]:
        """All 32 inputs of the task of step `clock`, `[32, 20]`."""
        del data
        starts = clock % self.change_every == 0
        slow = jax.lax.cond(starts, lambda: self._renew(state, clock)[0], lambda: state.slow)
        return {"": self._inputs(slow)}

    @property
    def _fast(self) -> int:
        return self.inputs - self.slow_bits

    def _draw(self, state: State, clock: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(state.key, 1), clock // _BLOCK)
        return jax.random.bits(key, (_WORDS,), jnp.uint32)

    def _renew(self, state: State, clock: jax.Array) -> tuple[jax.Array, jax.Array]:
        task = clock // self.change_every
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), task)
        drawn = jax.random.bernoulli(key, 0.5, (self.slow_bits,)).astype(jnp.float32)
        if self.variant == "flip_one":
            flipped = jax.random.randint(key, (), 0, self.slow_bits) == jnp.arange(self.slow_bits)
            drawn = jnp.where(task == 0, drawn, jnp.abs(state.slow - flipped))
        return drawn, self._targets(state.target, self._inputs(drawn))

    def _targets(self, target: Target, x: jax.Array) -> jax.Array:
        threshold = 0.7 * (self.inputs + 1) - (self.inputs - target.weights.sum(0) + target.bias) / 2
        fired = (x @ target.weights + target.bias > threshold).astype(jnp.float32)
        return fired @ target.output + target.output_bias

    def _inputs(self, slow: jax.Array) -> jax.Array:
        fast = self._bits(np.arange(2**self._fast, dtype=np.uint32)[:, None])
        return jnp.concatenate([jnp.broadcast_to(slow, (fast.shape[0], self.slow_bits)), fast], axis=1)

    def _bits(self, number: Any) -> jax.Array:
        return jnp.asarray((number >> np.arange(self._fast, dtype=np.uint32)) & 1, jnp.float32)
