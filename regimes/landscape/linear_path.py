"""Mode connectivity: what happens to the error on a path between two networks; here, on the straight line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from regimes.data.dataset import Split
from regimes.errors import UserError
from regimes.landscape.batchnorm import settled_outputs
from regimes.landscape.error import finite_mistakes, outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import Curve, Images, LossFn, Metric, MetricValues, Probe, Trained, Variable, subset, used

Statistics = Literal["all", "batch"]
PathPoint = Callable[[float], dict[str, Tensor]]  # t -> the parameters at that position of a path


@dataclass(frozen=True, kw_only=True)
class Connectivity(Estimate):
    """A path between two networks.

    Attributes:
        value: of the straight line LMC, ``(E(0)+E(1))/2 - E(t*)`` with ``t* = argmax_t |(E(0)+E(1))/2 - E(t)|``:
            negative is a barrier, about 0 connected, positive means that the line is better than its ends. The ends
            themselves do not compete for t*: there the gap is half the ends' difference, with the sign of whichever
            network is called first. Of another path likewise.
        t: positions on the path, 0 the first network, 1 the second.
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
    data: Data,
    points: int = 11,
    loss_fn: LossFn = nn.functional.cross_entropy,
    batch: int | None = None,
    statistics: Statistics = "all",
    judge: Data | None = None,
) -> Connectivity:
    """Measure linear mode connectivity on (inputs, targets), as Zhou et al. 2023 (arXiv 2305.18383) do.

    At every point, ends included, BatchNorm statistics are reset and estimated again on the inputs. The standard error
    is that of the images: the spread of ``(e_i(0)+e_i(1))/2 - e_i(t*)`` over images i, divided by sqrt(n); the choice
    of t* is taken as given. The two networks are not changed.

    Args:
        a: a network; b: another of the same architecture.
        data: inputs (n, ...) and targets (n,), un-augmented training images in the paper; or a loader of such batches,
            which is read into memory.
        points: evenly spaced positions from 0 to 1, at least 3.
        loss_fn: mean loss of a batch, for the loss along the line.
        batch: at most so many images in one batch of BatchNorm statistics; None: what `batchnorm.BATCH` numbers
            amount to.
        statistics: "all": those of all images, as the study takes them; "batch": each batch by its own, in half the
            time where there are several (``python -m regimes.research bench pair`` shows what it does to the value).
        judge: other inputs and targets, a test split's, to take errors and losses on; BatchNorm statistics are those
            of ``data`` all the same.

    Raises:
        UserError: fewer than three points, or networks with different parameters.
    """
    start, end = ends(a, b)

    floats = {name for name, each in a.named_buffers() if each.is_floating_point()}
    start |= {name: each for name, each in a.named_buffers() if name in floats}
    end |= {name: each for name, each in b.named_buffers() if name in floats}

    def line(t: float) -> dict[str, Tensor]:
        return {name: torch.lerp(value, end[name], t) for name, value in start.items()}

    judged = None if judge is None else pair(judge, a)
    return along(line, copy.deepcopy(a), pair(data, a), points, loss_fn, batch, statistics, judged)


def ends(a: nn.Module, b: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of two networks.

    Raises:
        UserError: they differ in names or shapes.
    """
    start = {name: each.detach() for name, each in a.named_parameters()}
    end = {name: each.detach() for name, each in b.named_parameters()}
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        raise UserError("the two networks have different parameters; a path between them needs one architecture")
    return start, end


def along(
    place: PathPoint,
    walker: nn.Module,
    data: tuple[Tensor, Tensor],
    points: int,
    loss_fn: LossFn,
    batch: int | None,
    statistics: Statistics,
    judge: tuple[Tensor, Tensor] | None,
) -> Connectivity:
    """Take a network along a path and measure it at evenly spaced positions; see `linear_connectivity`.

    Args:
        place: the path.
        walker: a network of the path's architecture; it is changed.
        data, points, loss_fn, batch, statistics, judge: as there.
    """
    if statistics not in ("all", "batch"):
        raise UserError(f"statistics = '{statistics}': allowed: all, batch")
    if points < 3:
        raise UserError(f"points = {points}: a line needs at least 3, ends included (the study takes 11)")
    targets = data[1] if judge is None else judge[1]
    t = tuple(index / (points - 1) for index in range(points))
    wrong, losses = [], []
    for position in t:
        with torch.no_grad():
            there = place(position)
            for name, each in (*walker.named_parameters(), *walker.named_buffers()):
                if name in there:
                    each.copy_(there[name])
        answers = settled_outputs(walker, data[0], batch, statistics == "batch")
        if judge is not None:
            answers = outputs(walker, judge[0])
        wrong.append(finite_mistakes(answers, targets, loss_fn))
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


@dataclass(frozen=True)
class LmcOptions:
    """Options of the metric "lmc": points on the line, training images used (0: all), BatchNorm statistics of all of
    them or batch by batch."""

    points: Annotated[int, Strict(), Field(ge=3)] = 11
    images: Images = 0
    statistics: Statistics = "all"


def _measure(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> MetricValues:
    a, b = subjects
    split: Split = subset(probe.data.train, options.images)
    line = linear_connectivity(a.model, b.model, split, options.points, probe.loss_fn, statistics=options.statistics)
    return measured("lmc", line)


def measured(name: str, path: Connectivity) -> MetricValues:
    """A path's value under a metric's name, and what was seen along it: ``NAME_error``, ``NAME_loss``."""
    return {name: path, f"{name}_error": Curve(path.error, "t", path.t), f"{name}_loss": Curve(path.loss, "t", path.t)}


def _measure_test(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> MetricValues:
    a, b = subjects
    split: Split = subset(probe.data.train, options.images)
    line = linear_connectivity(
        a.model, b.model, split, options.points, probe.loss_fn, statistics=options.statistics, judge=probe.data.test
    )
    return measured("lmc_test", line)


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
    work=lambda options, images: 2 * options.points * used(options.images, images),
)

LMC_TEST = Metric(
    name="lmc_test",
    subject="pair",
    options=LmcOptions,
    table="lmc",
    variables={
        "lmc_test": Variable("1", "linear mode connectivity (test error)", error=True),
        "lmc_test_error": Variable("1", "test error along the line", error=True),
        "lmc_test_loss": Variable("nat", "test loss along the line"),
    },
    measure=_measure_test,
    work=lambda options, images: 2 * options.points * used(options.images, images),
)
