"""Networks and inputs that several tests look at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regimes.discovery.gates import GateDraw
from regimes.discovery.prunable_graph import PrunableGraph
from regimes.models.build import build


def aged(model: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorm statistics and affine parameters that are not those of a fresh network."""
    random = torch.Generator().manual_seed(1)
    for each in model.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.weight.data = 0.5 + torch.rand(each.weight.shape, generator=random)
            each.bias.data = 0.3 * torch.randn(each.bias.shape, generator=random)
            assert each.running_mean is not None
            each.running_mean.data = 0.3 * torch.randn(each.running_mean.shape, generator=random)
    return model.eval()


# (model, options, units, groups, blocks): as one counts them by hand in the class.
KNOWN: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "mlp": ("mlp", {"widths": [12, 10], "batch_norm": True}, 22, 2, 0),
    "mlp without BatchNorm": ("mlp", {"widths": [12, 10], "dropout": 0.2}, 22, 2, 0),
    "preresnet": ("preresnet", {"depth": 14, "width": 4}, 2 * (4 + 8 + 16), 6, 6),
    "resnet": ("resnet", {"depth": 14, "width": 4}, 2 * (4 + 8 + 16), 6, 6),
    "resnet18": ("resnet18", {"width": 4}, 2 * (4 + 8 + 16 + 32), 8, 8),
    "vgg": ("vgg", {"depth": 11, "width": 8}, 8 + 16 + 2 * 32 + 4 * 64, 8, 0),
    "densenet": ("densenet", {"depth": 10, "growth": 4}, 16 + 6 * 4 + 24 + 32, 9, 0),
    "mobilenetv2": ("mobilenetv2", {"width": 0.25, "dropout": 0.0}, 3184, 18, 11),
    "bottlenecks": ("torchvision", {"arch": "resnet50", "width_per_group": 4}, 64 + 2 * (12 + 32 + 96 + 96), 33, 16),
    "squeeze and excitation": ("torchvision", {"arch": "mobilenet_v3_small"}, 2368, 14, 6),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """In float64, with BatchNorm statistics and affine parameters that are not those of a fresh network."""
    model, options, *_ = KNOWN[name]
    made = build(model, options, (3, 32, 32), 5, seed)
    return aged(made).double()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()


def some(anatomy: PrunableGraph, seed: int) -> tuple[Tensor, list[int]]:
    """Units and blocks to take away, at least one unit left of every group that stays."""
    random = torch.Generator().manual_seed(seed)
    units = torch.rand(anatomy.units, generator=random) < 0.4
    blocks = [number for number in range(len(anatomy.blocks)) if torch.rand(1, generator=random) < 0.4]
    for group in anatomy.groups:
        units[group.first] = False
        if group.block in blocks:
            units[group.units] = True
    return units, blocks


def shut(anatomy: PrunableGraph, units: Tensor, blocks: list[int]) -> GateDraw:
    """Gates of all inputs: those of the units and blocks are off."""
    on = torch.ones(1, len(anatomy.blocks), dtype=torch.float64)
    on[:, blocks] = 0
    return GateDraw((~units)[None].double(), on)
