"""Measures of networks of one's own, without a sweep: every metric by its name, on modules and tensors or loaders."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional as F

from regimes.data.dataset import Dataset, Split
from regimes.errors import UserError
from regimes.landscape import METRICS
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import Curve, LossFn, Metric, Probe, Trained
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prunable
from regimes.registry import load, nearest


@dataclass(frozen=True)
class Measurement:
    """One number of one network or of a pair.

    Attributes:
        metric, variable: whose, and which.
        networks: their positions in the list that was measured.
        value: an estimate with its standard error, or a curve.
        long_name: what it is.
        seconds: that the metric took, all its variables together.
    """

    metric: str
    variable: str
    networks: tuple[int, ...]
    value: Estimate | Curve
    long_name: str
    seconds: float


def measure(
    models: Sequence[nn.Module],
    data: Dataset | Data,
    metrics: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    test: Data | None = None,
    masks: Sequence[Mask | None] | None = None,
    loss_fn: LossFn = F.cross_entropy,
    seed: int = 0,
) -> list[Measurement]:
    """Measure networks of one architecture: each alone by metrics of a model, all pairs by metrics of a pair.

    Args:
        models: they are left as they were.
        data: a `Dataset`, or the training split as (inputs, targets) or as a ``DataLoader``, which is read once into
            memory. The networks' device is where it goes.
        metrics: names in `METRICS` or import paths; None: error and Hessian trace, LMC and CKA of pairs.
        options: {table: {option: value}}, as in ``[measure]`` of a sweep file.
        test: the test split, where ``data`` is a training split; None: the training split stands in for it.
        masks: of pruned networks, see `mask_of_zeros`; None: every weight lives.
        loss_fn: mean loss of a batch.
        seed: of random probes.

    Raises:
        UserError: no models, an unknown metric, table or option, a metric of pairs and one model only, one for classes
            where targets are numbers; nothing is measured then.
    """
    if isinstance(models, nn.Module) or not models:
        raise UserError("models: a list of one network or more is expected")
    if masks is not None and len(masks) != len(models):
        raise UserError(f"masks: one for each network, or None: got {len(masks)} for {len(models)}")
    held = data if isinstance(data, Dataset) else _dataset(data, test, models[0])
    subjects = [Trained(*each) for each in zip(models, masks or [None] * len(models), strict=True)]
    chosen = _chosen(metrics, options or {}, len(models), held)
    found = []
    for metric, option in chosen:
        size = 1 if metric.subject == "model" else 2
        for networks in itertools.combinations(range(len(models)), size):
            probe = Probe(held, loss_fn, torch.Generator().manual_seed(seed))
            started = time.perf_counter()
            values = metric.measure([subjects[each] for each in networks], probe, option)
            seconds = time.perf_counter() - started
            for variable, value in values.items():
                about = metric.variables[variable].long_name
                found.append(Measurement(metric.name, variable, networks, value, about, seconds))
    return found


def usual(models: int) -> tuple[str, ...]:
    """What is measured of so many networks when nothing else is said."""
    return ("error", "hessian_trace") if models == 1 else ("error", "lmc", "cka", "hessian_trace")


def _chosen(
    names: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]], models: int, data: Dataset
) -> list[tuple[Metric, Any]]:
    """The metrics with their options, checked before anything is measured."""
    metrics: list[Metric] = [load(METRICS, name, "metric") for name in names or usual(models)]
    tables = [metric.table for metric in metrics]
    for table in options:
        if table not in tables:
            raise UserError(f"options: unknown table '{table}'{nearest(table, tables)}; allowed: {', '.join(tables)}")
    for metric in metrics:
        if metric.subject == "pair" and models < 2:
            raise UserError(f"metric '{metric.name}' compares two networks; give two or more")
        if metric.classes and data.regression:
            raise UserError(f"metric '{metric.name}' is for classes, the targets are numbers")
    return [(metric, _options(metric, options.get(metric.table, {}))) for metric in metrics]


def _options(metric: Metric, given: Mapping[str, Any]) -> Any:
    fields = [field.name for field in dataclasses.fields(metric.options)]
    for name in given:
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise UserError(f"options of '{metric.name}': unknown '{name}'{nearest(name, fields)}; allowed: {known}")
    try:
        return TypeAdapter(metric.options).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"options of '{metric.name}': {where}: {first['msg']}, got {first['input']!r}") from error


def _dataset(train: Data, test: Data | None, model: nn.Module) -> Dataset:
    split = Split(*pair(train, model))
    other = split if test is None else Split(*pair(test, model))
    regression = split.targets.is_floating_point()
    classes = split.targets[0].numel() if regression else 1 + int(max(split.targets.max(), other.targets.max()))
    return Dataset(split, other, other, classes, "given")


def mask_of_zeros(model: nn.Module) -> Mask | None:
    """The mask that a pruned network's own zeros tell: of every prunable weight, what is not exactly 0; None where no
    weight is."""
    try:
        layers = {name: weight.detach() != 0 for name, weight in prunable(model).items()}
    except UserError:  # nothing that could have been pruned
        return None
    return Mask(layers) if any(not bool(layer.all()) for layer in layers.values()) else None
