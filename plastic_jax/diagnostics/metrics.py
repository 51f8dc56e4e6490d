"""Diagnostics of features and weights, each published definition under its own name.

A feature matrix is `[samples, units]`. The functions that look at single units also take `[..., units]`, where every
axis but the last counts as samples (images and positions of a convolution's output). All are pure and work under `jit`
and `vmap`.

The ranks take one singular value decomposition each, O(samples * units * min(samples, units)), of the matrix itself:
the eigenvalues of the smaller Gram matrix would be cheaper but lose half of the digits. To get several ranks of one
matrix for the price of one, compute `singular_values` once and use the `..._of` functions. A matrix that is 0 or not
finite has rank 0 in every sense used here.

Source of the definitions: Dohare et al., Nature 632 (2024), Methods, and the published code.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.units.activation import Activation, named

PyTree = Any


def singular_values(features: jax.Array) -> jax.Array:
    """Singular values of `[samples, units]`, descending, `[min(samples, units)]`, float32 or wider."""
    return jnp.linalg.svd(features.astype(jnp.promote_types(features.dtype, jnp.float32)), compute_uv=False)


def rank(features: jax.Array, relative_tolerance: float = 1e-5) -> jax.Array:
    """Number of singular values > `relative_tolerance` times the largest; 0-d int32.

    Differs from the published code, which counts the singular values that are not exactly 0: that number depends on the
    rounding of the decomposition, so that a matrix of rank 5 may count as 32.
    """
    return rank_of(singular_values(features), relative_tolerance)


def effective_rank(features: jax.Array) -> jax.Array:
    """exp(-sum p log p) with p = sigma / sum sigma; 0-d float, from 1 to min(samples, units). Not centred.

    Source: Roy & Vetterli, EUSIPCO 2007.
    """
    return effective_rank_of(singular_values(features))


def approximate_rank(features: jax.Array, share: float = 0.99) -> jax.Array:
    """Least k whose k largest *squared* singular values make up at least `share` of their sum; 0-d int32.

    Source: Yang et al., ICLR 2020.
    """
    return approximate_rank_of(singular_values(features), share)


def stable_rank(features: jax.Array, share: float = 0.99) -> jax.Array:
    """Least k whose k largest singular values make up at least `share` of their sum; 0-d int32.

    This is what the paper calls stable rank. Elsewhere it is known as srank (Kumar et al., ICLR 2021), and in numerical
    analysis stable rank is something else: `numerical_stable_rank`.
    """
    return stable_rank_of(singular_values(features), share)


def numerical_stable_rank(features: jax.Array) -> jax.Array:
    """||A||_F^2 / ||A||_2^2, the stable rank of numerical analysis; 0-d float."""
    return numerical_stable_rank_of(singular_values(features))


def rank_of(sigma: jax.Array, relative_tolerance: float = 1e-5) -> jax.Array:
    """`rank` from descending singular values."""
    return _unless_degenerate(sigma, jnp.sum(sigma > relative_tolerance * sigma[0], dtype=jnp.int32))


def effective_rank_of(sigma: jax.Array) -> jax.Array:
    """`effective_rank` from singular values."""
    p = sigma / jnp.sum(sigma)
    return _unless_degenerate(sigma, jnp.exp(jnp.sum(jax.scipy.special.entr(p))))


def approximate_rank_of(sigma: jax.Array, share: float = 0.99) -> jax.Array:
    """`approximate_rank` from descending singular values."""
    return _least_count(jnp.square(sigma / sigma[0]), share)


def stable_rank_of(sigma: jax.Array, share: float = 0.99) -> jax.Array:
    """`stable_rank` from descending singular values."""
    return _least_count(sigma, share)


def numerical_stable_rank_of(sigma: jax.Array) -> jax.Array:
    """`numerical_stable_rank` from descending singular values."""
    return _unless_degenerate(sigma, jnp.sum(jnp.square(sigma / sigma[0])))


def dead_units(features: jax.Array) -> jax.Array:
    """Share of the units that are exactly 0 on all samples of `[..., units]`; 0-d float32."""
    return _share(_count_samples(features != 0) == 0)


def dormant_units(
    features: jax.Array, threshold: float = 0.01, rule: Literal["nonzero", "positive"] = "nonzero"
) -> jax.Array:
    """Share of the units of `[..., units]` that are active on too few samples; 0-d float32.

    nonzero:   dormant if the share of samples with h != 0 is <  threshold   (published for class-incremental CIFAR)
    positive:  dormant if the share of samples with h >  0 is <= threshold   (published for reinforcement learning)

    ValueError for another rule or a threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    # Numbers of samples are compared, not shares, so that a share of exactly the threshold is decided without rounding.
    limit = round(threshold * math.prod(features.shape[:-1]), 6)
    if rule == "nonzero":
        dormant = _count_samples(features != 0) < math.ceil(limit)
    elif rule == "positive":
        dormant = _count_samples(features > 0) <= math.floor(limit)
    else:
        raise ValueError(f"rule must be 'nonzero' or 'positive', got {rule!r}")
    return _share(dormant)


