"""How much memory lanes take on a device, from shapes alone; nothing is compiled.

A model: what the program holds at its fullest moment if every operation wrote its result to memory and gave it back
after its last use, beside the arguments. XLA fuses operations, so that this is rather too much: 1.0 to 1.9 times what
XLA says of the compiled programs of the registry.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.engine.lane_program import Program
from launch.engine.loop import chunk_of_steps
from plastic_jax.units import jaxprs

USABLE = 0.9
"""Share of a device's memory that is planned with: the rest is for compiled programs and for fragments."""


OWN = 4096
"""Bytes of small buffers that XLA adds to any program."""


class Memory(NamedTuple):
    """Bytes on a device: those that are there once, and those of each lane."""

    shared: int
    lane: int

    def of(self, lanes: int) -> int:
        """Bytes of that many lanes in one program."""
        return self.shared + self.lane * lanes

    def lanes_that_fit(self, budget: int) -> int:
        """The most lanes that fit in `budget` bytes, 0 where not even one does."""
        return max(0, int((USABLE * budget - self.shared) // self.lane))


def memory(program: Program, carry: Any, hyper: Any, data: Any, length: int = 2) -> Memory:
    """The memory of a program's chunk, from the abstract carry and numbers of one lane and the abstract data."""
    one, two = (_held(program, carry, hyper, data, lanes, length) for lanes in (1, 2))
    return Memory(OWN + max(0, one - (two - one)), two - one)


def fitting(lanes: int, budget: int | None, memory: Memory) -> int:
    """`lanes` halved until they fit in `budget` bytes, at least 1.

    Halved, so that devices of nearly the same memory give the same lanes and so the same numbers.
    """
    while budget is not None and lanes > 1 and lanes > memory.lanes_that_fit(budget):
        lanes = -(-lanes // 2)
    return lanes


def device_budget() -> int | None:
    """Bytes of memory of this process's first device; `None` where it does not say, as on CPUs."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def _held(program: Program, carry: Any, hyper: Any, data: Any, lanes: int, length: int) -> int:
    def many(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype), tree)

    chunk = functools.partial(chunk_of_steps, program, length)
    arguments = many(carry), many(hyper), jax.ShapeDtypeStruct((), jnp.int32), data
    inputs = sum(_bytes(leaf) for leaf in jax.tree.leaves(arguments))
    return inputs + jaxprs.peak(jaxprs.trace(chunk, *arguments)[0], _bytes)


def _bytes(shape: Any) -> int:
    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(shape.shape)
    return math.prod(shape.shape) * shape.dtype.itemsize
