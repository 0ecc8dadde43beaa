"""Measures of networks of one's own, without a sweep: every metric by its name, on modules and tensors or loaders."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from regimes.data.dataset import Dataset, Split
from regimes.errors import UserError
from regimes.landscape import METRICS
from regimes.landscape.batches import Data, pair
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Curve, LossFn, Metric, Probe, Trained
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prunable
from regimes.registry import load


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
    metrics: Sequence[str] = ("error", "lmc", "cka", "hessian_trace"),
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
        metrics: names in `METRICS` or import paths.
        options: {table: {option: value}}, as in ``[measure]`` of a sweep file.
        test: the test split, where ``data`` is a training split; None: the training split stands in for it.
        masks: of pruned networks, see `mask_of_zeros`; None: every weight lives.
        loss_fn: mean loss of a batch.
        seed: of random probes.

    Raises:
        UserError: no models, an unknown metric or option, a metric of pairs and one model only.
    """
    if not models:
        raise UserError("nothing to measure: give one model or more")
    held = data if isinstance(data, Dataset) else _dataset(data, test, models[0])
    subjects = [Trained(*each) for each in zip(models, masks or [None] * len(models), strict=True)]
    found = []
    for name in metrics:
        metric: Metric = load(METRICS, name, "metric")
        size = 1 if metric.subject == "model" else 2
        if len(models) < size:
            raise UserError(f"metric '{name}' compares two networks; give two or more")
        chosen = _options(metric, (options or {}).get(metric.table, {}))
        for networks in itertools.combinations(range(len(models)), size):
            probe = Probe(held, loss_fn, torch.Generator().manual_seed(seed))
            started = time.perf_counter()
            values = metric.measure([subjects[each] for each in networks], probe, chosen)
            seconds = time.perf_counter() - started
            for variable, value in values.items():
                about = metric.variables[variable].long_name
                found.append(Measurement(name, variable, networks, value, about, seconds))
    return found


def _options(metric: Metric, given: Mapping[str, Any]) -> Any:
    try:
        return metric.options(**given)
    except TypeError as error:
        allowed = ", ".join(field.name for field in dataclasses.fields(metric.options))
        raise UserError(f"options of '{metric.name}': {error}; allowed: {allowed}") from error


def _dataset(train: Data, test: Data | None, model: nn.Module) -> Dataset:
    split = Split(*pair(train, model))
    other = split if test is None else Split(*pair(test, model))
    regression = split.targets.is_floating_point()
    classes = split.targets[0].numel() if regression else 1 + int(max(split.targets.max(), other.targets.max()))
    return Dataset(split, other, other, classes, "given")


def mask_of_zeros(model: nn.Module) -> Mask | None:
    """The mask that a pruned network's own zeros tell: of every prunable weight, what is not exactly 0; None where no
    weight is."""
    layers = {name: weight.detach() != 0 for name, weight in prunable(model).items()}
    return Mask(layers) if any(not bool(layer.all()) for layer in layers.values()) else None
