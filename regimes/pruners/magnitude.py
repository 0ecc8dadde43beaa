"""Keep the largest weights."""

from __future__ import annotations

from torch import Tensor

from regimes.pruners.prune import Candidate


def magnitude(candidate: Candidate) -> dict[str, Tensor]:
    """Score every prunable weight by its absolute value."""
    return {name: weight.detach().abs() for name, weight in candidate.weights.items()}
