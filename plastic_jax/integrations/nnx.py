"""Units of Flax nnx modules, for `nnx.Optimizer`."""

import dataclasses
from typing import Any

from flax import nnx

from plastic_jax.units import UnitGraph
from plastic_jax.units import trace_units as _trace_units


def trace_units(
    model: nnx.Module, *inputs: Any, wrt: Any = nnx.Param, check: bool = True, means: bool = False
) -> UnitGraph:
    """The hidden units of a module, as `plastic_jax.trace_units` finds them.

    The graph takes the module where others take parameters: `units.apply(model, x)` is `model(x)` with features, and
    changes running statistics and random counts of the module as that does; `units.grad(loss)` is like `nnx.grad`:

        units = integrations.nnx.trace_units(model, x)
        tx = continual_backprop(optax.adam(1e-3), units, replacement_rate=1e-4, key=jax.random.key(1))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x, y):
            grads, features = units.grad(loss)(model, x, y)    # loss(output, y)
            optimizer.update(model, grads, features=features)

    Args:
        model: the module, called as `model(*inputs)`.
        inputs: example inputs, or their shapes.
        wrt: the variables that are learned, as in `nnx.Optimizer`.
        check, means: as in `plastic_jax.trace_units`.
    """

    def call(params: Any, rest: Any, definition: Any, *inputs: Any) -> tuple[Any, Any]:
        model = nnx.merge(definition, params, rest)
        output = model(*inputs)
        return output, nnx.state(model, nnx.Not(wrt))

    def forward(model: nnx.Module, *inputs: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
        definition, params, rest = nnx.split(model, wrt, ...)
        (output, new), features = found.forward(params, rest, definition, *inputs, **more)
        nnx.update(model, new)
        return output, features

    def zeros(model: nnx.Module, *inputs: Any) -> dict[str, Any]:
        definition, params, rest = nnx.split(model, wrt, ...)
        return found.perturbations(params, rest, definition, *inputs)

    def differentiate(function: Any, has_aux: bool, argnums: Any = 0) -> Any:
        first = nnx.DiffState(0, wrt)
        return nnx.value_and_grad(function, has_aux=has_aux, argnums=first if argnums == 0 else (first, 1))

    definition, params, rest = nnx.split(model, wrt, ...)
    found = _trace_units(call, params, definition, *inputs, variables=rest, check=check, means=means)
    how = {"forward": forward, "arguments": len(inputs), "differentiate": differentiate, "zeros": zeros}
    return dataclasses.replace(found, **how)
