"""Keep the weights whose removal would change the loss most, to first order."""

from __future__ import annotations

import torch
from torch import Tensor

from regimes.data.dataset import subset
from regimes.errors import UserError
from regimes.pruners.prune import Candidate

IMAGES = 512  # training images that the sensitivity is taken on, drawn once
GROUP = 128


def snip(candidate: Candidate) -> dict[str, Tensor]:
    """Score every prunable weight by its connection sensitivity ``|w dL/dw|`` (SNIP, Lee et al. 2019, 1810.02340).

    The loss is that of some hundred training images in eval mode, so that BatchNorm statistics stay as they were.

    Raises:
        UserError: no data at hand.
    """
    if candidate.data is None:
        raise UserError("pruner 'snip' looks at training data: pass data=")
    images = subset(candidate.data.train, IMAGES)
    training = candidate.model.training
    candidate.model.eval()
    total = {name: torch.zeros_like(weight) for name, weight in candidate.weights.items()}
    try:
        with torch.enable_grad():
            for start in range(0, len(images.targets), GROUP):
                part = slice(start, start + GROUP)
                loss = candidate.loss_fn(candidate.model(images.inputs[part]), images.targets[part])
                gradients = torch.autograd.grad(loss * len(images.targets[part]), list(candidate.weights.values()))
                for name, gradient in zip(total, gradients, strict=True):
                    total[name] += gradient
    finally:
        candidate.model.train(training)
    return {name: (total[name] * weight).detach().abs() for name, weight in candidate.weights.items()}
