"""From the story of a model's channels to groups of units, each with the slices of parameters that are its own."""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from plastic_jax.units import labels
from plastic_jax.units.bundles import Bundle, Bundles, bundles
from plastic_jax.units.graph import Slice, UnitGroup
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import EVERY, Entering, Leaf, Made, Place, Reading, Story
from plastic_jax.units.views import Irregular, View, view_of


@dataclasses.dataclass(frozen=True)
class Tap:
    """Where a group's feature is found; `leading` axes of loops over time come before those of the view."""

    place: Place
    view: View
    leading: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        groups: the groups of units.
        left_out: those that cannot be replaced unit by unit.
        taps: the features of `groups`.
        running: numbers of the outputs that are running statistics.
        alone: names of the groups whose units are made by their incoming slices and by nothing else.
    """

    groups: tuple[UnitGroup, ...]
    left_out: tuple[UnitGroup, ...]
    taps: tuple[Tap, ...]
    alone: frozenset[str]
    running: frozenset[int]


def find(story: Story, shapes: Mapping[Leaf, tuple[int, ...]]) -> Found:
    """All groups of a story, in the order in which they are first read.

    Units are channels that are connected; a group is all units that are made by the same contractions and read by the
    same. A group is left out if its channels are read between additions to them (a residual stream), or if a parameter
    both makes and reads the very same unit (tied weights), or if its units lie irregularly in a parameter.
    """
    finder = _Finder(story, shapes)
    groups, left_out, taps, alone = [], [], [], []
    for number in range(len(finder.bundles.all)):
        group, tap = finder.group(number)
        if group is not None and tap is None:
            left_out.append(group)
        elif group is not None and tap is not None:
            groups.append(group)
            taps.append(tap)
            lost = any(e.leaf in finder.common or not finder.owns(e) for e in finder.entering[number])
            alone.append(not (lost or finder.guests[number]))
    names = _names(groups + left_out)
    named = [dataclasses.replace(g, name=n) for g, n in zip(groups + left_out, names, strict=True)]
    return Found(
        groups=tuple(named[: len(groups)]),
        left_out=tuple(named[len(groups) :]),
        taps=tuple(taps),
        alone=frozenset(name for name, closed in zip(names[: len(groups)], alone, strict=True) if closed),
        running=frozenset(story.running),
    )


class _Owned(NamedTuple):
    """A leaf of which a bundle's units own entries; for what reads them, the source that it makes."""

    leaf: Leaf
    role: str
    owner: Labels
    reader: int = -1


