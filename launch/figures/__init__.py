"""Figures: curves, axes, bodies."""
