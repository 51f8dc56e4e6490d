"""ReGraMa: at regular intervals, units through which little gradient flows start afresh."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_params, check_update
from plastic_jax.replacement.dormant import DormantState, recycle_dormant_units
from plastic_jax.replacement.initializers import InitializerName, UnitInitializer
from plastic_jax.replacement.statistics import incoming_magnitude, mean_absolute
from plastic_jax.signature import Range, method, static_args
from plastic_jax.units.graph import UnitGraph, UnitGroup

__all__ = ["REGRAMA_STATIC_ARGS", "RegramaState", "regrama", "weight_gradients"]

_NAME = "regrama"

RegramaState = DormantState
"""State of ReGraMa; `activity` is the running average of the signal."""


@method("feature_gradients")
def regrama(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    signal: Literal["feature_gradient", "weight_gradient"] = "feature_gradient",
    threshold: Annotated[float | jax.Array, Range(0)] = 0.01,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 1000,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.0,
    initializer: InitializerName | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
    max_replacements: Annotated[int | None, Range(1)] = None,
    reset_state: bool = True,
    axis_name: str | None = None,
    log_size: Annotated[int, Range(0)] = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Every `period` steps, replaces the units whose gradient is much smaller than the mean of their group.

        s_i = g_i / mean_k g_k,   inactive: s_i <= threshold
        feature_gradient:  g_i = E|dL/dh_i|              weight_gradient:  g_i = mean_j |dL/dw_ij|

    with the value `h` of a unit and its incoming weights `w`; `E` is the mean over the batch, all positions and uses,
    and with `decay_rate` also over the steps before. An inactive unit gets incoming weights from `initializer`, bias 0,
    outgoing weights 0, and the inner optimizer's statistics of these weights as `inner.init` has them.

    The two signals see different units: `dL/dh` is that of the readers, and is not 0 for a ReLU unit that is silent
    but read; the gradient of its weights is. The first is the paper's definition, the second what a public
    implementation measures.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, regrama, trace_units
        >>> network, x = MLP(widths=(8,), outputs=1), jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[3].set(0.0)  # nobody reads unit 3
        >>> units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
        >>> tx = regrama(optax.sgd(0.1), units, threshold=0.0, period=1, key=jax.random.key(1))
        >>> loss = lambda output: jnp.mean(output**2)
        >>> (_, features), (grads, own) = units.value_and_grad(loss, feature_gradients=True)(params, x)
        >>> updates, state = tx.update(grads, tx.init(params), params, features=features, feature_gradients=own)
        >>> state.age["Dense_0"].tolist()  # 0: new
        [1, 1, 1, 0, 1, 1, 1, 1]

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        signal: whose gradient is measured: the unit's value, or its incoming weights.
        threshold: share of the group's mean up to which a unit is inactive; at least 0.
        period: steps between two resets, at least 1; the first is at step `period`.
        decay_rate: `eta` of the running average of the signal, in [0, 1); 0: the batch of this step alone.
        initializer: a name, see `plastic_jax.Initializer`, or a `UnitInitializer`.
        key: typed random key.
        max_replacements: bound on units replaced per group and reset, smallest first; `None`: all that are inactive.
        reset_state: whether the inner optimizer's statistics of a replaced unit start afresh.
        axis_name: name of a mapped axis (devices, each with an equal part of the batch) over which the signal is
            averaged, so that the same units go on every device; the gradients come averaged already.
        log_size: replacements kept in the state, see `plastic_jax.replacement.replacement_log`; 0 keeps none.

    `update` needs `params` and, for the first signal, the extra argument `feature_gradients`, by group name
    (`UnitGraph.value_and_grad`); the learners give it with `feature_gradients=True`. Others are handed to `inner`.

    For `optax.inject_hyperparams`, which must leave the arguments that are no numbers as they are:
    `optax.inject_hyperparams(regrama, REGRAMA_STATIC_ARGS)(inner=inner, units=units, ...)`.

    Between resets the updates are those of `inner`, bit for bit.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Liu, Wu, Obando-Ceron, Castro, Courville and Pan, "Measure gradients, not activations! Enhancing neuronal
        activity in deep reinforcement learning", NeurIPS 2025.

    Differs from the implementation in LucMc/continual-learning: that is `signal="weight_gradient", threshold=0.25`
    with `optax.adam`, and `reset_state=False` with momentum. It resets at steps `period + 1`, `2 period + 1`, ...
    """

    def of_features(gradients: Any, params: Any, extra: Mapping[str, Any]) -> dict[str, jax.Array]:
        del gradients
        found: Any = extra.get("feature_gradients")
        check_update(_NAME, units, params, found, "feature_gradients")
        return {g.name: jnp.mean(mean_absolute(g, found[g.name], axis_name), axis=1) for g in units.groups}

    def of_weights(gradients: Any, params: Any, extra: Mapping[str, Any]) -> dict[str, jax.Array]:
        del extra
        check_params(_NAME, params)
        return {g.name: weight_gradients(g, gradients) for g in units.groups}

    return recycle_dormant_units(
        _NAME,
        inner,
        units,
        of_features if signal == "feature_gradient" else of_weights,
        threshold=threshold,
        period=period,
        decay_rate=decay_rate,
        initializer=initializer,
        key=key,
        max_replacements=max_replacements,
        reset_state=reset_state,
        log_size=log_size,
    )


REGRAMA_STATIC_ARGS = static_args(regrama)
"""Arguments of `regrama` that are no numbers: `static_args` of `optax.inject_hyperparams`."""


def weight_gradients(group: UnitGroup, gradients: Any) -> jax.Array:
    """Mean |dL/dw| over each unit's incoming kernels, `[width]`; of the mean gradient over the batch."""
    return incoming_magnitude(group, gradients)[:, 0]
