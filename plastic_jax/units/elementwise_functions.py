"""Which function of its pre-activation a unit's feature is: read off the program, backwards from the feature.

A *term* is an expression in pre-activations. On the way back elementwise operations, with their constants, become part
of the term. Learned scales and shifts and normalisations are left out: in a fresh unit they are 1 and 0, or give the
pre-activation about unit variance. A contraction, or a sum with one, ends the term: it is a pre-activation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from plastic_jax.units import jaxprs
from plastic_jax.units.activation import GATED, LEARNED, Activation, describe, erf
from plastic_jax.units.story import CONSTANTS, INPUTS, OUTPUTS, Place

Leaf = tuple[Any, ...]
"""A variable of the program, and the slices taken of it."""
Names = frozenset[str]

_ADD, _SCALE = {"add", "sub", "add_any"}, {"mul", "div"}
_SAME = {"copy", "copy_p", "reduce_precision", "real", "device_put", "sharding_constraint", "optimization_barrier"}
_SAME |= {"pvary", "name", "reshape", "transpose", "broadcast_in_dim", "expand_dims", "squeeze", "tile", "pad", "rev"}
_SAME |= {"reduce_window_max"}
_REDUCE = {"reduce_sum", "reduce_max", "reduce_min", "psum", "psum2", "psum_invariant", "pmax", "pmin"}
_REDUCE |= {"reduce_window_sum"}
_SLICE = {"slice", "split", "unstack", "dynamic_slice", "gather"}
_JOIN = {"concatenate", "stack"}
_NUMPY = """
    exp exp2 log log1p expm1 sqrt cbrt square sin cos tan sinh cosh tanh floor ceil round sign abs
    add mul:multiply sub:subtract div:divide add_any:add neg:negative max:maximum min:minimum pow:power rem:fmod
    asin:arcsin acos:arccos atan:arctan asinh:arcsinh acosh:arccosh atanh:arctanh atan2:arctan2 is_finite:isfinite
    eq:equal ne:not_equal lt:less le:less_equal gt:greater ge:greater_equal
    and:logical_and or:logical_or xor:logical_xor not:logical_not
"""
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{ours: getattr(np, theirs or ours) for ours, _, theirs in (pair.partition(":") for pair in _NUMPY.split())},
    "erf": erf,
    "logistic": lambda x: 0.5 + 0.5 * np.tanh(np.divide(x, 2)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erfc": np.vectorize(math.erfc, otypes=[np.float64]),
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "select_n": lambda which, *cases: np.choose(np.asarray(which, int), cases),
}
_POINTWISE = _FUNCTIONS.keys() | _SAME | {"integer_pow", "convert_element_type"}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
_MOST_PARTS, _DEEPEST = 256, 100


@dataclasses.dataclass(frozen=True, eq=False)
class _Term:
    """A pre-activation (`leaf`), a constant (`value`), `function(*args)`, or, without all of these, not known.

    Attributes:
        leaves: the pre-activations in it.
        linear: whether it is linear in these.
        reduced: whether it is a sum, a mean or a variance over an axis.
        names: of the operations and jitted functions in it that are not linear.
    """

    function: Callable[..., Any] | None = None
    args: tuple["_Term", ...] = ()
    leaf: Leaf | None = None
    value: Any = None
    leaves: frozenset[Leaf] = frozenset()
    linear: bool = True
    reduced: bool = False
    names: tuple[str, ...] = ()

    @property
    def free(self) -> bool:
        """Whether it has to do with no pre-activation, and is no constant."""
        return not self.leaves and self.value is None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The values where the pre-activation is `points`."""
        known: dict[int, Any] = {}

        def value(term: _Term) -> Any:
            if id(term) not in known:
                args = [value(arg) for arg in term.args]
                inner = term.value if term.leaf is None else points
                known[id(term)] = inner if term.function is None else term.function(*args)
            return known[id(term)]

        return np.asarray(value(self))


_FREE = _Term()


