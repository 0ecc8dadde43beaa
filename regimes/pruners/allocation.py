"""Allocations: number of weights each layer keeps, such that the whole network has exactly the requested density."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """Return counts for the same density in every layer, independent of the scores.

    Counts are rounded so that the total is exactly ``keep`` (largest remainders first). No layer is left empty if
    ``keep`` is at least the number of layers.

    Args:
        scores: one tensor of scores per layer; only their sizes are used.
        keep: number of weights kept in the whole network.

    Returns:
        {layer: number of weights kept}; likewise for the other allocations.
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
    """Return the counts of the ``keep`` highest scores of the whole network; ties go to the earlier layer.

    A layer may be left empty, a known weakness of global thresholds at low density.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    layer = torch.cat([torch.full((score.numel(),), i) for i, score in enumerate(scores.values())])
    best = torch.argsort(flat, descending=True, stable=True)[:keep]
    counts = torch.bincount(layer[best], minlength=len(scores))
    return {name: int(count) for name, count in zip(scores, counts, strict=True)}


def erk(scores: dict[str, Tensor], keep: int) -> dict[str, int]:
    """Return Erdos-Renyi-Kernel counts (ERK, Evci et al. 2020, arXiv 1911.11134).

    Layers with few channels and small kernels stay denser: the density of a layer is proportional to
    ``(in + out + kernel sides) / (in out kernel area)``, at most 1; the excess of full layers goes to the others.
    Counts are rounded so that the total is exactly ``keep``.
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
    """Return counts by layer-adaptive magnitude (LAMP, Lee et al. 2021, arXiv 2010.07611).

    Each score is rescaled within its layer, ``lamp_i = s_i^2 / sum_{j: s_j >= s_i} s_j^2``, and the ``keep`` highest of
    the whole network are counted. The largest score of every layer becomes 1, so no layer is left empty if ``keep`` is
    at least the number of layers.
    """
    shares = {}
    for name, score in scores.items():
        flat = score.flatten().double()
        order = torch.argsort(flat, descending=True, stable=True)
        # Scores are shifted to be non-negative; minus infinity is excluded.
        least = min(0.0, float(flat[flat.isfinite()].min())) if flat.isfinite().any() else 0.0
        squares = torch.where(flat[order].isfinite(), flat[order] - least, 0.0).square()
        left = squares.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        share = torch.empty_like(flat)
        share[order] = squares / left
        shares[name] = torch.where(flat.isfinite(), share, -torch.inf)
    return global_allocation(shares, keep)


def _rounded(exact: dict[str, float], sizes: dict[str, int], keep: int) -> dict[str, int]:
    """Round ``exact`` to counts that add up to ``keep``: largest remainders first, none above its layer's size."""
    counts = {name: min(sizes[name], int(value)) for name, value in exact.items()}
    missing = keep - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    while missing:
        for name in by_remainder:
            if missing and counts[name] < sizes[name]:
                counts[name] += 1
                missing -= 1
    return counts
