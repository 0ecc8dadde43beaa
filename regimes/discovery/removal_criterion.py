"""When something may leave: its gate is shut, and its weights are too small to open it again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regimes.discovery.prunable_graph import PrunableGraph

SHUT = 1e-2  # probability below which a gate counts as shut
CHECKS = 3  # consecutive checks that have to agree


def may_leave(theta: Tensor, worth: Tensor, norm: Tensor, pressure: Tensor, decay: float) -> Tensor:
    """Which gates are shut and stay shut, if the weights and slopes go on as they do.

    With ``eta`` the bound of the loss's slope along the gate per unit of weight, here measured as
    ``max(0, -worth) / norm``, the gate's and the weights' equations are bounded by a linear system that runs to zero
    where ``s |w| + theta < s r / eta + lambda r / eta^2``, ``s = (sqrt(lambda^2 + 4 eta^2) - lambda) / (2 eta)`` (a
    sufficient condition, our derivation). What harms the loss (``worth > 0``) has ``eta = 0``: nothing brings it back.

    Args:
        theta: probabilities of the gates.
        worth: ``h``, running estimates of the loss with the gate on, less the loss with it off.
        norm: ``|w|``, of the weights through which the network reads what the gate lets through.
        pressure: ``r`` > 0.
        decay: ``lambda``, the weight decay.
    """
    eta = (-worth).clamp(min=0) / norm.clamp(min=1e-12)
    eta = eta.clamp(min=1e-12)
    s = ((decay**2 + 4 * eta**2).sqrt() - decay) / (2 * eta)
    held = s * norm + theta < s * pressure / eta + decay * pressure / eta**2
    return (theta < SHUT) & held & (pressure > 0)


@torch.no_grad()
def unit_norms(model: nn.Module, anatomy: PrunableGraph) -> Tensor:
    """(units,) the norm of all weights that read a unit; 0 for one that has left."""
    device = next(model.parameters()).device
    total = torch.zeros(anatomy.units + 1, device=device)
    for name, layer in anatomy.layers.items():
        if layer.reads and layer.cols is not None:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            squares = weight.detach().float().square().transpose(0, 1).flatten(1).sum(1)
            total.index_add_(0, layer.cols.to(device) % len(total), squares)  # NOBODY is the last
    return total[:-1].sqrt()


@torch.no_grad()
def block_norms(model: nn.Module, anatomy: PrunableGraph) -> Tensor:
    """(blocks,) the norm of the weights of the last layer on each branch; 0 for a block that has left."""
    out = torch.zeros(len(anatomy.blocks), device=next(model.parameters()).device)
    for number in anatomy.standing:
        *_, last = (layer.name for layer in anatomy.layers.values() if layer.block == number)
        weight = model.get_submodule(last).weight
        out[number] = weight.detach().float().norm() if isinstance(weight, Tensor) else 0.0
    return out
