"""Sequences of tokens for the models that take them: each token is the one before it plus one, with some noise."""

from __future__ import annotations

import torch
from torch import Tensor

from regimes.data.dataset import Dataset, Split

TOKENS = {"transformer": {"depth": 1, "width": 8, "heads": 2}}  # options that make each such model small


def token_data(train: int = 120, test: int = 60, length: int = 8, classes: int = 5) -> Dataset:
    """A data set whose target is the next token of every position."""
    generator = torch.Generator().manual_seed(0)
    counts = (train, test, test)
    splits = [_split(_walks(count, length + 1, classes, generator)) for count in counts]
    return Dataset(*splits, classes, "counting tokens")


def _walks(count: int, length: int, classes: int, generator: torch.Generator) -> Tensor:
    steps = 1 + (torch.rand((count, length), generator=generator) < 0.2).long()
    return (torch.randint(0, classes, (count, 1), generator=generator) + steps.cumsum(1)) % classes


def _split(walks: Tensor) -> Split:
    return Split(walks[:, :-1].contiguous(), walks[:, 1:].contiguous())
