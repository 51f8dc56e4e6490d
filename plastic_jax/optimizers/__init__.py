"""Optimizers that learn inside a method."""
