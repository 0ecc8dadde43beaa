"""How far two networks agree: in their answers, in their probabilities, in their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.error import outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import inputs_of
from regimes.landscape.linear_path import ends
from regimes.landscape.metric import Images, Metric, MetricValues, Probe, Trained, Variable, subset, used


def disagreement(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Fraction of inputs that two classifiers put into different classes, with its binomial standard error."""
    first, second = _logits(a, b, inputs)
    if not (first.isfinite().all() and second.isfinite().all()):
        return Estimate(math.nan, math.nan, len(first))
    return Estimate.fraction(int((first.argmax(dim=1) != second.argmax(dim=1)).sum()), len(first))


def js_divergence(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Mean Jensen-Shannon divergence of two classifiers' probabilities p and q, in nats: from 0 to ln 2.

    ``JS = (KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2``, in float64; the standard error is that of the inputs.
    """
    p, q = (each.double().log_softmax(dim=1) for each in _logits(a, b, inputs))
    middle = torch.logaddexp(p, q) - math.log(2)
    each = ((p.exp() * (p - middle)).sum(dim=1) + (q.exp() * (q - middle)).sum(dim=1)) / 2
    return _mean(each.clamp(min=0.0), "nat")


def output_distance(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Mean Euclidean distance of two networks' outputs, in their unit; the standard error is that of the inputs."""
    same = inputs_of(inputs, a)
    first, second = (outputs(model, same).double().reshape(len(same), -1) for model in (a, b))
    return _mean((first - second).norm(dim=1), "1")


def weight_distance(a: nn.Module, b: nn.Module) -> Estimate:
    """Euclidean (L2) distance of two networks' parameters, in float64; exact, so its standard error is 0."""
    start, end = ends(a, b)
    square = sum(float((value.double() - end[name].double()).square().sum()) for name, value in start.items())
    return Estimate(square**0.5, 0.0, sum(value.numel() for value in start.values()))


def _logits(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> tuple[Tensor, Tensor]:
    same = inputs_of(inputs, a)  # once: a loader may shuffle
    first, second = outputs(a, same), outputs(b, same)
    if first.dim() != 2 or first.shape != second.shape or first.shape[1] < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise UserError(f"logits of shape (n, classes) are expected of both networks, got {shapes}")
    return first, second


def _mean(each: Tensor, unit: str) -> Estimate:
    spread = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else math.nan
    return Estimate(float(each.mean()), spread, len(each), unit)


@dataclass(frozen=True)
class AgreementOptions:
    """Options of the metric "agreement": images used (0: all) of which split."""

    images: Images = 0
    split: Literal["train", "val", "test"] = "test"


def _measure(subjects: Sequence[Trained], probe: Probe, options: AgreementOptions) -> MetricValues:
    a, b = (each.model for each in subjects)
    inputs, _ = subset(getattr(probe.data, options.split), options.images)
    return {
        "disagreement": disagreement(a, b, inputs),
        "js_divergence": js_divergence(a, b, inputs),
        "weight_distance": weight_distance(a, b),
    }


AGREEMENT = Metric(
    name="agreement",
    subject="pair",
    options=AgreementOptions,
    table="agreement",
    variables={
        "disagreement": Variable("1", "share of images on which two retrained copies answer differently"),
        "js_divergence": Variable("nat", "Jensen-Shannon divergence of two retrained copies' probabilities"),
        "weight_distance": Variable("1", "L2 distance of two retrained copies' weights"),
    },
    measure=_measure,
    work=lambda options, images: 4 * used(options.images, images),
    classes=True,
)
