"""Buffers of parametrised layers (spectral norm), which belong to a weight and are no weights themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

ITERATIONS = 20  # power iterations from the vectors of the nearer network


def parametrization_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a model's parametrisations by name, e.g. the singular vectors of spectral norm."""
    names = {name for name, _ in model.named_parameters()}

    def belongs(name: str) -> bool:
        owner = name.removesuffix("_u").removesuffix("_v").removesuffix("_mask")
        return ".parametrizations." in f".{name}" or (owner != name and f"{owner}_orig" in names)

    return {name: each.detach() for name, each in model.named_buffers() if belongs(name)}


@torch.no_grad()
def reestimate_parametrizations(model: nn.Module) -> None:
    """Adapt the buffers of a model's parametrisations to its weights, by power iterations as in training."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr,operator]
                if not list(chain.buffers()):
                    continue
                chain.train()
                for _ in range(ITERATIONS):
                    getattr(module, name)
                chain.eval()
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                for _ in range(ITERATIONS):
                    hook.compute_weight(module, do_power_iteration=True)
