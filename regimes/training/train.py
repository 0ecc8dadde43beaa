"""Train one network along its timeline and stop at the epochs asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.data import AUGMENTATIONS
from regimes.data.dataset import Dataset
from regimes.landscape.error import error_and_loss
from regimes.models.build import seeded
from regimes.pruners.mask import Mask
from regimes.registry import load
from regimes.spec.recipe import Recipe
from regimes.training.step import Stepper
from regimes.training.streams import Stream
from regimes.training.timeline import Timeline

Row = dict[str, Any]  # one epoch: epoch, train_loss and, where evaluated, test_error, val_error


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
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    history: list[Row] = field(default_factory=list)
    diverged: bool = False


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    role: tuple[str | int, ...],
    epochs: Sequence[int],
    *,
    mask: Mask | None = None,
    resume: Snapshot | None = None,
    evaluate_all: bool = True,
) -> Iterator[Snapshot]:
    """Train a network in place and yield a snapshot at each of ``epochs`` (ascending).

    Test and validation error are taken in eval mode at the end of epochs: of all of them, or of those that the means
    before the last one asked for need (``recipe.last``). Once the loss is not finite, training ends, and every
    snapshot left is yielded as diverged: that is a result.

    Args:
        model: the network, on the data's device, with the weights to start from (or those of ``resume``).
        data: on one device, in the dtype of the model.
        recipe: how to train.
        role: names the random stream: same role, same batches; see `Stream`.
        epochs: scheduled epochs at which to stop and hand out a snapshot.
        mask: live weights; all others stay exactly zero.
        resume: a snapshot of this very training to go on from.
        evaluate_all: whether every epoch is evaluated, or only the last ``recipe.last`` ones.
    """
    timeline = Timeline(recipe, len(data.train.targets))
    stream = Stream(role, timeline, data.train, load(AUGMENTATIONS, recipe.augment, "augmentation"))
    stepper = Stepper(model, recipe, mask)
    if resume is not None:
        model.load_state_dict(resume.weights)
        stepper.set_momentum(resume.momentum)
    if mask is not None:
        mask.apply(model)
    history = list(resume.history) if resume else []
    evaluated_from = 0 if evaluate_all else epochs[-1] - recipe.last
    for epoch in range(resume.epoch if resume else 0, epochs[-1]):
        row: Row = {"epoch": epoch + 1, "train_loss": _epoch(model, stepper, stream, epoch)}
        if not math.isfinite(row["train_loss"]):
            yield from (Snapshot(each, {}, {}, history, diverged=True) for each in epochs if each > epoch)
            return
        if epoch >= evaluated_from:
            row |= _evaluate(model, data)
        history.append(row)
        if epoch + 1 in epochs:
            if mask is not None and not mask.holds(model):
                raise RuntimeError("a pruned weight moved away from zero: the model's own code bypasses the mask")
            yield Snapshot(epoch + 1, _copy(model.state_dict()), _copy(stepper.momentum()), list(history))


def _epoch(model: nn.Module, stepper: Stepper, stream: Stream, epoch: int) -> float:
    """Train one scheduled epoch; returns the mean of the batches' losses."""
    timeline = stream.timeline
    total = torch.zeros((), dtype=torch.float64, device=stream.split.targets.device)
    smoothing = timeline.recipe.label_smoothing
    model.train()
    with seeded(0):
        for step, inputs, targets in stream.batches(
            epoch * timeline.steps_per_epoch, (epoch + 1) * timeline.steps_per_epoch
        ):

            def loss(step: int = step, inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                torch.manual_seed(stream.noise(step))  # dropout draws the same in both of SAM's passes
                return F.cross_entropy(model(inputs), targets, label_smoothing=smoothing)

            total += stepper(loss, timeline.learning_rate(step))
    return float(total) / timeline.steps_per_epoch


def _evaluate(model: nn.Module, data: Dataset) -> Row:
    row: Row = {}
    for name in ("val", "test"):
        error, _ = error_and_loss(model, getattr(data, name), F.cross_entropy)
        row[f"{name}_error"] = error.value
    return row


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
