"""The few lines that touch what a jaxpr is made of; everything else in `units` sees equations through them."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from plastic_jax.paths import named_leaves

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Traced",
    "body",
    "closed",
    "closed_off",
    "fingerprint",
    "inner",
    "line_of",
    "live",
    "multiplications",
    "peak",
    "rerun",
    "run",
    "scan_parts",
    "shape",
    "trace",
    "without_prints",
]

CONTRACTIONS = ("dot_general", "conv_general_dilated")
_WHOLE = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")


class Traced(NamedTuple):
    """A function's program, and what it gives: the names of the leaves, and the structure."""

    program: ClosedJaxpr
    names: list[str]
    structure: Any


def trace(function: Callable[..., Any], *args: Any) -> Traced:
    """The program of `function(*args)`; its output is flattened while it holds tracers.

    (Objects such as distributions do not take shapes in the place of arrays.)
    """
    output: list[Any] = []

    def flat(*args: Any) -> list[Any]:
        whole = function(*args)
        leaves, structure = jax.tree.flatten(whole)
        output[:] = [name for name, _ in named_leaves(whole)], structure
        return leaves

    return Traced(jax.make_jaxpr(flat)(*args), *output)


def without_prints(traced: Traced) -> Callable[..., Any]:
    """The function again, without callbacks that give nothing back (`jax.debug.print`)."""
    program = _quiet(traced.program)

    def run(*args: Any) -> Any:
        return jax.tree.unflatten(traced.structure, jaxpr_as_fun(program)(*jax.tree.leaves(args)))

    return run


def _quiet(program: Any) -> Any:
    if isinstance(program, ClosedJaxpr):
        return program.replace(jaxpr=_quiet(program.jaxpr))
    if not isinstance(program, Jaxpr):
        return program
    eqns = [e for e in program.eqns if e.outvars or e.primitive.name not in _CALLBACKS]
    is_program = lambda p: isinstance(p, ClosedJaxpr | Jaxpr)  # noqa: E731
    params = [jax.tree.map(_quiet, e.params, is_leaf=is_program) if inner(e) else e.params for e in eqns]
    eqns = [e.replace(params=p, effects=_seen(e.effects)) for e, p in zip(eqns, params, strict=True)]
    return program.replace(eqns=eqns, effects=_seen(program.effects))


def _seen(effects: Any) -> set[Any]:
    return {e for e in effects if type(e).__name__ not in ("DebugEffect", "OrderedDebugEffect")}


_CALLBACKS = ("debug_callback", "debug_print", "io_callback")


def live(jaxpr: Jaxpr, used: Sequence[bool]) -> list[list[bool]]:
    """Per equation, which of its outputs the outputs that are `used` depend on."""
    wanted = {v for v, u in zip(jaxpr.outvars, used, strict=True) if u and not isinstance(v, Literal)}
    found: list[list[bool]] = []
    for eqn in reversed(jaxpr.eqns):
        found.append([v in wanted for v in eqn.outvars])
        if any(found[-1]):
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return found[::-1]


def body(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """What is called by an equation that only calls: jit, remat, custom derivatives; `None` for others."""
    if eqn.primitive.name not in _WHOLE + _CUSTOM:
        return None
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next((closed(eqn.params[name]) for name in names if name in eqn.params), None)


def closed_off(eqn: JaxprEqn) -> bool:
    """Whether what an equation calls cannot give more outputs: a custom derivative."""
    return eqn.primitive.name in _CUSTOM


def closed(jaxpr: Any) -> ClosedJaxpr:
    """The program with its constants, of which some versions of JAX keep none apart."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def scan_parts(eqn: JaxprEqn) -> tuple[ClosedJaxpr, int, int]:
    """The body of a scan, and how many of its inputs are constants and how many are carried; the rest is scanned."""
    params = eqn.params
    if "num_consts" in params:
        return closed(params["jaxpr"]), params["num_consts"], params["num_carry"]
    constants, carried, _ = (len(part) for part in params["ft_in"].unpack())
    return closed(params["jaxpr"]), constants, carried


def run(jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], env: dict[Any, Any], wanted: Collection[Any]) -> None:
    """Evaluates some of a program's equations exactly as they stand; adds the variables in `wanted` to `env`."""
    given = dict.fromkeys(v for e in eqns for v in e.invars if not isinstance(v, Literal) and v in env)
    made = [v for e in eqns for v in e.outvars if v in wanted]
    part = jaxpr.replace(
        constvars=[],
        invars=list(given),
        outvars=made,
        eqns=list(eqns),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    env.update(zip(made, jaxpr_as_fun(ClosedJaxpr(part, ()))(*[env[v] for v in given]), strict=True))


def rerun(eqn: JaxprEqn, run: Callable[..., Any], args: Sequence[Any]) -> Any:
    """`run(*args)` under the jit or remat that the equation stands for.

    Raises:
        NotImplementedError: the equation is a custom derivative, whose body cannot give more outputs.
    """
    name = eqn.primitive.name
    if name in _CUSTOM:
        raise NotImplementedError(
            f"units: a feature lies inside a custom derivative rule ({line_of(eqn)}); move the layer out of it"
        )
    if "remat" in name or name == "checkpoint":
        return jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])(*args)
    if name in ("jit", "pjit"):
        run.__name__ = eqn.params["name"]
        return jax.jit(run)(*args)
    return run(*args)


