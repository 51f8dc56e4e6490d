"""What a measure of usefulness looks at: means of activations and of weights, per unit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.paths import get_leaf
from plastic_jax.replacement.utility import StatsOfMeans, UnitStats
from plastic_jax.units.graph import Slice, UnitGroup
from plastic_jax.units.passes import FeatureMeans

_SMALL, _LARGE = 2**12, 2**20  # values in a kernel


def group_dtype(group: UnitGroup, params: Any) -> Any:
    """The dtype in which a method keeps what it knows of a group: the real one of its first kernel, float32 at least.

    Float32 too where there are no parameters: `optax.tree.map_params` calls `init` with a tree that has no leaves.
    """
    if not jax.tree.leaves(params):
        return jnp.float32
    dtype = get_leaf(params, group.incoming[0].path).dtype
    return jnp.promote_types(np.zeros([], dtype).real.dtype, jnp.float32)


def mean_feature(group: UnitGroup, feature: jax.Array | FeatureMeans, axis_name: str | None = None) -> jax.Array:
    """Mean of `feature` over the mapped axis and all axes but those of the unit and its copies; `[width, copies]`."""
    given = isinstance(feature, FeatureMeans)
    mean = feature.mean if given else unit_means(feature, group.feature_axes, group.copies)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def mean_absolute(group: UnitGroup, feature: jax.Array | FeatureMeans, axis_name: str | None = None) -> jax.Array:
    """Mean of `|feature|`, `[width, copies]`, as `mean_feature`."""
    if isinstance(feature, FeatureMeans):
        return mean_feature(group, feature._replace(mean=feature.absolute), axis_name)
    return mean_feature(group, jnp.abs(feature), axis_name)


def largest_feature(group: UnitGroup, feature: jax.Array | FeatureMeans, axis_name: str | None = None) -> jax.Array:
    """The largest value of each unit over the mapped axis, the batch and all positions, `[width]`.

    Of means, a number above 0 where any value was: `E |h| + E h` is 0, up to rounding, where none is.
    """
    if isinstance(feature, FeatureMeans):
        above = jnp.max(feature.absolute + feature.mean - 1e-6 * feature.absolute, axis=1)
    else:
        axes = tuple(axis % feature.ndim for axis in group.feature_axes)
        above = jnp.max(feature, tuple(axis for axis in range(feature.ndim) if axis != axes[0]))
    return above if axis_name is None else jax.lax.pmax(above, axis_name)


def all_finite(means: Mapping[str, jax.Array]) -> jax.Array:
    """Whether all means are finite, 0-d bool; a mean is not where one of its values is not."""
    values = [mean.ravel() for mean in means.values()]
    return jnp.all(jnp.isfinite(jnp.concatenate(values))) if values else jnp.ones([], bool)


def feature_matrix(group: UnitGroup, feature: jax.Array) -> jax.Array:
    """The group's values as `[samples, width]`, in float32 at least; positions and copies count as samples."""
    axes = tuple(axis % feature.ndim for axis in group.feature_axes)
    rest = tuple(axis for axis in range(feature.ndim) if axis not in axes)
    values = jnp.transpose(feature, (*rest, *axes)).reshape(-1, group.width, group.copies)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return jnp.swapaxes(values, 1, 2).reshape(-1, group.width)


def unit_stats(
    group: UnitGroup,
    params: Any,
    feature: jax.Array | FeatureMeans,
    centre: jax.Array,
    key: jax.Array,
    axis_name: str | None = None,
) -> UnitStats:
    """Everything that measures may look at, of one group.

    Args:
        group: the units.
        params: the model's parameters.
        feature: the units' values, their axes at `group.feature_axes`.
        centre: `[width, copies]`, the units' running means. The centred magnitude is taken around a unit's mean over
            its copies, as in layers that are read at all positions with the same weights, and in the published code.
        key: handed on to the measure.
        axis_name: mapped axis over which batch means are averaged.
    """
    if group.copies > 1:
        centre = jnp.broadcast_to(jnp.mean(centre, axis=1, keepdims=True), centre.shape)
    if isinstance(feature, FeatureMeans):
        kind, centred = StatsOfMeans, jnp.zeros([])
    else:
        kind, centred = UnitStats, mean_feature(group, jnp.abs(feature - _like(feature, centre, group)), axis_name)
    return kind(
        incoming_magnitude=incoming_magnitude(group, params),
        outgoing_magnitude=_magnitude(group.outgoing_kernels, params, group.copies),
        mean_absolute=mean_absolute(group, feature, axis_name),
        mean_absolute_centred=centred,
        key=key,
    )


