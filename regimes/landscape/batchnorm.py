"""BatchNorm statistics, estimated again for weights that were never trained (points on a path)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH = 1024


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, inputs: Tensor, batch: int = BATCH) -> None:
    """Reset every BatchNorm's running statistics and average them anew over ``inputs``, un-augmented.

    The inputs are cut into batches of *equal* size (a ragged last batch would weigh too much), as few as keep the size
    at most ``batch``; up to ``number of batches - 1`` inputs are left out. Everything but BatchNorm is in
    eval mode meanwhile, so dropout does not disturb the statistics. The model ends in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    model.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.training = True
    batches = math.ceil(len(inputs) / batch)
    size = len(inputs) // batches
    # Shuffled, always the same way: where data stand class by class, each batch would hold only a few classes.
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
    for index in range(batches):
        model(inputs[order[index * size : (index + 1) * size]])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.training = False
