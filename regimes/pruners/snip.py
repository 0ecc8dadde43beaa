"""SNIP: pruning by connection sensitivity, the first-order effect of a weight's removal on the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regimes.data.dataset import subset
from regimes.data.inputs import call
from regimes.errors import UserError
from regimes.losses.chunks import chunk_weights
from regimes.losses.functions import loss_value
from regimes.models.eval_mode import eval_gradients
from regimes.pruners.prune import Candidate

SENSITIVITY_IMAGES = 512  # training images used, drawn once
BATCH_IMAGES = 128


def snip(candidate: Candidate) -> dict[str, Tensor]:
    """Return the connection sensitivity ``|w dL/dw|`` of every prunable weight (SNIP, Lee et al. 2019, 1810.02340).

    The loss is that of up to 512 training images in eval mode, so that BatchNorm statistics do not change. Frozen
    weights have a sensitivity like others; that of weights that the outputs do not depend on is 0.

    Raises:
        UserError: no data given.
    """
    candidate.check_real("snip")
    if candidate.data is None:
        raise UserError("pruner 'snip' needs training data: pass data=")
    images = subset(candidate.data.train, SENSITIVITY_IMAGES)
    names, weights = list(candidate.weights), list(candidate.weights.values())
    total = {name: torch.zeros_like(weight) for name, weight in candidate.weights.items()}
    targets = images.targets.split(BATCH_IMAGES)
    batches = list(images.inputs.split(BATCH_IMAGES))
    with eval_gradients(candidate.model), _not_frozen(weights):
        with torch.no_grad():
            answers = [call(candidate.model, each.clone()) for each in batches] if len(batches) > 1 else []
        shares = chunk_weights(candidate.loss_fn, answers, targets)
        for inputs, wanted, share in zip(batches, targets, shares, strict=True):
            outputs = call(candidate.model, inputs.clone())  # the network may change them in place
            loss = loss_value(candidate.loss_fn, outputs, wanted) * (share * len(images.targets))
            for name, gradient in zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    total[name] += gradient
    return {name: (total[name] * weight).detach().abs() for name, weight in candidate.weights.items()}


@contextmanager
def _not_frozen(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Context manager in which all weights require gradients."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad = True
        yield
    finally:
        for weight in frozen:
            weight.requires_grad = False
