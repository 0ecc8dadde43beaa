"""Engine "graphed" on a CPU: what it refuses, and that the steps before a capture leave no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.pruners.prune import prune
from regimes.training.cuda_graph_engine import CudaGraphEngine
from regimes.training.fleet import Lane, Snapshot
from regimes.training.train import train_fleet

RECIPE = Recipe(epochs=1, batch_size=16, augment="none", last=1)


def data() -> Dataset:
    return synthetic(shape=[64], train=120, test=40).to(torch.device("cpu"), torch.float64)


def trained(lane: Lane) -> Snapshot:
    return next(train_fleet([lane], data(), [1], "graphed"))[1]


class Drawing(nn.Module):
    """Draws from one of the global generators in training."""

    def __init__(self, source: Callable[[], object]) -> None:
        super().__init__()
        self.source, self.body = source, nn.Linear(64, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.source()
        out: Tensor = self.body(inputs.flatten(1))
        return out


@pytest.mark.parametrize("source", [lambda: torch.rand(1), random.random, np.random.rand])
def test_a_model_that_draws_random_numbers_is_not_graphed(source: Callable[[], object]) -> None:
    """On a CPU, too, where the networks of a fleet would share them."""
    with pytest.raises(ValueError, match="draws random numbers during training; use the engine eager"):
        trained(Lane(Drawing(source).double(), RECIPE, ("x",)))
    trained(Lane(Drawing(lambda: None).double(), RECIPE, ("x",)))


class Counting(nn.Module):
    """Keeps its number of steps in a buffer that is not saved."""

    def __init__(self, replaces: bool) -> None:
        super().__init__()
        self.replaces, self.norm, self.body = replaces, nn.BatchNorm1d(64), nn.Linear(64, 4)
        self.head, self.steps = nn.Linear(4, 4), nn.Buffer(torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and self.replaces:
            self.steps = self.steps + 1
        elif self.training:
            self.steps += 1
        out: Tensor = self.head(self.body(self.norm(inputs.flatten(1)) / (1 + self.steps)))
        return out


@pytest.mark.parametrize("change", [{}, {"momentum": 0.0}, {"optimizer": "adamw", "sam_rho": 0.1}])
@pytest.mark.parametrize("batch", [16, 108])
def test_steps_before_a_capture_are_undone(change: dict[str, Any], batch: int) -> None:
    """Also where one batch is all there is: the steps must not go on to a second one."""
    recipe = RECIPE.model_copy(update={**change, "batch_size": batch})
    model = Counting(replaces=False).double()
    pruned = Lane(model, recipe, ("x",), prune(model, 0.5))
    expected = trained(copy.deepcopy(pruned))
    engine = CudaGraphEngine([pruned], data())
    weights, momentum = engine.state(0)
    engine.members[0].begin()
    engine.members[0]._warm_up()
    after = engine.state(0)
    assert all(torch.equal(each, weights[name]) for name, each in after[0].items())
    assert all(torch.equal(each, momentum[name]) for name, each in after[1].items())
    assert float(model.steps) == 0
    assert all(each.grad is None for each in model.parameters())
    losses = engine.epoch(0)
    assert losses == [expected.history[-1]["train_loss"]]
    assert all(torch.equal(each, expected.weights[name]) for name, each in engine.state(0)[0].items())


def test_a_model_that_replaces_its_buffers_is_not_captured() -> None:
    engine = CudaGraphEngine([Lane(Counting(replaces=True).double(), RECIPE, ("x",))], data())
    with pytest.raises(ValueError, match="replaces a buffer during training"):
        engine.members[0]._warm_up()
