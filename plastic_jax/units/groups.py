"""From the story of a model's channels to groups of units, each with the slices of parameters that are its own."""

import bisect
import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from plastic_jax.units import labels
from plastic_jax.units.bundles import Bundle, Bundles, bundles
from plastic_jax.units.elementwise_functions import ElementwiseFunctions
from plastic_jax.units.graph import Slice, UnitGroup
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import CLOSED, EVERY, Entering, Leaf, Made, Path, Place, Reading, Story, Use
from plastic_jax.units.views import Irregular, View, view_of


@dataclasses.dataclass(frozen=True)
class Tap:
    """Where values of a group are found.

    Attributes:
        place: the value.
        view: its axes, after `leading` axes of loops over time.
        leading: number of these.
        axes: the axes of the unit and its copies, counted from the end.
    """

    place: Place
    view: View
    leading: int
    axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        groups: the groups of units.
        left_out: those that cannot be replaced unit by unit.
        taps: for each of `groups`, where its features are found: one value for every use.
        running: numbers of the outputs that are running statistics.
        alone: names of the groups whose units are made by their incoming slices and by nothing else.
    """

    groups: tuple[UnitGroup, ...]
    left_out: tuple[UnitGroup, ...]
    taps: tuple[tuple[Tap, ...], ...]
    alone: frozenset[str]
    running: frozenset[int]


def find(story: Story, shapes: Mapping[Leaf, tuple[int, ...]], functions: ElementwiseFunctions) -> Found:
    """All groups of a story, in the order in which they are first read, and what is left out.

    Units are channels that are connected; a group is all units that are made by the same contractions and read by the
    same. Left out is what cannot be replaced unit by unit, and every other contraction that a later one depends on.
    """
    finder = _Finder(story, shapes, functions)
    groups, left_out, linear, taps, alone = [], [], [], [], []
    for number in range(len(finder.bundles.all)):
        group, tap = finder.group(number)
        if tap is None:
            (left_out if number in finder.streams or finder.active(number) else linear).append(group)
        else:
            groups.append(group)
            taps.append(tap)
            lost = any(e.leaf in finder.common or not finder.owns(e) for e in finder.entering[number])
            alone.append(not (lost or finder.guests[number]))
    names = _names(groups + left_out)
    named = [dataclasses.replace(g, name=n) for g, n in zip(groups + left_out, names, strict=True)]
    rest = linear + finder.unread()
    rest = [dataclasses.replace(g, name=n) for g, n in zip(rest, _names(rest), strict=True)]
    return Found(
        groups=tuple(named[: len(groups)]),
        left_out=(*named[len(groups) :], *rest),
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

    def __init__(self, story: Story, shapes: Mapping[Leaf, tuple[int, ...]], functions: ElementwiseFunctions) -> None:
        self.story, self.shapes, self.functions = story, shapes, functions
        self.bundles: Bundles = bundles(story)
        self.entering = self.bundles.sorted(story.entering, lambda e: e.owner)
        self.leaks = self.bundles.sorted(story.leaks, lambda leak: leak[0])
        self.guests = self.bundles.sorted(story.guests, lambda channels: channels)
        self.barred = self.bundles.sorted(story.barred, lambda bar: bar[0])
        self.biases = _biases(story)
        self.common = self.shared_leaves()
        self.known_users: dict[Leaf, list[tuple[Labels, bool]]] = {}
        self.streams = self.find_streams()

    def group(self, number: int) -> tuple[UnitGroup, tuple[Tap, ...] | None]:
        """A bundle as a group, and its features; none if it is left out."""
        bundle, active = self.bundles.all[number], self.active(number)
        making, reading = self.making(number), self.reading(number)
        name = "\n".join(dict.fromkeys(_parent(o.leaf[1]) for o in making if o.role == "kernel"))
        name = name or "\n".join(_parent(leaf[1]) for _, how in self.barred[number] for leaf in sorted(how.leaves))
        blank = UnitGroup(name, len(bundle.units), 1, (), (), function_preserving=False)
        reasons = list(dict.fromkeys(why for _, why in self.leaks[number]))
        if number in self.streams:
            return dataclasses.replace(blank, note="residual stream: it is read between the additions to it"), None
        if not (active or bundle.mark is not None):
            why = "linear: nothing nonlinear stands before what reads it"
            return dataclasses.replace(blank, note="; ".join([why, *reasons])), None
        if tied := next((o.leaf[1] for o in making if _returns(o, reading)), None):
            return dataclasses.replace(blank, note=f"tied weights: '{tied}' both makes and reads its units"), None
        if tied := self.tied(number, making, reading):
            return dataclasses.replace(blank, note=f"tied weights: '{tied}' also makes or reads something else"), None
        if self.barred[number]:
            return dataclasses.replace(blank, note=f"its weights {self.barred[number][0][1].how}"), None
        if bundle.mark is None and all(_is_closed(self.story.readings[n]) for n in active):
            why = "its value lies in a custom derivative, a branch or a loop of unknown length: move the layer out"
            return dataclasses.replace(blank, note=why), None
        reasons += self.side_effects(number, making, reading)
        try:
            incoming = [self.slice(o) for o in making if o.leaf[0] == "params"]
            variables = [self.slice(o) for o in making if o.leaf[0] == "variables" and o.role in ("mean", "var")]
            outgoing = [self.slice(o) for o in reading if o.leaf[0] == "params"]
            taps = self.taps(number, active)
        except Irregular:
            return dataclasses.replace(blank, note="its units do not lie on axes of their own in every array"), None
        if not outgoing or not any(s.role == "kernel" for s in incoming):
            return dataclasses.replace(blank, note="the weights around its units are not parameters"), None
        group = UnitGroup(
            name=name if bundle.mark is None else f"{name}:{self.story.marks[bundle.mark][0]}",
            width=len(bundle.units),
            copies=taps[0].view.copies if len({t.view.copies for t in taps}) == 1 else 1,
            incoming=tuple(sorted(dict.fromkeys(incoming), key=lambda s: s.role != "kernel")),
            outgoing=tuple(dict.fromkeys(outgoing)),
            variables=tuple(dict.fromkeys(variables)),
            feature_axes=common_axes(taps),
            activation=self.functions.activation([tap.place for tap in taps], {s.path for s in incoming}),
            function_preserving=not reasons,
            note="; ".join(reasons),
        )
        return group, taps

    def active(self, number: int) -> list[int]:
        """The readings in which channels of a bundle have passed a nonlinearity."""
        readings = self.bundles.all[number].readings
        return [n for n in readings if self.passed(self.story.readings[n].made, number)]

    def find_streams(self) -> set[int]:
        """Bundles that are read between additions to them, and those that are added to one or to what is no feature."""
        every = range(len(self.bundles.all))
        streams = {number for number in every if _is_stream(self.story, self.bundles.all[number])}
        for channels, before in self.story.additions:
            for number in self.bundles.among(channels):
                readings = self.bundles.all[number].readings
                if readings and readings[0] < before <= readings[-1]:
                    streams.add(number)
        skips = [(self.bundles.among(channels), sources) for channels, sources in self.story.skips]
        while True:
            found = {
                number
                for numbers, sources in skips
                for target in self.bundles.made_by(sources)
                if target in streams or not (self.active(target) or self.bundles.all[target].mark is not None)
                for number in numbers
            }
            if found <= streams:
                return streams
            streams |= found

    def tied(self, number: int, making: Sequence[_Owned], reading: Sequence[_Owned]) -> str | None:
        """The parameter whose entries at these units make or read something else too, if there is one."""
        for o in making:
            for e in self.story.entering:
                belongs = e.leaf == o.leaf and (e.role == "kernel" or self.owns(e))
                if belongs and _clash(o.owner, e.owner, self.bundles.units(e.owner, number)):
                    return o.leaf[1]
        for o in reading:
            for owner, lookup in self.users(o.leaf):
                other = (self.bundles.bundle[owner] >= 0) | lookup
                if _clash(o.owner, np.where(other, owner, -1), self.bundles.units(owner, number)):
                    return o.leaf[1]
        return None

    def side_effects(self, number: int, making: Sequence[_Owned], reading: Sequence[_Owned]) -> list[str]:
        """What the parameters around the units do besides making and reading them."""
        reasons = []
        for o in reading:
            if any(_clash(o.owner, owner, self.bundles.units(owner, number)) for owner, _ in self.users(o.leaf)):
                reasons.append(f"'{o.leaf[1]}' also reads data")
            beside = [e.owner for e in self.story.entering if e.leaf == o.leaf and e.role != "kernel"]
            if any(_clash(o.owner, owner, -2) for owner in beside):
                reasons.append(f"'{o.leaf[1]}' also acts beside its contraction")
        exposed = {o.leaf for o in (*making, *reading)} & self.story.exposed
        return [*dict.fromkeys(reasons), *(f"'{leaf[1]}' is part of the output" for leaf in sorted(exposed))]

    def users(self, leaf: Leaf) -> list[tuple[Labels, bool]]:
        """Per use of a parameter that has several, the channel that each entry reads (the number of channels: none)."""
        uses = list(self.story.uses.get(leaf, {}).values())
        if len(uses) < 2:
            return []
        if leaf not in self.known_users:
            nothing = self.story.channels
            self.known_users[leaf] = [
                (labels.owners(self.shapes[leaf], u.entry, np.where(u.channels < 0, nothing, u.channels))[0], u.lookup)
                for u in uses
            ]
        return self.known_users[leaf]

    def unread(self) -> list[UnitGroup]:
        """Contractions that later ones depend on, but whose channels none reads."""
        found = []
        for source in sorted(self.story.reached):
            channels = np.arange(*self.story.sources[source])
            channels = channels[self.bundles.bundle[channels] < 0]
            if not len(channels):
                continue
            made = [e.leaf for e in self.story.entering if e.role == "kernel" and np.isin(e.owner, channels).any()]
            made += [leaf for lost, how in self.story.barred if np.isin(lost, channels).any() for leaf in how.leaves]
            leaks = [why for lost, why in self.story.leaks if np.isin(lost, channels).any()]
            reasons = [why for why in dict.fromkeys(leaks) if why != "is part of the output"]
            name = "\n".join(dict.fromkeys(_parent(leaf[1]) for leaf in made))
            width = len(np.unique(self.bundles.root[channels]))
            note = f"not read by itself: {'; '.join(reasons) or 'its readers cannot be told'}"
            found.append(UnitGroup(name, width, 1, (), (), function_preserving=False, note=note))
        return found

    def making(self, number: int) -> list[_Owned]:
        """What makes the units; what several of them share belongs to none."""
        found = [
            _Owned(e.leaf, e.role, self.bundles.units(e.owner, number))
            for e in self.entering[number]
            if e.leaf not in self.common and self.owns(e)
        ]
        kernels = [o for o in found if o.role == "kernel"]
        return [o for o in found if o.role == "kernel" or not any(_overlap(o, k) for k in kernels)]

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

    def slice(self, owned: _Owned) -> Slice:
        """The entries that belong to each unit."""
        leaf, role, owner, reader = owned
        view, bias = view_of(labels.compressed(owner), self.shapes[leaf]), None
        if len(owner.shape) - 1 not in labels.varying(owner):
            found = self.biases.get(reader, [])
            bias = next((b[1] for b in found if self.shapes[b] == self.shapes[leaf][-1:]), None)
        return Slice(leaf[1], view.shape, view.unit_dims, role, view.copy_dims, view.window, bias)  # pyright: ignore

    def taps(self, number: int, active: Sequence[int]) -> tuple[Tap, ...]:
        """The values of the units, one for every use of what makes them; or what is marked by hand.

        A use is an evaluation of a contraction that makes the units: a network applied twice has two, a recurrent cell
        one for every step. Of several readers of the same use the first one counts that lies in the fewest loops.
        """
        mark = self.bundles.all[number].mark
        if mark is not None:
            _, place, shape, made = self.story.marks[mark]
            return (self.tap(number, place, shape, made),)
        loops = lambda r: [run for _, run in r.place.path if run is not None]  # noqa: E731
        open_ = [self.story.readings[n] for n in active if not _is_closed(self.story.readings[n])]
        uses = {id(r): self.uses(r, number) for r in open_}
        chosen: list[Reading] = []
        seen: dict[tuple[Path, int], list[Use]] = {}
        for reading in sorted(open_, key=lambda r: (all(use.parts for use in uses[id(r)]), len(loops(r)))):
            new = [u for u in uses[id(reading)] if not any(s.covers(u) for s in seen.get(u[:2], ()))]
            if new or not chosen:
                chosen.append(reading)
                for use in new:
                    seen.setdefault(use[:2], []).append(use)
        times = collections.Counter(use for r in chosen for use in uses[id(r)])
        for reading in chosen[:-1]:  # what a later one shows too: a stack of all steps
            if all(times[use] > 1 for use in uses[id(reading)]):
                chosen.remove(reading)
                times.subtract(uses[id(reading)])
        places = {r.place: r for r in chosen}
        return tuple(self.tap(number, r.place, r.shape, r.made) for r in places.values())

    def uses(self, reading: Reading, number: int) -> set[Use]:
        """The evaluations that made the bundle's channels in what is read."""
        sources = self.bundles.all[number].sources
        return {use for source, made in reading.made.items() if source in sources for use in made.uses}

    def tap(self, number: int, place: Place, shape: tuple[int, ...], made: Mapping[int, Made]) -> Tap:
        """Where the units lie in a value."""
        owners = (self.bundles.units(m.channel, number) for m in made.values())
        view = view_of(labels.compressed(next(o for o in owners if (o >= 0).any())), shape)
        if len(view.unit_dims) > 1:
            axes = tuple(range(-1 - len(view.copy_dims), 0))
            axes = (axes[-1], *axes[:-1])
        else:
            axes = tuple(d - len(view.shape) for d in (*view.unit_dims, *view.copy_dims))
        return Tap(place, view, sum(step[1] == EVERY for step in place.path), axes)


def common_axes(taps: Sequence[Tap]) -> tuple[int, ...]:
    """The axes of the unit and its copies in the features of several taps together, see `features.joined`."""
    if len({tap.axes for tap in taps}) == 1 and (
        len(taps) == 1 or sorted(taps[0].axes) == [*range(-len(taps[0].axes), 0)]
    ):
        return taps[0].axes
    return (-1,) if len({tap.view.copies for tap in taps}) > 1 or len(taps[0].axes) == 1 else (-2, -1)


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


def _is_closed(reading: Reading) -> bool:
    """Whether what is read cannot be had from outside."""
    return any(run == CLOSED for _, run in reading.place.path)


def _clash(units: Labels, used: Labels, others: Labels | int) -> bool:
    """Whether an entry that belongs to one of the units is used for something else than that unit."""
    return bool(((units >= 0) & (used >= 0) & (others != units)).any())


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
    return owned.role == "kernel" and any(_overlap(owned, o) and labels.varying(o.owner) == along for o in reading)


def _overlap(one: _Owned, other: _Owned) -> bool:
    """Whether there are entries of a leaf that both own."""
    return one.leaf == other.leaf and bool(((one.owner >= 0) & (other.owner >= 0)).any())


def _parent(path: str) -> str:
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
