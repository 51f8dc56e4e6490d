"""What a method asks of the optimizer that it wraps: which arguments it takes, and which leaves it freezes."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from plastic_jax.paths import leaf_names

# fmt: off
_OF_ZERO = {
    "abs", "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "integer_pow", "neg", "optimization_barrier",
    "reduce_sum", "reshape", "sharding_constraint", "sign", "slice", "sqrt", "square", "squeeze", "transpose",
}
# fmt: on
"""Functions of one array that are 0 where it is."""
_OF_ZEROS = {"add", "add_any", "concatenate", "max", "min", "sub"}
"""Functions that are 0 where all their operands are."""


def network_params(params: Any) -> Any:
    """The weights that the network runs with, which a graph's paths name: the fast ones of `optax.LookaheadParams`."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def with_extra_args(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation, whose `update` may be given any extra argument: those that it does not take are left out."""
    inner = optax.with_extra_args_support(inner)
    taken = inspect.signature(inner.update).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        return inner

    @functools.wraps(inner.update)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return inner.update(updates, state, params, **{name: x for name, x in extra.items() if name in taken})

    return optax.GradientTransformationExtraArgs(inner.init, update)


def frozen_leaves(
    inner: optax.GradientTransformationExtraArgs,
) -> Callable[[Any, dict[str, Any]], frozenset[str]]:
    """A function that names the parameters which `inner` freezes by a mask: their update is 0 for every gradient.

    It takes the parameters and the extra arguments of `update`. An update is 0 if it is a constant 0 in the jaxpr of
    `inner.update` (`optax.set_to_zero`), or if it is made from a gradient that was set to 0 and from statistics that
    are 0 at first and stay so. A step size of 0 freezes nothing.
    """
    found: dict[Any, frozenset[str]] = {}

    def names(params: Any, extra: dict[str, Any]) -> frozenset[str]:
        leaves, treedef = jax.tree.flatten(params)
        key = (treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves), tuple(sorted(extra)))
        if key not in found:
            found[key] = _frozen_leaves(inner, params, extra)
        return found[key]

    return names


def _frozen_leaves(inner: optax.GradientTransformationExtraArgs, params: Any, extra: dict[str, Any]) -> frozenset[str]:
    both = isinstance(params, optax.LookaheadParams)  # of a frozen parameter the fast and the slow value are the same

    def init(params: Any) -> Any:
        return inner.init(optax.LookaheadParams(params, params) if both else params)

    def update(gradients: Any, state: Any, params: Any) -> Any:
        return inner.update(gradients, state, optax.LookaheadParams(params, params) if both else params, **extra)

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))

    shapes = jax.tree.map(shape, params.fast if both else params)
    try:
        with jax.disable_jit(False):
            first, state = jax.make_jaxpr(init, return_shape=True)(shapes)
            program = jax.make_jaxpr(update)(shapes, state, shapes)
    except (NameError, TypeError, ValueError, jax.errors.JAXTypeError):  # told where it is really called
        return frozenset()
    n = len(jax.tree.leaves(shapes))
    zero = _zeros(first, [False] * n)
    while True:
        out = _zeros(program, [*[False] * n, *zero, *[False] * n])
        still = [a and b for a, b in zip(zero, out[len(out) - len(zero) :], strict=True)]
        if still == zero:
            break
        zero = still
    if not any(out[:n]):
        return frozenset()
    return frozenset(name for name, frozen in zip(leaf_names(shapes), out[:n], strict=True) if frozen)


def _zeros(program: ClosedJaxpr | Jaxpr, given: Sequence[bool]) -> list[bool]:
    """Which outputs are 0 everywhere, as far as can be seen, where the inputs are that are `given` as 0."""
    jaxpr: Any = getattr(program, "jaxpr", program)
    known: dict[Any, bool] = dict(zip(jaxpr.invars, given, strict=True))
    same: dict[Any, Any] = {}  # what has only had 0 added, by what it was

    def is_zero(atom: Any) -> bool:
        if isinstance(atom, Literal):
            return getattr(atom.val, "size", 1) == 1 and bool(atom.val == 0)
        return known.get(atom, False)

    for eqn in jaxpr.eqns:
        zero = [is_zero(atom) for atom in eqn.invars]
        # A factor that is the number 0 is a step size.
        factors = [z and not isinstance(a, Literal) for z, a in zip(zero, eqn.invars, strict=True)]
        known.update(zip(eqn.outvars, _outputs(eqn, zero, factors), strict=True))
        if eqn.primitive.name in ("add", "sub") and not any(isinstance(atom, Literal) for atom in eqn.invars):
            left, right = (same.get(atom, atom) for atom in eqn.invars)
            if zero[1] or (zero[0] and eqn.primitive.name == "add"):
                same[eqn.outvars[0]] = left if zero[1] else right
            known[eqn.outvars[0]] |= eqn.primitive.name == "sub" and left is right
    return [is_zero(atom) for atom in jaxpr.outvars]


def _outputs(eqn: Any, zero: list[bool], factors: list[bool]) -> list[bool]:
    name, params = eqn.primitive.name, eqn.params
    inside: Any = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    if name == "cond":
        branches = [_zeros(branch, zero[1:]) for branch in params["branches"]]
        return [all(flags) for flags in zip(*branches, strict=True)]
    if name in ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"):
        return _zeros(inside, zero)
    if name in _OF_ZERO and not (name == "integer_pow" and params["y"] <= 0):
        return [all(zero)] * len(eqn.outvars)
    if name in _OF_ZEROS:
        return [all(zero)]
    if name == "select_n":
        return [all(zero[1:])]
    if name == "div":
        return [factors[0]]
    return [name in ("mul", "dot_general") and any(factors)] * len(eqn.outvars)
