"""A loss in chunks equals the loss of the whole, however it is reduced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes import UserError
from regimes.losses.chunks import chunk_weights

OUTPUTS = 3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
HOLES = TARGETS.masked_fill(torch.arange(40) < 21, -100)  # the first chunk has no target


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, TARGETS),
        (nn.CrossEntropyLoss(reduction="sum"), TARGETS),
        (nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 7.0])), TARGETS),
        (nn.CrossEntropyLoss(label_smoothing=0.1), TARGETS),
        (F.cross_entropy, HOLES),
        (nn.CrossEntropyLoss(reduction="sum"), HOLES),
        (lambda o, t: F.mse_loss(o[:, 0], t.float()), TARGETS),
        (lambda o, t: F.cross_entropy(o, t, reduction="sum") / 7, TARGETS),
    ],
)
def test_chunks_add_up(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> None:
    parts = list(zip(OUTPUTS.split(17), targets.split(17), strict=True))
    weights = chunk_weights(loss, *zip(*parts, strict=True))
    total = sum(w * float(loss(o, t)) for w, (o, t) in zip(weights, parts, strict=True) if w)
    assert total == pytest.approx(float(loss(OUTPUTS, targets)), rel=1e-4)


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none").std()

    def root(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, 0], targets.float()).sqrt()

    for loss in (spread, root):
        with pytest.raises(UserError, match="neither a sum nor a weighted mean"):
            chunk_weights(loss, OUTPUTS.split(17), TARGETS.split(17))


def test_large_targets_and_probabilities() -> None:
    """No noise drowns in large numbers, and outputs stay where a loss is defined."""
    large = 1e6 + 1e3 * torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    assert chunk_weights(F.mse_loss, OUTPUTS[:, :1].split(17), large.split(17)) == pytest.approx(
        [17 / 40, 17 / 40, 6 / 40]
    )
    shares, ones = OUTPUTS[:, :1].sigmoid(), (TARGETS[:, None] > 0).float()
    assert chunk_weights(nn.BCELoss(reduction="sum"), shares.split(17), ones.split(17)) == pytest.approx([1, 1, 1])


def test_a_chunk_without_slope_spoils_nothing() -> None:
    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - outputs[:, 0] * targets).clamp(min=0).square().mean()

    outputs, signs = torch.full((40, 3), 5.0), torch.ones(40)
    signs[20:] = -1.0
    weights = chunk_weights(hinge, outputs.split(20), signs.split(20))
    assert weights == pytest.approx([0.5, 0.5])