def fingerprint(jaxpr: ClosedJaxpr) -> Any:
    """Equal for programs whose values stand at the same places."""
    return (
        tuple(str(v.aval) for v in jaxpr.jaxpr.invars),
        tuple(
            (
                eqn.primitive.name,
                tuple(str(v.aval) for v in eqn.outvars),
                tuple(fingerprint(each) for each in inner(eqn)),
            )
            for eqn in jaxpr.jaxpr.eqns
        ),
    )


def inner(eqn: JaxprEqn) -> list[ClosedJaxpr]:
    """All programs that an equation holds: what it calls, the bodies of loops, the branches."""
    return [closed(p) for p in jax.tree.leaves(list(eqn.params.values())) if isinstance(p, ClosedJaxpr | Jaxpr)]


def peak(jaxpr: ClosedJaxpr, size: Callable[[Any], int]) -> int:
    """The most that is held at one moment beside the inputs, by `size` of abstract values.

    Every equation's results are held from when it runs to their last use, and with them what its own programs hold.
    """
    eqns = jaxpr.jaxpr.eqns
    last = {id(v): i for i, eqn in enumerate(eqns) for v in eqn.invars}
    last |= {id(v): len(eqns) for v in jaxpr.jaxpr.outvars}
    held: dict[int, int] = {}
    total, most = 0, 0
    for i, eqn in enumerate(eqns):
        made = {id(v): size(v.aval) for v in eqn.outvars}
        held |= made
        total += sum(made.values())
        most = max(most, total + max((peak(each, size) for each in inner(eqn)), default=0))
        total -= sum(held.pop(id(v), 0) for v in (*eqn.invars, *eqn.outvars) if last.get(id(v), i) == i)
    return most


def multiplications(jaxpr: ClosedJaxpr) -> dict[str, int]:
    """Multiply-adds of all contractions, by the name of the primitive; loops of unknown length count once."""
    found: dict[str, int] = {}
    for eqn in jaxpr.jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        parts = [multiplications(each) for each in inner(eqn)]
        parts += [{eqn.primitive.name: _multiplications(eqn)}] if eqn.primitive.name in CONTRACTIONS else []
        for part in parts:
            for name, number in part.items():
                found[name] = found.get(name, 0) + times * number
    return found


def _multiplications(eqn: JaxprEqn) -> int:
    left, right = (shape(v) for v in eqn.invars[:2])
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(shape(eqn.outvars[0])) * math.prod(left[axis] for axis in contracted)
    outputs = right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(shape(eqn.outvars[0])) * math.prod(right) // outputs


def shape(variable: Any) -> tuple[int, ...]:
    """The shape of a variable."""
    return tuple(variable.aval.shape)


def line_of(*eqns: JaxprEqn) -> str:
    """`file:line` of the user's code that gave the first of the equations of which it is known."""
    for traceback in (eqn.source_info.traceback for eqn in eqns):
        for frame in [] if traceback is None else traceback.frames:
            if not any(part in frame.file_name for part in ("/site-packages/", "/plastic_jax/units/", "<frozen")):
                return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}"
    return "an unknown line"
