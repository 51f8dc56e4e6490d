"""Streams that never end and keep changing: what the learner is shown."""
