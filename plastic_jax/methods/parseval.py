"""Parseval regularisation: the weights of every hidden unit are pulled to be orthogonal to those of the others."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import add_pull
from plastic_jax.matrices import Layers, length, map_kernels, read_kernels
from plastic_jax.signature import Range, method
from plastic_jax.units.graph import UnitGraph

_NAME = "parseval"


class ParsevalState(NamedTuple):
    """State of Parseval regularisation.

    Attributes:
        inner: the inner optimizer's state.
    """

    inner: optax.OptState


@method()
def parseval(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    strength: Annotated[float | jax.Array, Range(0)] = 1e-3,
    target: Annotated[float | jax.Array, Range(0)] = 2.0,
    normalize_rows: bool = False,
    groups: Annotated[int, Range(1)] = 1,
    layers: Layers = "hidden",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls the incoming weights of a layer's units to be orthogonal and of equal length: W W' -> target * I.

    loss <- loss + strength * sum over layers of (64 / width)^2 * || M * (W W') - target * I ||_F^2

    whose gradient joins that of the loss before the inner optimizer. W is `[width, fan_in]`, a row for every unit of
    the layer (of a convolution, over inputs and taps); M is 1 or, with `groups`, 1 between units of the same group and
    0 elsewhere. Where a layer has more units than inputs, its rows cannot all be orthogonal; it is pulled nevertheless,
    as in the published code.

    Example:
        >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])}
        >>> tx = parseval(optax.sgd(0.125), strength=1 / 64**2, target=1.0, layers="all")
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"]  # the first unit has length 1 already
        Array([[1.  , 0.  ],
               [0.  , 1.25]], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; `layers="hidden"` needs it.
        strength: how strong the pull is, at least 0.
        target: square of the length that rows are pulled to: the square of the gain of the initial weights.
        normalize_rows: divide rows by their lengths first, so that only angles are pulled; then `target` has no effect
            on the gradient.
        groups: number of equal parts of a layer between which nothing is pulled.
        layers: which layers: "hidden", those that make hidden units and so not the output layer, or "all".
        exclude: pattern of parameters that are left alone.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range, "hidden" has no `units`, a pattern matches no parameter, or a layer's
            width is not a multiple of `groups`.

    References:
        Chung, Cherif, Meger and Precup, "Parseval regularization for continual reinforcement learning", NeurIPS 2024.
    """

    def kernels(params: Any, warn: bool = False) -> Any:
        return read_kernels(_NAME, params, units, layers=layers, exclude=exclude, axes=axes, warn=warn)

    def start(params: optax.Params, inner_state: optax.OptState) -> ParsevalState:
        for kernel in kernels(params, warn=True):
            if kernel.outputs % groups:
                raise ValueError(
                    f"{_NAME}: groups={groups} does not divide the {kernel.outputs} units of {kernel.name}"
                )
        return ParsevalState(inner_state)

    def penalty(matrices: jax.Array) -> jax.Array:
        width = matrices.shape[-1]
        if normalize_rows:
            size = length(matrices, axis=-2)
            matrices = matrices / jnp.where(size > 0, size, 1)
        products = jnp.swapaxes(matrices, -1, -2) @ matrices
        if groups > 1:
            group = jnp.arange(width) // (width // groups)
            products = products * (group[:, None] == group)
        return (64 / width) ** 2 * jnp.sum((products - target * jnp.eye(width)) ** 2)

    def pull(params: optax.Params, state: Any) -> tuple[dict[str, jax.Array], Any]:
        return map_kernels(lambda matrices: strength * jax.grad(penalty)(matrices), params, kernels(params)), state

    return add_pull(_NAME, inner, start, pull)
