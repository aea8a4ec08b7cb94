"""Comparisons and ablations whose JSON a chapter plots, and what trains the judge of digits."""
