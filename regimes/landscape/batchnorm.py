"""BatchNorm statistics, estimated again for weights that were never trained (points on a path)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regimes.landscape.error import images_at_once, outputs

BATCH = 2**22  # numbers in the inputs of one batch of statistics: 1365 colour images of 32x32, 8192 small digits


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, inputs: Tensor, batch: int | None = None) -> None:
    """Reset every BatchNorm's running statistics and average them anew over ``inputs``, un-augmented.

    The inputs are cut into batches of *equal* size (a ragged last batch would weigh too much), as few as keep the size
    at most ``batch`` (None: what `BATCH` numbers amount to); up to ``number of batches - 1`` inputs are left out.
    Everything but BatchNorm is in eval mode meanwhile, so dropout does not disturb the statistics. The model ends in
    eval mode.
    """
    norms = _norms(model)
    if not norms:
        model.eval()
        return
    batches = math.ceil(len(inputs) / (batch or images_at_once(inputs, BATCH)))
    size = len(inputs) // batches
    # Shuffled, always the same way: where data stand class by class, each batch would hold only a few classes.
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
    with _estimating(model, norms):
        for index in range(batches):
            model(inputs[order[index * size : (index + 1) * size]])


@torch.no_grad()
def settled_outputs(model: nn.Module, inputs: Tensor, batch: int | None = None, by_batch: bool = False) -> Tensor:
    """Estimate BatchNorm statistics anew on ``inputs``, as `reestimate_batch_norm`, and return the outputs under them.

    That is a pass for the statistics and one for the outputs. Where all inputs fit in one batch, one pass gives both:
    the batch that a layer is normalised by is then the whole set. (Outputs differ from those of a second pass by
    rounding and by a factor sqrt(1 - 1/n) in what BatchNorm divides by, n the number of values a channel has.) With
    ``by_batch`` one pass is taken for any number of inputs: each batch, drawn at random, is normalised by itself.
    """
    norms = _norms(model)
    batches = math.ceil(len(inputs) / (batch or images_at_once(inputs, BATCH)))
    if not norms or (batches > 1 and not by_batch):
        reestimate_batch_norm(model, inputs, batch)
        return outputs(model, inputs)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
    with _estimating(model, norms):
        answers = torch.cat([model(inputs[part]) for part in order.tensor_split(batches)])
    back = torch.empty_like(answers)
    back[order] = answers
    return back


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def _estimating(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let forward passes average statistics anew, all else in eval mode; afterwards these are in eval mode too."""
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
