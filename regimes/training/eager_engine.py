"""The engine "eager": one network in plain PyTorch, the reference for the other engines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.data.inputs import Inputs, call
from regimes.landscape.error import mean_error
from regimes.losses.functions import in_dtype, loss_value
from regimes.models.build import dtype_of, load_weights, seeded
from regimes.training.fleet import Lane, Row, Tensors
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.precision import precision_context


class EagerEngine:
    """Engine that trains one network, step by step; see `Engine`."""

    capacity = 1

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        (self.lane,) = lanes
        self.precision = precision
        self.data = data
        self.model = self.lane.model
        self.dtype = dtype_of(self.model)
        self.stream = self.lane.stream(data)
        self.stepper = OptimizerStep(self.model, self.lane.recipe, self.lane.mask)
        if self.lane.resume is not None:
            load_weights(self.model, self.lane.resume.weights)
            self.stepper.set_momentum(self.lane.resume.momentum)
        if self.lane.mask is not None:
            self.lane.mask.apply(self.model)

    def epoch(self, number: int) -> list[float]:
        """Train for one scheduled epoch; return the mean batch loss."""
        schedule = self.stream.schedule
        total = torch.zeros((), dtype=torch.float64, device=self.data.train.targets.device)
        loss_fn = self.lane.recipe.training_loss
        steps = schedule.steps_per_epoch
        self.model.train()
        with seeded(0):
            for step, inputs, targets in self.stream.batches(number * steps, (number + 1) * steps):

                def loss(step: int = step, inputs: Inputs = inputs, targets: Tensor = targets) -> Tensor:
                    self.stream.seed_noise(step)  # the same dropout in both passes of SAM
                    with precision_context(self.precision, targets.device):
                        answers = call(self.model, inputs)
                    value: Tensor = loss_value(loss_fn, in_dtype(answers, self.dtype), targets)
                    return value

                total += self.stepper(loss, schedule.learning_rate(step), step)
        return [float(total) / steps]

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """Return the number of lanes computed for a number of networks: the same number."""
        return networks

    def errors(self) -> list[Row]:
        """Return the validation and test error."""
        splits = {"val_error": self.data.val, "test_error": self.data.test}
        recipe = self.lane.recipe
        return [
            {
                name: mean_error(self.model, split, recipe.loss_fn, recipe.error_function)
                for name, split in splits.items()
            }
        ]

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """Return the state dict and momentum buffers, copied to the CPU."""
        return _copy(self.model.state_dict()), _copy(self.stepper.momentum())


def _copy(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
