"""The loss with confidence set right: the least over all temperatures, blind to how sure a network is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional

from regimes.config.recipe import Recipe
from regimes.data.dataset import Split
from regimes.hpo.validation import MAX_SCALE, calibrated_loss, loss_floor, validate
from regimes.landscape.error import error_and_loss


def _some(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(5, (60,), generator=generator)
    answers = torch.randn(60, 5, generator=generator) + 1.5 * functional.one_hot(targets, 5)
    return scale * answers, targets


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 5.0))
def test_it_is_the_least_over_temperatures(seed: int, scale: float) -> None:
    answers, targets = _some(seed, scale)
    double = answers.double()
    found = minimize_scalar(lambda b: float(functional.cross_entropy(b * double, targets)), bounds=(0.01, MAX_SCALE))
    assert calibrated_loss(answers, targets) == pytest.approx(found.fun, abs=1e-6)
    assert calibrated_loss(answers, targets) <= float(functional.cross_entropy(double, targets)) + 1e-12


def test_it_does_not_see_confidence_where_the_loss_does() -> None:
    answers, targets = _some(0)
    doubtful, sure = 0.3 * answers, 3.0 * answers
    assert calibrated_loss(doubtful, targets) == pytest.approx(calibrated_loss(sure, targets), abs=1e-6)
    losses = [float(functional.cross_entropy(each, targets)) for each in (doubtful, answers, sure)]
    assert max(losses) > 1.2 * min(losses)


def test_a_network_that_knows_nothing_and_one_that_knows_all() -> None:
    targets = torch.arange(4)
    assert calibrated_loss(torch.zeros(4, 4), targets) == pytest.approx(torch.log(torch.tensor(4.0)).item())
    assert calibrated_loss(-torch.eye(4), targets) == pytest.approx(1.386, abs=0.05)  # worse than knowing nothing


def test_no_loss_is_below_what_so_many_predictions_can_show() -> None:
    """Closed form of Laplace's rule of succession: n right of n, so the next is right with (n + 1) / (n + 2)."""
    for count in (1, 10, 360):
        targets = torch.arange(count) % 4
        for confident in (5.0, 500.0):
            found = calibrated_loss(confident * functional.one_hot(targets, 4), targets)
            assert found == loss_floor(count) == pytest.approx(-math.log((count + 1) / (count + 2)))


def test_a_judgement_is_error_and_loss_in_one_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    split = Split(torch.randn(300, 6), torch.randint(5, (300,)))
    found = validate(model, split, Recipe())
    error, loss = error_and_loss(model, split, functional.cross_entropy)
    assert found.error == error.value
    assert found.loss == pytest.approx(loss.value, rel=1e-6)
    assert found.calibrated <= found.loss
    numbers = Split(split.inputs, torch.randn(300, 5))
    assert validate(model, numbers, Recipe(loss="mse")).calibrated == validate(model, numbers, Recipe(loss="mse")).loss
