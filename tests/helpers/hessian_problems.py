"""Losses whose Hessian is known, and the whole Hessian of a small network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from regimes import Mask


class Quadratic(nn.Module):
    """Ignores its inputs' content; the loss is w' A w / 2, whose Hessian is A."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Buffer(A)
        self.w = nn.Parameter(torch.randn(len(A), dtype=A.dtype, generator=torch.Generator().manual_seed(0)))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.w @ self.A @ self.w / 2).expand(len(inputs))


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


def symmetric(size: int, seed: int) -> Tensor:
    A = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (A + A.T) / 2


NOTHING = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4))


KNOWN: dict[Any, Tensor] = {}


def exact(model: nn.Module, data: tuple[Tensor, Tensor], mask: Mask | None = None) -> Tensor:
    """The whole Hessian on the mask's support, by double differentiation in float64."""
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    shapes = [each.shape for each in model.parameters() if each.requires_grad]
    flat = torch.cat([each.detach().reshape(-1) for each in model.parameters() if each.requires_grad])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model.eval(), weights, (data[0],)), data[1])

    asked = (tuple(flat.tolist()), tuple(data[0].flatten().tolist()), tuple(data[1].tolist()), str(model))
    if asked not in KNOWN:  # several tests ask for the same
        KNOWN[asked] = torch.autograd.functional.hessian(loss, flat, vectorize=True)
    H = KNOWN[asked]
    if mask is None:
        return H
    layers = [mask.layers.get(name, torch.ones(shape)).reshape(-1) for name, shape in zip(names, shapes, strict=True)]
    live = torch.cat([layer.bool() for layer in layers])
    return H[live][:, live]
