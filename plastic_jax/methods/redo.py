"""ReDo: at regular intervals, units that have fallen silent start afresh."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from plastic_jax.checks import check_update
from plastic_jax.replacement.dormant import DormantState, recycle_dormant_units, relative_activity
from plastic_jax.replacement.initializers import InitializerName, UnitInitializer
from plastic_jax.replacement.statistics import mean_absolute
from plastic_jax.signature import Range, method, static_args
from plastic_jax.units.graph import UnitGraph, UnitGroup

__all__ = ["REDO_STATIC_ARGS", "RedoState", "redo", "relative_activity", "unit_activity"]

_NAME = "redo"


RedoState = DormantState
"""State of ReDo."""


@method("features")
def redo(
    inner: optax.GradientTransformation,
    units: UnitGraph,
    *,
    threshold: Annotated[float | jax.Array, Range(0)] = 0.025,
    period: Annotated[int | jax.Array, Range(1, 2**31 - 1)] = 1000,
    decay_rate: Annotated[float | jax.Array, Range(0, 1, below=True)] = 0.0,
    initializer: InitializerName | UnitInitializer = "kaiming_uniform",
    key: jax.Array,
    max_replacements: Annotated[int | None, Range(1)] = None,
    reset_state: bool = True,
    axis_name: str | None = None,
    log_size: Annotated[int, Range(0)] = 0,
    bias_initializer: Literal["zero"] | InitializerName | UnitInitializer = "zero",
    zero_last: bool = False,
    reset_bias_state: bool = True,
    reset_counts: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Every `period` steps, replaces the units that are dormant: much less active than the mean of their group.

        s_i = E|h_i| / mean_k E|h_k|,   dormant: s_i <= threshold

    with the features `h` of the forward pass that gave the gradients; `E` is the mean over the batch and all positions,
    and with `decay_rate` also over the steps before. One batch must be large enough to tell a silent unit from one that
    rests: at batch 1, half of all ReLU units are silent at any step, and a decay rate is needed.
    A dormant unit gets incoming weights from `initializer`, bias 0, outgoing weights 0, and the inner optimizer's
    statistics of these weights as `inner.init` has them. It is the outermost transformation.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from plastic_jax import MLP, trace_units
        >>> from plastic_jax.methods.redo import redo
        >>> network, x = MLP(widths=(8,), outputs=1), jnp.linspace(-1, 1, 16)[:, None]
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[3].set(-100.0)  # silent for every input
        >>> units = trace_units(lambda params, x: network.apply({"params": params}, x), params, x)
        >>> tx = redo(optax.sgd(0.1), units, period=1, key=jax.random.key(1))
        >>> features = units.apply(params, x)[1]
        >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, features=features)
        >>> optax.apply_updates(params, updates)["Dense_0"]["bias"].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    Args:
        inner: the optimizer that does the learning.
        units: the unit graph of the model.
        threshold: share of the group's mean activity up to which a unit is dormant; at least 0.
        period: steps between two resets, at least 1; the first is at step `period`.
        decay_rate: `eta` of the running average of E|h|, in [0, 1); 0: the batch of this step alone, as published.
        initializer: a name, see `plastic_jax.Initializer`, or a `UnitInitializer`.
        key: typed random key.
        max_replacements: bound on units replaced per group and reset, least active first; `None`: all that are dormant.
        reset_state: whether the inner optimizer's statistics of a replaced unit start afresh.
        axis_name: name of a mapped axis (devices, each with an equal part of the batch) over which the means over the
            batch are averaged, so that the same units go on every device; the gradients come averaged already.
        log_size: replacements kept in the state, see `plastic_jax.replacement.replacement_log`; 0 keeps none.
        bias_initializer: what a fresh bias is: 0, or one weight of this law.
        zero_last: whether a weight that leaves one replaced unit and enters another is 0, and not redrawn.
        reset_bias_state: whether the inner optimizer's statistics of fresh biases start afresh with `reset_state`.
        reset_counts: whether, at every period and whether or not a unit goes, the inner optimizer's step counts of all
            weights that enter or leave units begin again (`plastic_jax.adam`; a count that all share goes on).

    `update` needs `params` and the extra argument `features`, by group name; others are handed to `inner`.

    For `optax.inject_hyperparams`, which must leave the arguments that are no numbers as they are:
    `optax.inject_hyperparams(redo, REDO_STATIC_ARGS)(inner=inner, units=units, ...)`.

    Between resets the updates are those of `inner`, bit for bit. They pass through a `cond`, for which XLA writes them
    out: 5 to 10 % of the time of a step from batch 128, but up to twice its time at batch 1.

    Raises:
        ValueError: a number is outside its range, a name is unknown, or the graph does not fit the parameters.

    References:
        Sokar, Agarwal, Castro and Evci, "The dormant neuron phenomenon in deep reinforcement learning", ICML 2023.

    Differs from the code of Dohare et al. 2024, which keeps the inner optimizer's statistics (`reset_state=False`), and
    replaces none of a group in which all units are silent; here all of them go. Two other releases are settings:
    google/dopamine (the authors') draws with `initializer="xavier_uniform", zero_last=True, reset_bias_state=False`
    under a shared step count (`optax.adam`); timoklein/redo has `bias_initializer="torch_default", reset_counts=True`.
    Both look at a batch again after the step: hand in the features of that pass.
    """

    def activity(gradients: Any, params: Any, extra: Mapping[str, Any]) -> dict[str, jax.Array]:
        del gradients
        features: Any = extra.get("features")
        check_update(_NAME, units, params, features)
        return {g.name: unit_activity(g, features[g.name], axis_name) for g in units.groups}

    return recycle_dormant_units(
        _NAME,
        inner,
        units,
        activity,
        threshold=threshold,
        period=period,
        decay_rate=decay_rate,
        initializer=initializer,
        key=key,
        max_replacements=max_replacements,
        reset_state=reset_state,
        log_size=log_size,
        bias_initializer=bias_initializer,
        zero_last=zero_last,
        reset_bias_state=reset_bias_state,
        reset_counts=reset_counts,
    )


REDO_STATIC_ARGS = static_args(redo)
"""Arguments of `redo` that are no numbers: `static_args` of `optax.inject_hyperparams`."""


def unit_activity(group: UnitGroup, feature: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean |h| of each unit over the batch and all positions, `[width]`."""
    return jnp.mean(mean_absolute(group, feature, axis_name), axis=1)
