"""Built-in losses: their values for several targets per input, and shapes that do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regimes.losses.functions import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_targets_are_torchs_with_classes_second(smoothing: float) -> None:
    draw = torch.Generator().manual_seed(0)
    last = torch.randn(4, 5, 3, generator=draw, dtype=torch.float64)
    images = torch.randn(4, 3, 5, 6, generator=draw, dtype=torch.float64)
    tokens, pixels = (torch.randint(0, 3, shape, generator=draw) for shape in ((4, 5), (4, 5, 6)))
    tokens[0, 2:] = -100
    for outputs, second, targets in ((last, last.movedim(2, 1), tokens), (images, images, pixels)):
        expected = F.cross_entropy(second, targets, label_smoothing=smoothing)
        assert torch.allclose(cross_entropy(outputs, targets, smoothing), expected, rtol=1e-12)
        assert torch.allclose(cross_entropy(second, targets, smoothing), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(2, 4, 3, 5), torch.zeros(2, 5, 3)),
        (torch.zeros(2, 4, 6), torch.zeros(3, 4)),
        (torch.zeros(2, 3, 4), torch.zeros(2, 6)),
    ],
)
def test_as_many_targets_in_another_shape_are_refused(outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        cross_entropy(outputs, targets.long())
