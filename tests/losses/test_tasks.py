"""The task is inferred from outputs, targets and loss; its error against one reckoned by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes import ErrorFunction, UserError
from regimes.landscape.error import function_error
from regimes.losses.functions import binary_cross_entropy, cross_entropy, logits, loss_value
from regimes.losses.tasks import infer_task

Loss = Callable[[Any, Tensor], Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def choose(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def tokens_last(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) + 0.1 * outputs.square().mean()


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    plain = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none")
    return ((1 - torch.exp(-plain)) ** 2 * plain).mean()


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "kind", "dimension"),
    [
        (draw(8, 3), choose(3, 8), F.cross_entropy, "class", 1),
        (draw(8, 3), choose(3, 8), F.multi_margin_loss, "class", 1),
        (draw(8, 5, 3), choose(3, 8, 5), tokens_last, "class", 2),
        (draw(8, 3, 5), choose(3, 8, 5), F.cross_entropy, "class", 1),
        (draw(8, 5, 5), choose(5, 8, 5), tokens_last, "class", 2),  # as many tokens as classes
        (draw(8, 5, 5), choose(5, 8, 5), F.cross_entropy, "class", 1),
        (draw(8, 5, 5), choose(5, 8, 5), cross_entropy, "class", 2),
        (draw(8, 4, 4, 4), choose(4, 8, 4, 4), cross_entropy, "class", 1),
        (draw(8, 3, 4, 4), choose(3, 8, 4, 4), nn.CrossEntropyLoss(), "class", 1),
        (draw(8, 3), torch.softmax(draw(8, 3), 1), F.cross_entropy, "class", 1),
        (draw(8, 1), choose(2, 8), binary_cross_entropy, "binary", 1),
        (draw(8), choose(2, 8), lambda o, t: F.binary_cross_entropy_with_logits(o, t.to(o)), "binary", 1),
        (
            draw(8, 4),
            choose(2, 8, 4).float(),
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2, 3, 4])),
            "binary",
            1,
        ),
        (draw(8, 4), choose(2, 8, 4).float(), focal, "binary", 1),
        (draw(8, 4), choose(2, 8, 4).float(), F.soft_margin_loss, "binary", 1),
        (draw(8, 4), choose(2, 8, 4).float(), F.mse_loss, "loss", 1),
        (draw(8, 4), draw(8, 4), F.l1_loss, "loss", 1),
        (draw(8, 1), choose(9, 8, 1).float(), F.poisson_nll_loss, "loss", 1),
        ((draw(8, 3), draw(8, 3)), choose(3, 8), lambda o, t: F.cross_entropy(o[0], t), "loss", 1),
        ({"logits": draw(8, 5, 5)}, choose(5, 8, 5), lambda o, t: tokens_last(o["logits"], t), "class", 2),
        ({"logits": draw(8, 1)}, choose(2, 8), lambda o, t: binary_cross_entropy(o["logits"], t), "binary", 1),
        (draw(8, 3), choose(3, 8), penalised, "class", 1),
        (draw(8, 16), choose(10, 8), lambda o, t: (o @ o.T).square().mean(), "loss", 1),  # an embedding, no logits
        (draw(8, 3), choose(9, 8), lambda o, t: (o - t[:, None]).abs().mean(), "loss", 1),  # quantiles of counts
        ({"logits": draw(8, 3), "hidden": None}, choose(3, 8), F.cross_entropy, "class", 1),
    ],
)
def test_task(outputs: Any, targets: Tensor, loss: Loss, kind: str, dimension: int) -> None:
    found = infer_task(outputs, targets, loss)
    assert (found.kind, found.dimension) == (kind, dimension)


def test_a_loss_that_would_broadcast_is_refused() -> None:
    for outputs, targets in ((draw(8), draw(8, 1)), (draw(8, 1), draw(8))):
        with pytest.raises(UserError, match="which the loss broadcasts"):
            infer_task(outputs, targets, lambda o, t: (o - t).square().mean())
        assert loss_value(F.mse_loss, outputs, targets) == F.mse_loss(outputs.flatten(), targets.flatten())
    with pytest.raises(UserError, match=r"outputs have shape \(8, 3\) and targets \(8, 1\); they must agree"):
        loss_value(F.mse_loss, draw(8, 3), draw(8, 1))


def test_the_loss_of_torch_takes_tokens() -> None:
    outputs, targets = draw(4, 6, 3), choose(3, 4, 6)
    expected = F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    assert torch.allclose(loss_value(F.cross_entropy, outputs, targets), expected)
    assert torch.allclose(loss_value(nn.CrossEntropyLoss(), outputs, targets), expected)


def test_ignored_targets_do_not_count() -> None:
    outputs, targets = draw(4, 5, 3), choose(3, 4, 5)
    targets[0, 2:] = -100
    judged = infer_task(outputs, targets, tokens_last).errors(outputs, targets, tokens_last)
    counted = targets != -100
    assert judged.predictions.tolist() == [2, 5, 5, 5]
    assert float(judged.mean()) == float((outputs.argmax(2) != targets)[counted].double().mean())
    own = nn.CrossEntropyLoss(ignore_index=1)
    judged = infer_task(draw(9, 3), choose(3, 9), own).errors(draw(9, 3), choose(3, 9), own)
    assert judged.predictions.sum() == (choose(3, 9) != 1).sum()


def test_error_function_of_ones_own() -> None:
    """F1 against its definition, with a jackknife standard error that shrinks like one over the root of n."""

    def f1(outputs: Tensor, targets: Tensor) -> float:
        predicted, wanted = outputs > 0, targets > 0
        return float(2 * (predicted & wanted).sum() / (predicted.sum() + wanted.sum()))

    score = ErrorFunction(f1, "F1", better="higher")
    assert score.title == "1 - F1"
    spreads = []
    for count in (500, 50_000):
        outputs = draw(count)
        found = function_error(score, outputs, outputs + 0.5 * torch.randn(count))
        assert found.value == pytest.approx(0.15, abs=0.05)
        spreads.append(found.stderr)
    assert 5 < spreads[0] / spreads[1] < 20
    rmse = ErrorFunction(lambda o, t: (o - t).square().mean().sqrt(), "RMSE", "eV")
    assert rmse(torch.zeros(4), torch.full((4,), 3.0)) == 3
    with pytest.raises(UserError, match="error function 'bad' raised ZeroDivisionError"):
        ErrorFunction(lambda o, t: 1 / 0, "bad")(None, torch.zeros(1))


def test_losses_of_torch_get_the_logits_of_a_dict_and_others_the_dict() -> None:
    outputs, targets = {"logits": draw(8, 3), "aux": draw(8)}, choose(3, 8)
    assert loss_value(F.cross_entropy, outputs, targets) == F.cross_entropy(outputs["logits"], targets)
    assert loss_value(nn.CrossEntropyLoss(), outputs, targets) == F.cross_entropy(outputs["logits"], targets)
    assert loss_value(lambda o, t: o["aux"].sum(), outputs, targets) == outputs["aux"].sum()
    with pytest.raises(UserError, match="returns tuple; expected one tensor, or a dict with 'logits'"):
        logits((draw(8, 3),))


def test_built_in_cross_entropy_of_tokens() -> None:
    outputs, targets = draw(4, 6, 3), choose(3, 4, 6)
    targets[1, 3:] = -100
    expected = F.cross_entropy(outputs.reshape(-1, 3), targets.reshape(-1))
    assert torch.allclose(cross_entropy(outputs, targets), expected)
    assert torch.allclose(cross_entropy(outputs.transpose(1, 2), targets), expected)
    with pytest.raises(UserError, match=r"one logit per target, got outputs \(8, 2\)"):
        binary_cross_entropy(draw(8, 2), choose(2, 8))
