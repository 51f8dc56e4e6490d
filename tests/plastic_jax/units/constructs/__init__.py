"""One small model per construct, each with the unit graph that follows from its equations, written down by hand.

A feature is the value that the next contraction reads, after a nonlinearity: its units are numbered along the axis
that the reader contracts. Incoming: the columns that make it since the last contraction, with their biases and the
scales and shifts of normalisations; outgoing: the rows of all its readers.
"""

from tests.plastic_jax.units.constructs import (  # noqa: F401  each registers its models
    activations,
    attention,
    convolutions,
    dense,
    gates,
    normalisation,
    pytrees,
    recurrence,
    skips,
    weights,
)
from tests.plastic_jax.units.constructs.models import CONSTRUCTS, linen, normal

__all__ = ["CONSTRUCTS", "linen", "normal"]