class _Finder:
    """The bundles of a story, and what has to do with each."""

    def __init__(self, story: Story, shapes: Mapping[Leaf, tuple[int, ...]]) -> None:
        self.story, self.shapes = story, shapes
        self.bundles: Bundles = bundles(story)
        self.entering = self.bundles.sorted(story.entering, lambda e: e.owner)
        self.leaks = self.bundles.sorted(story.leaks, lambda leak: leak[0])
        self.guests = self.bundles.sorted(story.guests, lambda channels: channels)
        self.biases = _biases(story)
        self.common = self.shared_leaves()

    def group(self, number: int) -> tuple[UnitGroup | None, Tap | None]:
        """A bundle as a group, and its feature; no feature if it is left out, no group if it is linear."""
        bundle = self.bundles.all[number]
        stream = _is_stream(self.story, bundle)
        active = [n for n in bundle.readings if self.passed(self.story.readings[n].made, number)]
        if not (stream or active or bundle.mark is not None):
            return None, None
        making, reading = self.making(number), self.reading(number)
        name = "\n".join(dict.fromkeys(_parent(o.leaf[1]) for o in making if o.role == "kernel"))
        blank = UnitGroup(name, len(bundle.units), 1, (), (), function_preserving=False)
        if stream:
            return dataclasses.replace(blank, note="residual stream: it is read between the additions to it"), None
        if tied := next((o.leaf[1] for o in making if _returns(o, reading)), None):
            return dataclasses.replace(blank, note=f"tied weights: '{tied}' both makes and reads its units"), None
        try:
            incoming = [self.slice(o) for o in making if o.leaf[0] == "params"]
            variables = [self.slice(o) for o in making if o.leaf[0] == "variables" and o.role in ("mean", "var")]
            outgoing = [self.slice(o) for o in reading if o.leaf[0] == "params"]
            tap, feature_axes, copies = self.tap(number, active)
        except Irregular:
            return dataclasses.replace(blank, note="its units do not lie on axes of their own in every array"), None
        if not outgoing or not any(s.role == "kernel" for s in incoming):
            return dataclasses.replace(blank, note="the weights around its units are not parameters"), None
        reasons = list(dict.fromkeys(why for _, why in self.leaks[number]))
        group = UnitGroup(
            name=name if bundle.mark is None else f"{name}:{self.story.marks[bundle.mark][0]}",
            width=len(bundle.units),
            copies=copies,
            incoming=tuple(sorted(dict.fromkeys(incoming), key=lambda s: s.role != "kernel")),
            outgoing=tuple(dict.fromkeys(outgoing)),
            variables=tuple(dict.fromkeys(variables)),
            feature_axes=feature_axes,
            activation=self.activation(number, active),
            function_preserving=not reasons,
            note="; ".join(reasons),
        )
        return group, tap

    def making(self, number: int) -> list[_Owned]:
        """What makes the units; what several of them share belongs to none."""
        found = [
            _Owned(e.leaf, e.role, self.bundles.units(e.owner, number))
            for e in self.entering[number]
            if e.leaf not in self.common and self.owns(e)
        ]
        kernels = {o.leaf for o in found if o.role == "kernel"}
        return [o for o in found if o.role == "kernel" or o.leaf not in kernels]

    def owns(self, entering: Entering) -> bool:
        """Whether no entry is shared by several units."""
        one, other = entering.shared[:, 0], entering.shared[:, 1]
        bundle, unit = self.bundles.bundle, self.bundles.unit
        return np.array_equal(bundle[one], bundle[other]) and np.array_equal(unit[one], unit[other])

    def shared_leaves(self) -> set[Leaf]:
        """Biases, scales and statistics that several layers use (one norm for two)."""
        first: dict[Leaf, Labels] = {}
        common: set[Leaf] = set()
        for e in self.story.entering:
            unit = np.where(
                e.owner >= 0, self.bundles.bundle[e.owner] * np.int64(2**32) + self.bundles.unit[e.owner], -1
            )
            if e.role != "kernel" and len(labels.together(first.setdefault(e.leaf, unit), unit)):
                common.add(e.leaf)
        return common

    def reading(self, number: int) -> list[_Owned]:
        """What reads the units."""
        readings = [self.story.readings[n] for n in self.bundles.all[number].readings]
        leaves = [(leaf, self.bundles.units(owner, number), r.reader) for r in readings for leaf, owner in r.leaves]
        return [_Owned(leaf, "kernel", owner, reader) for leaf, owner, reader in leaves if (owner >= 0).any()]

    def passed(self, made: Mapping[int, Made], number: int) -> bool:
        """Whether channels of the bundle in a value have passed a nonlinearity."""
        return any(m.activation is not None and (self.bundles.bundle[m.channel] == number).any() for m in made.values())

    def activation(self, number: int, active: Sequence[int]) -> str:
        """The nonlinearity that all channels of the units have passed at the first reading; linear if they differ."""
        made = self.story.readings[active[0]].made.values() if active else ()
        names = {m.activation for m in made if m.activation and (self.bundles.bundle[m.channel] == number).any()}
        return names.pop() if len(names) == 1 else "linear"

    def slice(self, owned: _Owned) -> Slice:
        """The entries that belong to each unit."""
        leaf, role, owner, reader = owned
        view, bias = view_of(labels.compressed(owner), self.shapes[leaf]), None
        if len(owner.shape) - 1 not in labels.varying(owner):
            found = self.biases.get(reader, [])
            bias = next((b[1] for b in found if self.shapes[b] == self.shapes[leaf][-1:]), None)
        return Slice(leaf[1], view.shape, view.unit_dims, role, view.copy_dims, view.window, bias)  # pyright: ignore

    def tap(self, number: int, active: Sequence[int]) -> tuple[Tap, tuple[int, ...], int]:
        """The feature: what the first reader outside of loops reads, or the first in one, or what is marked by hand."""
        mark = self.bundles.all[number].mark
        if mark is not None:
            _, place, shape, made = self.story.marks[mark]
        else:
            depth = lambda r: len([step for step in r.place.path if step[1] is not None])  # noqa: E731
            reading: Reading = min((self.story.readings[n] for n in active), key=depth)
            place, shape, made = reading.place, reading.shape, reading.made
        owners = (self.bundles.units(m.channel, number) for m in made.values())
        view = view_of(labels.compressed(next(o for o in owners if (o >= 0).any())), shape)
        tap = Tap(place, view, sum(step[1] == EVERY for step in place.path))
        copies = labels.size([view.shape[d] for d in view.copy_dims])
        if len(view.unit_dims) > 1:
            axes = tuple(range(-1 - len(view.copy_dims), 0))
            return tap, (axes[-1], *axes[:-1]), copies
        return tap, tuple(d - len(view.shape) for d in (*view.unit_dims, *view.copy_dims)), copies


