"""Random pruning, the baseline for other pruners."""

from __future__ import annotations

import torch
from torch import Tensor

from regimes.pruners.prune import Candidate


def random(candidate: Candidate) -> dict[str, Tensor]:
    """Return a uniform random score for every prunable weight; with equal generators, masks are nested over density."""
    return {
        name: torch.rand(weight.shape, generator=candidate.generator, dtype=torch.float64)
        for name, weight in candidate.weights.items()
    }
