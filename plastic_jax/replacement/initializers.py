"""Laws from which the incoming weights of a fresh unit are drawn."""

import dataclasses
import math
from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.units.activation import Activation, named


def gain(activation: str | Activation) -> float:
    """The gain of the Kaiming and Xavier initializers for an activation, or for the well-known one of that name.

    Raises:
        ValueError: no activation has that name.
    """
    return (named(activation) if isinstance(activation, str) else activation).gain


class UnitInitializer(Protocol):
    """Draws the incoming weights of `n` units: `(key, n, fan_in, fan_out, dtype) -> [n, fan_in]`, C order."""

    def __call__(self, key: jax.Array, n: int, fan_in: int, fan_out: int, dtype: jnp.dtype) -> jax.Array: ...


InitializerName = Literal["kaiming_uniform", "kaiming_normal", "lecun_uniform", "xavier_uniform", "torch_default"]
INITIALIZERS: tuple[str, ...] = get_args(InitializerName)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A published initializer, by its name.

    | name | weights |
    |---|---|
    | `kaiming_uniform` | `U(-b, b)`, `b = gain sqrt(3 / fan_in)` |
    | `kaiming_normal` | `N(0, s^2)`, `s = gain sqrt(1 / fan_in)` |
    | `lecun_uniform` | `b = sqrt(3 / fan_in)` |
    | `xavier_uniform` | `b = gain sqrt(6 / (fan_in + fan_out))` |
    | `torch_default` | `b = sqrt(1 / fan_in)` |

    Complex weights have real and imaginary parts of that law, each divided by `sqrt(2)`: `E |w|^2` is the same.

    With `linspace=True` every unit gets the row `linspace(-b, b, fan_in)` (`b` the bound or the standard
    deviation) instead of a draw: the deterministic rule of recorded traces.

    Raises:
        ValueError: the name is not one of those above.
    """

    name: str = "kaiming_uniform"
    gain: float = 1.0
    linspace: bool = False

    def __post_init__(self) -> None:
        if self.name not in INITIALIZERS:
            raise ValueError(f"initializer: unknown name '{self.name}'; allowed: {', '.join(INITIALIZERS)}")

    def scale(self, fan_in: int, fan_out: int) -> float:
        """The bound of a uniform distribution, the standard deviation of a normal one."""
        return {
            "kaiming_uniform": self.gain * math.sqrt(3.0 / fan_in),
            "kaiming_normal": self.gain * math.sqrt(1.0 / fan_in),
            "lecun_uniform": math.sqrt(3.0 / fan_in),
            "xavier_uniform": self.gain * math.sqrt(6.0 / (fan_in + fan_out)),
            "torch_default": math.sqrt(1.0 / fan_in),
        }[self.name]

    def __call__(self, key: jax.Array, n: int, fan_in: int, fan_out: int, dtype: jnp.dtype) -> jax.Array:
        b = self.scale(fan_in, fan_out)
        if self.linspace:
            return jnp.broadcast_to(jnp.asarray(np.linspace(-b, b, fan_in), dtype), (n, fan_in))
        if jnp.issubdtype(dtype, jnp.complexfloating):
            keys, part = jax.random.split(key), jnp.finfo(dtype).dtype
            real, imaginary = (self(each, n, fan_in, fan_out, part) for each in keys)
            return jax.lax.complex(real, imaginary) / math.sqrt(2)
        if self.name == "kaiming_normal":
            return b * jax.random.normal(key, (n, fan_in), dtype)
        return jax.random.uniform(key, (n, fan_in), dtype, -b, b)


def unit_initializer(initializer: str | UnitInitializer, activation: str | Activation) -> UnitInitializer:
    """The initializer itself, or the one of that name with the activation's gain."""
    return Initializer(initializer, gain(activation)) if isinstance(initializer, str) else initializer
