"""The layout: every stage of a sweep, in the order of the method, and where its values stand."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.data import AUGMENTATIONS
from regimes.data.dataset import Dataset
from regimes.errors import UserError
from regimes.experiment.context import RunContext
from regimes.experiment.preflight import try_channels, try_discovery, try_losses, try_pruner
from regimes.experiment.stages.discover import DiscoverStage
from regimes.experiment.stages.measure import MeasureStage
from regimes.experiment.stages.pretrained import PretrainedStage, content_hash, read_checkpoint
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Stage
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.landscape import METRICS
from regimes.landscape.metric import Metric
from regimes.pruners import DISCOVERED
from regimes.registry import lookup
from regimes.training.schedule import TrainingSchedule


def expand(sweep: Sweep, context: RunContext) -> list[Stage]:
    """Return every stage of a sweep, each after those it needs."""
    split = context.loaded
    images = (len(split.train.targets), len(split.val.targets), len(split.test.targets))
    _check_fits(sweep.retrain, split)
    _check_measures(sweep, split)
    try_losses(sweep, context)
    for size in sweep.sizes():
        tried = try_discovery if sweep.load.pruner == DISCOVERED else try_channels
        (tried if sweep.load.structured else try_pruner)(sweep, context.sized(size))
    taken_in = Store(context.spec.folder).checkpoints if sweep.dense else {}
    stages: list[Stage] = []
    for size, temperature in itertools.product(sweep.sizes(), sweep.temperatures()):
        identity = context.sized(size).identity
        recipe = sweep.dense_recipe(temperature)
        if sweep.dense is None:
            _check_fits(recipe, split)
        for dense_seed in range(sweep.dense_seeds):
            turned = {sweep.knobs[name].name: value for name, value in temperature.items()}
            at = {**turned, **size, "dense_seed": dense_seed}
            dense: TrainStage | PretrainedStage = TrainStage(identity, recipe, dense_seed, at, images)
            if sweep.dense is not None:
                path = sweep.checkpoint(temperature, dense_seed)
                content = _content(path, context, taken_in)
                dense = PretrainedStage(identity, path, content, recipe, dense_seed, at, images)
            stages.append(dense)
            for way in _ways(sweep, dense):
                pruned = way[-1]
                assert isinstance(pruned, (PruneStage, DiscoverStage))
                copies = [RetrainStage(pruned, sweep.retrain, seed) for seed in range(sweep.retrain_seeds)]
                stages += [*way, *copies, *_measurements(sweep, copies)]
    # An intermediate stage of one cell may be a final one of another.
    shown = {stage.key: stage for stage in stages if not stage.intermediate}
    return [shown.get(key, stage) for key, stage in {stage.key: stage for stage in stages}.items()]


def _content(path: str, context: RunContext, taken_in: Mapping[str, str]) -> str:
    """Hash of a checkpoint, read once so that one that does not fit says so before any work.

    One that a run has taken in already is not needed any more: what its file held stands in the run's layout.
    """
    if path in taken_in and not Path(path).exists():
        return taken_in[path]
    content = content_hash(path)
    read_checkpoint(path, context.new_model(seed=0))
    return content


def _ways(sweep: Sweep, dense: TrainStage | PretrainedStage) -> Iterator[list[Stage]]:
    """The stages to each point of the load axis."""
    if isinstance(dense, TrainStage) and sweep.load.pruner == DISCOVERED:
        for pressure in sweep.load.pressures():
            yield [DiscoverStage(dense, pressure, sweep.load)]
    else:
        for density in sweep.load.density:
            yield _way(sweep, dense, density)


def _way(sweep: Sweep, dense: TrainStage | PretrainedStage, density: float) -> list[Stage]:
    """The rounds of pruning to one density, the last one last; one in one-shot pruning."""
    load = sweep.load
    rewound = None
    if load.rewind and isinstance(dense, TrainStage):
        recipe = dense.recipe.model_copy(update={"stop": load.rewind})
        rewound = dataclasses.replace(dense, recipe=recipe, intermediate=True)
    stages: list[Stage] = [] if rewound is None else [rewound]
    after: RetrainStage | None = None
    path = load.path(density)
    for number, each in enumerate(path, start=1):
        last = number == len(path)
        pruned = PruneStage(dense, each, load, after, rewound, None if last else density)
        stages.append(pruned)
        if not last:
            after = RetrainStage(pruned, load.recipe_between_rounds(sweep.retrain), number)
            stages.append(after)
    return stages


def _check_measures(sweep: Sweep, data: Dataset) -> None:
    for name in sweep.measure.metrics:
        metric: Metric = lookup(METRICS, name, "metric")
        if data.regression and metric.classes:
            raise UserError(f"metric '{name}' is for classes, '{data.title}' has numbers as targets; leave it out")
        if metric.needs is not None and importlib.util.find_spec(metric.needs[0]) is None:
            raise UserError(f"metric '{name}' needs {metric.needs[0]}: pip install '{metric.needs[1]}'")
    on = sweep.measure.options("cka").get("on", "softmax")
    if data.regression and "cka" in sweep.measure.metrics and on == "softmax":
        raise UserError(
            "measure.cka.on = 'softmax' is for classes, the data have numbers as targets; set cka = { on = 'logits' }"
        )


def _check_fits(recipe: Recipe, data: Dataset) -> None:
    """Say so before any work when a batch is larger than the data, or loss or augmentation are not for such data."""
    TrainingSchedule(recipe, len(data.train.targets))
    if data.regression and recipe.loss == "cross-entropy":
        raise UserError(
            f"recipe.loss = 'cross-entropy' is for classes, '{data.title}' has numbers as targets; try 'mse'"
        )
    if not data.regression and recipe.loss == "mse":
        raise UserError(f"recipe.loss = 'mse' is for numbers, '{data.title}' has classes as targets")
    lookup(AUGMENTATIONS, recipe.augment, "augmentation").check(data.input_shape, recipe.augment)


def _measurements(sweep: Sweep, copies: Sequence[RetrainStage]) -> Iterator[MeasureStage]:
    for name in sweep.measure.metrics:
        metric: Metric = lookup(METRICS, name, "metric")
        options = sweep.measure.options(metric.table)
        if metric.subject == "model":
            yield from (MeasureStage(name, options, (copy,), None) for copy in copies)
        else:
            for number, (i, j) in enumerate(sweep.pairs()):
                yield MeasureStage(name, options, (copies[i], copies[j]), number)


def layout_of(sweep: Sweep, stages: Iterable[Stage], data: Dataset) -> dict[str, Any]:
    """Where each stage's values stand: what a record needs to be put together without loading data or torch."""
    knobs = [sweep.knobs[name] for name in sweep.temperature]
    return {
        "name": sweep.name,
        "chance_error": None
        if data.regression
        else 1 - float(data.test.targets.bincount().max()) / len(data.test.targets),
        "first_decay": _first_decay(sweep),
        "knobs": [{"name": k.name, "units": k.unit, "long_name": k.long_name, "hotter": k.hotter} for k in knobs],
        "coords": {
            **{k.name: list(values) for k, values in zip(knobs, sweep.temperature.values(), strict=True)},
            **({"width": list(sweep.load.width)} if sweep.load.width else {}),
            sweep.load.axis[0]: list(sweep.load.axis[1]),
            "dense_seed": list(range(sweep.dense_seeds)),
            "retrain_seed": list(range(sweep.retrain_seeds)),
            "pair": list(range(len(sweep.pairs()))),
        },
        "stages": [_placed(stage) for stage in stages],
        "sweep": sweep.model_dump(mode="json"),
    }


def _first_decay(sweep: Sweep) -> float | None:
    """The epoch of the first decay of the learning rate in the dense training, where a schedule has steps."""
    stepped = sweep.dense is None and sweep.recipe.schedule == "step" and sweep.recipe.milestones
    return sweep.recipe.epochs * min(sweep.recipe.milestones) if stepped else None


def _placed(stage: Stage) -> dict[str, Any]:
    place: dict[str, Any] = {"key": stage.key, "kind": stage.kind, "at": dict(stage.coords)}
    if isinstance(stage, PretrainedStage):
        place["file"] = [stage.path, stage.content]
    return {**place, "aside": True} if stage.intermediate else place
