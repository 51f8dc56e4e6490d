"""Features of several uses as one array, and gradients that bring the features of their forward pass along."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def joined(values: Sequence[tuple[jax.Array, tuple[int, ...]]], axes: tuple[int, ...]) -> jax.Array:
    """Values of the same units at several uses as one array, in which every element counts as much as in theirs.

    Equal shapes are stacked on a new first axis; others become one axis of samples.

    Args:
        values: each with the axes of the unit and its copies, counted from the end.
        axes: the same of the result. `(-1,)` has copies among the samples.
    """
    same = all(its == axes for _, its in values)
    if same and len(values) == 1:
        return values[0][0]
    if same and len({value.shape for value, _ in values}) == 1:
        return jnp.stack([value for value, _ in values])
    samples = [_samples(value, its, len(axes)) for value, its in values]
    together = jnp.concatenate(samples)
    sizes = {axis: together.shape[1 + i] for i, axis in enumerate(axes)}
    together = jnp.transpose(together, (0, *(1 + axes.index(axis) for axis in sorted(axes))))
    return together.reshape(-1, *(sizes.get(axis, 1) for axis in range(min(axes), 0)))


def _samples(value: jax.Array, axes: tuple[int, ...], kept: int) -> jax.Array:
    """`[samples, width]` for one axis that is kept, with copies among the samples; else `[samples, width, *copies]`."""
    moved = jnp.moveaxis(value, axes if kept > 1 else axes[:1], range(-len(axes) if kept > 1 else -1, 0))
    copies = moved.shape[moved.ndim - len(axes) + 1 :] if kept == len(axes) else (-1,)
    return moved.reshape(-1, value.shape[axes[0]], *(copies if kept > 1 else ()))


def value_and_grad(
    apply: Callable[..., Any], arguments: int | None, loss: Callable[..., Any], has_aux: bool, differentiate: Any
) -> Callable[..., Any]:
    """`f(params, *inputs, *more) -> ((loss, features), grads)`, see `UnitGraph.value_and_grad`."""

    def run(params: Any, *args: Any, **options: Any) -> Any:
        n = len(args) if arguments is None else arguments
        if len(args) < n:
            raise TypeError(
                f"UnitGraph.value_and_grad: the model takes {n} arguments after its parameters, as in trace_units; "
                f"got {len(args)}; those after the model's go to the loss"
            )

        def objective(params: Any, *args: Any) -> tuple[Any, Any]:
            output, features = apply(params, *args[:n], **options)
            value = loss(output, *args[n:])
            if not has_aux:
                return value, features
            value, aux = value
            return value, (features, aux)

        return differentiate(objective, has_aux=True)(params, *args)

    return run
