"""Agreement of two networks: predictions, probabilities, outputs and weights."""

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
from regimes.landscape.linear_path import matching_parameters
from regimes.landscape.metric import Images, Metric, MetricValues, Probe, Trained, Variable, image_count, subset


def disagreement(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Return the fraction of inputs that two classifiers assign to different classes, with its binomial standard error.

    Args:
        a, b: classifiers that return logits (n, classes); they are evaluated in eval mode and not changed.
        inputs: (n, ...), or a loader of batches, which is read into memory.

    Raises:
        UserError: the outputs are not logits of the same shape, or there are no inputs.
    """
    first, second = _logits(a, b, inputs)
    if not (first.isfinite().all() and second.isfinite().all()):
        return Estimate(math.nan, math.nan, len(first))
    return Estimate.fraction(int((first.argmax(dim=1) != second.argmax(dim=1)).sum()), len(first))


def js_divergence(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Return the mean Jensen-Shannon divergence of two classifiers' probabilities p and q, in nats (0 to ln 2).

    ``JS = (KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2``, computed in float64. The standard error is taken over
    the inputs. Arguments and errors are those of `disagreement`.
    """
    p, q = (logits.double().log_softmax(dim=1) for logits in _logits(a, b, inputs))
    middle = torch.logaddexp(p, q) - math.log(2)
    divergences = ((p.exp() * (p - middle)).sum(dim=1) + (q.exp() * (q - middle)).sum(dim=1)) / 2
    return _mean(divergences.clamp(min=0.0), "nat")


def output_distance(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> Estimate:
    """Return the mean Euclidean distance of two networks' outputs, with its standard error over the inputs."""
    same = inputs_of(inputs, a)
    first, second = (outputs(model, same).double().reshape(len(same), -1) for model in (a, b))
    return _mean((first - second).norm(dim=1), "1")


def weight_distance(a: nn.Module, b: nn.Module) -> Estimate:
    """Return the Euclidean (L2) distance of two networks' parameters, in float64; exact, so its standard error is 0.

    Raises:
        UserError: the networks have different parameters.
    """
    start, end = matching_parameters(a, b)
    square = sum(float((value.double() - end[name].double()).square().sum()) for name, value in start.items())
    return Estimate(square**0.5, 0.0, sum(value.numel() for value in start.values()))


def _logits(a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any]) -> tuple[Tensor, Tensor]:
    same = inputs_of(inputs, a)  # once: a loader may shuffle
    first, second = outputs(a, same), outputs(b, same)
    if first.dim() != 2 or first.shape != second.shape or first.shape[1] < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise UserError(f"both networks must return logits of shape (n, classes), got {shapes}")
    return first, second


def _mean(values: Tensor, unit: str) -> Estimate:
    stderr = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), stderr, len(values), unit)


@dataclass(frozen=True)
class AgreementOptions:
    """Options of the metric "agreement".

    Attributes:
        images: number of images used (0: all).
        split: split the images are taken from.
    """

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
    work=lambda options, images: 4 * image_count(options.images, images),
    classes=True,
)
