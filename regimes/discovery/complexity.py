"""Expected size of a gated network (MACs and parameters), and its gradient with respect to each gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.discovery.prunable_graph import ALWAYS_KEPT, PrunableGraph


@dataclass(frozen=True)
class Size:
    """Multiply-accumulates per input and number of parameters; 0-d tensors, differentiable if the gates are.

    MACs are those of all products, as `count_macs` counts them: without biases and BatchNorm.
    """

    macs: Tensor
    params: Tensor


class Complexity:
    """Expected size of a network whose units and blocks are on independently, with given probabilities.

    A layer between ``n_in`` and ``n_out`` channels has ``E[n_in] E[n_out] kernel`` parameters and ``places`` times as
    many MACs, where ``E[n]`` sums the probabilities of its channels (1 for channels that are always kept), times the
    probability of its block: ``rho_b (a_b sum_i theta_bi + d_b)`` for residual blocks, products of the gates of
    neighbouring layers elsewhere. It is linear in each single gate.

    Args:
        graph: units, blocks and layers of the network.
        device: device of the gates.
    """

    def __init__(self, graph: PrunableGraph, device: torch.device | str = "cpu") -> None:
        layers = list(graph.layers.values())
        self.rest, self.rest_macs = float(graph.rest), float(graph.rest_macs)
        self.count = len(layers)
        self.sides = [
            _segments([each.rows for each in layers], device),
            _segments([each.rows if each.cols is None else each.cols for each in layers], device),
        ]

        def numbers(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self.alone = torch.tensor([each.cols is None for each in layers], device=device)
        self.kernel = numbers([each.kernel for each in layers])
        self.places = numbers([each.places for each in layers])
        self.vectors = numbers([each.vectors for each in layers])
        self.block = torch.tensor([ALWAYS_KEPT if each.block is None else each.block for each in layers], device=device)

    def __call__(self, theta: Tensor, rho: Tensor) -> Size:
        """Return the size at probabilities of units (units,) and of blocks (blocks,), in float64."""
        one = torch.ones(1, dtype=torch.float64, device=theta.device)
        units, blocks = torch.cat([theta.double(), one]), torch.cat([rho.double(), one])
        outputs, inputs = (
            torch.zeros_like(self.kernel).index_add(0, layer, units[owner]) for layer, owner in self.sides
        )
        pairs = torch.where(self.alone, outputs, outputs * inputs) * self.kernel
        on = blocks[self.block]
        params = (on * (pairs + self.vectors * outputs)).sum() + self.rest
        return Size((on * pairs * self.places).sum() + self.rest_macs, params)

    def share(self, theta: Tensor, rho: Tensor, full: Size, kappa: float) -> Tensor:
        """Return ``C = kappa MACs / MACs_full + (1 - kappa) params / params_full``."""
        size = self(theta, rho)
        return kappa * size.macs / full.macs + (1 - kappa) * size.params / full.params

    def gradient(self, theta: Tensor, rho: Tensor, full: Size, kappa: float) -> tuple[Tensor, Tensor]:
        """Return ``dC/dtheta`` and ``dC/drho``: the complexity that each gate adds when it is on."""
        gates = theta.detach().double().requires_grad_(), rho.detach().double().requires_grad_()
        with torch.enable_grad():
            slopes = torch.autograd.grad(self.share(*gates, full, kappa), gates, allow_unused=True)
        units, blocks = (
            torch.zeros_like(gate) if slope is None else slope for slope, gate in zip(slopes, gates, strict=True)
        )
        return units.to(theta.dtype), blocks.to(rho.dtype)


def size_of(graph: PrunableGraph) -> Size:
    """Return the size of a network with every gate on."""
    theta, rho = torch.ones(graph.units, dtype=torch.float64), torch.ones(len(graph.blocks), dtype=torch.float64)
    return Complexity(graph)(theta, rho)


def _segments(sides: list[Tensor], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Concatenated (layer index, owner) of all channels of all layers."""
    layer = torch.cat([torch.full((len(side),), number) for number, side in enumerate(sides)])
    return layer.to(device), torch.cat(sides).to(device)