def _biases(story: Story) -> dict[int, list[Leaf]]:
    """Per source, the bias leaves added to its channels."""
    starts = [start for start, _ in story.sources]
    found: dict[int, list[Leaf]] = {}
    for leaf, _, owner, _, added in story.entering:
        if leaf[0] == "params" and added:
            there = labels.members(owner)
            first, last = (bisect.bisect_right(starts, int(c)) - 1 for c in (there[0], there[-1]))
            if first == last:
                found.setdefault(first, []).append(leaf)
    return found


def _is_stream(story: Story, bundle: Bundle) -> bool:
    """Whether a reader sees some, but not all, of channels that are added."""
    by_reader: dict[int, set[int]] = {}
    for n in bundle.readings:
        by_reader.setdefault(story.readings[n].reader, set()).update(story.readings[n].made)
    seen = [made & bundle.sources for made in by_reader.values()]
    sums = [(a | b) & bundle.sources for a, b in story.sums]
    return any(added & sources and not added <= sources for added in sums for sources in seen)


def _returns(owned: _Owned, reading: Sequence[_Owned]) -> bool:
    along = labels.varying(owned.owner)
    return owned.role == "kernel" and any(owned.leaf == o.leaf and labels.varying(o.owner) == along for o in reading)


def _parent(path: str) -> str:
    path = path.removesuffix("/value")
    return path.rpartition("/")[0] or path


def _names(groups: Sequence[UnitGroup]) -> list[str]:
    """One name for each group: its module, or what all its modules lie in if nothing else does, or the first."""
    modules = [g.name.split(":")[0].split("\n") for g in groups]
    suffixes = ["".join(g.name.partition(":")[1:]) for g in groups]
    names = []
    for number, mine in enumerate(modules):
        name = mine[0]
        if len(mine) > 1:
            parts = [m.split("/") for m in mine]
            shared = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
            parent = "/".join(shared)
            others = [m for i, theirs in enumerate(modules) if i != number for m in theirs]
            if parent and not any(m == parent or m.startswith(parent + "/") for m in others):
                name = parent
        names.append(name + suffixes[number])
    counts = {name: names.count(name) for name in names}
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if counts[name] > 1:
            names[i] = f"{name}[{seen.setdefault(name, 0)}]"
            seen[name] += 1
    return names
