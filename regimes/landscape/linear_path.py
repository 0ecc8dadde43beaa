"""Mode connectivity along the straight line between two networks, and the measurement of any path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from regimes.data.dataset import Split
from regimes.data.inputs import Inputs
from regimes.errors import UserError
from regimes.landscape.batchnorm import reestimated_outputs
from regimes.landscape.error import (
    errors_or_nan,
    jackknife_stderr,
    leave_out_values,
    ratio_stderr,
    scalar_loss,
    whole_outputs,
)
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import (
    Curve,
    Images,
    LossFn,
    Metric,
    MetricValues,
    Probe,
    Trained,
    Variable,
    image_count,
    subset,
)
from regimes.landscape.parametrization_buffers import parametrization_buffers, reestimate_parametrizations
from regimes.losses.functions import cross_entropy
from regimes.losses.tasks import ErrorFunction, InputErrors, Task, infer_task
from regimes.models.build import copied

Statistics = Literal["all", "batch"]
WeightPath = Callable[[float], dict[str, Tensor]]  # position t -> parameters at t


@dataclass(frozen=True, kw_only=True)
class Connectivity(Estimate):
    """Mode connectivity of two networks along a path.

    Attributes:
        value: ``(E(0)+E(1))/2 - E(t*)`` with ``t* = argmax_t |(E(0)+E(1))/2 - E(t)|``; on the straight line this is
            LMC. A negative value is a barrier, about 0 means connected, positive means that the path is better than its
            ends. The ends are excluded from t*: the gap there is half the difference of the ends, and its sign would
            depend on the order of the networks.
        t: positions on the path; 0 is the first network, 1 the second.
        error: E(t), the error at each position: the fraction of wrong predictions; for regression, the mean loss.
        loss: mean loss at each position.
        t_star: position at which the value was taken.
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
    loss_fn: LossFn = cross_entropy,
    batch: int | None = None,
    statistics: Statistics = "all",
    judge: Data | None = None,
    error: ErrorFunction | None = None,
) -> Connectivity:
    """Measure linear mode connectivity of two networks, as Zhou et al. 2023 (arXiv 2305.18383) do.

    At every point, ends included, BatchNorm statistics are reset and re-estimated on the inputs. The standard error is
    taken over the images: the standard deviation of ``(e_i(0)+e_i(1))/2 - e_i(t*)`` over images i, divided by sqrt(n),
    with t* taken as given. The networks are not changed.

    Args:
        a, b: networks of the same architecture.
        data: inputs (n, ...) and targets (n,), in the paper training images without augmentation; or a loader of such
            batches, which is read into memory.
        points: number of evenly spaced positions from 0 to 1, at least 3.
        loss_fn: (outputs, targets) -> mean loss.
        batch: largest batch for BatchNorm statistics; None: as many images as hold `batchnorm.BATCH_INPUT_VALUES`
            values.
        statistics: "all": BatchNorm statistics of all images, as in the paper; "batch": each batch is normalised by its
            own statistics, which halves the time if there are several (``python -m regimes.research bench pair`` shows
            the effect on the value).
        judge: inputs and targets (e.g. a test split) on which errors and losses are measured instead; BatchNorm
            statistics are still those of ``data``.
        error: error function of one's own; None: inferred, see `regimes.losses.tasks.infer_task`.

    Raises:
        UserError: fewer than three points, unknown statistics, or networks with different parameters.
    """
    start, end = matching_parameters(a, b)

    ends = parametrization_buffers(a), parametrization_buffers(b)
    if any(name.endswith("_mask") and not torch.equal(each, ends[1][name]) for name, each in ends[0].items()):
        raise UserError("the networks have different masks of torch.nn.utils.prune; make them permanent: prune.remove")
    floats = {name for name, each in a.named_buffers() if each.is_floating_point() and name not in ends[0]}
    start |= {name: each for name, each in a.named_buffers() if name in floats}
    end |= {name: each for name, each in b.named_buffers() if name in floats}

    def line(t: float) -> dict[str, Tensor]:
        return {name: torch.lerp(value, end[name], t) for name, value in start.items()}

    judged = None if judge is None else pair(judge, a)
    return measure_path(line, ends, copied(a), pair(data, a), points, loss_fn, batch, statistics, judged, error)


