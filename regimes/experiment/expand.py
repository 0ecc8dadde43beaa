"""The stages of a sweep, checked before any work, and the layout of their values in the record."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regimes.config.sweep import Size, Sweep
from regimes.data.dataset import guessing_error, predictions_per_input
from regimes.errors import UserError
from regimes.experiment.context import RunContext
from regimes.experiment.preflight import check_fits, try_channels, try_discovery, try_loss, try_new_model, try_pruner
from regimes.experiment.stages.discover import DiscoverStage
from regimes.experiment.stages.measure import MeasureStage
from regimes.experiment.stages.pretrained import PretrainedStage, content_hash
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Stage
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.landscape import METRICS
from regimes.landscape.metric import Metric
from regimes.pruners import DISCOVERED
from regimes.pruners.prunable_weights import Coverage, coverage
from regimes.registry import lookup

SETTING = "setting"  # dimension of the record of a sweep whose settings are listed one by one


def check_sweep(sweep: Sweep, context: RunContext) -> None:
    """Check before any work that data, recipes, metrics and the user's own functions fit together.

    Raises:
        UserError: they do not.
    """
    check_fits(sweep.retrain, context.loaded)
    if sweep.dense is None:
        for temperature in sweep.temperatures():
            check_fits(sweep.dense_recipe(temperature), context.loaded)
    try_loss(sweep.recipe, context, "recipe", trained=sweep.dense is None)
    try_loss(sweep.retrain, context, "retrain")
    _check_metrics(sweep, context)
    for size in sweep.sizes():
        if sweep.dense is None:
            try_new_model(sweep.recipe, context.sized(size))
        try_load = try_discovery if sweep.load.pruner == DISCOVERED else try_channels
        (try_load if sweep.load.structured else try_pruner)(sweep, context.sized(size))


def dense_stages(sweep: Sweep, context: RunContext) -> Iterator[TrainStage | PretrainedStage]:
    """Yield the dense network of every width, temperature and dense seed: trained, or imported from a checkpoint."""
    splits = (context.loaded.train, context.loaded.val, context.loaded.test)
    images = (len(splits[0].targets), len(splits[1].targets), len(splits[2].targets))
    imported = Store(context.spec.folder).checkpoints if sweep.dense else {}
    for size, temperature in itertools.product(sweep.sizes(), sweep.temperatures()):
        identity, recipe = context.sized(size).identity, sweep.dense_recipe(temperature)
        knobs = {sweep.knobs[name].name if name in sweep.knobs else name: value for name, value in temperature.items()}
        for seed in range(sweep.dense_seeds):
            coords = {**knobs, **size, "dense_seed": seed}
            if sweep.dense is None:
                yield TrainStage(identity, recipe, seed, coords, images)
            else:
                path = sweep.checkpoint(temperature, seed)
                content = _content(path, context, imported)
                yield PretrainedStage(identity, path, content, recipe, seed, coords, images)


def _content(path: str, context: RunContext, imported: Mapping[str, str]) -> str:
    """Return the content hash of a checkpoint, after checking that it fits the model.

    The file of a checkpoint that the run has imported already may be missing: its hash is in the run's layout.
    """
    if path in imported and not Path(path).exists():
        return imported[path]
    context.read_network(path)
    return content_hash(path)


def pruning_branches(
    sweep: Sweep, dense: TrainStage | PretrainedStage
) -> Iterator[tuple[list[Stage], PruneStage | DiscoverStage]]:
    """Yield, for each point of the load axis, the pruned network and the stages before it (rounds of pruning)."""
    if isinstance(dense, TrainStage) and sweep.load.pruner == DISCOVERED:
        for pressure in sweep.load.pressures():
            yield [], DiscoverStage(dense, pressure, sweep.load)
    else:
        for density in sweep.load.density:
            yield _pruning_rounds(sweep, dense, density)


def cell_stages(sweep: Sweep, dense: TrainStage | PretrainedStage) -> Iterator[Stage]:
    """Yield the stages after a dense network: at each point of the load axis, pruning, retraining and measurements."""
    for rounds, pruned in pruning_branches(sweep, dense):
        copies = [RetrainStage(pruned, sweep.retrain, seed) for seed in range(sweep.retrain_seeds)]
        yield from (*rounds, pruned, *copies, *measure_stages(sweep, copies))


def _pruning_rounds(
    sweep: Sweep, dense: TrainStage | PretrainedStage, density: float
) -> tuple[list[Stage], PruneStage]:
    load = sweep.load
    rewound = None
    if load.rewind and isinstance(dense, TrainStage):
        recipe = dense.recipe.model_copy(update={"stop": load.rewind})
        rewound = dataclasses.replace(dense, recipe=recipe, intermediate=True)
    stages: list[Stage] = [] if rewound is None else [rewound]
    after: RetrainStage | None = None
    *earlier, final = load.path(density)
    for number, kept in enumerate(earlier, start=1):
        pruned = PruneStage(dense, kept, load, after, rewound, density)
        after = RetrainStage(pruned, load.recipe_between_rounds(sweep.retrain), number)
        stages += [pruned, after]
    return stages, PruneStage(dense, final, load, after, rewound, None)


def _check_metrics(sweep: Sweep, context: RunContext) -> None:
    data, classes = context.loaded, context.task(sweep.retrain).fraction
    for name in sweep.measure.metrics:
        metric: Metric = lookup(METRICS, name, "metric")
        if metric.classes and not classes:
            raise UserError(f"metric '{name}' is for classes, '{data.title}' has other targets; leave it out")
        if metric.needs is not None and importlib.util.find_spec(metric.needs[0]) is None:
            raise UserError(f"metric '{name}' needs {metric.needs[0]}: pip install '{metric.needs[1]}'")
    on = sweep.measure.options("cka").get("on", "softmax")
    if not classes and "cka" in sweep.measure.metrics and on == "softmax":
        raise UserError(
            "measure.cka.on = 'softmax' is for classes, the data have other targets; set cka = { on = 'logits' }"
        )


def measure_stages(sweep: Sweep, copies: Sequence[RetrainStage]) -> Iterator[MeasureStage]:
    """Yield every metric of every retrained copy, or pair of copies."""
    for name in sweep.measure.metrics:
        metric: Metric = lookup(METRICS, name, "metric")
        options = sweep.measure.options(metric.table)
        if metric.subject == "model":
            yield from (MeasureStage(name, options, (copy,), None) for copy in copies)
        else:
            for number, (i, j) in enumerate(sweep.pairs()):
                yield MeasureStage(name, options, (copies[i], copies[j]), number)


def without_duplicates(stages: Sequence[Stage]) -> list[Stage]:
    """Return one stage per key, in order; a final stage takes precedence over an intermediate one of another cell."""
    final = {stage.key: stage for stage in stages if not stage.intermediate}
    return [final.get(key, stage) for key, stage in {stage.key: stage for stage in stages}.items()]


def layout_of(sweep: Sweep, stages: Iterable[Stage], context: RunContext) -> dict[str, Any]:
    """Return where each stage's values belong: enough to assemble a record without loading data or torch."""
    knobs = [sweep.knobs[name] for name in sweep.temperature]
    return {
        "name": sweep.name,
        "predictions_per_input": predictions_per_input(context.loaded.test.targets),
        "chance_error": guessing_error(context.loaded.test.targets) if context.fraction(sweep.retrain) else None,
        "first_decay": _first_decay(sweep),
        "knobs": [{"name": k.name, "units": k.unit, "long_name": k.long_name, "hotter": k.hotter} for k in knobs],
        "coords": {
            **{k.name: list(values) for k, values in zip(knobs, sweep.temperature.values(), strict=True)},
            **({SETTING: list(range(len(sweep.points)))} if sweep.points else {}),
            **({"width": list(sweep.load.width)} if sweep.load.width else {}),
            sweep.load.axis[0]: list(sweep.load.axis[1]),
            "dense_seed": list(range(sweep.dense_seeds)),
            "retrain_seed": list(range(sweep.retrain_seeds)),
            "pair": list(range(len(sweep.pairs()))),
        },
        **({"settings": [dict(each) for each in sweep.points]} if sweep.points else {}),
        "stages": [_placed(stage, sweep) for stage in stages],
        "coverage": [{**size, **each.as_dict()} for size, each in coverages(sweep, context)],
        "sweep": sweep.model_dump(mode="json"),
    }


def coverages(sweep: Sweep, context: RunContext) -> list[tuple[Size, Coverage]]:
    """Return how much of the model can be pruned, for each size of the model."""
    sizes = sweep.sizes()
    return [(size, coverage(context.sized(size).new_model(seed=0), sweep.load.embeddings)) for size in sizes]


def _first_decay(sweep: Sweep) -> float | None:
    """The epoch of the first learning rate decay of the dense training, for step schedules."""
    stepped = sweep.dense is None and sweep.recipe.schedule == "step" and sweep.recipe.milestones
    return sweep.recipe.epochs * min(sweep.recipe.milestones) if stepped else None


def _placed(stage: Stage, sweep: Sweep) -> dict[str, Any]:
    at = dict(stage.coords)
    if sweep.points:
        setting = {name: at.pop(name) for name in sweep.points[0]}
        at = {SETTING: sweep.points.index(setting), **at}
    place: dict[str, Any] = {"key": stage.key, "kind": stage.kind, "at": at}
    if isinstance(stage, PretrainedStage):
        place["file"] = [stage.path, stage.content]
    return {**place, "aside": True} if stage.intermediate else place
