"""How far two networks agree: in their answers, in their probabilities, in their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.batches import inputs_of
from regimes.landscape.connectivity import ends
from regimes.landscape.error import outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Images, Measured, Metric, Probe, Trained, Variable, subset


def disagreement(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Fraction of inputs that two classifiers put into different classes, with its binomial standard error."""
    first, second = (_logits(model, inputs).argmax(dim=1) for model in (a, b))
    return Estimate.fraction(int((first != second).sum()), len(first))


def js_divergence(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Mean Jensen-Shannon divergence of two classifiers' probabilities p and q, in nats: from 0 to ln 2.

    ``JS = (KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2``, in float64; the standard error is that of the inputs.
    """
    p, q = (_logits(model, inputs).double().log_softmax(dim=1) for model in (a, b))
    middle = torch.logaddexp(p, q) - math.log(2)
    each = ((p.exp() * (p - middle)).sum(dim=1) + (q.exp() * (q - middle)).sum(dim=1)) / 2
    return _mean(each.clamp(min=0.0), "nat")


def output_distance(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Mean Euclidean distance of two networks' outputs, in their unit; the standard error is that of the inputs."""
    first, second = (outputs(model, inputs_of(inputs, model)).double() for model in (a, b))
    return _mean((first - second).flatten(1).norm(dim=1), "1")


def weight_distance(a: nn.Module, b: nn.Module) -> Estimate:
    """Euclidean (L2) distance of two networks' parameters, in float64; exact, so its standard error is 0."""
    start, end = ends(a, b)
    square = sum(float((value.double() - end[name].double()).square().sum()) for name, value in start.items())
    return Estimate(square**0.5, 0.0, sum(value.numel() for value in start.values()))


def _logits(model: nn.Module, inputs: Tensor | Iterable[Any]) -> Tensor:
    answers = outputs(model, inputs_of(inputs, model))
    if answers.dim() != 2:
        raise UserError(f"logits of shape (n, classes) are expected, got {tuple(answers.shape)}")
    return answers


def _mean(each: Tensor, unit: str) -> Estimate:
    spread = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else math.nan
    return Estimate(float(each.mean()), spread, len(each), unit)


@dataclass(frozen=True)
class AgreementOptions:
    """Options of the metric "agreement": images used (0: all) of which split."""

    images: Images = 0
    split: Literal["train", "val", "test"] = "test"


def _measure(subjects: Sequence[Trained], probe: Probe, options: AgreementOptions) -> Measured:
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
    work=lambda options, images: 4 * (min(options.images, images) or images),
    classes=True,
)
