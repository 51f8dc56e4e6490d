"""The nonlinearity of a layer: its name, the gain of a fresh unit, and what its values can mean."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

erf = np.vectorize(math.erf, otypes=[np.float64])
_SELU = 1.0507009873554805, 1.6732632423543772
_negative = functools.partial(np.minimum, 0.0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0.0)


RATIONAL_NUMERATOR = (
    0.03355815890668059,
    0.5049940948281444,
    1.6534163637528791,
    2.0099850112036783,
    0.9318900490866645,
    0.1524224383838956,
)
RATIONAL_DENOMINATOR = (-5.748546580824416e-05, 3.9802477853818083, -4.2529808614931225e-05, 0.3018338162009311)
"""With what a learned rational function begins: coefficients of ascending powers, from 0 and from 1 on, of the fit of
leaky ReLU that Delfosse et al. publish (`rational_activations`, version B, degrees 5 and 4)."""


def _rational(x: np.ndarray) -> np.ndarray:
    p, q = np.polyval(RATIONAL_NUMERATOR[::-1], x), x * np.polyval(RATIONAL_DENOMINATOR[::-1], x)
    return p / (1 + np.abs(q))


_KNOWN: dict[str, Function] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(_negative(x))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(_negative(x))),
    "selu": lambda x: _SELU[0] * np.where(x > 0, x, _SELU[1] * np.expm1(_negative(x))),
    "swish": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2.0))),
    "softplus": _softplus,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "hard_tanh": lambda x: np.clip(x, -1.0, 1.0),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "log_sigmoid": lambda x: -_softplus(-x),
    "squared_relu": lambda x: np.maximum(x, 0.0) ** 2,
    "abs": np.abs,
    "square": np.square,
    "exp": np.exp,
    "sin": np.sin,
    "cos": np.cos,
    "smooth_leaky_relu": lambda x: 0.1 * x + 0.9 * x * _sigmoid(x * (5 / 3)),
    "rational": _rational,
}
_SEVERAL: dict[str, tuple[Function, ...]] = {
    "crelu": (_KNOWN["relu"], lambda x: _KNOWN["relu"](-x)),
    "deep_fourier": (np.sin, np.cos),
}
"""Activations by which a unit has several features."""
LEARNED: Mapping[str, Function] = {"rational": _rational}
"""Functions with parameters, by the name of the jitted function that computes them, as they are at first."""
_ALIASES = {"silu": "swish", "hard_silu": "hard_swish", "logistic": "sigmoid", "identity": "linear"}
_PUBLISHED = {"linear": 1.0, "sigmoid": 1.0, "selu": 1.0, "tanh": 5.0 / 3.0}
_PUBLISHED |= {"leaky_relu": math.sqrt(2.0 / (1.0 + 0.01**2))} | dict.fromkeys(("relu", "elu", "swish"), math.sqrt(2.0))


@dataclasses.dataclass(frozen=True)
class Activation:
    """The function `f` from a unit's pre-activation to the value that its readers see.

    Attributes:
        name: of a well-known function with the same values, else of what it is made of; `"gated"` where the value
            depends on several pre-activations (gated linear units, LSTM and GRU, the maximum of two layers).
        gain: factor of the Kaiming and Xavier initializers. The published constants for linear, sigmoid and selu (1),
            tanh (5/3), relu, elu, swish (sqrt 2) and leaky relu (sqrt(2 / (1 + slope^2))); for every other function
            `1 / sqrt(E f(z)^2)`, `z ~ N(0, 1)`, which keeps the variance of pre-activations from layer to layer (He et
            al. 2015); of a unit that is read as several functions (CReLU), with the mean over these. 1 for gated
            units, as they are commonly initialised, and where that moment is 0 or not finite.
        limits: `f(-inf), f(inf)`, where both are finite and differ; else `None`.
        off: whether `f` is 0 on an interval, so that a unit can be dead.
        positive: whether `f > 0` (almost) everywhere.
        odd: whether `f(-x) = -f(x)`.
    """

    name: str
    gain: float = 1.0
    limits: tuple[float, float] | None = None
    off: bool = True
    positive: bool = False
    odd: bool = False

    def __str__(self) -> str:
        return self.name

    def saturated(self, values: Any, level: float = 0.9) -> Any:
        """Whether values (of NumPy or JAX) are nearer to a limit than `(1 - level) / 2` of the distance between both.

        Raises:
            ValueError: the function has no two limits.
        """
        if self.limits is None:
            raise ValueError(f"activation '{self.name}' has no two limits: it does not saturate")
        low, high = self.limits
        return abs(2 * values - (high + low)) > level * abs(high - low)


GATED = Activation("gated")


@functools.cache
def named(name: str) -> Activation:
    """The well-known activation of that name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    known = _ALIASES.get(name, name)
    if known == "gated":
        return GATED
    if known in _SEVERAL:
        return _described(known, _SEVERAL[known])
    if known not in _KNOWN:
        allowed = ", ".join(sorted([*_KNOWN, *_SEVERAL, *_ALIASES, "gated"]))
        raise ValueError(f"unknown activation '{name}'; allowed: {allowed}")
    return _described(known, (_KNOWN[known],))


