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

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

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
    Unknown,
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
        equivalent: gives the program that stands for an operation, or `None`.
    """

    def __init__(
        self,
        shapes: Mapping[Leaf, tuple[int, ...]],
        rules: Mapping[str, Rule],
        loops: Mapping[str, Rule],
        equivalent: Callable[[jaxprs.JaxprEqn], jaxprs.ClosedJaxpr | None],
    ) -> None:
        self.story = Story()
        self.shapes, self.rules, self.loops, self.equivalent = shapes, rules, loops, equivalent
        self.known: dict[Any, int] = {}

    def run(
        self, closed: jaxprs.ClosedJaxpr, args: Sequence[Value], frame: Frame, used: Sequence[bool] | None = None
    ) -> list[Value]:
        """Follows a program, without what no output that is `used` depends on; gives its outputs."""
        jaxpr = closed.jaxpr
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: _constant(c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
        frame.where = {v: (INPUTS, i) for i, v in enumerate(jaxpr.invars)}
        frame.where |= {v: (CONSTANTS, i) for i, v in enumerate(jaxpr.constvars)}

        def read(atom: Any) -> Value:
            if isinstance(atom, jaxprs.Literal):
                return _constant(atom.val)
            return env[atom] if atom in env else Value(jaxprs.shape(atom))

        needed = jaxprs.live(jaxpr, [True] * len(jaxpr.outvars) if used is None else used)
        for frame.at, eqn in enumerate(jaxpr.eqns):
            frame.used = needed[frame.at]
            if any(frame.used):
                frame.eqn = eqn
                values = [read(atom) for atom in eqn.invars]
                env.update(zip(eqn.outvars, self.step(eqn, values, frame), strict=True))
                frame.where.update((v, (frame.at, i)) for i, v in enumerate(eqn.outvars))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: jaxprs.JaxprEqn, values: list[Value], frame: Frame) -> list[Value]:
        """Follows one equation."""
        name, told = eqn.primitive.name, self.equivalent(eqn)
        inner = jaxprs.body(eqn) if told is None else told
        if inner is not None:
            return self.call(eqn, inner, values, frame, CLOSED if told or jaxprs.closed_off(eqn) else None)
        if name in self.loops:
            return self.loops[name](self, eqn, values, frame)
        values = _data(name, values)
        behind = frozenset[int]().union(*(v.behind for v in values))
        depends, noise = any(v.depends for v in values), any(v.noise for v in values)
        if name in _RANDOM and not behind:
            return [Value(jaxprs.shape(v), noise=True) for v in eqn.outvars]
        outs = self.told(eqn, values, frame)
        lost = next((v.unknown for v in values if v.unknown), None)
        if lost is not None and depends:
            self.guests(values)
        elif lost is None and (leaves := frozenset(leaf for v in values for leaf in v.entries if leaf[0] == "params")):
            how = Unknown(leaves, f"are made of parameters by '{name}' ({jaxprs.line_of(*frame.calls(eqn))})")
            outs = [dataclasses.replace(out, unknown=None if out.entries else how) for out in outs]
        known = _folded(eqn, values)
        return [
            dataclasses.replace(
                out,
                known=known,
                behind=out.behind or behind,
                noise=noise and not out.depends,
                unknown=None if out.depends or out.zero else out.unknown or lost,
            )
            for out in outs
        ]

    def told(self, eqn: jaxprs.JaxprEqn, values: list[Value], frame: Frame) -> list[Value]:
        """What the operation's rule says; without one, its channels are lost."""
        name = eqn.primitive.name
        if any(v.made or v.entries or v.statistic or v.unknown for v in values) and name in self.rules:
            return self.rules[name](self, eqn, values, frame)
        if any(v.made for v in values):
            line = jaxprs.line_of(*frame.calls(eqn))
            for value in values:
                self.leak(value, f"passes '{name}', for which there is no rule ({line})")
        depends = any(v.depends for v in values)
        zero = name in _ZERO and all(v.zero for v in values)
        return [Value(jaxprs.shape(v), depends, zero=zero) for v in eqn.outvars]

    def call(
        self, eqn: jaxprs.JaxprEqn, inner: jaxprs.ClosedJaxpr, values: list[Value], frame: Frame, run: int | None
    ) -> list[Value]:
        """Follows what an equation calls; of some calls the first arguments are not the body's."""
        n = len(inner.jaxpr.invars)
        outer = {v: (a, False) for v, a in zip(inner.jaxpr.invars, eqn.invars[len(values) - n :], strict=True)}
        return self.run(inner, values[len(values) - n :], frame.below(outer, run), frame.used)

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
            self.summed(values)
        return out

    def summed(self, values: list[Value]) -> None:
        """Notes a sum of two values of which each has channels of its own, or one has unknown ones."""
        first, second = values[0], values[-1]
        if first.made and second.made and _adds(first, second) and _adds(second, first):
            self.story.sums.add((frozenset(first.made), frozenset(second.made)))
        for one, other in ((first, second), (second, first)):
            if other.behind and not other.made and all(m.activation is None for m in one.made.values()):
                now = len(self.story.readings)
                self.story.additions += [(labels.members(m.channel), now) for m in one.made.values()]

    def either(self, a: Value, b: Value) -> Value:
        """A value that is one or the other."""
        entries = {leaf: clearest(e, b.entries[leaf]) for leaf, e in a.entries.items() if leaf in b.entries}
        if a.entries.keys() != b.entries.keys():
            self.guests([a, b])
        depends = a.depends or b.depends
        return Value(
            a.shape,
            depends,
            self.merged([a, b], add=False),
            entries,
            behind=a.behind | b.behind,
            noise=(a.noise or b.noise) and not depends,
            unknown=None if depends else a.unknown or b.unknown,
            zero=a.zero and b.zero,
        )

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
        else:  # which of them is not known
            self.story.guests.append(labels.members(channel))

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
        lists: tuple[list[Any], ...] = (story.readings, story.entering, story.leaks, story.marks, story.guests)
        lists += (story.skips, story.barred, story.additions)
        uses = {leaf: dict(found) for leaf, found in story.uses.items()}
        sums, reached, exposed = set(story.sums), set(story.reached), set(story.exposed)
        lengths = [len(entries) for entries in lists]
        yield
        for entries, length in zip(lists, lengths, strict=True):
            del entries[length:]
        story.sums, story.uses, story.reached, story.exposed = sums, uses, reached, exposed


