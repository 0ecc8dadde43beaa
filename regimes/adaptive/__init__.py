"""Sweeps that spend their cells where the map is uncertain, and stop when it is known."""
