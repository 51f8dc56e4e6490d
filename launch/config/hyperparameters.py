"""Settings of a method: numbers, which may differ from lane to lane, and options, which decide what is compiled."""

import dataclasses
import math
import struct
from typing import Any

from launch.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """A number in `[low, high]`, with `below` in `[low, high)`; traced, so that all values run the same program."""

    default: float
    low: float
    high: float
    meaning: str
    integer: bool = False
    below: bool = False

    @property
    def allowed(self) -> str:
        """The numbers allowed, in words."""
        kind = "whole number" if self.integer else "number"
        low = f" from {self.low:g}" if self.low > -math.inf else ""
        high = f" to {'below ' * self.below}{self.high:.10g}" if self.high < math.inf else " on" * bool(low)
        return kind + low + high

    def checked(self, where: str, value: Any) -> float:
        """The value as a number.

        Raises:
            InputError: it is none, or not in the range; `where` says whose it is.
        """
        if isinstance(value, int) and abs(value) > 1e300:
            raise InputError(f"{where}: the number is not a {self.allowed}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{where}: '{value}' is not a {self.allowed}")
        # It is computed with in float32, where 0.99999999 is 1.
        beyond = value > self.high or (self.below and _float32(value) >= self.high)
        if value < self.low or beyond or (self.integer and value != int(value)):
            raise InputError(f"{where}: {value:g} is not a {self.allowed}")
        return float(value)


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting that decides what is compiled: one of `allowed`, or any value of `kind` where nothing is listed.

    Attributes:
        default: the value where none is given.
        meaning: a sentence.
        allowed: every value there is; empty where `kind` says it.
        kind: the type of the value; `str` is any text.
        low: the least whole number allowed, with `kind=int`.
        high: the largest.
        optional: whether it may be `None`.
    """

    default: Any
    meaning: str
    allowed: tuple[Any, ...] = ()
    kind: type = str
    low: int = 1
    high: float = math.inf
    optional: bool = False

    @property
    def values(self) -> str:
        """The values allowed, in words."""
        if self.allowed:
            return ", ".join(map(str, self.allowed))
        end = "on" if self.high == math.inf else f"to {self.high:g}"
        number = "a positive whole number" if (self.low, end) == (1, "on") else f"a whole number from {self.low} {end}"
        return (number if self.kind is int else "text") + ", or None" * self.optional

    def checked(self, where: str, value: Any) -> Any:
        """The value.

        Raises:
            InputError: it is not allowed; `where` says whose it is.
        """
        if value is None and self.optional:
            return value
        if self.allowed:
            if value not in self.allowed or isinstance(value, bool) != isinstance(self.default, bool):
                raise unknown(where, str(value), map(str, self.allowed))
            return value
        fits = isinstance(value, self.kind) and not isinstance(value, bool)
        if not fits or (self.kind is int and not self.low <= value <= self.high):
            raise InputError(f"{where}: '{value}' is not {self.values}")
        return value


PPO_NUMBERS = {
    "discount": Hyperparameter(0.99, 0, 1, "what a reward is worth a step later, as a share of what it is now"),
    "gae_lambda": Hyperparameter(0.95, 0, 1, "of the advantages: 0 is one step ahead, 1 the whole return"),
    "clip_range": Hyperparameter(0.2, 0, 100, "how far from 1 the ratio of the policies counts"),
    "value_coefficient": Hyperparameter(1.0, 0, 1e6, "weight of the value function's squared error in the loss"),
    "entropy_coefficient": Hyperparameter(0.0, 0, 1e6, "weight of the policy's entropy (nats) in the loss"),
}
"""Numbers of PPO, which every method has on environments that are acted on."""


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0] if abs(value) < 3e38 else math.inf
