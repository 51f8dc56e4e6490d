"""What is known of a value while a program is followed, and the story that is told in the end."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from plastic_jax.units.labels import Labels, placed

Leaf = tuple[str, str]
"""("params" or "variables", name of the leaf)"""

EVERY = -1
"""All runs through a loop: the value has an axis more, of its length."""
CLOSED = -2
"""What cannot give more outputs: a custom derivative, a branch, a loop of unknown length."""
INPUTS, CONSTANTS, OUTPUTS = -1, -2, -3
"""In place of an equation's number: the variables of the program itself."""
PREVIOUS, LAST = -1, -2
"""In place of a slice: of what all steps of a loop make, what the next step sees, and what is left behind the loop."""


Path = tuple[tuple[int, int | None], ...]
"""The equations that lead into nested programs, see `Place`."""


class Use(NamedTuple):
    """One evaluation of a contraction.

    Attributes:
        path: as in `Place`.
        equation: its number.
        parts: what let only a part of it through: slices (path, equation), loops (path, `PREVIOUS` or `LAST`).
    """

    path: Path
    equation: int
    parts: frozenset[tuple[Path, int]] = frozenset()

    def covers(self, other: "Use") -> bool:
        """Whether all that is left of another use is left of this one."""
        return (self.path, self.equation) == (other.path, other.equation) and self.parts <= other.parts


Uses = frozenset[Use]


def last(uses: Uses) -> Uses:
    """Of several uses that are added up or chosen from, the last in the program: what a recurrent cell makes now."""
    when = lambda use: ([(at, -3 if run is None else run) for at, run in use.path], use.equation, -len(use.parts))  # noqa: E731
    return uses if len(uses) < 2 else frozenset([max(uses, key=when)])


@dataclasses.dataclass(frozen=True)
class Made:
    """That a value is made of channels.

    Attributes:
        channel: number of the channel at every element.
        activation: name of the first nonlinear operation that it passed; `None` while it is linear in the contraction.
        uses: the evaluations of the contraction.
    """

    channel: Labels
    activation: str | None = None
    uses: Uses = frozenset()

    def at(self, channel: Labels) -> "Made":
        """The same after the channels have moved."""
        return Made(channel, self.activation, self.uses)

    def passed(self, activation: str | None) -> "Made":
        """The same after a nonlinearity."""
        return Made(self.channel, self.activation or activation, self.uses)

    def part(self, by: tuple[Path, int], within: Path = ()) -> "Made":
        """The same after a slice or a loop that not all results of the uses within a program pass."""
        uses = (u._replace(parts=u.parts | {by}) if u.path[: len(within)] == within else u for u in self.uses)
        return Made(self.channel, self.activation, frozenset(uses))


@dataclasses.dataclass(frozen=True)
class Entries:
    """That a value is made of a parameter's entries.

    Attributes:
        index: per axis of the parameter, the index at every element; `None` where all indices meet; different negative
            numbers where there are different ones, but it is not known which.
        kind: `"plain"`; `"scaled"` by a number, or by a function that is 0 at 0; `"offset"` after a number was added
            (`1 + scale`); `"root"` after another function; `"inverse"` where it divides.
        mixed: axes of the parameter along which entries depend on each other (a normalised kernel).
        factor: whether they only multiply or divide other parameters, so that 0 for these is enough.
    """

    index: tuple[Labels | None, ...]
    kind: str = "plain"
    mixed: frozenset[int] = frozenset()
    factor: bool = False

    @property
    def stays(self) -> bool:
        """Whether they are 0 where the parameter is."""
        return self.kind in ("plain", "scaled")

    def placed(self, to: Mapping[int, int], gone: Iterable[int], ndim: int) -> "Entries":
        """The entries with axis `d` at `to[d]` of `ndim`; along the axes `gone` all indices have met."""
        gone = tuple(gone)

        def place(index: Labels | None) -> Labels | None:
            if index is None or any(index.shape[axis] > 1 for axis in gone):
                return None
            return placed(index, to, ndim)

        return dataclasses.replace(self, index=tuple(place(i) for i in self.index))

    def unplaced(self, before: "Entries", apart: Labels) -> "Entries":
        """The entries where an index that is not known has picked some: different ones where `apart` differs."""
        lost = [i is None and j is not None for i, j in zip(self.index, before.index, strict=True)]
        index = tuple(apart if gone and apart.size > 1 else i for gone, i in zip(lost, self.index, strict=True))
        return dataclasses.replace(self, index=index)


