"""Agreement of two networks: predictions, probabilities, outputs and weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.cka import counted_rows
from regimes.landscape.error import error_estimate, network_task, outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import inputs_of
from regimes.landscape.linear_path import matching_parameters
from regimes.landscape.metric import Images, Metric, MetricValues, Probe, Trained, Variable, image_count, subset
from regimes.losses.tasks import InputErrors, Task, task_of_outputs


def disagreement(
    a: nn.Module,
    b: nn.Module,
    inputs: Tensor | Iterable[Any],
    *,
    task: Task | None = None,
    counted: Tensor | None = None,
) -> Estimate:
    """Return the fraction of predictions in which two classifiers differ, with its binomial standard error, or that
    over the inputs if there are several predictions per input.

    Args:
        a, b: classifiers that return logits; they are evaluated in eval mode and not changed.
        inputs: (n, ...), or a loader of batches, which is read into memory.
        task: the dimension of the classes, or binary logits; None: see `task_of_outputs`.
        counted: which of several predictions per input count, a boolean tensor (n, ...); None: all.

    Raises:
        UserError: the outputs are not logits of the same shape, or there are no inputs.
    """
    first, second, weight = _logits(a, b, inputs, task, counted)
    if not (first.isfinite().all() and second.isfinite().all()):
        return Estimate(math.nan, math.nan, len(first))
    differ = (first.argmax(dim=-1) != second.argmax(dim=-1)).double()
    return error_estimate(Task("class"), InputErrors((differ * weight).sum(dim=1), weight.sum(dim=1)))


def js_divergence(
    a: nn.Module,
    b: nn.Module,
    inputs: Tensor | Iterable[Any],
    *,
    task: Task | None = None,
    counted: Tensor | None = None,
) -> Estimate:
    """Return the mean Jensen-Shannon divergence of two classifiers' probabilities p and q, in nats (0 to ln 2).

    ``JS = (KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2``, computed in float64. The standard error is taken over
    the inputs. Arguments and errors are those of `disagreement`.
    """
    first, second, weight = _logits(a, b, inputs, task, counted)
    p, q = (logits.double().log_softmax(dim=-1) for logits in (first, second))
    middle = torch.logaddexp(p, q) - math.log(2)
    divergences = ((p.exp() * (p - middle)).sum(dim=-1) + (q.exp() * (q - middle)).sum(dim=-1)) / 2
    total = (divergences.clamp(min=0.0) * weight).sum(dim=1)
    found = error_estimate(Task("loss"), InputErrors(total, weight.sum(dim=1)))
    return dataclasses.replace(found, unit="nat")


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


def _logits(
    a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any], task: Task | None, counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, predictions, classes) of both networks, and which predictions count (n, predictions), as 0 or 1."""
    same = inputs_of(inputs, a)  # once: a loader may shuffle
    first, second = outputs(a, same), outputs(b, same)
    if first.shape != second.shape or (task is not None and not task.fraction) or first.is_complex():
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise UserError(f"both networks must return logits of the same shape, e.g. (n, classes), got {shapes}")
    task = task or task_of_outputs(first)
    first, second = task.rows(first), task.rows(second)
    weight = torch.ones(first.shape[:2], dtype=torch.float64, device=first.device)
    if counted is not None:
        weight = counted_rows(counted, weight.numel()).reshape(weight.shape).double()
    return first, second, weight


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
    inputs, targets = split = subset(getattr(probe.data, options.split), options.images)
    task = network_task(a, split, probe.loss_fn)
    counted = task.counted(targets, probe.loss_fn) if targets.dim() > 1 and task.kind == "class" else None
    return {
        "disagreement": disagreement(a, b, inputs, task=task, counted=counted),
        "js_divergence": js_divergence(a, b, inputs, task=task, counted=counted),
        "weight_distance": weight_distance(a, b),
    }


AGREEMENT = Metric(
    name="agreement",
    subject="pair",
    options=AgreementOptions,
    table="agreement",
    variables={
        "disagreement": Variable("1", "share of images on which two retrained copies answer differently"),
        "js_divergence": Variable(
            "nat", "Jensen-Shannon divergence of two retrained copies' probabilities", of_loss=False
        ),
        "weight_distance": Variable("1", "L2 distance of two retrained copies' weights"),
    },
    measure=_measure,
    work=lambda options, images: 4 * image_count(options.images, images),
    classes=True,
)
