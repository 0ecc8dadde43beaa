"""Keep weights at random: the control that any pruner has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from regimes.pruners.prune import Candidate


def random(candidate: Candidate) -> dict[str, Tensor]:
    """Score every prunable weight by a uniform random number; one generator, so masks are nested along density."""
    return {
        name: torch.rand(weight.shape, generator=candidate.generator, dtype=torch.float64)
        for name, weight in candidate.weights.items()
    }
