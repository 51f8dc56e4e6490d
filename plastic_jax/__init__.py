"""Keeping neural networks able to learn: continual backprop and its kin as optax transformations over pytrees."""

from plastic_jax.continual_backprop import ContinualBackpropState, continual_backprop
from plastic_jax.initializers import Law, UnitInitializer
from plastic_jax.networks import MLP
from plastic_jax.units import Slice, UnitGraph, UnitGroup, mlp_units
from plastic_jax.utility import UTILITIES, UnitStats, Utility

__all__ = [
    "MLP",
    "UTILITIES",
    "ContinualBackpropState",
    "Law",
    "Slice",
    "UnitGraph",
    "UnitGroup",
    "UnitInitializer",
    "UnitStats",
    "Utility",
    "continual_backprop",
    "mlp_units",
]
