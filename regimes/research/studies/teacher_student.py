"""Toy problem with known answer: a student of residual blocks learns from a teacher with one block of four units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regimes.config.discovery import Pressure
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.discovery.gated_training import GatedTraining
from regimes.models.build import seeded


class Part(nn.Module):
    """Residual block ``x + down(relu(up(x)))``."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, units), nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


class Net(nn.Module):
    """Residual blocks of linear layers and a linear head."""

    def __init__(self, parts: int = 3, units: int = 16, width: int = 8, outputs: int = 4) -> None:
        super().__init__()
        self.parts = nn.Sequential(*(Part(width, units) for _ in range(parts)))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.parts(x))
        return out


def teacher_data(seed: int, count: int = 2000) -> Dataset:
    """Return inputs and the outputs of a teacher with one block of four units, scaled to variance 1."""
    with seeded(100 + seed), torch.no_grad():
        teacher = Net(parts=1, units=4)
        for name in ("parts.0.up", "parts.0.down"):
            weight = teacher.get_parameter(f"{name}.weight")
            nn.init.orthogonal_(weight)
            weight.mul_(2)
        teacher.get_parameter("parts.0.up.bias").zero_()
        inputs = torch.randn(2 * count, 8)
        answers = teacher(inputs)
        answers = (answers - answers.mean(0)) / answers.std(0)
    halves = (inputs[:count], answers[:count]), (inputs[count:], answers[count:])
    return Dataset.from_arrays(*halves, title="teacher data")


def train_student(seed: int, epochs: int = 120, **pressure: Any) -> GatedTraining:
    """Train a student with three blocks of 16 units under a pressure, with a slow schedule."""
    recipe = Recipe(
        epochs=epochs, batch_size=64, learning_rate=0.05, weight_decay=0.0, augment="none", loss="mse", last=1
    )
    with seeded(seed):
        student = Net()
    slow_schedule = {"warm": 0.1, "ramp": 0.1, "settle": 0.6, "fall": 0.15, "every": 4, "drawn": 1.0}
    asked = Pressure.model_validate({**slow_schedule, **pressure})
    search = GatedTraining(student, teacher_data(seed), recipe, asked, ("dense", seed))
    for number in range(epochs):
        search.epoch(number)
    return search


def units_left(search: GatedTraining) -> list[int]:
    """Return the number of units remaining in each block."""
    return [int((~search.units.removed[group.units]).sum()) for group in search.full_graph.groups]
