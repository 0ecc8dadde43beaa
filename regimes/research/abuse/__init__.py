"""Abuse: malformed inputs and kills, counted; see ``python -m regimes.research abuse --help``."""