_KINDS = ("plain", "scaled", "offset", "root", "inverse")


def clearest(a: Entries | None, b: Entries, times: bool = False) -> Entries:
    """Of two forms of the same parameter that meet, the one that tells more entries apart.

    What they give is 0 with the parameter if both are, and if they are multiplied (`times`) if one is.
    """
    if a is None:
        return b
    kind = (min if times else max)(a.kind, b.kind, key=_KINDS.index)
    known = lambda e: sum(i is not None for i in e.index)  # noqa: E731
    same = lambda i, j: i is j or (i is not None and j is not None and np.array_equal(i, j))  # noqa: E731
    mixed = {axis for axis, (i, j) in enumerate(zip(a.index, b.index, strict=True)) if not same(i, j)}
    one = a if known(a) >= known(b) else b
    return Entries(one.index, kind, a.mixed | b.mixed | mixed, a.factor and b.factor)


class Unknown(NamedTuple):
    """That a value is made of parameters, but not of which entries; `how`: "are made of parameters by 'cumsum'"."""

    leaves: frozenset[Leaf]
    how: str


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one array.

    Attributes:
        shape: its shape.
        depends: whether it depends on the model's inputs.
        made: by source (the number of a contraction), the channels it is made of.
        entries: by leaf, the parameter's entries it is made of, as long as they belong to no channel.
        statistic: whether it is a mean, a variance or the like of other values.
        squared: whether it holds a product of a value with itself.
        scaled: whether it was divided by a statistic (normalised).
        running: whether it is the new value of a running statistic.
        rescaled: whether it was multiplied with anything since the contraction.
        rows: where it is several statistics along the first axis of which some are `squared`, which are; else empty.
        behind: the contractions that it depends on, back to the last that read them, also where their channels cannot
            be told any more.
        noise: whether it is made of random numbers. They are constants as far as units are concerned.
        unknown: of which parameters it is made without that it is known which entries, and how; `None` where it is.
        zero: whether it is known to be 0.
        known: its numbers, where they are few and known.
        shares: whether it was divided by a sum of itself (a softmax).
    """

    shape: tuple[int, ...]
    depends: bool = False
    made: Mapping[int, Made] = dataclasses.field(default_factory=dict)
    entries: Mapping[Leaf, Entries] = dataclasses.field(default_factory=dict)
    statistic: bool = False
    squared: bool = False
    scaled: bool = False
    running: bool = False
    rescaled: bool = False
    rows: tuple[bool, ...] = ()
    behind: frozenset[int] = frozenset()
    noise: bool = False
    unknown: "Unknown | None" = None
    zero: bool = False
    known: np.ndarray | None = None
    shares: bool = False

    def moved(self, shape: Sequence[int], move: Callable[[Labels], Labels]) -> "Value":
        """The value after data movement: `move` maps label arrays."""
        made = {s: m.at(move(m.channel)) for s, m in self.made.items()}
        entries = {
            leaf: dataclasses.replace(e, index=tuple(i if i is None else move(i) for i in e.index))
            for leaf, e in self.entries.items()
        }
        return dataclasses.replace(self, shape=tuple(shape), made=made, entries=entries, rows=(), known=None)

    def row(self, rows: slice) -> "Value":
        """The value, of which only these indices of the first axis go on."""
        if not self.rows:
            return self
        left = self.rows[rows]
        return dataclasses.replace(self, squared=any(left), rows=left if len(set(left)) > 1 else ())

    def varied(self, axes: Iterable[int]) -> list[int]:
        """The sources whose channels change along one of the axes."""
        return [s for s, m in self.made.items() if any(m.channel.shape[axis] > 1 for axis in axes)]

    def without(self, sources: Iterable[int]) -> "Value":
        """The value without these sources."""
        gone = set(sources)
        return dataclasses.replace(self, made={s: m for s, m in self.made.items() if s not in gone})


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a value stands in a program, by numbers that are the same whenever the program is traced again.

    Attributes:
        path: the equations that lead into nested programs: the number of the equation, and `None` for a call, the
            number of the run for a loop over layers, `EVERY` for a loop over time, `CLOSED` for what gives no more
            outputs.
        equation: the equation that gives the value; or `INPUTS`, `CONSTANTS` or `OUTPUTS` of the innermost program.
        output: which of its outputs.
    """

    path: Path
    equation: int
    output: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """That a contraction reads channels.

    Attributes:
        place: the value read.
        shape: its shape.
        made: by source, the channels read.
        reader: the source that the contraction makes.
        leaves: who owns which entries of the reader's parameters: leaf and owner.
        partitions: ways to number the channels read so that what reads one number reads no other (an axis over the
            members of an ensemble): channels and numbers.
    """

    place: Place
    shape: tuple[int, ...]
    made: Mapping[int, Made]
    reader: int
    leaves: tuple[tuple[Leaf, Labels], ...]
    partitions: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


