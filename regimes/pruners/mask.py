"""Pruning masks: boolean tensors, stored separately from the network, that mark live weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Mask:
    """Pruning mask of some parameters of a network; parameters that it does not name are live throughout.

    Attributes:
        layers: {parameter name: boolean tensor of the parameter's shape, True where the weight is live}.
    """

    def __init__(self, layers: Mapping[str, Tensor]) -> None:
        self.layers = {name: layer.to(torch.bool) for name, layer in layers.items()}

    @property
    def size(self) -> int:
        """Number of prunable weights."""
        return sum(layer.numel() for layer in self.layers.values())

    @property
    def kept(self) -> int:
        """Number of prunable weights kept."""
        return sum(int(layer.sum()) for layer in self.layers.values())

    @property
    def density(self) -> float:
        """Fraction of prunable weights kept."""
        return self.kept / self.size

    def to(self, device: torch.device) -> Mask:
        """Return the mask on a device."""
        return Mask({name: layer.to(device) for name, layer in self.layers.items()})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every masked weight of the model to exactly zero."""
        parameters = dict(model.named_parameters())
        for name, layer in self.layers.items():
            parameters[name].masked_fill_(~layer, 0.0)

    def factors(self, model: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Return the masked parameters of a model, and for each a 0/1 factor for its gradient.

        With zero weights, gradients and momentum, neither weight decay nor SAM moves a masked weight.
        """
        parameters = dict(model.named_parameters())
        masked = [parameters[name] for name in self.layers]
        return masked, [layer.to(each) for layer, each in zip(self.layers.values(), masked, strict=True)]

    def holds(self, weights: nn.Module | Mapping[str, Tensor]) -> bool:
        """Return whether every masked weight of a model, or of its state dict, is exactly zero."""
        named = weights.state_dict() if isinstance(weights, nn.Module) else weights
        return all(not bool(named[name][~layer.to(named[name].device)].any()) for name, layer in self.layers.items())

    def tensors(self) -> dict[str, Tensor]:
        """Return the mask as tensors for storage, eight weights per byte."""
        return {f"mask/{name}": _pack(layer) for name, layer in self.layers.items()}

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Tensor], model: nn.Module) -> Mask:
        """Restore a mask from the result of `tensors`; the model supplies the shapes."""
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        names = (name.removeprefix("mask/") for name in stored if name.startswith("mask/"))
        return cls({name: _unpack(stored[f"mask/{name}"], shapes[name]) for name in names})


_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def _pack(layer: Tensor) -> Tensor:
    flat = layer.flatten().cpu()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded * _BITS).sum(dim=1, dtype=torch.uint8)


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    bits = (packed[:, None] & _BITS) != 0
    return bits.flatten()[: shape.numel()].view(shape)
