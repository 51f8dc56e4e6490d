"""Follows units through a model: which contraction makes a value, and which parameters it meets on the way.

One pass over the model's jaxpr. Every value carries, as label arrays (`plastic_jax.units.labels`), the channels of the
contractions that it is made of, or the entries of the parameters. A channel is one output of a contraction with a
parameter; channels that are added, multiplied or read with the same weight belong to one unit. What an operation does
to channels and entries is a function in `plastic_jax.units.rules`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plastic_jax.units import jaxprs, labels
from plastic_jax.units.labels import Labels
from plastic_jax.units.story import (
    CLOSED,
    CONSTANTS,
    INPUTS,
    OUTPUTS,
    PREVIOUS,
    Entering,
    Frame,
    Leaf,
    Made,
    Place,
    Story,
    Value,
    clearest,
    last,
)

Rule = Callable[["Walk", jaxprs.JaxprEqn, list[Value], Frame], list[Value]]
"""What one operation does to channels and parameters."""


class Walk:
    """One pass over a program, and what it has found out so far.

    Args:
        shapes: of all leaves.
        rules: by name of the operation, for those that meet channels or parameters.
        loops: by name, operations that hold programs.
    """

    def __init__(
        self, shapes: Mapping[Leaf, tuple[int, ...]], rules: Mapping[str, Rule], loops: Mapping[str, Rule]
    ) -> None:
        self.story = Story()
        self.shapes, self.rules, self.loops = shapes, rules, loops
        self.known: dict[Any, int] = {}

    def run(self, closed: jaxprs.ClosedJaxpr, args: Sequence[Value], frame: Frame) -> list[Value]:
        """Follows a program; gives its outputs."""
        jaxpr = closed.jaxpr
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: Value(tuple(np.shape(c))) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
        frame.where = {v: (INPUTS, i) for i, v in enumerate(jaxpr.invars)}
        frame.where |= {v: (CONSTANTS, i) for i, v in enumerate(jaxpr.constvars)}

        def read(atom: Any) -> Value:
            return Value(tuple(np.shape(atom.val))) if isinstance(atom, jaxprs.Literal) else env[atom]

        for frame.at, eqn in enumerate(jaxpr.eqns):
            frame.eqn = eqn
            values = [read(atom) for atom in eqn.invars]
            env.update(zip(eqn.outvars, self.step(eqn, values, frame), strict=True))
            frame.where.update((v, (frame.at, i)) for i, v in enumerate(eqn.outvars))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: jaxprs.JaxprEqn, values: list[Value], frame: Frame) -> list[Value]:
        """Follows one equation."""
        name, inner = eqn.primitive.name, jaxprs.body(eqn)
        if inner is not None:
            return self.call(eqn, inner, values, frame)
        if name in self.loops:
            return self.loops[name](self, eqn, values, frame)
        plain = [Value(jaxprs.shape(v), depends=any(v.depends for v in values)) for v in eqn.outvars]
        if not any(v.made or v.entries or v.statistic for v in values):
            return plain
        if name in self.rules:
            return self.rules[name](self, eqn, values, frame)
        if not any(v.made or any(kind == "params" for kind, _ in v.entries) for v in values):
            return plain
        line = jaxprs.line_of(*frame.calls(eqn))
        raise NotImplementedError(f"trace_units: no rule for '{name}' on hidden units or parameters ({line})")

    def call(self, eqn: jaxprs.JaxprEqn, inner: jaxprs.ClosedJaxpr, values: list[Value], frame: Frame) -> list[Value]:
        """Follows what an equation calls; of some calls the first arguments are not the body's."""
        n = len(inner.jaxpr.invars)
        outer = {v: (a, False) for v, a in zip(inner.jaxpr.invars, eqn.invars[len(values) - n :], strict=True)}
        run = CLOSED if jaxprs.closed_off(eqn) else None
        return self.run(inner, values[len(values) - n :], frame.below(outer, run))

    def merged(self, values: list[Value], add: bool) -> dict[int, Made]:
        """The channels of all values, those that meet marked as one unit."""
        out: dict[int, Made] = {}
        for value in values:
            met = list(out.values())
            for source, new in value.made.items():
                old = out.get(source)
                if old is not None and np.array_equal(old.channel, new.channel):
                    out[source] = Made(old.channel, old.activation or new.activation, last(old.uses | new.uses))
                    continue
                for other in met:
                    self.same(labels.together(other.channel, new.channel))
                if old is not None and labels.varying(old.channel) != labels.varying(new.channel):
                    self.leak(value, "meets itself along another axis", [source])
                elif old is not None:
                    both = np.broadcast_arrays(old.channel, new.channel)
                    channel = labels.compressed(np.where(both[0] >= 0, both[0], both[1]))
                    out[source] = Made(channel, old.activation or new.activation, last(old.uses | new.uses))
                else:
                    out[source] = new
        if add:
            sets = [frozenset(v.made) for v in values if v.made]
            if len(sets) == 2 and sets[0] != sets[1]:
                self.story.sums.add((sets[0], sets[1]))
        return out

    def either(self, a: Value, b: Value) -> Value:
        """A value that is one or the other."""
        entries = {leaf: clearest(e, b.entries[leaf]) for leaf, e in a.entries.items() if leaf in b.entries}
        if a.entries.keys() != b.entries.keys():
            self.guests([a, b])
        return Value(a.shape, a.depends or b.depends, self.merged([a, b], add=False), entries)

    def guests(self, values: Sequence[Value]) -> None:
        """Notes that to these values something comes that no parameter of their own makes."""
        self.story.guests += [labels.members(made.channel) for value in values for made in value.made.values()]

    def entering(
        self, leaf: Leaf, role: str, index: tuple[Labels | None, ...], channel: Labels, added: bool = False
    ) -> None:
        """Notes that the leaf's entries at `index` meet the channels at the same elements; `added`: as a plain bias."""
        if channel.size == 1 and any(i is not None and i.size > 1 for i in index):
            return  # one channel that has spread over others
        owner, shared = labels.owners(self.shapes[leaf], index, channel)
        if (owner >= 0).any():
            self.story.entering.append(Entering(leaf, role, owner, shared, added))

    def same(self, pairs: np.ndarray) -> None:
        """Notes pairs of channels that belong to one unit."""
        if len(pairs):
            self.story.same.append(pairs)

    def leak(self, value: Value, why: str, sources: Collection[int] | None = None) -> None:
        """Notes what becomes of a value's channels (of these sources, or of all) besides being read."""
        for source, made in value.made.items():
            if sources is None or source in sources:
                self.story.leaks.append((labels.members(made.channel), why))

    def source(self, key: Any, channels: int) -> int:
        """The number of the contraction with the parameter `key`: one and the same wherever it is used."""
        if key not in self.known:
            start = self.story.channels
            self.known[key] = len(self.story.sources)
            self.story.sources.append((start, start + channels))
            self.story.channels += channels
        return self.known[key]

    def hoisted(
        self, atom: Any, shape: tuple[int, ...], made: dict[int, Made], frame: Frame
    ) -> tuple[Place, tuple[int, ...], dict[int, Made]]:
        """The same value at the outermost level that has it; what a loop carries, as what every step hands on."""
        while frame.above is not None and atom in frame.outer:
            outer, sliced = frame.outer[atom]
            if isinstance(outer, jaxprs.Literal):
                break
            if sliced:
                shape = tuple(outer.aval.shape)
                made = {s: m.at(m.channel[None]) for s, m in made.items()}
            atom, frame = outer, frame.above
        if atom in frame.carried:
            previous = (frame.path, PREVIOUS)
            every = {s: frozenset(u._replace(parts=u.parts - {previous}) for u in m.uses) for s, m in made.items()}
            made = {s: dataclasses.replace(m, uses=every[s]) for s, m in made.items()}
            return Place(frame.path, OUTPUTS, frame.carried[atom]), shape, made
        return Place(frame.path, *frame.where[atom]), shape, made

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is read meanwhile does not count."""
        story = self.story
        lists, sums = (story.readings, story.entering, story.leaks, story.marks, story.guests), set(story.sums)
        lengths = [len(entries) for entries in lists]
        yield
        for entries, length in zip(lists, lengths, strict=True):
            del entries[length:]
        story.sums = sums