class _Scope:
    """A program within a program.

    Args:
        closed: the program.
        path: numbers of the equations that lead to it.
        outer: what its inputs are called one level up; of what a loop carries, what it begins with.
        carried: of inputs that a loop carries, the output that they are next.
        made_of: per input the parameters that it is made of, `None` if it depends on the model's inputs.
    """

    def __init__(
        self,
        closed: jaxprs.ClosedJaxpr,
        path: tuple[int, ...],
        outer: Mapping[Any, tuple[Any, "_Scope"]],
        carried: Mapping[Any, Any],
        made_of: Iterable[Names | None],
    ) -> None:
        jaxpr = closed.jaxpr
        self.eqns, self.inputs, self.outputs = jaxpr.eqns, jaxpr.invars, jaxpr.outvars
        self.path, self.outer, self.carried = path, outer, carried
        self.constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self._made_of = dict(zip(jaxpr.invars, made_of, strict=True)) | dict.fromkeys(jaxpr.constvars, frozenset())
        self.giver: dict[Any, tuple[int, int]] = {}
        self.terms: dict[Any, tuple[_Term, ...]] = {}
        self.below: dict[int, _Scope] = {}
        for number, eqn in enumerate(jaxpr.eqns):
            found = [self.made_of(atom) for atom in eqn.invars]
            whole = None if None in found else frozenset().union(*filter(None, found))
            for output, variable in enumerate(eqn.outvars):
                self._made_of[variable], self.giver[variable] = whole, (number, output)

    def made_of(self, atom: Any) -> Names | None:
        """The parameters that a value is made of; `None` if it depends on the model's inputs."""
        return frozenset() if isinstance(atom, jaxprs.Literal) else self._made_of[atom]

    def enter(self, number: int) -> "_Scope | None":
        """The program that an equation calls or loops over; `None` if it does not."""
        eqn = self.eqns[number]
        if number not in self.below:
            inner, atoms, first, last = jaxprs.body(eqn), list(eqn.invars), 0, 0
            if inner is not None:
                atoms = atoms[len(atoms) - len(inner.jaxpr.invars) :]
            elif eqn.primitive.name == "scan":
                inner, first, carried = jaxprs.scan_parts(eqn)
                last = first + carried
            elif eqn.primitive.name == "while":
                inner, first = jaxprs.closed(eqn.params["body_jaxpr"]), eqn.params["body_nconsts"]
                atoms = atoms[eqn.params["cond_nconsts"] :]
                last = len(atoms)
            else:
                return None
            jaxpr = inner.jaxpr
            outer = {v: (atom, self) for v, atom in zip(jaxpr.invars, atoms, strict=True)}
            carry = dict(zip(jaxpr.invars[first:last], jaxpr.outvars, strict=False))
            known = [None if v in carry else self.made_of(atom) for v, (atom, _) in outer.items()]
            self.below[number] = _Scope(inner, (*self.path, number), outer, carry, known)
        return self.below[number]


