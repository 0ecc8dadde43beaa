"""Magnitude pruning."""

from __future__ import annotations

from torch import Tensor

from regimes.pruners.prune import Candidate


def magnitude(candidate: Candidate) -> dict[str, Tensor]:
    """Return the absolute value of every prunable weight as its score."""
    return {name: weight.detach().abs() for name, weight in candidate.weights.items()}
