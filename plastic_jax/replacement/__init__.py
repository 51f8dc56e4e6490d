"""Replacing units, shared by all methods that do: which units, how many, fresh weights, edits of updates and state."""
