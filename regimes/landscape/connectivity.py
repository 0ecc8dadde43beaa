"""Linear mode connectivity: what happens to the error on the straight line between two networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from regimes.data.dataset import Split
from regimes.errors import UserError
from regimes.landscape.batchnorm import settled_outputs
from regimes.landscape.error import mistakes
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Curve, Images, LossFn, Measured, Metric, Probe, Trained, Variable, subset

Statistics = Literal["all", "batch"]


@dataclass(frozen=True, kw_only=True)
class Connectivity(Estimate):
    """The line between two networks.

    Attributes:
        value: LMC, ``(E(0)+E(1))/2 - E(t*)`` with ``t* = argmax_t |(E(0)+E(1))/2 - E(t)|``: negative is a barrier,
            about 0 connected, positive means that the line is better than its ends. The ends themselves do not compete
            for t*: there the gap is half the ends' difference, with the sign of whichever network is called first.
        t: positions on the line, 0 the first network, 1 the second.
        error: E(t), the fraction of wrong answers at each position; the mean loss where targets are numbers.
        loss: mean loss at each position.
        t_star: the position the value was taken at.
    """

    t: tuple[float, ...]
    error: tuple[float, ...]
    loss: tuple[float, ...]
    t_star: float

    @property
    def barrier(self) -> float:
        """Height of the barrier, ``max(0, -LMC)``."""
        return max(0.0, -self.value)


def linear_connectivity(
    a: nn.Module,
    b: nn.Module,
    data: tuple[Tensor, Tensor],
    points: int = 11,
    loss_fn: LossFn = nn.functional.cross_entropy,
    batch: int | None = None,
    statistics: Statistics = "all",
) -> Connectivity:
    """Measure linear mode connectivity on (inputs, targets), as Zhou et al. 2023 (arXiv 2305.18383) do.

    At every point, ends included, BatchNorm statistics are reset and estimated again on the inputs. The standard error
    is that of the images: the spread of ``(e_i(0)+e_i(1))/2 - e_i(t*)`` over images i, divided by sqrt(n); the choice
    of t* is taken as given. The two networks are not changed.

    Args:
        a: a network; b: another of the same architecture.
        data: inputs (n, ...) and targets (n,), un-augmented training images in the paper.
        points: evenly spaced positions from 0 to 1, at least 3.
        loss_fn: mean loss of a batch, for the loss along the line.
        batch: at most so many images in one batch of BatchNorm statistics; None: what `batchnorm.BATCH` numbers
            amount to.
        statistics: "all": those of all images, as the study takes them; "batch": each batch by its own, in half the
            time where there are several (``regimes bench pair`` shows what it does to the value).

    Raises:
        UserError: fewer than three points, or networks with different parameters.
    """
    if statistics not in ("all", "batch"):
        raise UserError(f"statistics = '{statistics}': allowed: all, batch")
    if points < 3:
        raise UserError(f"points = {points}: a line needs at least 3, ends included (the study takes 11)")
    inputs, targets = data
    t = tuple(index / (points - 1) for index in range(points))
    walker = copy.deepcopy(a)
    wrong, losses = [], []
    for position in t:
        move_to(walker, a, b, position)
        answers = settled_outputs(walker, inputs, batch, statistics == "batch")
        wrong.append(mistakes(answers, targets, loss_fn))
        losses.append(float(loss_fn(answers, targets)))
    gaps = (wrong[0] + wrong[-1]) / 2 - torch.stack(wrong)  # (points, n)
    star = 1 + int(gaps[1:-1].mean(dim=1).abs().argmax())
    gap = gaps[star]
    return Connectivity(
        value=float(gap.mean()),
        stderr=float(gap.std() / len(gap) ** 0.5),
        samples=len(gap),
        t=t,
        error=tuple(float(each.mean()) for each in wrong),
        loss=tuple(losses),
        t_star=t[star],
    )


@torch.no_grad()
def move_to(walker: nn.Module, a: nn.Module, b: nn.Module, t: float) -> None:
    """Put ``(1-t) a + t b`` into the walker's parameters, exactly a and b at the ends."""
    start, end = dict(a.named_parameters()), dict(b.named_parameters())
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        raise UserError("the two networks have different parameters; a straight line needs one architecture")
    for name, parameter in walker.named_parameters():
        parameter.copy_(torch.lerp(start[name], end[name], t))


@dataclass(frozen=True)
class LmcOptions:
    """Options of the metric "lmc": points on the line, training images used (0: all), BatchNorm statistics of all of
    them or batch by batch."""

    points: Annotated[int, Strict(), Field(ge=3)] = 11
    images: Images = 0
    statistics: Statistics = "all"


def _measure(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> Measured:
    a, b = subjects
    split: Split = subset(probe.data.train, options.images)
    line = linear_connectivity(a.model, b.model, split, options.points, probe.loss_fn, statistics=options.statistics)
    return {
        "lmc": line,
        "lmc_error": Curve(line.error, "t", line.t),
        "lmc_loss": Curve(line.loss, "t", line.t),
    }


LMC = Metric(
    name="lmc",
    subject="pair",
    options=LmcOptions,
    table="lmc",
    variables={
        "lmc": Variable("1", "linear mode connectivity (training error)", error=True),
        "lmc_error": Variable("1", "training error along the line", error=True),
        "lmc_loss": Variable("nat", "training loss along the line"),
    },
    measure=_measure,
    work=lambda options, images: 2 * options.points * (min(options.images, images) or images),
)
