"""Metrics in bins of steps: sums and counts in host memory, their means, and how a checkpoint stores them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Mean(NamedTuple):
    """A mean in the making: sum and number of values, 0-d float32 in a program, float64 `[lane, bin]` on the host."""

    sum: Any
    count: Any


Bins = dict[str, Mean]
"""Per metric, sums and counts, float64 `[lane, bin]`."""

SUM, COUNT = "sum/", "count/"


def grown(bins: Mapping[str, Mean], number: int) -> Bins:
    """A copy of the bins with empty ones added up to `number`; bins beyond it stay out."""

    def longer(values: np.ndarray) -> np.ndarray:
        kept = np.asarray(values, np.float64)[:, :number]
        return np.pad(kept, ((0, 0), (0, number - kept.shape[1])))

    return {name: Mean(longer(total), longer(count)) for name, (total, count) in bins.items()}


def means(bins: Mapping[str, Mean]) -> Arrays:
    """Per metric, `[lane, bin]` float64; NaN where nothing was measured."""
    return {
        name: np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)
        for name, (total, count) in bins.items()
    }


def joined(parts: Sequence[Mapping[str, Mean]]) -> Bins:
    """The bins of several groups of lanes, one after the other."""
    return {name: Mean(*map(np.concatenate, zip(*(part[name] for part in parts), strict=True))) for name in parts[0]}


def packed(bins: Mapping[str, Mean], rows: slice) -> Arrays:
    """The arrays in which a checkpoint holds the bins of some lanes."""
    arrays = {SUM + name: one.sum[rows] for name, one in bins.items()}
    return arrays | {COUNT + name: one.count[rows] for name, one in bins.items()}


def unpacked(arrays: Mapping[str, np.ndarray], lanes: int) -> Bins:
    """The bins of `lanes` lanes from a checkpoint's arrays; padding lanes repeat the last one."""
    names = [name.removeprefix(SUM) for name in arrays if name.startswith(SUM)]

    def filled(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[-1:], lanes - len(values), axis=0)])

    return {name: Mean(filled(arrays[SUM + name]), filled(arrays[COUNT + name])) for name in names}


def measured(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """A checkpoint's arrays with means in place of sums and counts."""
    rest = {name: values for name, values in arrays.items() if not name.startswith((SUM, COUNT))}
    return means(unpacked(arrays, len(arrays["diverged"]))) | rest
