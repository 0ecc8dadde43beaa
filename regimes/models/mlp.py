"""Multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Multilayer perceptron with ReLU, optionally with BatchNorm before and dropout after each ReLU.

    Args:
        input_shape: shape of one input; inputs are flattened.
        classes: number of outputs.
        widths: number of units in each hidden layer.
        batch_norm: whether to add BatchNorm before each ReLU.
        dropout: dropout probability of hidden units.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        widths: Sequence[int] = (128, 128),
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        before = math.prod(input_shape)
        for width in widths:
            layers.append(nn.Linear(before, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, classes) of inputs (n, ...)."""
        logits: Tensor = self.head(self.body(inputs))
        return logits
