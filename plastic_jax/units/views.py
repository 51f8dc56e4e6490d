"""Finds the axes on which units lie in an array."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from plastic_jax.units import labels
from plastic_jax.units.labels import Labels


@dataclasses.dataclass(frozen=True)
class View:
    """Units in an array: `array[window].reshape(shape)` has them, and their copies, on axes of their own."""

    window: tuple[tuple[int, int], ...] | None
    shape: tuple[int, ...]
    unit_dims: tuple[int, ...]
    copy_dims: tuple[int, ...]

    @property
    def copies(self) -> int:
        """Number of copies of each unit."""
        return math.prod(self.shape[d] for d in self.copy_dims)


class Irregular(Exception):
    """Units do not lie in an array as a few regular axes."""


def view_of(owner: Labels, shape: Sequence[int]) -> View:
    """The view in which the units, numbered `0, 1, ...` in `owner` (-1: none), lie on axes of their own.

    Raises:
        Irregular: there is no such view.
    """
    box = labels.window(owner, shape)
    inner = owner[tuple(slice(a, b) if n > 1 else slice(None) for (a, b), n in zip(box, owner.shape, strict=True))]
    if (inner < 0).any():
        raise Irregular
    sizes, view, steps = [b - a for a, b in box], [], []
    total, axis = np.zeros_like(inner), 0
    while axis < len(sizes):
        if inner.shape[axis] == 1:
            view.append(sizes[axis])
            steps.append(None)
            axis += 1
            continue
        end = axis
        while end < len(sizes) and inner.shape[end] > 1:
            end += 1
        line = inner[tuple(slice(None) if axis <= a < end else slice(0, 1) for a in range(inner.ndim))]
        form = labels.strides(line)
        if form is None:
            raise Irregular
        total = total + line
        view += [n for n, _ in form]
        steps += [step for _, step in form]
        axis = end
    if not np.array_equal(np.broadcast_to(total, inner.shape), inner):
        raise Irregular
    units = sorted((d for d, step in enumerate(steps) if step), key=lambda d: -steps[d])
    place = 1
    for d in reversed(units):
        if steps[d] != place:
            raise Irregular
        place *= view[d]
    copies = [d for d, step in enumerate(steps) if step == 0]
    if not units:  # a single unit, on an axis made for it
        view, copies, units = [1, *view], [d + 1 for d in copies], [0]
    whole = all((a, b) == (0, n) for (a, b), n in zip(box, shape, strict=True))
    return View(None if whole else box, tuple(view), tuple(units), tuple(copies))
