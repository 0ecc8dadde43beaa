"""One network of a fleet, and what an engine does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data import AUGMENTATIONS
from regimes.data.dataset import Dataset
from regimes.pruners.mask import Mask
from regimes.registry import load
from regimes.training.batches import BatchStream
from regimes.training.schedule import TrainingSchedule

Row = dict[str, Any]  # one epoch: epoch, train_loss and, where evaluated, test_error, val_error
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A training at the end of an epoch: all that the next step depends on, and what was seen on the way.

    Attributes:
        epoch: scheduled epochs done.
        weights: the model's state dict.
        momentum: the optimiser's buffers by parameter name.
        history: one row per epoch so far.
        diverged: the loss was no longer finite; weights and momentum are then empty.
    """

    epoch: int
    weights: Tensors
    momentum: Tensors
    history: list[Row] = field(default_factory=list)
    diverged: bool = False


@dataclass(frozen=True)
class Lane:
    """One training.

    Attributes:
        model: the network, on the data's device, with the weights to start from (or those of ``resume``).
        recipe: how to train.
        role: names the random stream: same role, same batches; see `BatchStream`.
        mask: live weights; all others stay exactly zero.
        resume: a snapshot of this very training to go on from.
    """

    model: nn.Module
    recipe: Recipe
    role: tuple[str | int, ...]
    mask: Mask | None = None
    resume: Snapshot | None = None

    @property
    def start(self) -> int:
        """Epochs already done."""
        return self.resume.epoch if self.resume else 0

    @property
    def shape(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of everything in the model: lanes of one shape can be trained as one."""
        return tuple((name, tuple(each.shape)) for name, each in self.model.state_dict().items())

    def stream(self, data: Dataset) -> BatchStream:
        """The batches of this training."""
        timeline = TrainingSchedule(self.recipe, len(data.train.targets))
        return BatchStream(self.role, timeline, data.train, load(AUGMENTATIONS, self.recipe.augment, "augmentation"))


# What lanes of one fleet may differ in; all else in their recipes is equal.
PER_NETWORK_FIELDS = ("learning_rate", "weight_decay", "sam_rho", "label_smoothing", "stop")


class Engine(Protocol):
    """Takes the steps of up to ``capacity`` lanes at once; they have one shape, start at one epoch and share all but
    `PER_NETWORK_FIELDS`. ``precision`` is that of the steps; see `precision.arithmetic`."""

    capacity: ClassVar[int]

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        """Take over the lanes' models; nothing is computed yet."""

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """The number of lanes that are computed for so many networks; those that are empty cost as much."""

    def epoch(self, number: int) -> list[float]:
        """Train one scheduled epoch; returns each lane's mean batch loss."""

    def errors(self) -> list[Row]:
        """Each lane's validation and test error, in eval mode."""

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """A lane's state dict and momentum buffers, copied to the CPU."""
