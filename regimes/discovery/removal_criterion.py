"""Removal criterion: a gate is closed, and the weights behind it are too small to reopen it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regimes.discovery.prunable_graph import PrunableGraph

MAX_SHUT_PROB = 1e-2  # probability below which a gate counts as closed
CHECKS_TO_REMOVE = 3  # consecutive checks that a gate has to pass


def is_removable(theta: Tensor, effect: Tensor, norm: Tensor, pressure: Tensor, decay: float) -> Tensor:
    """Return which gates are closed and stay closed if weights and gradients continue as they are.

    With ``eta`` the bound of the loss's slope along the gate per unit of weight norm, estimated as
    ``max(0, -effect) / norm``, the equations of gate and weights are bounded by a linear system that converges to zero
    where ``s |w| + theta < s r / eta + lambda r / eta^2``, ``s = (sqrt(lambda^2 + 4 eta^2) - lambda) / (2 eta)`` (a
    sufficient condition, our derivation). A gate that harms the loss (``effect > 0``) has ``eta = 0`` and is never
    reopened.

    Args:
        theta: probabilities of the gates.
        effect: ``h``, running estimates of the loss with the gate on minus the loss with it off.
        norm: ``|w|``, norm of the weights that read the gated unit or block.
        pressure: ``r`` > 0.
        decay: ``lambda``, the weight decay.
    """
    eta = (-effect).clamp(min=0) / norm.clamp(min=1e-12)
    eta = eta.clamp(min=1e-12)
    s = ((decay**2 + 4 * eta**2).sqrt() - decay) / (2 * eta)
    held = s * norm + theta < s * pressure / eta + decay * pressure / eta**2
    return (theta < MAX_SHUT_PROB) & held & (pressure > 0)


@torch.no_grad()
def unit_norms(model: nn.Module, graph: PrunableGraph) -> Tensor:
    """Return the (units,) norms of all weights that read each unit; 0 for removed ones."""
    device = next(model.parameters()).device
    total = torch.zeros(graph.units + 1, device=device)
    for name, layer in graph.layers.items():
        if layer.reads_units and layer.cols is not None:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            squares = weight.detach().abs().float().square().transpose(0, 1).flatten(1).sum(1)
            total.index_add_(0, layer.cols.to(device) % len(total), squares)  # ALWAYS_KEPT is the last entry
    return total[:-1].sqrt()


@torch.no_grad()
def block_norms(model: nn.Module, graph: PrunableGraph) -> Tensor:
    """Return the (blocks,) norms of the last layer's weights on each branch; 0 for removed blocks."""
    out = torch.zeros(len(graph.blocks), device=next(model.parameters()).device)
    for number in graph.remaining_blocks:
        *_, last = (layer.name for layer in graph.layers.values() if layer.block == number)
        weight = model.get_submodule(last).weight
        out[number] = weight.detach().abs().float().norm() if isinstance(weight, Tensor) else 0.0
    return out
