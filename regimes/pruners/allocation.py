"""How many weights each layer keeps, so that the whole network keeps exactly the density asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """The same density in every layer, whatever the scores.

    Each layer's share is rounded so that the total is exactly ``keep`` (largest remainders first) and, while there are
    as many weights to keep as layers, no layer is left empty.

    Args:
        scores: one tensor of scores per layer; only the sizes matter here.
        keep: weights kept in the whole network.
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    total = sum(sizes.values())
    counts = {name: keep * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(keep * sizes[name] % total), name))
    for name in by_remainder[: keep - sum(counts.values())]:
        counts[name] += 1
    for name in [each for each in counts if counts[each] == 0]:
        donor = max(counts, key=lambda each: (counts[each], each))
        if counts[donor] > 1:
            counts[donor] -= 1
            counts[name] += 1
    return counts


def everywhere(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """The best ``keep`` weights of the whole network, wherever they are; ties go to the earlier layer.

    A layer may end empty: that is the known weakness of a global threshold at low density, and it is not hidden here.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    layer = torch.cat([torch.full((score.numel(),), i) for i, score in enumerate(scores.values())])
    best = torch.argsort(flat, descending=True, stable=True)[:keep]
    counts = torch.bincount(layer[best], minlength=len(scores))
    return {name: int(count) for name, count in zip(scores, counts, strict=True)}
