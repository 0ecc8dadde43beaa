"""Context managers for eval mode, with and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager for eval mode without gradients; restores the mode of every module on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True


@contextmanager
def eval_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager for eval mode with gradients; restores the mode of every module on exit.

    Models with recurrent layers run without cuDNN, whose recurrent layers have gradients in training mode only.
    """
    recurrent = any(isinstance(each, nn.RNNBase) for each in model.modules())
    without_cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    with eval_mode(model), torch.enable_grad(), without_cudnn:
        yield model
