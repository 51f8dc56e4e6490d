"""Muon for matrices, and Adam with a step count of its own for everything else."""

from typing import Any

import jax
import optax
import optax.contrib

from plastic_jax.optimizers.adam import Number, adam


def muon(
    step_size: Number, momentum: Number = 0.95, b1: Number = 0.9, b2: Number = 0.999
) -> optax.GradientTransformationExtraArgs:
    """`optax.contrib.muon` for every kernel, `plastic_jax.adam` for every parameter with less than two axes.

    m <- momentum * m + (1 - momentum) * g,   w <- w - step_size * sqrt(max(1, outputs / inputs)) * U V^T

    where U S V^T is the singular value decomposition of Nesterov's momentum, which five Newton-Schulz iterations
    approach: all singular values of a step are about 1. A kernel's last axis is its outputs, all others its inputs, so
    that a convolution is the matrix of its filters. In distinction to `optax.contrib.muon` convolutions are matrices,
    and a unit's bias that is made new has a new step count.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
        >>> tx = muon(0.1)
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> bool(jnp.all(jnp.abs(jnp.diag(updates["kernel"]) + 0.1) < 0.04))
        True

    Args:
        step_size: of both; a number or a traced 0-d array.
        momentum: decay rate of Muon's momentum.
        b1, b2: decay rates of Adam's moments.

    References:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def matrices(params: optax.Params) -> Any:
        return jax.tree.map(lambda w: optax.contrib.MuonDimensionNumbers(tuple(range(w.ndim - 1)), w.ndim - 1), params)

    def kinds(params: optax.Params) -> Any:
        return jax.tree.map(lambda w: "matrix" if w.ndim > 1 else "vector", params)

    of_matrices = optax.contrib.muon(step_size, beta=momentum, muon_weight_dimension_numbers=matrices)
    return optax.partition({"matrix": of_matrices, "vector": adam(step_size, b1, b2)}, kinds)
