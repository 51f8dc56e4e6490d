"""Optimizers of `optax.contrib` that find their step size by how far the weights have come: the field's baselines."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from plastic_jax.matrices import wide
from plastic_jax.signature import Range, method


@method()
def prodigy(
    step_size: Annotated[float | jax.Array, Range(0)] = 1.0,
    b1: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
) -> optax.GradientTransformationExtraArgs:
    """Prodigy, `optax.contrib.prodigy`: Adam times an estimate of the distance from the first weights to the solution.

    Args:
        step_size: what the estimated step size is multiplied with; 1 as published.
        b1, b2: decay rates of Adam's moments, in [0, 1).

    References:
        Mishchenko and Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", ICML 2024.
    """
    return _typed(optax.contrib.prodigy(step_size, (b1, b2)))


@method()
def dog(
    step_size: Annotated[float | jax.Array, Range(0)] = 1.0,
    *,
    first_movement: Annotated[float | jax.Array, Range(0)] = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """DoG, `optax.contrib.dog`: the farthest distance from the first weights over the root of all squared gradients.

    Args:
        step_size: what the estimated step size is multiplied with; 1 as published.
        first_movement: how far the first step goes, relative to 1 plus the norm of the weights.

    References:
        Ivgi, Hinder and Carmon, "DoG is SGD's best friend: a parameter-free dynamic step size schedule", ICML 2023.
    """
    return _typed(optax.contrib.dog(step_size, ("heuristic", first_movement)))


@method()
def mechanic(
    step_size: Annotated[float | jax.Array, Range(0)] = 1.0,
    b1: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.9,
    b2: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.999,
    *,
    base: Literal["sgd", "adam"] = "adam",
    first_scale: Annotated[float | jax.Array, Range(0)] = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Mechanic, `optax.contrib.mechanize`: any optimizer, its way from the first weights scaled by a learned number.

    Args:
        step_size: that of the base optimizer; 1 as published.
        b1, b2: decay rates of Adam's moments, in [0, 1).
        base: the optimizer that is scaled.
        first_scale: the first value of the learned number.

    Weights decay by 0.01 times the learned number and the gradient's norm, as published and as optax has it.

    References:
        Cutkosky, Defazio and Mehta, "Mechanic: a learning rate tuner", NeurIPS 2023.
    """
    inner = optax.sgd(step_size) if base == "sgd" else optax.adam(step_size, b1, b2)
    return _typed(optax.contrib.mechanize(inner, s_init=first_scale))


def _typed(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation in float32 at least, whose updates and state keep their types where numbers are traced.

    Its first state has no array in common with the parameters, so that either may be given away.
    """
    tx = optax.with_extra_args_support(tx)

    def broad(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: wide(jnp.asarray(leaf)), tree)

    def cast(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)

    def init(params: optax.Params) -> Any:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tx.init(broad(params)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        moved, new = tx.update(broad(updates), state, broad(params), **extra)
        return cast(moved, updates), cast(new, state)

    return optax.GradientTransformationExtraArgs(init, update)
