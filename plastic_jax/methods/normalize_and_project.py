"""Normalise-and-project (NaP): after every step, the weights of each layer get back the norm that they began with."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import after_step, periodic, projection
from plastic_jax.matrices import Layers, length, normalisations, read_kernels, wide
from plastic_jax.paths import named_leaves
from plastic_jax.signature import Range, method
from plastic_jax.units.graph import UnitGraph

_NAME = "normalize_and_project"


class NormalizeAndProjectState(NamedTuple):
    """State of normalise-and-project.

    Attributes:
        inner: the inner optimizer's state.
        norms: by name of the kernel, float `[layers]`: the Frobenius norm at `init`.
        count: int32 scalar, steps taken; saturates.
    """

    inner: optax.OptState
    norms: dict[str, jax.Array]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@method()
def normalize_and_project(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    radius: Annotated[float | jax.Array, Range(0)] = 1.0,
    affine: Literal["decay", "project", "free"] = "decay",
    affine_decay: Annotated[float | jax.Array, Range(0, 1)] = 0.01,
    period: Annotated[int | jax.Array, Range(1)] = 1,
    layers: Layers = "all",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales every layer's weights back to the Frobenius norm that they began with, after every `period`-th step.

    W <- W * radius * ||W_0|| / ||W||                                               (W: after inner's step)

    For networks that normalise before every nonlinearity: there a layer's scale does not change what the network
    computes, only how fast it learns. In other networks the projection changes the function. The learned scales g and
    shifts s of the normalisation layers (`scale` and the `bias` beside it; in Equinox `weight` and `bias` of one
    shape) are

    decay:      g <- (1 - affine_decay) g + affine_decay,   s <- (1 - affine_decay) s
    project:    (g, s) <- (g, s) * sqrt(n) / sqrt(||g||^2 + ||s||^2),  n the number of scales
    free:       left to inner.

    Other biases, and kernels that are 0 at `init`, are left alone; inner's state is untouched.

    Example:
        >>> params = {"kernel": jnp.array([[3.0], [4.0]])}
        >>> tx = normalize_and_project(optax.sgd(0.1))
        >>> gradient = {"kernel": jnp.array([[0.0], [40.0]])}
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"][:, 0]  # inner gives [3, 0]
        Array([5., 0.], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; only `layers="hidden"` needs it.
        radius: norm that is kept, in units of that at `init`; at least 0.
        affine: what is done to learned scales and shifts of normalisation layers.
        affine_decay: share of the way to 1 and 0 that scales and shifts go with affine="decay", in [0, 1].
        period: number of steps from one projection to the next, at least 1.
        layers: which kernels: "all", or "hidden", those that make hidden units and so not the output layer.
        exclude: pattern of parameters that are left alone.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range, "hidden" has no `units`, a pattern matches no parameter.

    References:
        Lyle et al., "Normalization and effective learning rates in reinforcement learning", NeurIPS 2024.
    """

    def kernels(params: Any, warn: bool = False) -> Any:
        return read_kernels(_NAME, params, units, layers=layers, exclude=exclude, axes=axes, warn=warn)

    def start(params: optax.Params, inner_state: optax.OptState) -> NormalizeAndProjectState:
        leaves = dict(named_leaves(params))
        norms = {k.name: _norms(wide(k.matrices(leaves[k.name])))[:, 0, 0] for k in kernels(params, warn=True)}
        return NormalizeAndProjectState(inner_state, norms, jnp.zeros([], jnp.int32))

    def project(weights: optax.Params, state: Any) -> dict[str, jax.Array]:
        leaves, projected = dict(named_leaves(weights)), {}
        for k in kernels(weights):
            matrices, wanted = wide(k.matrices(leaves[k.name])), state.norms[k.name][:, None, None]
            scale = jnp.where(wanted > 0, radius * wanted / jnp.maximum(_norms(matrices), 1e-12), 1)
            projected[k.name] = k.leaf(matrices * scale).astype(leaves[k.name].dtype)
        for names in normalisations(weights, exclude) if affine != "free" else ():
            pair = {name: wide(leaves[name]) for name in names if name}
            if affine == "decay":
                fresh = dict(zip(names, (1, 0), strict=True))
                edited = {name: (1 - affine_decay) * leaf + affine_decay * fresh[name] for name, leaf in pair.items()}
            else:  # the last axis is the scales' own; those before it number stacked layers
                size = sum(length(leaf) ** 2 for leaf in pair.values()) ** 0.5
                edited = {name: leaf * leaf.shape[-1] ** 0.5 / jnp.maximum(size, 1e-12) for name, leaf in pair.items()}
            projected |= {name: leaf.astype(leaves[name].dtype) for name, leaf in edited.items()}
        return projected

    return after_step(_NAME, inner, start, projection(project), periodic(period))


def _norms(matrices: jax.Array) -> jax.Array:
    return length(matrices, axis=(-2, -1))
