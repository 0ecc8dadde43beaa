"""Lanes (networks trained together as a fleet), snapshots, and the interface of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data import AUGMENTATIONS
from regimes.data.dataset import Dataset
from regimes.pruners.mask import Mask
from regimes.registry import lookup
from regimes.training.batches import BatchStream
from regimes.training.schedule import TrainingSchedule

Row = dict[str, Any]  # one epoch: epoch, train_loss and, if evaluated, test_error and val_error
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """State of a training at the end of an epoch, with its history.

    Attributes:
        epoch: number of scheduled epochs done.
        weights: the model's state dict.
        momentum: the optimiser's buffers by name; see `OptimizerStep.momentum`.
        history: one row per epoch so far.
        diverged: whether the loss became non-finite; weights and momentum are then empty.
    """

    epoch: int
    weights: Tensors
    momentum: Tensors
    history: list[Row] = field(default_factory=list)
    diverged: bool = False


@dataclass(frozen=True)
class Lane:
    """One network of a fleet and its training.

    Attributes:
        model: the network with its initial weights, on the data's device.
        recipe: the training recipe.
        role: identifies the random stream: same role, same batches; see `BatchStream`.
        mask: the live weights; all others stay exactly zero. None: every weight is live.
        resume: snapshot of this training to resume from; its weights replace those of ``model``.
    """

    model: nn.Module
    recipe: Recipe
    role: tuple[str | int, ...]
    mask: Mask | None = None
    resume: Snapshot | None = None

    @property
    def start(self) -> int:
        """Number of epochs already done."""
        return self.resume.epoch if self.resume else 0

    @property
    def shape(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the model's state dict; lanes of the same shape can be trained together."""
        return tuple((name, tuple(each.shape)) for name, each in self.model.state_dict().items())

    def stream(self, data: Dataset) -> BatchStream:
        """Return the batches of this training."""
        schedule = TrainingSchedule(self.recipe, len(data.train.targets))
        return BatchStream(self.role, schedule, data.train, lookup(AUGMENTATIONS, self.recipe.augment, "augmentation"))


# Recipe fields in which the lanes of a fleet may differ.
PER_NETWORK_FIELDS = (
    *("learning_rate", "weight_decay", "sam_rho", "label_smoothing", "stop"),
    *("warmup", "beta1", "beta2", "clip_norm"),
)


class Engine(Protocol):
    """Interface of an engine, which trains up to ``capacity`` lanes together.

    The lanes have the same shape, start at the same epoch, and have equal recipes apart from `PER_NETWORK_FIELDS`.

    Args:
        lanes: the lanes.
        data: the data set, on the device of the models.
        precision: precision of the training steps; see `precision.precision_context`.
    """

    capacity: ClassVar[int]

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        """Take over the lanes' models, without training yet."""

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """Return the number of lanes computed for a number of networks; padding lanes cost as much as the others."""

    def epoch(self, number: int) -> list[float]:
        """Train every lane for one scheduled epoch; return each lane's mean batch loss."""

    def errors(self) -> list[Row]:
        """Return each lane's validation and test error, in eval mode."""

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """Return a lane's state dict and momentum buffers, copied to the CPU."""