def saturated_units(
    features: jax.Array, level: float = 0.9, share: float = 0.99, activation: str | Activation = "tanh"
) -> jax.Array:
    """Share of the units of `[..., units]` in the flat part of their activation on at least `share` of the samples.

    Between the limits `low` and `high` of the activation: `|2 h - low - high| > level (high - low)`; for tanh
    `|h| > level`, for sigmoid `|2 h - 1| > level`. 0-d float32. Not in the paper.
    ValueError for an activation without two limits, or an unknown name.
    """
    near = (named(activation) if isinstance(activation, str) else activation).saturated(features, level)
    needed = math.ceil(round(share * math.prod(features.shape[:-1]), 6))
    return _share(_count_samples(near) >= needed)


def mean_weight_magnitude(params: PyTree, include: Literal["kernels", "all"] = "kernels") -> jax.Array:
    """Mean of |w| over all elements of the parameters; 0-d float.

    kernels: leaves of two or more axes, that is weight matrices and convolutions (published for permuted MNIST);
    all: biases and normalisation parameters too (published for class-incremental CIFAR).
    For one layer, as published for reinforcement learning, give that layer's parameters.

    ValueError for another `include` or where nothing is left to average.
    """
    leaves = _included(params, include)
    return sum((jnp.sum(jnp.abs(leaf)) for leaf in leaves), jnp.zeros(())) / sum(leaf.size for leaf in leaves)


def weight_change(before: PyTree, after: PyTree, include: Literal["kernels", "all"] = "kernels") -> jax.Array:
    """Sum of |after - before| over all elements, `include` as in `mean_weight_magnitude`; 0-d float.

    Published for reinforcement learning: the policy's weight matrices, from one policy update to the next, of which the
    figure shows the largest of 500, to find out why Adam with its usual decay rates breaks down on the ant.
    """
    pairs = zip(_included(before, include), _included(after, include), strict=True)
    return sum((jnp.sum(jnp.abs(new - old)) for old, new in pairs), jnp.zeros(()))


def largest_weight_change(before: PyTree, after: PyTree, include: Literal["kernels", "all"] = "kernels") -> jax.Array:
    """Maximum of |after - before| over all elements, `include` as in `mean_weight_magnitude`; 0-d float.

    Not published; a replaced unit's new weights are changes too.
    """
    pairs = zip(_included(before, include), _included(after, include), strict=True)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(new - old)) for old, new in pairs]))


def _least_count(weights: jax.Array, share: float) -> jax.Array:
    cumulative = jnp.cumsum(weights) / jnp.sum(weights)
    # Rounding may leave even the whole sum a little below a share of 1.
    count = jnp.minimum(jnp.sum(cumulative < share, dtype=jnp.int32) + 1, weights.size)
    return _unless_degenerate(weights, count)


def _unless_degenerate(sigma: jax.Array, value: jax.Array) -> jax.Array:
    total = jnp.sum(sigma)
    return jnp.where(jnp.isfinite(total) & (total > 0), value, jnp.zeros_like(value))


def _count_samples(true: jax.Array) -> jax.Array:
    return jnp.sum(true, axis=tuple(range(true.ndim - 1)), dtype=jnp.int32)


def _share(true: jax.Array) -> jax.Array:
    """Share of true entries, 0-d float32: the number nearest to count / size.

    From a table, as XLA turns a division by a constant into a product with its rounded inverse.
    """
    shares = np.arange(true.size + 1) / max(true.size, 1)
    return jnp.asarray(shares, jnp.float32)[jnp.sum(true, dtype=jnp.int32)]


def _included(params: PyTree, include: str) -> list[jax.Array]:
    if include not in ("kernels", "all"):
        raise ValueError(f"include must be 'kernels' or 'all', got {include!r}")
    leaves = [leaf for leaf in jax.tree.leaves(params) if include == "all" or jnp.ndim(leaf) >= 2]
    if not leaves:
        raise ValueError(f"the parameters hold nothing to measure with include={include!r}")
    return leaves
