"""Spectral regularisation: the largest singular value of every layer is pulled to 1."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import add_pull
from plastic_jax.matrices import Kernel, Layers, length, read_kernels, wide
from plastic_jax.paths import leaf_key, named_leaves
from plastic_jax.signature import Range, method
from plastic_jax.units.graph import UnitGraph

_NAME = "spectral"


class SpectralState(NamedTuple):
    """State of spectral regularisation.

    Attributes:
        inner: the inner optimizer's state.
        vectors: by name of the kernel, float `[layers, fan_in]`, or `[layers, outputs]` with `unrolled`: unit vectors
            from which the next power iteration begins.
    """

    inner: optax.OptState
    vectors: dict[str, jax.Array]


@method()
def spectral(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    strength: Annotated[float | jax.Array, Range(0)] = 1e-4,
    exponent: Annotated[float | jax.Array, Range(1)] = 2.0,
    target: Annotated[float | jax.Array, Range(0)] = 1.0,
    bias_exponent: Annotated[float | jax.Array, Range(1)] = 2.0,
    iterations: Annotated[int, Range(1)] = 1,
    unrolled: bool = False,
    layers: Layers = "all",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls the largest singular value of every layer's weights to 1, and biases to 0.

    loss <- loss + strength * sum over layers of (sigma^exponent - target)^2 + (||b||^2)^bias_exponent

    whose gradient joins that of the loss before the inner optimizer. sigma = u'Wv with unit vectors u, v from a power
    iteration that goes on from step to step; they are constants of the gradient. W is `[fan_in, outputs]`, of a
    convolution over inputs and taps. `exclude="*bias"` leaves the biases alone.

    Example:
        >>> params = {"kernel": jnp.diag(jnp.array([3.0, 0.5]))}
        >>> tx = spectral(optax.sgd(0.01), strength=1.0, exponent=1.0, iterations=20)
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].round(4)  # -0.01 * 2 (3 - 1)
        Array([[-0.04, -0.  ],
               [-0.  , -0.  ]], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; only `layers="hidden"` needs it.
        strength: how strong the pull is, at least 0.
        exponent: power of the singular value, at least 1; k of the paper.
        target: what that power is pulled to, at least 0.
        bias_exponent: power of the squared length of a bias, at least 1; k in the paper.
        iterations: power iterations a step, at least 1.
        unrolled: begin the power iteration at the same vectors in every step, and differentiate through it.
        layers: which layers: "all", or "hidden", those that make hidden units and so not the output layer.
        exclude: pattern of parameters that are left alone.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params`.

    Raises:
        ValueError: a number is outside its range, "hidden" has no `units`, a pattern matches no parameter.

    References:
        Lewandowski et al., "Learning continually by spectral regularization", ICLR 2025.
    """

    def kernels(params: Any, warn: bool = False) -> tuple[Kernel, ...]:
        return read_kernels(_NAME, params, units, layers=layers, exclude=exclude, axes=axes, warn=warn)

    def start(params: optax.Params, inner_state: optax.OptState) -> SpectralState:
        leaves, vectors = dict(named_leaves(params)), {}
        for k in kernels(params, warn=True):
            # Any vector will do that is not orthogonal to the singular one: every run may begin at the same.
            shape = (k.stack, k.outputs if unrolled else k.fan_in)
            drawn = jax.random.normal(leaf_key(jax.random.key(0), k.name), shape, wide(leaves[k.name]).dtype)
            vectors[k.name] = drawn / length(drawn)
        return SpectralState(inner_state, vectors)

    def singular_values(matrices: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of matrices `[layers, fan_in, outputs]` the largest singular values, and the vectors after the iterations."""
        if unrolled:

            def iterate(_: int, vectors: jax.Array) -> jax.Array:
                vectors = jnp.einsum("sio,sip,sp->so", matrices, matrices, vectors)
                return vectors / (length(vectors) + 1e-6)

            vectors = jax.lax.fori_loop(0, iterations, iterate, vectors)
            return length(jnp.einsum("sio,so->si", matrices, vectors))[:, 0], vectors
        fixed = jax.lax.stop_gradient(matrices)

        def go_on(_: int, vectors: jax.Array) -> jax.Array:
            left = _normalised(jnp.einsum("sio,si->so", fixed, vectors), 0.0)
            return _normalised(jnp.einsum("sio,so->si", fixed, left), vectors)

        before = jax.lax.fori_loop(0, iterations - 1, go_on, vectors) if iterations > 1 else vectors
        left = _normalised(jnp.einsum("sio,si->so", fixed, before), 0.0)
        after = _normalised(jnp.einsum("sio,so->si", fixed, left), before)
        return jnp.einsum("sio,si,so->s", matrices, after, left), after

    def penalty(matrices: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        sigma, vectors = singular_values(matrices, vectors)
        return jnp.sum((jnp.abs(sigma) ** exponent - target) ** 2), vectors

    def of_bias(bias: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(bias**2, axis=-1) ** bias_exponent)

    def pull(params: optax.Params, state: Any) -> tuple[dict[str, jax.Array], Any]:
        leaves, pulls, vectors = dict(named_leaves(params)), {}, {}
        for k in kernels(params):
            matrices, begin = wide(k.matrices(leaves[k.name])), state.vectors[k.name]
            gradient, end = jax.grad(penalty, has_aux=True)(matrices, begin)
            pulls[k.name], vectors[k.name] = strength * k.leaf(gradient), begin if unrolled else end
            if k.bias:
                bias = wide(leaves[k.bias])
                pulls[k.bias] = strength * jax.grad(of_bias)(bias.reshape(k.stack, -1)).reshape(bias.shape)
        return pulls, state._replace(vectors=vectors)

    return add_pull(_NAME, inner, start, pull)


def _normalised(vectors: jax.Array, otherwise: jax.Array | float) -> jax.Array:
    """Vectors of length 1; `otherwise` in place of those that are 0, as they are where a layer's weights are 0."""
    size = length(vectors)
    return jnp.where(size > 1e-12, vectors / jnp.maximum(size, 1e-12), otherwise)
