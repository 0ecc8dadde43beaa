"""Measure your own networks by metric name, without a sweep."""

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

from regimes.data.dataset import Dataset, Split
from regimes.errors import UserError
from regimes.landscape import METRICS
from regimes.landscape.error import network_task
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import Curve, LossFn, Metric, Probe, Trained
from regimes.landscape.trial import protected
from regimes.losses.functions import cross_entropy
from regimes.losses.tasks import ErrorFunction, Task
from regimes.pruners.mask import Mask
from regimes.pruners.prunable_weights import prunable_weights
from regimes.registry import lookup, nearest


@dataclass(frozen=True)
class Measurement:
    """One measured variable of a network or of a pair of networks.

    Attributes:
        metric: name of the metric.
        variable: name of the variable.
        networks: indices of the networks in the list that was measured.
        value: an estimate with its standard error, or a curve.
        long_name: description of the variable.
        seconds: time the metric took for all of its variables.
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
    loss_fn: LossFn = cross_entropy,
    error: ErrorFunction | None = None,
    seed: int = 0,
) -> list[Measurement]:
    """Measure networks of one architecture: single-model metrics on each, pair metrics on all pairs.

    Args:
        models: networks; they are not changed.
        data: a `Dataset`, or the training split as (inputs, targets) or as a ``DataLoader``, which is read once into
            memory and moved to the device of the networks.
        metrics: names in `METRICS` or import paths; None: error and Hessian trace, and for two or more networks also
            LMC and CKA.
        options: {table: {option: value}}, as in ``[measure]`` of a sweep file.
        test: the test split, if ``data`` is a training split; None: the training split is used in its place.
        masks: masks of pruned networks, see `mask_of_zeros`; None: every weight is live.
        loss_fn: (outputs, targets) -> mean loss.
        error: an error, or a score, of one's own; None: inferred from outputs, targets and loss.
        seed: seed of the random probes.

    Raises:
        UserError: no models, masks of another number, an unknown metric, table or option, a pair metric with a single
            model, or a classification metric with regression targets. All of this is checked before measuring.
    """
    if isinstance(models, nn.Module) or not models:
        raise UserError("models: expected a list of at least one network")
    if masks is not None and len(masks) != len(models):
        raise UserError(f"masks: expected one per network, or None: got {len(masks)} for {len(models)}")
    held = _protected(data, models[0]) if isinstance(data, Dataset) else _dataset(data, test, models[0])
    subjects = [Trained(*each) for each in zip(models, masks or [None] * len(models), strict=True)]
    chosen = _chosen(metrics, options or {}, len(models), network_task(models[0], held.train, loss_fn))
    found = []
    for metric, option in chosen:
        size = 1 if metric.subject == "model" else 2
        for networks in itertools.combinations(range(len(models)), size):
            probe = Probe(held, loss_fn, torch.Generator().manual_seed(seed), error)
            started = time.perf_counter()
            values = metric.measure([subjects[each] for each in networks], probe, option)
            seconds = time.perf_counter() - started
            for variable, value in values.items():
                about = metric.variables[variable].long_name
                found.append(Measurement(metric.name, variable, networks, value, about, seconds))
    return found


def default_metrics(models: int) -> tuple[str, ...]:
    """Return the names of the default metrics for a number of networks."""
    return ("error", "hessian_trace") if models == 1 else ("error", "lmc", "cka", "hessian_trace")


def _chosen(
    names: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]], models: int, task: Task
) -> list[tuple[Metric, Any]]:
    """Return the metrics with their options, checked before anything is measured."""
    metrics: list[Metric] = [lookup(METRICS, name, "metric") for name in names or default_metrics(models)]
    tables = [metric.table for metric in metrics]
    for table in options:
        if table not in tables:
            raise UserError(f"options: unknown table '{table}'{nearest(table, tables)}; allowed: {', '.join(tables)}")
    for metric in metrics:
        if metric.subject == "pair" and models < 2:
            raise UserError(f"metric '{metric.name}' compares two networks; pass at least two")
        if metric.classes and not task.fraction:
            raise UserError(f"metric '{metric.name}' needs classes, but outputs and loss are those of numbers")
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
    numbers = split.targets.is_floating_point()
    classes = split.targets[0].numel() if numbers else 1 + int(max(split.targets.max(), other.targets.max()))
    return Dataset(split, other, other, classes, "given")


def _protected(data: Dataset, model: nn.Module) -> Dataset:
    """The data set, with inputs that are copied for a model that changes them in place."""
    train, val, test = (
        Split(protected(model, each.inputs), each.targets) for each in (data.train, data.val, data.test)
    )
    return dataclasses.replace(data, train=train, val=val, test=test)


def mask_of_zeros(model: nn.Module, embeddings: bool = False) -> Mask | None:
    """Return the mask of a pruned network from its zeros: prunable weights that are exactly 0 count as pruned.

    Args:
        model: the network.
        embeddings: whether the weights of embeddings are prunable, too.

    Returns:
        The mask, or None if no prunable weight is 0.

    Raises:
        UserError: a layer's weight cannot be masked, see `prunable_weights`.
    """
    layers = {name: weight.detach() != 0 for name, weight in prunable_weights(model, embeddings).items()}
    return Mask(layers) if any(not bool(layer.all()) for layer in layers.values()) else None
