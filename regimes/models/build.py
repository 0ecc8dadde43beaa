"""Build a model from its description, reproducibly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from regimes.models import MODELS
from regimes.registry import load

GIVEN = ("input_shape", "classes")  # what the engine passes to every builder


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Run with torch's own generators at ``seed`` and give them back as they were.

    Layers initialise themselves, and dropout draws, from torch's global generator and take no other. So the engine
    lends it a seed for the moment; nothing outside the block notices.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def build(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Return the model ``name`` with fresh weights drawn from ``seed``: same arguments, same bits.

    Args:
        name: a name in `MODELS` or an import path.
        options: the builder's own options.
        input_shape: shape of one input.
        classes: number of outputs.
        seed: of the initial weights.
    """
    builder = load(MODELS, name, "model")
    with torch_seeded(seed):
        model: nn.Module = builder(input_shape=input_shape, classes=classes, **options)
    return model
