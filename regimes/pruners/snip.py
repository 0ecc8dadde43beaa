"""SNIP: pruning by connection sensitivity, the first-order effect of a weight's removal on the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from regimes.data.dataset import subset
from regimes.errors import UserError
from regimes.pruners.prune import Candidate

SENSITIVITY_IMAGES = 512  # training images used, drawn once
BATCH_IMAGES = 128


def snip(candidate: Candidate) -> dict[str, Tensor]:
    """Return the connection sensitivity ``|w dL/dw|`` of every prunable weight (SNIP, Lee et al. 2019, 1810.02340).

    The loss is that of up to 512 training images in eval mode, so that BatchNorm statistics do not change.

    Raises:
        UserError: no data given.
    """
    if candidate.data is None:
        raise UserError("pruner 'snip' needs training data: pass data=")
    images = subset(candidate.data.train, SENSITIVITY_IMAGES)
    training = candidate.model.training
    candidate.model.eval()
    total = {name: torch.zeros_like(weight) for name, weight in candidate.weights.items()}
    try:
        with torch.enable_grad():
            for start in range(0, len(images.targets), BATCH_IMAGES):
                part = slice(start, start + BATCH_IMAGES)
                loss = candidate.loss_fn(candidate.model(images.inputs[part]), images.targets[part])
                gradients = torch.autograd.grad(loss * len(images.targets[part]), list(candidate.weights.values()))
                for name, gradient in zip(total, gradients, strict=True):
                    total[name] += gradient
    finally:
        candidate.model.train(training)
    return {name: (total[name] * weight).detach().abs() for name, weight in candidate.weights.items()}
