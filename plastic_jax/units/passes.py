"""Features of several uses as one array, and gradients that bring the features of their forward pass along."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class FeatureMeans(NamedTuple):
    """Means over all values of each unit of a group, in place of the values.

    Attributes:
        mean: float `[width, copies]`, E h.
        absolute: float `[width, copies]`, E |h|.
        samples: float32 scalar, how many values of each unit the means are over.
    """

    mean: jax.Array
    absolute: jax.Array
    samples: jax.Array


def means(value: jax.Array, axes: tuple[int, ...], kept: int) -> FeatureMeans:
    """The means of values; `axes` of the unit and its copies, of which the first `kept` stay apart (1 or all)."""
    values = jax.lax.stop_gradient(_samples(value, axes, kept))
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    values = values.reshape(*values.shape[:2], -1)
    samples = jnp.asarray(values.shape[0], jnp.float32)
    return FeatureMeans(jnp.mean(values, 0), jnp.mean(jnp.abs(values), 0), samples)


def averaged(parts: Sequence[FeatureMeans]) -> FeatureMeans:
    """Means over the values of all parts; leading axes of a part's arrays are the steps of loops."""

    def flat(part: FeatureMeans) -> FeatureMeans:
        shape = part.mean.shape[part.samples.ndim :]
        return FeatureMeans(part.mean.reshape(-1, *shape), part.absolute.reshape(-1, *shape), part.samples.ravel())

    whole = [flat(part) for part in parts]
    together = FeatureMeans(*(jnp.concatenate(leaves) for leaves in zip(*whole, strict=True)))
    samples = jnp.sum(together.samples)
    weights = (together.samples / samples)[:, None, None].astype(together.mean.dtype)
    return FeatureMeans(jnp.sum(weights * together.mean, 0), jnp.sum(weights * together.absolute, 0), samples)


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


def zeros_like(features: Any, inputs: Any) -> Any:
    """Zeros of the features' shapes that are not the same on all devices where the inputs are not.

    What `shard_map` knows to be the same on every device gets the sum of all devices' gradients.
    """
    zeros = jax.tree.map(lambda feature: jnp.zeros(feature.shape, feature.dtype), features)
    numbers = [x for x in jax.tree.leaves(inputs) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.number)]
    for x in numbers:
        if jnp.size(x):
            own = 0 * (x[(0,) * jnp.ndim(x)] != 0).astype(jnp.int32)  # XLA knows that it is 0, shard_map does not
            zeros = jax.tree.map(lambda zero, own=own: zero + own.astype(zero.dtype), zeros)
    return zeros


def value_and_grad(
    apply: Callable[..., Any],
    arguments: int | None,
    loss: Callable[..., Any],
    has_aux: bool,
    differentiate: Any,
    zeros: Callable[..., Any] | None,
) -> Callable[..., Any]:
    """`f(params, *inputs, *more) -> ((loss, features), grads)`, see `UnitGraph.value_and_grad`.

    With `zeros`, which gives perturbations, the gradient in them stands beside that in the parameters.
    """

    def run(params: Any, *args: Any, **options: Any) -> Any:
        n = len(args) if arguments is None else arguments
        if len(args) < n:
            raise TypeError(
                f"UnitGraph.value_and_grad: the model takes {n} arguments after its parameters, as in trace_units; "
                f"got {len(args)}; those after the model's go to the loss"
            )

        def objective(params: Any, *args: Any, **more: Any) -> tuple[Any, Any]:
            output, features = apply(params, *args[:n], **more, **options)
            value = loss(output, *args[n:])
            if not has_aux:
                return value, features
            value, aux = value
            return value, (features, aux)

        if zeros is None:
            return differentiate(objective, has_aux=True)(params, *args)

        def perturbed(params: Any, perturbations: Any, *args: Any) -> tuple[Any, Any]:
            return objective(params, *args, perturbations=perturbations)

        blank = zeros(params, *args[:n], **options)
        return differentiate(perturbed, has_aux=True, argnums=(0, 1))(params, blank, *args)

    return run
