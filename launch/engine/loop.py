"""The one loop: chunks of steps in one compiled scan, metrics binned between them, Python in between."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.engine.devices import Parallel, spread
from launch.engine.lane_program import Metrics, Program
from launch.storage.bins import Bins, Mean, grown

LONGEST_CHUNK = 10_000


class RunState(NamedTuple):
    """All that a run is between two chunks: what a checkpoint holds.

    Attributes:
        step: steps done.
        lanes: the program's carry, lanes on the leading axis.
        bins: per metric, sums and counts, float64 `[lane, bin]` in the host's memory.
    """

    step: int
    lanes: Any
    bins: Bins


def chunk_length(program: Program, longest: int = LONGEST_CHUNK) -> int:
    """Steps per compiled call: a divisor of the bin and of every period, so that rare things happen between chunks."""
    return common_divisor((program.bin, program.probe_every, program.evaluate_every), longest, program.stride)


def common_divisor(periods: Iterable[int | None], longest: int, stride: int = 1) -> int:
    """The largest multiple of `stride` up to `longest`, but `stride` at least, that divides all periods.

    A period of `None` is never; all others are multiples of `stride`.
    """
    common = math.gcd(*(period for period in periods if period)) // stride
    return stride * max(d for d in range(1, max(1, min(common, longest // stride)) + 1) if common % d == 0)


def chunk_lengths(chunk: int, start: int, stop: int) -> Iterator[int]:
    """The lengths of the calls that take a run from step `start` to step `stop`, meeting every multiple of `chunk`."""
    while start < stop:
        length = min(chunk - start % chunk, stop - start)
        yield length
        start += length


def initial(program: Program, keys: jax.Array, hyper: Mapping[str, Any], data: Any, devices: int = 1) -> Any:
    """The lanes before step 0."""
    return _compiled_init(program, devices)(keys, hyper, data)


def run_chunks(
    program: Program,
    state: RunState,
    hyper: Mapping[str, Any],
    data: Any,
    chunk: int,
    stop: int,
    between: Callable[[RunState], None] = lambda state: None,
    compiled: Callable[..., tuple[Any, Metrics]] | None = None,
) -> RunState:
    """On to step `stop`, with `between` called after every chunk. The lanes given are donated."""
    compiled = compiled or compiled_chunk(program)
    number = -(-stop // program.bin)
    bins = grown(state.bins, number)
    for length in chunk_lengths(chunk, state.step, stop):
        lanes, seen = compiled(state.lanes, hyper, np.int32(state.step), data, length)
        for name, (total, count) in jax.device_get(seen).items():
            if name not in bins:
                bins[name] = Mean(np.zeros((len(total), number)), np.zeros((len(total), number)))
            bins[name].sum[:, state.step // program.bin] += total
            bins[name].count[:, state.step // program.bin] += count
        state = RunState(state.step + length, lanes, bins)
        between(state)
    return state


def measured(program: Program, lane: Any, hyper: Any, data: Any) -> list[str]:
    """The names of what is measured, from the shapes of one lane's carry and numbers."""
    clock = jax.ShapeDtypeStruct((), jnp.int32)
    names = list(jax.eval_shape(program.step, lane, hyper, clock, data)[1])
    if program.probe_every:
        names += jax.eval_shape(program.probe, lane, hyper, clock, data)
    if program.evaluate_every:
        names += jax.eval_shape(program.evaluate, lane, hyper, clock, data)[1]
    return names


@functools.lru_cache(maxsize=4)
def compiled_chunk(
    program: Program, devices: int = 1, parallel: Parallel = "lanes"
) -> Callable[..., tuple[Any, Metrics]]:
    """`chunk(lanes, hyper, start, data, length) -> (lanes, seen)`, one program for all chunks of a length.

    `seen` holds per metric the sum and the count over the chunk, `[lane]`.
    """

    def chunk(lanes: Any, hyper: Any, start: jax.Array, data: Any, length: int) -> tuple[Any, Metrics]:
        steps = functools.partial(chunk_of_steps, program, length)
        return spread(steps, devices, parallel)(lanes, hyper, start, data)

    return jax.jit(chunk, static_argnums=4, donate_argnums=0)


@functools.lru_cache(maxsize=4)
def _compiled_init(program: Program, devices: int) -> Callable[..., Any]:
    def init(keys: jax.Array, hyper: Any, start: jax.Array, data: Any) -> Any:
        del start
        lanes = jax.vmap(program.init, in_axes=(0, 0, None))(keys, hyper, data)
        # A chunk returns no weak types. Were they given to the first one, it would be compiled twice.
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), lanes)

    return jax.jit(lambda keys, hyper, data: spread(init, devices, "lanes")(keys, hyper, np.int32(0), data))


def chunk_of_steps(
    program: Program, length: int, lanes: Any, hyper: Any, start: jax.Array, data: Any
) -> tuple[Any, Metrics]:
    """`length` steps of all lanes from step `start`, and the sums and counts of what was measured on the way.

    A call of the program takes `program.stride` steps, of which `length` is a multiple.
    """
    over = _over_one_lane if program.bare and len(jax.tree.leaves(lanes)[0]) == 1 else jax.vmap
    step = over(program.step, (0, 0, None, None))
    probe = over(program.probe, (0, 0, None, None))
    evaluate = over(program.evaluate, (0, 0, None, None))

    def body(state: tuple[Any, Metrics], clock: jax.Array) -> tuple[tuple[Any, Metrics], None]:
        lanes, sums = state
        lanes, seen = step(lanes, hyper, clock, data)
        return (lanes, jax.tree.map(jnp.add, sums, seen)), None

    before = _before(program, probe, lanes, hyper, start, data)
    nothing = _zeros(jax.eval_shape(step, lanes, hyper, start, data)[1])
    clocks = start + jnp.arange(0, length, program.stride, dtype=jnp.int32)
    (lanes, seen), _ = jax.lax.scan(body, (lanes, nothing), clocks)
    end = start + length
    lanes, after = _after(program, evaluate, lanes, hyper, end, data)
    return lanes, before | seen | after


def _over_one_lane(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`jax.vmap` over lanes that are one, without an axis for it."""

    def call(*args: Any) -> Any:
        own = [
            arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return call


def _before(
    program: Program, probe: Callable[..., Metrics], lanes: Any, hyper: Any, clock: jax.Array, data: Any
) -> Metrics:
    if program.probe_every is None:
        return {}
    nothing = _zeros(jax.eval_shape(probe, lanes, hyper, clock, data))
    due = (clock % program.probe_every == 0) & program.probes_at(clock)
    return jax.lax.cond(due, lambda: probe(lanes, hyper, clock, data), lambda: nothing)


def _after(
    program: Program, evaluate: Callable[..., Any], lanes: Any, hyper: Any, clock: jax.Array, data: Any
) -> tuple[Any, Metrics]:
    if program.evaluate_every is None:
        return lanes, {}
    nothing = _zeros(jax.eval_shape(evaluate, lanes, hyper, clock, data)[1])
    due = clock % program.evaluate_every == 0
    return jax.lax.cond(due, lambda: evaluate(lanes, hyper, clock, data), lambda: (lanes, nothing))


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
