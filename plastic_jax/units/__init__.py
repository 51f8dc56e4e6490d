"""Which slices of which parameters enter and leave every hidden unit."""

from plastic_jax.units.activation import Activation
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup
from plastic_jax.units.passes import FeatureMeans
from plastic_jax.units.rules import register_rule
from plastic_jax.units.trace import trace_units

__all__ = ["Activation", "FeatureMeans", "Slice", "UnitGraph", "UnitGroup", "register_rule", "trace_units"]
