"""How useful is a unit: one small pure function per measure.

Measures are instantaneous; continual backprop keeps their running average, corrected for the unit's age.
`|w_out|` and `|w_in|` are *means* over the unit's outgoing and incoming weights, biases left out (the paper writes
sums; the ranking within a layer is the same).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax


class UnitStats(NamedTuple):
    """What a measure may look at; arrays are `[width, copies]`.

    Attributes:
        incoming_magnitude: mean |w| of the incoming kernels, `[width, 1]`.
        outgoing_magnitude: mean |w| of the outgoing kernels.
        mean_absolute: batch mean of |h|.
        mean_absolute_centred: batch mean of |h - f|, `f` the running mean of h corrected for age.
        key: a typed key, fresh for every step and group.
    """

    incoming_magnitude: jax.Array
    outgoing_magnitude: jax.Array
    mean_absolute: jax.Array
    mean_absolute_centred: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Utility:
    """A measure of usefulness, lowest first to go.

    Attributes:
        measure: `UnitStats -> [width, copies]`.
        averaged: whether units are ranked by the running average; if not, by the measure at the step of choosing.
    """

    measure: Callable[[UnitStats], jax.Array]
    averaged: bool = True

    def __call__(self, stats: UnitStats) -> jax.Array:
        return self.measure(stats)


def weight(stats: UnitStats) -> jax.Array:
    """`|w_out|`"""
    return stats.outgoing_magnitude


def contribution(stats: UnitStats) -> jax.Array:
    """`|w_out| E|h|` (Dohare et al. 2024, equation 1)"""
    return stats.outgoing_magnitude * stats.mean_absolute


def adaptation(stats: UnitStats) -> jax.Array:
    """`1 / |w_in|`"""
    return 1.0 / stats.incoming_magnitude


def zero_contribution(stats: UnitStats) -> jax.Array:
    """`|w_out| E|h - f|`: the mean-corrected contribution"""
    return stats.outgoing_magnitude * stats.mean_absolute_centred


def adaptable_contribution(stats: UnitStats) -> jax.Array:
    """`|w_out| E|h - f| / |w_in|`: the overall utility of Dohare, Sutton and Mahmood 2021"""
    return stats.outgoing_magnitude * stats.mean_absolute_centred / stats.incoming_magnitude


def feature_by_input(stats: UnitStats) -> jax.Array:
    """`E|h - f| / |w_in|`"""
    return stats.mean_absolute_centred / stats.incoming_magnitude


def most_useful_first(stats: UnitStats) -> jax.Array:
    """`-|w_out| E|h - f| / |w_in|`: the control that replaces the best unit"""
    return -adaptable_contribution(stats)


def random(stats: UnitStats) -> jax.Array:
    """`U(0, 1)`, drawn when a unit is chosen: the control that chooses blindly"""
    return jax.random.uniform(stats.key, stats.mean_absolute.shape, stats.mean_absolute.dtype)


UTILITIES: dict[str, Utility] = {
    measure.__name__: Utility(measure, averaged=measure is not random)
    for measure in (
        weight,
        contribution,
        adaptation,
        zero_contribution,
        adaptable_contribution,
        feature_by_input,
        most_useful_first,
        random,
    )
}


def unit_utility(utility: str | Utility) -> Utility:
    """The measure itself, or the one of that name.

    Raises:
        ValueError: no measure has that name.
    """
    if isinstance(utility, Utility):
        return utility
    if utility not in UTILITIES:
        raise ValueError(f"utility: unknown '{utility}'; allowed: {', '.join(sorted(UTILITIES))}")
    return UTILITIES[utility]