def _like(feature: jax.Array, centre: jax.Array, group: UnitGroup) -> jax.Array:
    """`centre`, `[width, copies]`, on the axes of `feature`."""
    axes = tuple(axis % feature.ndim for axis in group.feature_axes)
    ordered = centre.reshape([feature.shape[a] for a in axes])
    ordered = jnp.transpose(ordered, [axes.index(a) for a in sorted(axes)])
    return jnp.expand_dims(ordered, [a for a in range(feature.ndim) if a not in axes])


def incoming_magnitude(group: UnitGroup, tree: Any) -> jax.Array:
    """Mean of |w| over each unit's incoming kernels, `[width, 1]`; of the parameters, or of a tree like them."""
    return _magnitude(group.incoming_kernels, tree, 1)


def _magnitude(slices: tuple[Slice, ...], params: Any, copies: int) -> jax.Array:
    """Mean |w| of the slices, weighted by their sizes, `[width, copies]`.

    A slice that has other copies than these is averaged over its own.
    """
    total = sum(_size(s, copies) for s in slices)
    return sum(_slice_magnitude(s, params, copies) * (_size(s, copies) / total) for s in slices)  # pyright: ignore[reportReturnType]


def _slice_magnitude(s: Slice, params: Any, copies: int) -> jax.Array:
    weights = s.view(get_leaf(params, s.path))
    if s.copies == copies:
        return mean_magnitude(weights, (*s.unit_dims, *s.copy_dims), copies)
    return mean_magnitude(weights, s.unit_dims, 1)


def _size(s: Slice, copies: int) -> int:
    return s.fan if s.copies == copies else s.fan * s.copies


def unit_means(values: jax.Array, unit_axes: tuple[int, ...], copies: int) -> jax.Array:
    """Mean of `values` over every axis but those of the unit and its copies, as `[width, copies]`."""
    axes = tuple(axis % values.ndim for axis in unit_axes)
    others = tuple(axis for axis in range(values.ndim) if axis not in axes)
    means = jnp.mean(values, others)
    order = tuple(sorted(axes).index(axis) for axis in axes)
    return jnp.transpose(means, order).reshape(-1, copies)


def mean_magnitude(weights: jax.Array, unit_axes: tuple[int, ...], copies: int) -> jax.Array:
    """Mean of |w| over every axis but those of the unit and its copies, as `[width, copies]`."""
    plain = lambda w: unit_means(jnp.abs(w), unit_axes, copies)  # noqa: E731
    if weights.ndim != 2 or len(unit_axes) != 1 or weights.size < _SMALL:
        return plain(weights)
    # On CPUs XLA fuses |w| into slow reductions; a product with ones of |w| written out once is faster.
    means = _column_means if unit_axes[0] % 2 == 1 else _row_means
    return jax.lax.platform_dependent(weights, cpu=lambda w: means(jnp.abs(w))[:, None], default=plain)


def _column_means(values: jax.Array) -> jax.Array:
    n = values.shape[0]
    return jnp.full((n,), 1 / n, values.dtype) @ jax.lax.optimization_barrier(values)


def _row_means(values: jax.Array) -> jax.Array:
    n = values.shape[1]
    if values.size < _LARGE and n % 4 == 0:  # in the cache a sum of four slices is faster still
        a, b, c, d = jnp.split(values, 4, axis=1)
        return jnp.mean(a + b + c + d, 1) / 4
    return jax.lax.optimization_barrier(values) @ jnp.full((n,), 1 / n, values.dtype)
