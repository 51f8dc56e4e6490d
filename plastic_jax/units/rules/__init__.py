"""What each operation does to channels and parameters: `rule(walk, eqn, values, frame) -> values`, by its name."""

from plastic_jax.units.rules import contractions, elementwise, movement, reductions
from plastic_jax.units.rules.loops import LOOPS

__all__ = ["LOOPS", "RULES"]

RULES = elementwise.RULES | contractions.RULES | reductions.RULES | movement.RULES
