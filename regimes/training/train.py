"""Train networks and return snapshots at the requested epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.pruners.mask import Mask
from regimes.registry import lookup
from regimes.training import ENGINES
from regimes.training.custom_loop_engine import CustomLoopEngine
from regimes.training.fleet import Engine, Lane, Row, Snapshot


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
    """Train one network in place with the engine "eager" and yield its snapshots; see `train_fleet` and `Lane`."""
    lane = Lane(model, recipe, role, mask, resume)
    return (snapshot for _, snapshot in train_fleet([lane], data, epochs, evaluate_all=evaluate_all))


def train_fleet(
    lanes: Sequence[Lane],
    data: Dataset,
    epochs: Sequence[int],
    engine: str = "eager",
    evaluate_all: bool = True,
    precision: str = "float32",
) -> Iterator[tuple[int, Snapshot]]:
    """Train networks and yield (index of the lane, snapshot) at each of ``epochs``.

    Test and validation error are measured in eval mode at the end of epochs. When a lane's loss becomes non-finite, the
    lane is dropped and its remaining snapshots are yielded as diverged, which is a valid result.

    Args:
        lanes: the networks; they start at the same epoch, and their recipes are equal apart from `PER_NETWORK_FIELDS`.
            Networks of different shapes (e.g. after structured pruning) are trained shape by shape.
        data: the data set, on the device and in the dtype of the models.
        epochs: scheduled epochs at which to yield a snapshot, ascending.
        engine: a name in `ENGINES`, of no account for a loop of one's own (``recipe.train``). Within one engine, a
            lane's bits do not depend on the other lanes.
        evaluate_all: whether to evaluate after every epoch, or only in the last ``recipe.last`` ones.
        precision: precision of the training steps, a name in `PRECISIONS`.

    Raises:
        RuntimeError: the model's own code moved a pruned weight away from zero.
    """
    kind: type[Engine] = (
        CustomLoopEngine if any(lane.recipe.train for lane in lanes) else lookup(ENGINES, engine, "engine")
    )
    shapes: dict[Any, list[int]] = {}
    for number, lane in enumerate(lanes):
        shapes.setdefault(lane.shape, []).append(number)
    for alike in shapes.values():
        for first in range(0, len(alike), kind.capacity):
            numbers = alike[first : first + kind.capacity]
            together = [lanes[number] for number in numbers]
            for place, snapshot in _lockstep(kind(together, data, precision), together, epochs, evaluate_all):
                yield numbers[place], snapshot


def _lockstep(
    engine: Engine, lanes: Sequence[Lane], epochs: Sequence[int], evaluate_all: bool
) -> Iterator[tuple[int, Snapshot]]:
    histories: list[list[Row]] = [list(lane.resume.history) if lane.resume else [] for lane in lanes]
    alive = set(range(len(lanes)))
    evaluated_from = 0 if evaluate_all else epochs[-1] - lanes[0].recipe.last
    for epoch in range(lanes[0].start, epochs[-1]):
        losses = engine.epoch(epoch)
        for number in sorted(alive):
            if not math.isfinite(losses[number]):
                alive.discard(number)
                left = (each for each in epochs if each > epoch)
                yield from ((number, Snapshot(each, {}, {}, histories[number], diverged=True)) for each in left)
        if not alive:
            return
        errors = engine.errors() if epoch >= evaluated_from else [{} for _ in lanes]
        for number in alive:
            histories[number].append({"epoch": epoch + 1, "train_loss": losses[number], **errors[number]})
        if epoch + 1 in epochs:
            for number in sorted(alive):
                weights, momentum = engine.state(number)
                mask = lanes[number].mask
                if mask is not None and not mask.holds(weights):
                    raise RuntimeError("a pruned weight is no longer zero: the model's own code bypasses the mask")
                yield number, Snapshot(epoch + 1, weights, momentum, list(histories[number]))
