"""Re-estimation of BatchNorm statistics, for weights that were never trained (points on a path)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from regimes.data.inputs import Inputs, call
from regimes.errors import UserError
from regimes.landscape.error import inputs_per_pass, joined_outputs, whole_outputs

BATCH_INPUT_VALUES = 2**22  # input values per batch of statistics: 1365 colour images of 32x32, 8192 small digits


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, inputs: Inputs, batch: int | None = None) -> None:
    """Reset the running statistics of every BatchNorm layer and re-estimate them on ``inputs``.

    The inputs are split into the smallest number of equally sized batches of at most ``batch`` inputs (a smaller last
    batch would be over-weighted), so up to ``number of batches - 1`` inputs are left out. All other modules are in eval
    mode meanwhile, so dropout does not affect the statistics. The model is left in eval mode.

    Args:
        model: any network; its BatchNorm buffers are changed.
        inputs: (n, ...), on the model's device.
        batch: largest batch size; None: as many inputs as hold `BATCH_INPUT_VALUES` values.
    """
    norms = _norms(model)
    if not norms:
        model.eval()
        return
    batches = math.ceil(len(inputs) / (batch or inputs_per_pass(inputs, BATCH_INPUT_VALUES)))
    size = len(inputs) // batches
    # Shuffled with a fixed seed: in data sorted by class, each batch would hold only a few classes.
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
    with _estimating(model, norms, len(inputs)):
        for index in range(batches):
            call(model, inputs[order[index * size : (index + 1) * size]])


@torch.no_grad()
def reestimated_outputs(model: nn.Module, inputs: Inputs, batch: int | None = None, by_batch: bool = False) -> Any:
    """Re-estimate BatchNorm statistics on ``inputs`` and return the outputs computed with them.

    This takes one pass for the statistics and one for the outputs. If all inputs fit in one batch, a single pass gives
    both, because the batch statistics are those of the whole set. (The outputs then differ from those of a second pass
    by rounding and by a factor sqrt(1 - 1/n) in BatchNorm's divisor, n being the number of values per channel.)

    Args:
        model, inputs, batch: as in `reestimate_batch_norm`.
        by_batch: take a single pass for any number of inputs, each random batch normalised by its own statistics.
    """
    norms = _norms(model)
    batches = math.ceil(len(inputs) / (batch or inputs_per_pass(inputs, BATCH_INPUT_VALUES)))
    if not norms or (batches > 1 and not by_batch):
        reestimate_batch_norm(model, inputs, batch)
        return whole_outputs(model, inputs)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
    with _estimating(model, norms, len(inputs)):
        answers = joined_outputs([call(model, inputs[part]) for part in order.tensor_split(batches)])
    return tree_map(lambda each: _put_back(each, order), answers)


def _put_back(answers: Any, order: Tensor) -> Any:
    if not isinstance(answers, Tensor) or not answers.dim():
        return answers
    back = torch.empty_like(answers)
    back[order] = answers
    return back


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def _estimating(model: nn.Module, norms: Sequence[_BatchNorm], inputs: int) -> Iterator[None]:
    """Accumulate BatchNorm statistics in forward passes, everything else in eval mode; end with all in eval mode."""
    if inputs < 2:
        raise UserError("BatchNorm statistics need at least 2 inputs")
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
