"""The engine "eager": one network, plain PyTorch, step by step. The others are held against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.landscape.error import mean_error
from regimes.models.build import load_weights, seeded
from regimes.training.fleet import Lane, Row, Tensors
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.precision import arithmetic


class EagerEngine:
    """Trains one lane."""

    capacity = 1

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        (self.lane,) = lanes
        self.precision = precision
        self.data = data
        self.model = self.lane.model
        self.stream = self.lane.stream(data)
        self.stepper = OptimizerStep(self.model, self.lane.recipe, self.lane.mask)
        if self.lane.resume is not None:
            load_weights(self.model, self.lane.resume.weights)
            self.stepper.set_momentum(self.lane.resume.momentum)
        if self.lane.mask is not None:
            self.lane.mask.apply(self.model)

    def epoch(self, number: int) -> list[float]:
        """Train one scheduled epoch."""
        timeline = self.stream.timeline
        total = torch.zeros((), dtype=torch.float64, device=self.data.train.targets.device)
        loss_fn = self.lane.recipe.training_loss
        steps = timeline.steps_per_epoch
        self.model.train()
        with seeded(0):
            for step, inputs, targets in self.stream.batches(number * steps, (number + 1) * steps):

                def loss(step: int = step, inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                    torch.manual_seed(self.stream.noise(step))  # dropout draws the same in both of SAM's passes
                    with arithmetic(self.precision, inputs.device):
                        answers = self.model(inputs)
                    value: Tensor = loss_fn(answers.to(inputs.dtype), targets)
                    return value

                total += self.stepper(loss, timeline.learning_rate(step))
        return [float(total) / steps]

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """The number of lanes computed for so many networks: as many."""
        return networks

    def errors(self) -> list[Row]:
        """Validation and test error."""
        splits = {"val_error": self.data.val, "test_error": self.data.test}
        loss_fn = self.lane.recipe.loss_fn
        return [{name: mean_error(self.model, split, loss_fn) for name, split in splits.items()}]

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """State dict and momentum."""
        return _copy(self.model.state_dict()), _copy(self.stepper.momentum())


def _copy(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
