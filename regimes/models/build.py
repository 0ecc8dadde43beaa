"""Reproducible construction of models, and loading of their weights."""

from __future__ import annotations

import copy
import random
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regimes.errors import UserError
from regimes.models import MODELS
from regimes.registry import lookup

_GENERATORS = threading.RLock()  # held while the global generators are seeded


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager that seeds the global generators of torch, numpy and Python, and restores them on exit.

    Layer initialisation and dropout always use torch's global generator, and a user's model may use the others. Other
    threads of the process wait until it exits.
    """
    with _GENERATORS:
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        numpy_state, python_state = np.random.get_state(), random.getstate()
        try:
            with torch.random.fork_rng(devices=devices):
                # torch.manual_seed would also set a seed for devices that are not initialised yet.
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed_all(seed)
                np.random.seed(seed % 2**32)
                random.seed(seed)
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def build(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Return a model with fresh weights; the same arguments give the same bits.

    Args:
        name: a name in `MODELS` or an import path.
        options: the builder's own options.
        input_shape: shape of one input.
        classes: number of outputs.
        seed: seed of the initial weights.

    Raises:
        UserError: an unknown name, options or inputs that the model does not support, or lazy layers without values.
    """
    builder = lookup(MODELS, name, "model")
    with seeded(seed):
        model: nn.Module = builder(input_shape=input_shape, classes=classes, **options)
    tensors = (*model.named_parameters(), *model.named_buffers())
    lazy = [where for where, each in tensors if is_lazy(each)]
    if lazy:
        raise UserError(
            f"model '{name}': {lazy[0]} of a lazy layer has no values yet; call the model on an input, e.g. "
            "torch.zeros(1, *input_shape), before it is returned"
        )
    return model


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the floating point dtype of a model's parameters; of complex ones, that of their real part."""
    first = next((each for each in model.parameters() if each.is_floating_point() or each.is_complex()), None)
    return torch.float32 if first is None else first.dtype.to_real()


def in_dtype(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model to a device and a floating point dtype; complex weights get the complex dtype of that precision."""
    for each in (*model.parameters(), *model.buffers()):
        if each.is_complex():
            each.data = each.data.to(dtype.to_complex())
    if any(each.is_complex() for each in model.parameters()):
        for each in (*model.parameters(), *model.buffers()):
            each.data = each.data.to(device, dtype if each.is_floating_point() else None)
        return model
    return model.to(device, dtype)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict stored as plain tensors, with the version metadata that some torchvision models need."""
    state = OrderedDict(weights)
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Tensors that a module computed and keeps as attributes (the weight of hook-style spectral norm after a backward
    pass) cannot be copied with their graph; they are copied as values.
    """
    computed = [
        each
        for module in model.modules()
        for each in vars(module).values()
        if isinstance(each, Tensor) and not each.is_leaf
    ]
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in computed})