class ElementwiseFunctions:
    """The functions of a program's features.

    Args:
        closed: the program.
        names: per input the name of the parameter or variable; `None` for an input of the model.
    """

    def __init__(self, closed: jaxprs.ClosedJaxpr, names: Sequence[str | None]) -> None:
        self._top = _Scope(closed, (), {}, {}, [None if name is None else frozenset([name]) for name in names])
        self._makers: dict[Any, Names] = {}

    def activation(self, places: Sequence[Place], parameters: Collection[str]) -> Activation:
        """The activation of the units that these parameters make, as seen at some places of the program."""
        terms = [t for place in places for t in self._at(place) if t.leaves]
        ours = [t for t in terms if any(self._makers[leaf[0]] & set(parameters) for leaf in t.leaves)] or terms
        if not ours or any(len(t.leaves) > 1 for t in ours):
            return GATED
        return describe(ours, list(dict.fromkeys(name for t in ours for name in t.names)))

    def _at(self, place: Place) -> tuple[_Term, ...]:
        scope = self._top
        for number, _ in place.path:
            inner = scope.enter(number)
            if inner is None:  # a branch
                return ()
            scope = inner
        given = {INPUTS: scope.inputs, CONSTANTS: list(scope.constants), OUTPUTS: scope.outputs}
        atoms = given[place.equation] if place.equation in given else scope.eqns[place.equation].outvars
        return self._terms(atoms[place.output], scope)

    def _terms(self, atom: Any, scope: _Scope, depth: int = 0) -> tuple[_Term, ...]:
        """A value's terms: one, or, of values that were joined side by side, one each."""
        if isinstance(atom, jaxprs.Literal):
            return (_constant(atom.val),)
        if atom not in scope.terms:
            scope.terms[atom] = self._found(atom, scope, depth)
        return scope.terms[atom]

    def _found(self, atom: Any, scope: _Scope, depth: int) -> tuple[_Term, ...]:
        if atom in scope.constants:
            return (_constant(scope.constants[atom]),)
        if atom in scope.carried:
            scope.terms[atom] = state = (self._pre_activation(atom, scope, ()),)  # while what it becomes is found out
            before = self._terms(*scope.outer[atom], depth + 1)
            after = self._terms(scope.carried[atom], scope, depth + 1)
            return tuple(t for t in (*before, *after) if t.leaves) or state
        if atom in scope.outer:
            return self._terms(*scope.outer[atom], depth + 1)
        if scope.made_of(atom) or (atom not in scope.giver and not scope.path):
            return (_FREE,)  # made of parameters alone, or an input of the model
        if atom not in scope.giver or depth > _DEEPEST:
            return (self._pre_activation(atom, scope, ()),)
        number, output = scope.giver[atom]
        eqn, name = scope.eqns[number], scope.eqns[number].primitive.name
        if (inner := scope.enter(number)) is not None:
            found = self._terms(inner.outputs[output], inner, depth + 1)
            called = str(eqn.params.get("name", ""))
            if called in LEARNED:  # of which the parameters are not known: the function as it is at first
                return tuple(_learned(t, called) for t in self._terms(eqn.invars[0], scope, depth + 1))
            if not called.isidentifier() or called.startswith("_"):
                return found
            before = {n for a in eqn.invars for t in self._terms(a, scope, depth + 1) for n in t.names}
            return tuple(_named(t, called, before) for t in found)
        weights = frozenset().union(*(scope.made_of(a) or () for a in eqn.invars))
        if weights and (name in jaxprs.CONTRACTIONS or (name == "gather" and scope.made_of(eqn.invars[0]))):
            return (self._pre_activation(atom, scope, weights),)
        read = [self._terms(a, scope, depth + 1) for a in eqn.invars]
        every = [t for terms in read for t in terms]
        if not any(t.leaves for t in every):
            if name not in _POINTWISE or any(t.value is None for t in every):
                return (_FREE,)
            return (_Term(value=_function(eqn)(*[t.value for t in (every[:1] if _is_same(eqn) else every)])),)
        if name in _JOIN:
            return tuple(t for t in every if t.leaves)[:_MOST_PARTS]
        if _is_same(eqn) or name in _REDUCE | _SLICE:
            return tuple(_changed(t, eqn, output) for t in read[0])
        count = max(map(len, read))
        if name in _POINTWISE and {1, count} >= set(map(len, read)):
            columns = zip(*(terms * (count // len(terms)) for terms in read), strict=True)
            return tuple(t for column in columns for t in self._applied(eqn, list(column), atom, scope))
        return (self._pre_activation(atom, scope, weights | self._made(every)),)

    def _applied(self, eqn: Any, args: list[_Term], atom: Any, scope: _Scope) -> list[_Term]:
        """An elementwise operation on terms: mostly one term, several if they are chosen from by what is not known."""
        name, moving = eqn.primitive.name, [t for t in args if t.leaves]
        if name == "select_n" and args[0].free:
            return [_undropped(t) for t in moving] if len(moving) == 1 else moving
        if name in _ADD | _SCALE:
            left, right = _essential(name, args[0], args[1])
            if left is not None and right is None:
                return [left]
            if right is not None and left is None and name not in ("sub", "div"):
                return [right]
            neutral = _Term(value=0.0 if name in _ADD else 1.0)
            args = [left or neutral, right or neutral]
            if name in _ADD and _ends(*args):
                return [self._pre_activation(atom, scope, self._made(args))]
        args = [self._pre_activation((atom, i), scope, ()) if t.free else t for i, t in enumerate(args)]
        moving = [t for t in args if t.leaves]
        linear = name in _ADD | {"neg"} or (name in _SCALE and len(moving) == 1 and (name == "mul" or args[0].leaves))
        named = () if linear or name in _COMPARISONS else (name,)
        term = _Term(
            _function(eqn),
            tuple(args),
            leaves=frozenset().union(*(t.leaves for t in moving)),
            linear=bool(linear) and all(t.linear for t in moving),
            reduced=all(t.reduced for t in moving),
            names=(*dict.fromkeys(n for t in moving for n in t.names), *named),
        )
        return [term]

    def _made(self, terms: Iterable[_Term]) -> Names:
        return frozenset().union(*(self._makers[leaf[0]] for t in terms for leaf in t.leaves))

    def _pre_activation(self, variable: Any, scope: _Scope, makers: Collection[str]) -> _Term:
        """A new leaf, of which all that follows is a function."""
        base = (scope.path, variable)
        self._makers[base] = frozenset(makers)
        return _Term(leaf=(base,), leaves=frozenset([(base,)]))


def _constant(value: Any) -> _Term:
    """A constant, if it is a number and the same everywhere."""
    if isinstance(value, Tracer):
        return _FREE
    dtype = jnp.result_type(value)
    if not (jnp.issubdtype(dtype, np.bool_) or jnp.issubdtype(dtype, np.number)) or np.size(value) == 0:
        return _FREE
    array = np.asarray(value).ravel()
    one = array[0] if array.dtype == np.bool_ else array[0].astype(np.float64)
    return _Term(value=one) if (array == array[0]).all() or (array != array).all() else _FREE


def _is_same(eqn: Any) -> bool:
    """Whether an operation leaves every number what it is, up to its precision."""
    converted = eqn.params.get("new_dtype") if eqn.primitive.name == "convert_element_type" else None
    return eqn.primitive.name in _SAME or (converted is not None and jnp.issubdtype(converted, np.inexact))


def _function(eqn: Any) -> Callable[..., Any]:
    name = eqn.primitive.name
    if _is_same(eqn):
        return np.asarray  # booleans too
    if name == "integer_pow":
        return functools.partial(_power, eqn.params["y"])
    if name == "convert_element_type":
        kind = np.dtype(eqn.params["new_dtype"]).kind
        return np.trunc if kind in "iu" else lambda x: np.not_equal(x, 0)
    return _FUNCTIONS[name]


def _power(y: int, x: np.ndarray) -> np.ndarray:
    return np.power(x, float(y))


def _changed(term: _Term, eqn: Any, output: int) -> _Term:
    """A term of which parts are taken, or that is reduced over an axis, or else stays what it is."""
    name = eqn.primitive.name
    if name in _REDUCE:
        return dataclasses.replace(term, reduced=True)
    if name not in _SLICE or term.reduced:
        return term
    cut = (name, output, str(eqn.params), tuple(str(a) for a in eqn.invars[1:]))
    known: dict[int, _Term] = {}

    def moved(old: _Term) -> _Term:
        if id(old) not in known:
            known[id(old)] = dataclasses.replace(
                old,
                args=tuple(moved(arg) for arg in old.args),
                leaf=old.leaf and (*old.leaf, cut),
                leaves=frozenset((*leaf, cut) for leaf in old.leaves),
            )
        return known[id(old)]

    return moved(term)


def _learned(term: _Term, called: str) -> _Term:
    """The function of that name of a term."""
    return dataclasses.replace(
        term, function=LEARNED[called], args=(term,), leaf=None, linear=False, names=(*term.names, called)
    )


def _named(term: _Term, called: str, before: Collection[str]) -> _Term:
    """A term that a jitted function has made: the function's name in place of those of the operations in it."""
    if set(term.names) <= {called, *before}:
        return term
    return dataclasses.replace(term, names=(*(n for n in term.names if n in before), called))


def _essential(name: str, left: _Term, right: _Term) -> tuple[_Term | None, _Term | None]:
    """The summands or factors without those that a fresh unit does not have, and those that undo what the other is."""
    drop = [t.free for t in (left, right)]
    if _is_statistic_of(left, right) or _is_statistic_of(right, left):  # a norm: less a mean, over a deviation
        drop = [d or t.reduced for d, t in zip(drop, (left, right), strict=True)]
    if name in _SCALE and all(t.reduced for t in (left, right) if t.leaves):  # a sum over an axis as a mean
        drop = [d or not t.leaves for d, t in zip(drop, (left, right), strict=True)]
    return None if drop[0] else left, None if drop[1] else right


def _is_statistic_of(a: _Term, b: _Term) -> bool:
    return bool(a.leaves) and a.reduced and not b.reduced and a.leaves <= b.leaves


def _ends(a: _Term, b: _Term) -> bool:
    """Whether the sum of two terms is a pre-activation: of two contractions, or of one and what is skipped to it."""
    return bool(a.leaves and b.leaves) and (a.linear or b.linear) and a.leaves.isdisjoint(b.leaves)


def _undropped(term: _Term) -> _Term:
    """What dropout was applied to: without the factor that keeps the mean."""
    scaled = term.function in (np.multiply, np.divide) and any(arg.value is not None for arg in term.args)
    return next(arg for arg in term.args if arg.leaves) if scaled else term
