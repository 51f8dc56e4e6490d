"""The one loop: chunks of steps in one compiled scan, metrics binned in the carry, Python in between."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.programs import Mean, Metrics, Program

LONGEST_CHUNK = 10_000


class Carry(NamedTuple):
    """All that a run is between two chunks, lanes on the leading axis: what a checkpoint holds.

    Attributes:
        lanes: the program's carry.
        bins: per metric, sums and counts `[lane, bin]`.
    """

    lanes: Any
    bins: dict[str, Mean]


def chunk_length(program: Program, longest: int = LONGEST_CHUNK) -> int:
    """Steps per compiled call: a divisor of the bin and of every period, so that rare things happen between chunks."""
    periods = [n for n in (program.bin, program.probe_every, program.evaluate_every) if n]
    common = math.gcd(*periods)
    return max(d for d in range(1, min(common, longest) + 1) if common % d == 0)


def chunk_lengths(program: Program, start: int, stop: int) -> Iterator[int]:
    """The lengths of the calls that take a run from step `start` to step `stop`."""
    longest = chunk_length(program)
    while start < stop:
        length = min(longest - start % longest, stop - start)
        yield length
        start += length


def initial(program: Program, keys: jax.Array, hyper: Mapping[str, Any], data: Any, steps: int) -> Carry:
    """The carry before step 0, with a bin for every `program.bin` of `steps`."""
    lanes = _compiled_init(program)(keys, hyper, data)
    shape = (keys.shape[0], -(-steps // program.bin))
    one, numbers = jax.tree.map(lambda leaf: jax.eval_shape(lambda x: x[0], leaf), (lanes, dict(hyper)))
    bins = {n: Mean(jnp.zeros(shape), jnp.zeros(shape)) for n in measured(program, one, numbers, data)}
    return Carry(lanes, bins)


def run_chunks(
    program: Program,
    carry: Carry,
    hyper: Mapping[str, Any],
    data: Any,
    start: int,
    stop: int,
    progress: Callable[[int], None] = lambda step: None,
    chunk: Callable[..., Carry] | None = None,
) -> Carry:
    """Steps `start` to `stop`; `progress(step)` is called between chunks."""
    chunk = chunk or compiled_chunk(program)
    step = start
    for length in chunk_lengths(program, start, stop):
        carry = chunk(carry, hyper, np.int32(step), data, length)
        step += length
        jax.block_until_ready(carry)
        progress(step)
    return carry


def measured(program: Program, lane: Any, hyper: Any, data: Any) -> list[str]:
    """The names of what is measured, from the shapes of one lane's carry and numbers."""
    clock = jax.ShapeDtypeStruct((), jnp.int32)
    names = list(jax.eval_shape(program.step, lane, hyper, clock, data)[1])
    if program.probe_every:
        names += jax.eval_shape(program.probe, lane, clock, data)
    if program.evaluate_every:
        names += jax.eval_shape(program.evaluate, lane, clock, data)
    return names


@functools.lru_cache(maxsize=4)
def compiled_chunk(program: Program) -> Callable[..., Carry]:
    """`chunk(carry, hyper, start, data, length) -> carry`, one program for all lanes and all chunks of a length."""
    return jax.jit(functools.partial(_chunk, program), static_argnums=4, donate_argnums=0)


@functools.lru_cache(maxsize=4)
def _compiled_init(program: Program) -> Callable[..., Any]:
    return jax.jit(jax.vmap(program.init, in_axes=(0, 0, None)))


def means(carry: Carry) -> dict[str, np.ndarray]:
    """Per metric, `[lane, bin]` float64; NaN where nothing was measured."""
    arrays = {}
    for name, bins in carry.bins.items():
        total, count = np.asarray(bins.sum, np.float64), np.asarray(bins.count, np.float64)
        arrays[name] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return arrays


def _chunk(program: Program, carry: Carry, hyper: Any, start: jax.Array, data: Any, length: int) -> Carry:
    lanes, bins = carry
    step = jax.vmap(program.step, in_axes=(0, 0, None, None))
    probe = jax.vmap(program.probe, in_axes=(0, None, None))
    evaluate = jax.vmap(program.evaluate, in_axes=(0, None, None))

    def body(state: tuple[Any, Metrics], clock: jax.Array) -> tuple[tuple[Any, Metrics], None]:
        lanes, sums = state
        lanes, seen = step(lanes, hyper, clock, data)
        return (lanes, jax.tree.map(jnp.add, sums, seen)), None

    seen = _rarely(program.probe_every, start, functools.partial(probe, lanes, start, data))
    bins = _add(bins, seen, start // program.bin)
    nothing = _zeros(jax.eval_shape(step, lanes, hyper, start, data)[1])
    (lanes, seen), _ = jax.lax.scan(body, (lanes, nothing), start + jnp.arange(length, dtype=jnp.int32))
    bins = _add(bins, seen, start // program.bin)
    end = start + length
    seen = _rarely(program.evaluate_every, end, functools.partial(evaluate, lanes, end, data))
    return Carry(lanes, _add(bins, seen, (end - 1) // program.bin))


def _rarely(every: int | None, clock: jax.Array, measure: Callable[[], Metrics]) -> Metrics:
    if every is None:
        return {}
    return jax.lax.cond(clock % every == 0, measure, lambda: _zeros(jax.eval_shape(measure)))


def _add(bins: Metrics, seen: Metrics, index: jax.Array) -> Metrics:
    added = {n: jax.tree.map(lambda b, s: b.at[:, index].add(s), bins[n], seen[n]) for n in seen}
    return bins | added


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
