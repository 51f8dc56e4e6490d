"""Weight clipping: after every step, weights are cut to an interval that depends on their layer's fan-in."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastic_jax.around import after_step, projection
from plastic_jax.matrices import Layers, read_kernels
from plastic_jax.paths import named_leaves
from plastic_jax.signature import Range, method
from plastic_jax.units.graph import UnitGraph

_NAME = "weight_clipping"


class WeightClippingState(NamedTuple):
    """State of weight clipping.

    Attributes:
        inner: the inner optimizer's state.
    """

    inner: optax.OptState


@method()
def weight_clipping(
    inner: optax.GradientTransformation,
    units: UnitGraph | None = None,
    *,
    bound: Annotated[float | jax.Array, Range(0)] = 3.0,
    layers: Layers = "all",
    exclude: str = "nothing",
    axes: Mapping[str, str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clips weights and biases to an interval of half width `bound / sqrt(fan_in)` after every step.

    w <- clip(w, -bound / sqrt(fan_in), bound / sqrt(fan_in))           (w: after inner's step)

    `fan_in` is the number of weights that make one output of the layer (of a convolution, inputs times taps); a bias is
    clipped as its layer's weights are. Parameters that are neither kernels nor their biases are left alone. What is
    within its bounds gets inner's update bit for bit, and inner's state is untouched.

    Example:
        >>> params = {"kernel": jnp.array([[0.4], [0.1], [0.0], [0.0]])}
        >>> tx = weight_clipping(optax.sgd(0.1), bound=1.0)
        >>> gradient = {"kernel": jnp.array([[-9.0], [1.0], [0.0], [0.0]])}
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"][:, 0]  # at most 1 / sqrt(4)
        Array([0.5, 0. , 0. , 0. ], dtype=float32)

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph; only `layers="hidden"` needs it.
        bound: half the width of the interval in units of 1 / sqrt(fan_in), at least 0.
        layers: which layers: "all", or "hidden", those that make hidden units and so not the output layer.
        exclude: pattern of parameters that are left alone.
        axes: what the axes of kernels are, by pattern of names; see `plastic_jax.matrices`.

    `update` needs `params`.

    Raises:
        ValueError: `bound` is negative, "hidden" has no `units`, a pattern matches no parameter.

    References:
        Elsayed, Lan, Lyle and Mahmood, "Weight clipping for deep continual and reinforcement learning", RLC 2024.
    """

    def kernels(params: Any, warn: bool = False) -> Any:
        return read_kernels(_NAME, params, units, layers=layers, exclude=exclude, axes=axes, warn=warn)

    def start(params: optax.Params, inner_state: optax.OptState) -> WeightClippingState:
        kernels(params, warn=True)
        return WeightClippingState(inner_state)

    def clip(weights: optax.Params, state: Any) -> dict[str, jax.Array]:
        limits = {name: bound / k.fan_in**0.5 for k in kernels(weights) for name in (k.name, k.bias) if name}
        return {name: jnp.clip(w, -limits[name], limits[name]) for name, w in named_leaves(weights) if name in limits}

    return after_step(_NAME, inner, start, projection(clip))
