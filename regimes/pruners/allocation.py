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


def global_allocation(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """The best ``keep`` weights of the whole network, wherever they are; ties go to the earlier layer.

    A layer may end empty: that is the known weakness of a global threshold at low density, and it is not hidden here.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    layer = torch.cat([torch.full((score.numel(),), i) for i, score in enumerate(scores.values())])
    best = torch.argsort(flat, descending=True, stable=True)[:keep]
    counts = torch.bincount(layer[best], minlength=len(scores))
    return {name: int(count) for name, count in zip(scores, counts, strict=True)}


def erk(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """Erdos-Renyi-Kernel: layers with few channels and small kernels stay denser (Evci et al. 2020, arXiv 1911.11134).

    A layer's density is proportional to ``(in + out + kernel sides) / (in out kernel area)``, up to 1; what a full
    layer cannot take goes to the others. Rounded so that the total is exactly ``keep``.
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    wanted = {name: float(sum(score.shape)) for name, score in scores.items()}  # density times size
    full: set[str] = set()
    while True:
        left = keep - sum(sizes[name] for name in full)
        open_ = [name for name in scores if name not in full]
        scale = left / sum(wanted[name] for name in open_) if open_ else 0.0
        over = {name for name in open_ if wanted[name] * scale > sizes[name]}
        if not over:
            break
        full |= over
    exact = {name: float(sizes[name]) if name in full else wanted[name] * scale for name in scores}
    return _rounded(exact, sizes, keep)


def lamp(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """LAMP: a global choice by each score's share of what is left in its layer (Lee et al. 2021, arXiv 2010.07611).

    With scores sorted in a layer, ``lamp_i = s_i^2 / sum_{j: s_j >= s_i} s_j^2``, and the best ``keep`` of the whole
    network stay. The largest of every layer has 1, so none ends empty while there is a weight for each.
    """
    shares = {}
    for name, score in scores.items():
        flat = score.flatten().double()
        order = torch.argsort(flat, descending=True, stable=True)
        # Scores are made positive first: only their order and their relative size count. Minus infinity is out.
        least = min(0.0, float(flat[flat.isfinite()].min())) if flat.isfinite().any() else 0.0
        squares = torch.where(flat[order].isfinite(), flat[order] - least, 0.0).square()
        left = squares.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        share = torch.empty_like(flat)
        share[order] = squares / left
        shares[name] = torch.where(flat.isfinite(), share, -torch.inf)
    return global_allocation(shares, keep)


def _rounded(exact: dict[str, float], sizes: dict[str, int], keep: int) -> dict[str, int]:
    """Whole numbers near ``exact`` that add up to ``keep``: largest remainders first, none above its layer's size."""
    counts = {name: min(sizes[name], int(value)) for name, value in exact.items()}
    missing = keep - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    while missing:
        for name in by_remainder:
            if missing and counts[name] < sizes[name]:
                counts[name] += 1
                missing -= 1
    return counts