class WeightUse(NamedTuple):
    """That a contraction's weights hold entries of a parameter: at which index, and per entry the channel that it reads
    (-1 where it reads none: data, a lookup); `lookup`: whether it is looked up."""

    entry: tuple[Labels | None, ...]
    channels: Labels
    lookup: bool


class Entering(NamedTuple):
    """That a parameter makes channels: who owns its entries, the pairs of channels that share one, and whether it is a
    bias, added as it is to what a contraction gives."""

    leaf: Leaf
    role: str
    owner: Labels
    shared: np.ndarray
    added: bool = False


@dataclasses.dataclass
class Story:
    """All that one pass found out; channels are numbered across all contractions.

    Attributes:
        channels: how many there are.
        sources: per contraction, its channels (start, stop).
        entering: parameters that make channels.
        readings: in the order of the program.
        same: pairs of channels that belong to one unit.
        sums: pairs of sets of sources that were added.
        marks: (name, place, shape, made): values that the user named as features.
        leaks: (channels, why): what else becomes of them than to be read.
        running: numbers of the outputs that are running statistics.
        guests: channels to which something is added that no parameter of theirs makes (a skip connection).
        skips: (channels, sources): features that are added to what other contractions make.
        uses: by leaf, all its uses in a contraction.
        barred: (channels, made by weights of which it is not known how they are made): they cannot be replaced.
        additions: (channels, number of readings before): to these something is added whose channels cannot be told.
        exposed: parameters that do something else than to make and read channels: they are part of the output.
        reached: contractions that a later contraction depends on, whether it reads their channels or not.
    """

    channels: int = 0
    sources: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    entering: list[Entering] = dataclasses.field(default_factory=list)
    readings: list[Reading] = dataclasses.field(default_factory=list)
    same: list[np.ndarray] = dataclasses.field(default_factory=list)
    sums: set[tuple[frozenset[int], frozenset[int]]] = dataclasses.field(default_factory=set)
    marks: list[tuple[str, Place, tuple[int, ...], Mapping[int, Made]]] = dataclasses.field(default_factory=list)
    leaks: list[tuple[np.ndarray, str]] = dataclasses.field(default_factory=list)
    running: set[int] = dataclasses.field(default_factory=set)
    guests: list[np.ndarray] = dataclasses.field(default_factory=list)
    skips: list[tuple[np.ndarray, frozenset[int]]] = dataclasses.field(default_factory=list)
    uses: dict[Leaf, dict[Any, WeightUse]] = dataclasses.field(default_factory=dict)
    barred: list[tuple[np.ndarray, Unknown]] = dataclasses.field(default_factory=list)
    additions: list[tuple[np.ndarray, int]] = dataclasses.field(default_factory=list)
    exposed: set[Leaf] = dataclasses.field(default_factory=set)
    reached: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Frame:
    """One level of nesting.

    Attributes:
        path: as in `Place`.
        above: the level above.
        outer: what a variable is called one level up, and whether it is a slice of that along the first axis.
        carried: of the inputs of a loop's body that begin as constants, which output is their next value.
        where: which equation gives a variable, and as which output.
        at: number of the equation that is being followed, `eqn`; `used`: which of its outputs are.
    """

    path: Path = ()
    above: "Frame | None" = None
    outer: Mapping[Any, tuple[Any, bool]] = dataclasses.field(default_factory=dict)
    carried: Mapping[Any, int] = dataclasses.field(default_factory=dict)
    where: dict[Any, tuple[int, int]] = dataclasses.field(default_factory=dict)
    at: int = 0
    eqn: Any = None
    used: Sequence[bool] = ()

    def calls(self, eqn: Any) -> list[Any]:
        """The equation, and those that lead to it, innermost first."""
        above = self.above
        return [eqn] if above is None else [eqn, *above.calls(above.eqn)]

    def below(self, outer: Mapping[Any, tuple[Any, bool]], run: int | None = None) -> "Frame":
        """The level that the equation at hand leads into."""
        return Frame((*self.path, (self.at, run)), self, outer)
