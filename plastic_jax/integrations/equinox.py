"""Units of Equinox modules."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from plastic_jax.units import UnitGraph
from plastic_jax.units import trace_units as _trace_units


def trace_units(
    call: Callable[..., Any],
    model: Any,
    *inputs: Any,
    state: eqx.nn.State | None = None,
    check: bool = True,
    means: bool = False,
) -> UnitGraph:
    """The hidden units of a module, as `plastic_jax.trace_units` finds them.

    The graph takes the module where others take parameters: `units.apply(model, x)` is `call(model, x)` with features,
    and `units.grad(loss)` is like `eqx.filter_grad`:

        call = lambda model, x: jax.vmap(model)(x)
        units = integrations.equinox.trace_units(call, model, x)
        tx = continual_backprop(optax.adam(1e-3), units, replacement_rate=1e-4, key=jax.random.key(1))
        opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(model, opt_state, x, y):
            grads, features = units.grad(loss)(model, x, y)    # loss(output, y)
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, opt_state = tx.update(grads, opt_state, params, features=features)
            return eqx.apply_updates(model, updates), opt_state

    Args:
        call: `call(model, *inputs)`, or `call(model, state, *inputs)` where a state is given.
        model: the module; its inexact arrays are the parameters.
        inputs: example inputs, or their shapes.
        state: of a module with `eqx.nn.BatchNorm` or the like.
        check, means: as in `plastic_jax.trace_units`.
    """

    states = () if state is None else (state,)

    def apply(params: Any, *args: Any) -> Any:
        (arrays, static), inputs = args[len(states) : len(states) + 2], args[len(states) + 2 :]
        model = eqx.combine(params, arrays, jax.tree.unflatten(static.treedef, static.leaves))
        return call(model, *args[: len(states)], *inputs)

    def split(model: Any) -> tuple[Any, Any, "_Static"]:
        params, rest = eqx.partition(model, eqx.is_inexact_array)
        arrays, static = eqx.partition(rest, eqx.is_array)
        leaves, treedef = jax.tree.flatten(static)
        return params, arrays, _Static(tuple(leaves), treedef)

    def whole(model: Any, *args: Any) -> tuple[Any, ...]:
        params, *rest = split(model)
        return params, *args[: len(states)], *rest, *args[len(states) :]

    def forward(model: Any, *args: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
        return found.forward(*whole(model, *args), **more)

    def zeros(model: Any, *args: Any) -> dict[str, Any]:
        return found.perturbations(*whole(model, *args))

    params, *rest = split(model)
    found = _trace_units(apply, params, *rest, *inputs, variables=state, check=check, means=means)
    arguments = len(states) + len(inputs)
    how = {"forward": forward, "arguments": arguments, "differentiate": _differentiate, "zeros": zeros}
    return dataclasses.replace(found, **how)


def _differentiate(function: Any, has_aux: bool, argnums: Any = 0) -> Any:
    """`eqx.filter_value_and_grad`, which knows the first argument alone, or of the first two as one."""
    if argnums == 0:
        return eqx.filter_value_and_grad(function, has_aux=has_aux)
    both = eqx.filter_value_and_grad(lambda pair, *args: function(*pair, *args), has_aux=has_aux)
    return lambda first, second, *args: both((first, second), *args)


class _Static(eqx.Module):
    """What of a module is no array."""

    leaves: tuple[Any, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)
