"""Channels that are connected are one unit; units with the same makers and the same readers are one bundle."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from plastic_jax.units import labels
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import Leaf, Story

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Units with the same makers and readers.

    Attributes:
        units: the least channel of every unit, in order.
        sources: the contractions that make them.
        readings: numbers of the readings.
        mark: number of the mark of the user on their value, if there is one.
    """

    units: np.ndarray
    sources: frozenset[int]
    readings: tuple[int, ...]
    mark: int | None


@dataclasses.dataclass(frozen=True)
class Bundles:
    """All bundles, in the order in which they are first read, and whose every channel is.

    Attributes:
        all: the bundles.
        bundle: `[channels + 1]`, number of a channel's bundle; -1 for none, the last entry is for label -1.
        unit: `[channels + 1]`, number of its unit in that.
    """

    all: tuple[Bundle, ...]
    bundle: np.ndarray
    unit: np.ndarray

    def units(self, owner: Labels, bundle: int) -> Labels:
        """From labels of channels to labels of a bundle's units."""
        return np.where(self.bundle[owner] == bundle, self.unit[owner], -1)

    def sorted(self, items: Iterable[Item], channels: Callable[[Item], Labels]) -> list[list[Item]]:
        """Per bundle, the items that have to do with its channels."""
        found: list[list[Item]] = [[] for _ in self.all]
        for item in items:
            for bundle in np.unique(self.bundle[channels(item)]):
                if bundle >= 0:
                    found[bundle].append(item)
        return found


def bundles(story: Story) -> Bundles:
    """The bundles of a story."""
    root = labels.components(story.channels, [*story.same, *_shared(story)])
    found = _bundles(story, root)
    bundle, unit = (np.full(story.channels + 1, -1, np.int32) for _ in range(2))
    for number, one in enumerate(found):
        bundle[one.units], unit[one.units] = number, np.arange(len(one.units))
    bundle[:-1], unit[:-1] = bundle[root], unit[root]
    return Bundles(tuple(found), bundle, unit)


def _shared(story: Story) -> list[np.ndarray]:
    """Pairs of channels that have a weight in common, on the making or on the reading side."""
    pairs = []
    making = [(e.leaf, e.owner) for e in story.entering if e.role == "kernel"]
    reading = [entry for r in story.readings for entry in r.leaves]
    for entries in (making, reading):
        first: dict[tuple[Leaf, tuple[int, ...]], Labels] = {}
        for leaf, owner in entries:
            key = leaf, labels.varying(owner)
            if key in first:
                pairs.append(labels.together(first[key], owner))
            else:
                first[key] = owner
    return pairs


def _bundles(story: Story, root: np.ndarray) -> list[Bundle]:
    touched: dict[int, dict[int, None]] = {}
    for number, reading in enumerate(story.readings):
        for made in reading.made.values():
            there = np.unique(root[made.channel[made.channel >= 0]])
            for unit in there.tolist():
                touched.setdefault(unit, {})[number] = None
    marks: dict[int, int] = {}
    for number, (_, _, _, made) in enumerate(story.marks):
        for one in made.values():
            for unit in np.unique(root[one.channel[one.channel >= 0]]).tolist():
                marks.setdefault(unit, number)
    wanted = np.array(sorted(touched), np.int64)
    makers: dict[int, list[tuple[int, int]]] = {unit: [] for unit in wanted.tolist()}
    for source, (start, stop) in enumerate(story.sources):
        there, counts = np.unique(root[start:stop], return_counts=True)
        chosen = np.isin(there, wanted)
        for unit, count in zip(there[chosen].tolist(), counts[chosen].tolist(), strict=True):
            makers[unit].append((source, count))
    bundles: dict[Any, list[int]] = {}
    for unit in wanted.tolist():
        key = tuple(makers[unit]), tuple(touched[unit]), marks.get(unit)
        bundles.setdefault(key, []).append(unit)
    found = [
        Bundle(np.array(units), frozenset(s for s, _ in made), read, mark)
        for (made, read, mark), units in bundles.items()
    ]
    return sorted(found, key=lambda b: (b.readings[0], b.units[0]))