def describe(functions: Sequence[Function], names: Collection[str] = ()) -> Activation:
    """The activation of a unit that is read as these elementwise functions (mostly one).

    Args:
        functions: from float64 `[n]` to float64 `[n]`.
        names: of the operations that they are made of; of several known functions with the same values the one that
            is among them is meant.
    """
    for name, several in _SEVERAL.items():
        if _same_functions(functions, several):
            return named(name)
    known = dict.fromkeys(_recognised(_values(f), names) for f in functions)
    if None in known:
        return _described("+".join(names) or "own function", functions, {})
    return _described("+".join(filter(None, known)), functions)


def _described(
    name: str, functions: Sequence[Function], published: Mapping[str, float] = MappingProxyType(_PUBLISHED)
) -> Activation:
    values = [_values(f) for f in functions]
    limits, off, positive, odd = zip(*(_facts(v) for v in values), strict=True)
    return Activation(
        name,
        gain=published.get(name, _gain(values)),
        limits=limits[0] if len(set(limits)) == 1 else None,
        off=any(off),
        positive=all(positive),
        odd=all(odd),
    )


# Gauss-Legendre quadrature on narrow panels: kinks at multiples of 1/16 (relu, hard tanh) do not cost precision, which
# they do in Gauss-Hermite quadrature.
_PANELS = np.arange(-12, 12, 1 / 16)
_ABSCISSAE, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_NODES = (_PANELS[:, None] + (_ABSCISSAE + 1) / 32).ravel()
_DENSITY = np.tile(_WEIGHTS / 32, len(_PANELS)) * np.exp(-(_NODES**2) / 2) / math.sqrt(2 * math.pi)
_FAR = np.array([100.0, 300.0, 700.0])
_CENTRE = np.abs(_NODES) < 4


def _values(function: Function) -> np.ndarray:
    """At the nodes, far below, far above."""
    with np.errstate(all="ignore"):
        points = np.concatenate([_NODES, -_FAR, _FAR])
        return np.broadcast_to(np.asarray(function(points), np.float64), points.shape)


@functools.cache
def _known_values() -> dict[str, np.ndarray]:
    return {name: _values(f)[: len(_NODES)] for name, f in _KNOWN.items()}


def _recognised(values: np.ndarray, names: Collection[str]) -> str | None:
    """The known function with these values, perhaps of `-x`; names of operations decide between equal ones."""
    ours = values[: len(_NODES)]
    same = [n for n, theirs in _known_values().items() if _close(ours, theirs) or _close(ours[::-1], theirs)]
    return next((name for name in same if name in names), next(iter(same), None))


def _same_functions(ours: Sequence[Function], theirs: Sequence[Function]) -> bool:
    """Whether each of ours is one of theirs, and the other way round."""
    if len(ours) < len(theirs):
        return False
    n = len(_NODES)
    close = np.array([[_close(_values(f)[:n], _values(g)[:n]) for g in theirs] for f in ours])
    return bool(close.any(0).all() and close.any(1).all())


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether they are equal up to constants in bfloat16, or approximations such as that of gelu by tanh."""
    return np.allclose(a, b, rtol=5e-3, atol=5e-3)


def _gain(values: Sequence[np.ndarray]) -> float:
    with np.errstate(all="ignore"):
        moment = np.mean([np.sum(_DENSITY * v[: len(_NODES)] ** 2) for v in values])
    return float(1 / math.sqrt(moment)) if np.isfinite(moment) and moment > 0 else 1.0


def _facts(values: np.ndarray) -> tuple[tuple[float, float] | None, bool, bool, bool]:
    """Limits, whether 0 on an interval, whether positive, whether odd."""
    near, (below, above) = values[: len(_NODES)], values[len(_NODES) :].reshape(2, -1)
    centre = near[_CENTRE]
    off = np.any((centre[1:] == 0) & (centre[:-1] == 0))
    odd = np.allclose(centre, -centre[::-1], rtol=1e-9, atol=1e-12)
    low, high = (float((700 * v[2] - 300 * v[1]) / 400) for v in (below, above))  # exact for a / x + limit
    settled = np.isfinite(values).all() and max(np.ptp(below), np.ptp(above)) < 0.01 * np.ptp(near)
    limits = (low, high) if settled and abs(high - low) > 0.01 * np.ptp(near) else None
    return limits, bool(off), bool(np.all(centre > 0)), bool(odd)


RELU = named("relu")
