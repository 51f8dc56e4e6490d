"""FIRE: at a moment, every layer's weights are replaced by the nearest matrix whose singular values are all alike."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import Due, after_step, at_boundary, periodic, projection
from plastic_jax.matrices import Layers, length, read_kernels, wide
from plastic_jax.paths import named_leaves
from plastic_jax.signature import Range, method
from plastic_jax.units.graph import UnitGraph


class FireState(NamedTuple):
    """State of FIRE.

    Attributes:
        inner: the inner optimizer's state.
        count: int32 scalar, steps taken; saturates.
    """

    inner: optax.OptState
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@method()
def fire(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    period: Annotated[int | jax.Array, Range(1)] = 10_000,
    iterations: Annotated[int, Range(1)] = 10,
    layers: Layers = "all",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the weights of every layer after every `period`-th step; see `fire_at_boundary` for the equations.

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; only `layers="hidden"` needs it.
        period: number of steps from one orthogonalisation to the next, at least 1.
        iterations: Newton-Schulz iterations, at least 1.
        layers: which layers: "all", or "hidden", those that make hidden units and so not the output layer.
        exclude: pattern of parameters that are left alone.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range, "hidden" has no `units`, a pattern matches no parameter.

    References:
        Han et al., "FIRE: Frobenius-isometry reinitialization", ICLR 2026.
    """
    return _fire("fire", inner, periodic(period), iterations, units, layers, exclude, axes)


@method("boundary")
def fire_at_boundary(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    iterations: Annotated[int, Range(1)] = 10,
    layers: Layers = "all",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the weights of every layer at the first step of a new task.

    X = W / ||W||_F;  `iterations` times X <- 1.5 X - 0.5 X X' X;  W <- sqrt(outputs / inputs) / taps * X

    after inner's step, whose gradient is already one of the new task. W is `[outputs, inputs]`, of a convolution one
    tap of its window by itself. The iteration leads to the polar factor of W, the orthogonal matrix nearest to it, and
    stops short of it for singular values below about 1.5^-iterations ||W||_F. Biases and inner's state are left alone,
    as is a matrix that is 0. `update` needs the extra argument `boundary` (0-d bool), so this method sees task
    boundaries; the first step of all is left alone.

    Example:
        >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
        >>> tx = fire_at_boundary(optax.sgd(0.1))
        >>> state = tx.init(params)
        >>> for new_task in (False, True):
        ...     updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, boundary=new_task)
        >>> optax.apply_updates(params, updates)["kernel"].round(4)
        Array([[1., 0.],
               [0., 1.]], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; only `layers="hidden"` needs it.
        iterations: Newton-Schulz iterations, at least 1.
        layers: which layers: "all", or "hidden", those that make hidden units and so not the output layer.
        exclude: pattern of parameters that are left alone.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    Raises:
        ValueError: `iterations` is not from 1 on, "hidden" has no `units`, a pattern matches no parameter; when called,
            no `boundary` is given.

    References:
        Han et al., "FIRE: Frobenius-isometry reinitialization", ICLR 2026.
    """
    name = "fire_at_boundary"
    return _fire(name, inner, at_boundary(name), iterations, units, layers, exclude, axes)


def orthogonalized(matrices: jax.Array, iterations: int = 10) -> jax.Array:
    """Newton-Schulz iterations towards the orthogonal matrix nearest to each `[..., rows, columns]`; 0 stays 0."""
    tall = matrices.shape[-2] >= matrices.shape[-1]
    x = matrices if tall else jnp.swapaxes(matrices, -1, -2)
    x = x / jnp.maximum(length(x, axis=(-2, -1)), jnp.finfo(x.dtype).tiny)
    x = jax.lax.fori_loop(0, iterations, lambda _, x: 1.5 * x - 0.5 * x @ (jnp.swapaxes(x, -1, -2) @ x), x)
    return x if tall else jnp.swapaxes(x, -1, -2)


def _fire(
    name: str,
    inner: optax.GradientTransformation,
    due: Due,
    iterations: int,
    units: UnitGraph | None,
    layers: Layers,
    exclude: str,
    axes: Mapping[str, str] | None,
) -> optax.GradientTransformationExtraArgs:
    def kernels(params: Any, warn: bool = False) -> Any:
        return read_kernels(name, params, units, layers=layers, exclude=exclude, axes=axes, warn=warn)

    def start(params: optax.Params, inner_state: optax.OptState) -> FireState:
        kernels(params, warn=True)
        return FireState(inner_state, jnp.zeros([], jnp.int32))

    def project(weights: optax.Params, state: Any) -> dict[str, jax.Array]:
        leaves, projected = dict(named_leaves(weights)), {}
        for k in kernels(weights):
            scale = (k.outputs / k.size("i")) ** 0.5 / k.taps
            matrices = wide(k.matrices(leaves[k.name], by_tap=True))
            projected[k.name] = k.leaf(scale * orthogonalized(matrices, iterations)).astype(leaves[k.name].dtype)
        return projected

    return after_step(name, inner, start, projection(project), due)
