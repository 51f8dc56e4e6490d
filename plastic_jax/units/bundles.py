"""Channels that are connected are one unit; units with the same makers and the same readers are one bundle."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from plastic_jax.units import labels
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import Leaf, Made, Story

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
        root: `[channels]`, the least channel of its unit.
        story: what they were found in.
    """

    all: tuple[Bundle, ...]
    bundle: np.ndarray
    unit: np.ndarray
    root: np.ndarray
    story: Story

    def units(self, owner: Labels, bundle: int) -> Labels:
        """From labels of channels to labels of a bundle's units."""
        return np.where(self.bundle[owner] == bundle, self.unit[owner], -1)

    def among(self, channels: np.ndarray) -> set[int]:
        """The bundles of channels."""
        return {int(bundle) for bundle in np.unique(self.bundle[channels]) if bundle >= 0}

    def made_by(self, sources: Iterable[int]) -> set[int]:
        """The bundles of what contractions make."""
        return set().union(*(self.among(np.arange(*self.story.sources[source])) for source in sources))

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
    return Bundles(tuple(found), bundle, unit, root, story)


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
    """Units are told apart by one fact after another: what reads them, what they are marked with, what makes them."""
    kind = np.zeros(story.channels, np.int64)
    kinds = 1

    def split(units: np.ndarray) -> None:
        nonlocal kinds
        different, place = np.unique(kind[units], return_inverse=True)
        kind[units] = kinds + place
        kinds += len(different)

    read = [_units(root, reading.made.values()) for reading in story.readings]
    marks = np.full(story.channels, -1)
    for number, (_, _, _, made) in reversed(list(enumerate(story.marks))):
        marks[_units(root, made.values())] = number
    made = [np.unique(root[start:stop], return_counts=True) for start, stop in story.sources]
    for units in read:
        split(units)
    for mark in range(len(story.marks)):
        split(np.flatnonzero(marks == mark))
    for units, counts in made:
        for count in np.unique(counts):
            split(units[counts == count])

    wanted = np.unique(np.concatenate(read)) if read else np.zeros(0, np.int64)
    different, place = np.unique(kind[wanted], return_inverse=True)
    bundle = np.full(story.channels, -1)
    bundle[wanted] = place
    readings: list[list[int]] = [[] for _ in different]
    sources: list[list[int]] = [[] for _ in different]
    for events, every in ((read, readings), ([units for units, _ in made], sources)):
        for number, units in enumerate(events):
            for one in np.unique(bundle[units]).tolist():
                if one >= 0:
                    every[one].append(number)
    found = []
    for number, units in enumerate(np.split(wanted[np.argsort(place, kind="stable")], np.cumsum(np.bincount(place)))):
        if len(units):
            mark = int(marks[units[0]])
            its = frozenset(sources[number]), tuple(readings[number]), None if mark < 0 else mark
            found += [Bundle(part, *its) for part in _members(story, root, units, readings[number])]
    return sorted(found, key=lambda b: (b.readings[0], b.units[0]))


def _units(root: np.ndarray, made: Iterable[Made]) -> np.ndarray:
    """The units of which a value is made."""
    channels = [one.channel[one.channel >= 0] for one in made]
    return np.unique(root[np.concatenate(channels)]) if channels else np.zeros(0, np.int64)


def _members(story: Story, root: np.ndarray, units: np.ndarray, readings: Iterable[int]) -> list[np.ndarray]:
    """The units of every member of an ensemble: parts of which every reader reads one, each by itself."""
    common: dict[bytes, np.ndarray] | None = None
    for n in readings:
        found = [_numbers(root, units, *partition) for partition in story.readings[n].partitions]
        ours = {part.tobytes(): part for part in found if part is not None}
        common = ours if common is None else {key: part for key, part in common.items() if key in ours}
    if not common:
        return [units]
    _, member = np.unique(np.stack(list(common.values()), 1), axis=0, return_inverse=True)
    return [units[member.ravel() == number] for number in range(member.max() + 1)]


def _numbers(root: np.ndarray, units: np.ndarray, channels: np.ndarray, index: np.ndarray) -> np.ndarray | None:
    """Per unit the part in which it is, parts numbered from 0; `None` if units are in several, or alone in one."""
    pairs = np.unique(np.stack([root[channels], index], 1), axis=0)
    pairs = pairs[np.isin(pairs[:, 0], units)]
    if not np.array_equal(pairs[:, 0], units):
        return None
    _, part, size = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    return part.astype(np.int64).ravel() if len(size) > 1 and size.min() > 1 else None
