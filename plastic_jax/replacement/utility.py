"""How useful is a unit: one small pure function per measure.

Measures are instantaneous; continual backprop keeps their running average, corrected for the unit's age.
`|w_out|` and `|w_in|` are *means* over the unit's outgoing and incoming weights, biases left out (the paper writes
sums; the ranking within a layer is the same).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

UtilityName = Literal[
    "weight",
    "contribution",
    "adaptation",
    "zero_contribution",
    "adaptable_contribution",
    "feature_by_input",
    "first_order",
    "recursive",
    "recursive_adaptable",
    "lifetime_contribution",
    "most_useful_first",
    "random",
]
"""The names of `UTILITIES`."""


class UnitStats(NamedTuple):
    """What a measure may look at; arrays are `[width, copies]`.

    The last three are there for a `Utility` that says that it `needs` them, else `None`.

    Attributes:
        incoming_magnitude: mean |w| of the incoming kernels, `[width, 1]`.
        outgoing_magnitude: mean |w| of the outgoing kernels.
        mean_absolute: batch mean of |h|.
        mean_absolute_centred: batch mean of |h - f|, `f` the running mean of h corrected for age.
        key: a typed key, fresh for every step and group.
        lifetime_absolute: sum of (1 - eta) E|h| over all steps, without decay and not reset at replacement.
        outgoing_gradient: sum of w g over the outgoing kernels, `g` the gradients handed to `update` and `w` the
            weights that they were taken at, `[width, 1]`; see `plastic_jax.replacement.propagation.outgoing_gradient`.
        worth: what the unit's readers are worth, by its share in them, `[width, 1]`; see
            `plastic_jax.replacement.propagation.recursive_worth`.
    """

    incoming_magnitude: jax.Array
    outgoing_magnitude: jax.Array
    mean_absolute: jax.Array
    mean_absolute_centred: jax.Array
    key: jax.Array
    lifetime_absolute: Any = None
    outgoing_gradient: Any = None
    worth: Any = None


class StatsOfMeans(UnitStats):
    """`UnitStats` where the features are `FeatureMeans`: a measure that looks at `mean_absolute_centred` is refused."""

    @property
    def mean_absolute_centred(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """ValueError: it is no function of means."""
        raise ValueError(
            "utility: it looks at E|h - f|, which cannot be had of FeatureMeans; utility='contribution' does without, "
            "and trace_units(..., means=False) gives the values"
        )


OPTIONAL_STATS = ("lifetime_absolute", "outgoing_gradient", "worth")


@dataclasses.dataclass(frozen=True)
class Utility:
    """A measure of usefulness, lowest first to go.

    Attributes:
        measure: `UnitStats -> [width, copies]`.
        averaged: whether units are ranked by the running average; if not, by the measure at the step of choosing.
        needs: which of the optional statistics the measure looks at: "lifetime_absolute", "outgoing_gradient", "worth".

    Raises:
        ValueError: `needs` is a string, or names another statistic.
    """

    measure: Callable[[UnitStats], jax.Array]
    averaged: bool = True
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.needs, str):
            raise ValueError(f"Utility: needs must be a tuple: ('{self.needs}',)")
        for name in self.needs:
            if name not in OPTIONAL_STATS:
                raise ValueError(f"Utility: needs names '{name}'; allowed: {', '.join(OPTIONAL_STATS)}")

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


def lifetime_contribution(stats: UnitStats) -> jax.Array:
    """`|w_out| s`, s the sum of (1 - eta) E|h| over all steps: the published residual networks' contribution.

    The published code means a running average but leaves out its decay, and a new unit inherits its forerunner's sum.
    """
    return stats.outgoing_magnitude * stats.lifetime_absolute


def first_order(stats: UnitStats) -> jax.Array:
    """`|sum_j w_ij g_ij|`, which is `|E[h_i dl/dh_i]|`: the change of the loss, to first order, without the unit

    `l` is the loss of one example; `h_i dl/dh_i` is summed over positions, and `w_ij g_ij` over the outgoing kernels.
    As readers see the product `h_i w_ij` only, a derivative with respect to the activation is not needed. It is exact
    where all readers of the unit are among its outgoing kernels. Source: Molchanov et al., "Pruning convolutional
    neural networks for resource efficient inference", ICLR 2017, equation 8.
    """
    return jnp.abs(stats.outgoing_gradient)


def recursive(stats: UnitStats) -> jax.Array:
    """`R_i = sum_j R_j a_i |w_ij| / sum_k a_k |w_kj|`, `a = E|h - f|`: a unit is worth what its readers are worth

    Outputs are worth 1 each, and every reader's worth is shared out among what it reads. In distinction to the
    measures above a unit that feeds only useless units is useless, however large its weights.
    """
    return stats.worth


def recursive_adaptable(stats: UnitStats) -> jax.Array:
    """`R_i / |w_in|`: `recursive`, in favour of units that learn fast"""
    return stats.worth / stats.incoming_magnitude


UTILITIES: dict[str, Utility] = {
    "weight": Utility(weight),
    "contribution": Utility(contribution),
    "adaptation": Utility(adaptation),
    "zero_contribution": Utility(zero_contribution),
    "adaptable_contribution": Utility(adaptable_contribution),
    "feature_by_input": Utility(feature_by_input),
    "first_order": Utility(first_order, needs=("outgoing_gradient",)),
    "recursive": Utility(recursive, needs=("worth",)),
    "recursive_adaptable": Utility(recursive_adaptable, needs=("worth",)),
    "lifetime_contribution": Utility(lifetime_contribution, averaged=False, needs=("lifetime_absolute",)),
    "most_useful_first": Utility(most_useful_first),
    "random": Utility(random, averaged=False),
}


def unit_utility(utility: str | Utility) -> Utility:
    """The measure itself, or the one of that name.

    Raises:
        ValueError: no measure has that name, or it is no name at all.
    """
    if isinstance(utility, Utility):
        return utility
    if not isinstance(utility, str):
        raise ValueError(
            f"utility: {utility!r} is no name and no Utility; wrap a function as Utility(function); names: "
            f"{', '.join(sorted(UTILITIES))}"
        )
    if utility not in UTILITIES:
        raise ValueError(f"utility: unknown '{utility}'; allowed: {', '.join(sorted(UTILITIES))}")
    return UTILITIES[utility]
