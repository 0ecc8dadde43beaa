"""Sweeps that spend their cells where the map is uncertain, and stop when it is known."""

ROUNDS = "adaptive.json"  # in a run's folder: the rounds, so that a run that was stopped goes on with the same cells
