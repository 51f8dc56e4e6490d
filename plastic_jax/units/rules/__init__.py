"""What each operation does to channels and parameters: `rule(walk, eqn, values, frame) -> values`, by its name."""

from collections.abc import Callable
from typing import Any

from jax.extend.core import Primitive

from plastic_jax.units import jaxprs
from plastic_jax.units.rules import contractions, elementwise, movement, reductions
from plastic_jax.units.rules.loops import LOOPS

__all__ = ["LOOPS", "RULES", "equivalent", "register_rule"]

_EQUIVALENTS: dict[str, Callable[..., Any]] = {}


def register_rule(primitive: str | Primitive, rule: Callable[..., Any]) -> None:
    """Tells `trace_units` what an operation does that it has no rule for, by a function that does the same.

    Units are followed through the rule in place of the operation, which itself is left as it is: the rule is traced,
    and never evaluated. It need only treat every element as the operation does; constants and rounding do not matter.

    Example:
        >>> from plastic_jax.units import register_rule
        >>> register_rule("fused_gelu", lambda x, *, approximate: jax.nn.gelu(x))

    Args:
        primitive: the operation, or its name. One that JAX or this library knows is overruled.
        rule: `rule(*arrays, **params)` with the operation's operands and parameters; gives its result, or the list of
            its results where there are several. Contractions with parameters may be among what it does; the units
            between two of them are left out, as their values cannot be had.
    """
    _EQUIVALENTS[primitive if isinstance(primitive, str) else primitive.name] = rule


def equivalent(eqn: jaxprs.JaxprEqn) -> jaxprs.ClosedJaxpr | None:
    """What an operation does, as a program of others, where somebody has said so."""
    rule = _EQUIVALENTS.get(eqn.primitive.name)
    if rule is None:
        return None
    program = jaxprs.trace(lambda *args: rule(*args, **eqn.params), *[v.aval for v in eqn.invars]).program
    ours, theirs = ([jaxprs.shape(v) for v in variables] for variables in (program.jaxpr.outvars, eqn.outvars))
    if ours != theirs:
        raise ValueError(f"register_rule: the rule for '{eqn.primitive.name}' gives {ours}, the operation {theirs}")
    return program


RULES = elementwise.RULES | contractions.RULES | reductions.RULES | movement.RULES
