"""Timing in turns, ratios of neighbours, the passes over the weights that a step needs, and text tables."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Times = dict[str, np.ndarray]
"""By name: seconds per call, `[repeat, (CPU, wall)]`."""


class Spread(NamedTuple):
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Traffic(NamedTuple):
    """Bytes of weights that a step must move: read only, and read and written in place."""

    read: float
    updated: float


class Table(NamedTuple):
    """A titled table of text; `note` stands below."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def text(self) -> str:
        """Aligned columns, numbers to the right."""
        wide = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [self.title]
        for first, *others in (self.head, *self.rows):
            cells = [first.ljust(wide[0]), *(c.rjust(w) for c, w in zip(others, wide[1:], strict=True))]
            lines.append(f"  {'  '.join(cells).rstrip()}")
        return "\n".join(lines + [f"  {self.note}"] * bool(self.note))

    def markdown(self) -> str:
        """The same in Markdown."""
        rule = ("---",) + ("---:",) * (len(self.head) - 1)
        lines = [f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines] + [f"\n{self.note}"] * bool(self.note))


def timed(calls: Mapping[str, Callable[[], Any]], repeats: int, warm: bool = True) -> Times:
    """Seconds until what a call returns is there; the calls take turns, with `warm` after one of each to warm up."""
    seconds = {name: np.zeros((repeats, 2)) for name in calls}
    for call in calls.values() if warm else ():
        jax.block_until_ready(call())
    for i in range(repeats):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(call())
            seconds[name][i] = time.process_time() - cpu, time.perf_counter() - wall
    return seconds


def often(call: Callable[[], Any], n: int) -> Callable[[], None]:
    """`n` calls as one: what takes a few milliseconds is too short for the clock."""

    def calls() -> None:
        for _ in range(n):
            jax.block_until_ready(call())

    return calls


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest and largest."""
    values = np.asarray(list(values), float)
    return Spread(float(np.median(values)), float(values.min()), float(values.max()))


def ratio(times: np.ndarray, base: np.ndarray, scale: float = 1.0, clock: bool = False) -> Spread:
    """CPU time, or time on the clock, over that of its neighbour `base` in the same repeat, times `scale`."""
    return spread(scale * times[:, int(clock)] / base[:, int(clock)])


def traffic(sizes: Sequence[int], incoming: bool = False, outgoing: bool = False, itemsize: int = 4) -> Traffic:
    """Bytes that one step at batch 1 must move in an MLP whose layers have `sizes` units, biases left out.

    Backprop reads the weights forward, all but the first layer's backward, and reads and writes them in the update.
    A utility reads the new weights that leave hidden units (`outgoing`), or enter them (`incoming`: another direction
    of sums, hence another pass).
    """
    kernels = [a * b * itemsize for a, b in itertools.pairwise(sizes)]
    read = sum(kernels) + sum(kernels[1:]) + outgoing * sum(kernels[1:]) + incoming * sum(kernels[:-1])
    return Traffic(read, 2 * sum(kernels))