_RANDOM = {"random_bits", "random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in"}
_RANDOM |= {"random_clone", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform"}
_ZERO = {"broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "neg", "pvary", "reshape"}
_ZERO |= {"slice", "squeeze", "transpose"}


def _adds(this: Value, other: Value) -> bool:
    """Whether a value has channels that another has not."""
    same = [s for s, m in this.made.items() if s in other.made and np.array_equal(m.channel, other.made[s].channel)]
    return len(same) < len(this.made)


def _constant(value: Any) -> Value:
    if isinstance(value, Tracer):
        return Value(tuple(value.shape))
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
        return Value(tuple(value.shape), noise=True)
    few = 0 < np.size(value) <= _SMALL
    return Value(tuple(np.shape(value)), zero=few and not np.any(value), known=np.asarray(value) if few else None)


_SMALL = 2**16


def _folded(eqn: jaxprs.JaxprEqn, values: Sequence[Value]) -> np.ndarray | None:
    """The result of an operation on known numbers, of those that indices and bounds pass."""
    numbers, fold = [v.known for v in values], _FOLDS.get(eqn.primitive.name)
    if fold is None or any(n is None for n in numbers) or labels.size(jaxprs.shape(eqn.outvars[0])) > _SMALL:
        return None
    return fold(eqn.params, *numbers)


_FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda p, a, b: np.add(a, b),
    "broadcast_in_dim": lambda p, a: np.broadcast_to(
        labels.placed(a, dict(enumerate(p["broadcast_dimensions"])), len(p["shape"])), p["shape"]
    ),
    "convert_element_type": lambda p, a: a.astype(p["new_dtype"]),
    "lt": lambda p, a, b: np.less(a, b),
    "reshape": lambda p, a: a.reshape(p["new_sizes"]),
    "select_n": lambda p, which, *cases: np.choose(which.astype(int), cases),
}


def _data(name: str, values: list[Value]) -> list[Value]:
    """Noise that a parameter is contracted with is what the model is shown: the input of a generator."""
    weights = [bool(v.entries or v.unknown) for v in values]
    if name not in (*jaxprs.CONTRACTIONS, "gather") or not any(weights) or any(v.depends for v in values):
        return values
    return [
        dataclasses.replace(v, depends=True, noise=False) if v.noise and not w else v
        for v, w in zip(values, weights, strict=True)
    ]