def matching_parameters(a: nn.Module, b: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters of two networks of the same architecture.

    Raises:
        UserError: the parameters differ in names, shapes or precision.
    """
    start = {name: each.detach() for name, each in a.named_parameters()}
    end = {name: each.detach() for name, each in b.named_parameters()}
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        raise UserError("the two networks have different parameters; both must have the same architecture")
    if any(value.dtype != end[name].dtype for name, value in start.items()):
        raise UserError("the two networks have weights of different precision; convert one, e.g. b.float()")
    return start, end


def measure_path(
    path: WeightPath,
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
    walker: nn.Module,
    data: tuple[Inputs, Tensor],
    points: int,
    loss_fn: LossFn,
    batch: int | None,
    statistics: Statistics,
    judge: tuple[Inputs, Tensor] | None,
    error: ErrorFunction | None = None,
) -> Connectivity:
    """Measure mode connectivity at evenly spaced positions on a path.

    Args:
        path: function from a position t in [0, 1] to the parameters there.
        ends: buffers of the parametrisations of both networks. They are not interpolated, but estimated anew at every
            position, ends included, from those of the nearer network.
        walker: network of the path's architecture, used for the forward passes; it is changed.
        data, points, loss_fn, batch, statistics, judge, error: as in `linear_connectivity`.

    Raises:
        UserError: fewer than three points, or unknown statistics.
    """
    if statistics not in ("all", "batch"):
        raise UserError(f"statistics = '{statistics}': allowed: all, batch")
    if points < 3:
        raise UserError(f"points = {points}: allowed: at least 3, ends included (11 in the paper)")
    targets = data[1] if judge is None else judge[1]
    t = tuple(index / (points - 1) for index in range(points))
    errors, losses, groups = list[Tensor](), list[float](), list[Tensor]()
    task: Task | None = None
    for position in t:
        with torch.no_grad():
            weights = {**path(position), **ends[position >= 0.5]}
            for name, tensor in (*walker.named_parameters(), *walker.named_buffers()):
                if name in weights:
                    tensor.copy_(weights[name])
        if ends[0]:
            reestimate_parametrizations(walker)
        answers = reestimated_outputs(walker, data[0], batch, statistics == "batch")
        if judge is not None:
            answers = whole_outputs(walker, judge[0])
        losses.append(scalar_loss(loss_fn, answers, targets))
        if error is not None:
            errors.append(torch.tensor(error(answers, targets), dtype=torch.float64))
            groups.append(leave_out_values(error, answers, targets))
            continue
        task = task or infer_task(answers, targets, loss_fn)
        judged = errors_or_nan(task.errors(answers, targets, loss_fn), answers)
        errors.append(judged.mean())
        groups.append(judged.total)
    gaps = (errors[0] + errors[-1]) / 2 - torch.stack(errors)  # (points,)
    star = 1 + int(gaps[1:-1].abs().argmax())
    each = (groups[0] + groups[-1]) / 2 - groups[star]  # of every input, or without each group of inputs
    stderr = jackknife_stderr(each) if error is not None else ratio_stderr(InputErrors(each, judged.predictions))
    return Connectivity(
        value=float(gaps[star]),
        stderr=stderr,
        samples=len(targets),
        t=t,
        error=tuple(map(float, errors)),
        loss=tuple(losses),
        t_star=t[star],
    )


@dataclass(frozen=True)
class LmcOptions:
    """Options of the metrics "lmc", "lmc_test" and "lmc_matched".

    Attributes:
        points: number of positions on the line, ends included.
        images: number of training images used (0: all).
        statistics: BatchNorm statistics of "all" images, or of each "batch".
    """

    points: Annotated[int, Strict(), Field(ge=3)] = 11
    images: Images = 0
    statistics: Statistics = "all"


def _measure(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> MetricValues:
    a, b = subjects
    split: Split = subset(probe.data.train, options.images)
    line = linear_connectivity(
        a.model, b.model, split, options.points, probe.loss_fn, statistics=options.statistics, error=probe.error
    )
    return path_values("lmc", line)


def path_values(name: str, path: Connectivity) -> MetricValues:
    """Return a path's variables: its value as NAME, and the curves ``NAME_error`` and ``NAME_loss`` along it."""
    return {name: path, f"{name}_error": Curve(path.error, "t", path.t), f"{name}_loss": Curve(path.loss, "t", path.t)}


def _measure_test(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> MetricValues:
    a, b = subjects
    split: Split = subset(probe.data.train, options.images)
    line = linear_connectivity(
        a.model,
        b.model,
        split,
        options.points,
        probe.loss_fn,
        statistics=options.statistics,
        judge=probe.data.test,
        error=probe.error,
    )
    return path_values("lmc_test", line)


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
    work=lambda options, images: 2 * options.points * image_count(options.images, images),
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
    work=lambda options, images: 2 * options.points * image_count(options.images, images),
)
