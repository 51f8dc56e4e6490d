"""Thin ways into the loops of Flax linen (`linen`), Flax nnx (`nnx`) and Equinox (`equinox`); import them by name."""
