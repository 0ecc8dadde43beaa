"""Mode connectivity along a trained path: a Bezier curve or polygonal chain optimised for low loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field, Strict
from torch import Tensor, nn
from torch.func import functional_call

from regimes.data.inputs import Inputs, arguments
from regimes.errors import UserError
from regimes.landscape.hessian_operator import AnyMask, layers_of
from regimes.landscape.inputs import Data, pair
from regimes.landscape.linear_path import Connectivity, Statistics, matching_parameters, measure_path, path_values
from regimes.landscape.metric import Images, LossFn, Metric, MetricValues, Probe, Trained, Variable, image_count, subset
from regimes.landscape.parametrization_buffers import parametrization_buffers
from regimes.losses.functions import cross_entropy, loss_value
from regimes.losses.tasks import ErrorFunction
from regimes.models.build import copied, seeded
from regimes.pruners.mask import Mask

Kind = Literal["bezier", "chain"]
Weights = dict[str, Tensor]
MOMENTUM = 0.9


def curve_connectivity(
    a: nn.Module,
    b: nn.Module,
    data: Data,
    kind: Kind = "bezier",
    bends: int = 1,
    *,
    mask: AnyMask = None,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 0.02,
    points: int = 11,
    loss_fn: LossFn = cross_entropy,
    batch: int | None = None,
    statistics: Statistics = "all",
    generator: torch.Generator | None = None,
    error: ErrorFunction | None = None,
) -> Connectivity:
    """Train a low-loss path between two networks and measure mode connectivity along it.

    The ends are fixed. The bends (control points) between them are trained by SGD on the mean loss at uniformly drawn
    positions, ``E_t L(phi(t))`` (Garipov et al. 2018, arXiv 1802.10026), starting from the straight line, with momentum
    0.9, no weight decay and batch statistics in BatchNorm. The learning rate is constant for half of the epochs, decays
    linearly to a hundredth until nine tenths of them, and stays there. The barrier found is an upper bound: more epochs
    may lower it.

    Args:
        a, b: networks of the same architecture; they are not changed.
        data: inputs (n, ...) and targets (n, ...), without augmentation.
        kind: "bezier": ``sum_j C(m, j) t^j (1-t)^(m-j) theta_j`` over ends and bends, quadratic with one bend; "chain":
            straight segments between consecutive points.
        bends: number of trained points between the ends.
        mask: live coordinates; the path stays at zero on the others. None: every coordinate is live.
        epochs, batch_size, learning_rate: SGD settings for training the bends.
        points, loss_fn, batch, statistics, error: as in `linear_connectivity`.
        generator: CPU generator for positions and batches; None: seed 0.

    Raises:
        UserError: an unknown kind, no bends, networks of different architectures.
    """
    if kind not in get_args(Kind):
        raise UserError(f"curve kind = '{kind}': allowed: {', '.join(get_args(Kind))}")
    if bends < 1 or epochs < 1:
        raise UserError(f"bends = {bends}, epochs = {epochs}: allowed: 1 or more")
    start, end = matching_parameters(a, b)
    data = pair(data, a)
    generator = generator or torch.Generator().manual_seed(0)
    walker = copied(a)
    ends = parametrization_buffers(a), parametrization_buffers(b)
    path = BezierPath(kind, start, end, bends)
    train_bends(path, walker, data, mask, epochs, min(batch_size, len(data[0])), learning_rate, loss_fn, generator)
    with torch.no_grad():
        return measure_path(path.at, ends, walker, data, points, loss_fn, batch, statistics, None, error)


class BezierPath:
    """A path through weight space with fixed ends and trainable bends, initialised evenly on the straight line."""

    def __init__(self, kind: Kind, start: Weights, end: Weights, bends: int) -> None:
        self.kind = kind
        between = [index / (bends + 1) for index in range(1, bends + 1)]
        self.bends = [
            {name: torch.lerp(value, end[name], t).requires_grad_() for name, value in start.items()} for t in between
        ]
        self.points = [start, *self.bends, end]

    def coefficients(self, t: float) -> list[float]:
        """Return the coefficient of every point, ends included, at position t; the coefficients add up to 1."""
        last = len(self.points) - 1
        if self.kind == "bezier":
            return [math.comb(last, j) * t**j * (1 - t) ** (last - j) for j in range(last + 1)]
        return [max(0.0, 1 - abs(t * last - j)) for j in range(last + 1)]

    def at(self, t: float) -> Weights:
        """Return the weights at position t; exactly those of the ends at 0 and 1."""
        parts = [(share, point) for share, point in zip(self.coefficients(t), self.points, strict=True) if share]
        if len(parts) == 1:
            return parts[0][1]
        return {name: sum(share * point[name] for share, point in parts) for name in self.points[0]}  # type: ignore[misc]


def train_bends(
    path: BezierPath,
    walker: nn.Module,
    data: tuple[Inputs, Tensor],
    mask: AnyMask,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    loss_fn: LossFn,
    generator: torch.Generator,
) -> None:
    """Train the bends of a path in place; the ends are not changed.

    Args:
        path: the path.
        walker: network of the path's architecture, used for the forward passes.
        data: inputs and targets.
        mask, epochs, batch_size, learning_rate, loss_fn, generator: as in `curve_connectivity`.
    """
    inputs, targets = data
    still = {name: torch.zeros_like(each) for name, each in walker.named_parameters() if not each.requires_grad}
    alive = still | {
        name: each.to(inputs.device) for name, each in layers_of(mask, dict(walker.named_parameters())).items()
    }
    trained = [each for point in path.bends for each in point.values()]
    optimizer = torch.optim.SGD(trained, learning_rate, momentum=MOMENTUM)
    buffers = {name: each.detach().clone() for name, each in walker.named_buffers()}
    steps = len(inputs) // batch_size
    walker.train()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with seeded(seed), torch.enable_grad():  # dropout draws from the global generator
        for epoch in range(epochs):
            fallen = min(1.0, max(0.0, (epoch / epochs - 0.5) / 0.4))
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - 0.99 * fallen)
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            for t, chosen in zip(torch.rand(steps, generator=generator), order.split(batch_size), strict=False):
                optimizer.zero_grad()
                weights = path.at(float(t))
                answers = functional_call(walker, (weights, buffers), *arguments(inputs[chosen]))
                loss_value(loss_fn, answers, targets[chosen]).backward()
                for point in path.bends:
                    for name, layer in alive.items():
                        gradient = point[name].grad
                        if gradient is not None:
                            gradient.mul_(layer)
                optimizer.step()


@dataclass(frozen=True)
class CurveOptions:
    """Options of the metric "curve".

    Attributes:
        kind: "bezier" or "chain".
        bends: number of trained points between the ends.
        epochs, batch_size, learning_rate: SGD settings for training the bends.
        points: number of positions measured on the curve, ends included.
        images: number of training images used (0: all).
    """

    kind: Kind = "bezier"
    bends: Annotated[int, Strict(), Field(ge=1)] = 1
    epochs: Annotated[int, Strict(), Field(ge=1)] = 20
    batch_size: Annotated[int, Strict(), Field(ge=2)] = 128
    learning_rate: Annotated[float, Strict(), Field(gt=0)] = 0.02
    points: Annotated[int, Strict(), Field(ge=3)] = 11
    images: Images = 0


def _measure(subjects: Sequence[Trained], probe: Probe, options: CurveOptions) -> MetricValues:
    a, b = subjects
    curve = curve_connectivity(
        a.model,
        b.model,
        subset(probe.data.train, options.images),
        options.kind,
        options.bends,
        mask=_either(a.mask, b.mask),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        points=options.points,
        loss_fn=probe.loss_fn,
        generator=probe.generator,
        error=probe.error,
    )
    return path_values("curve", curve)


def _either(one: Mask | None, other: Mask | None) -> Mask | None:
    """Return the union of two masks; None if either network is unmasked."""
    if one is None or other is None:
        return None
    return Mask({name: layer | other.layers[name] for name, layer in one.layers.items()})


def _work(options: CurveOptions, images: int) -> float:
    return (2 * options.points + 3.5 * options.epochs) * image_count(options.images, images)


CURVE = Metric(
    name="curve",
    subject="pair",
    options=CurveOptions,
    table="curve",
    variables={
        "curve": Variable("1", "mode connectivity along a trained curve (training error)", error=True),
        "curve_error": Variable("1", "training error along the curve", error=True),
        "curve_loss": Variable("nat", "training loss along the curve"),
    },
    measure=_measure,
    work=_work,
)
