"""Build a model from its description, reproducibly."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regimes.models import MODELS
from regimes.registry import load


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with the global generators (torch's, numpy's, Python's) at ``seed`` and give them back as they were.

    Layers initialise themselves, and dropout draws, from torch's global generator and take no other; a user's model may
    use the others. So the engine lends them a seed for the moment; nothing outside the block notices.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(
                seed
            )  # torch.manual_seed would leave a seed for a device not yet in use
            if devices:
                torch.cuda.manual_seed_all(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


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
    with seeded(seed):
        model: nn.Module = builder(input_shape=input_shape, classes=classes, **options)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict that was kept as plain tensors; some models of torchvision ask for the version beside it."""
    state = OrderedDict(weights)
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state)
