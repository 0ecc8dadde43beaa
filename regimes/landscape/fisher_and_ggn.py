"""Relatives of the Hessian's trace - Gauss-Newton's, Fisher's - and traces layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.error import outputs
from regimes.landscape.estimate import Estimate, student
from regimes.landscape.gauss_newton_split import GaussNewtonSplit, NotSplittable
from regimes.landscape.gauss_newton_trace import PROBES, GaussNewtonTrace
from regimes.landscape.hessian import RELATIVE, HessianOptions
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import LossFn, Metric, MetricValues, Probe, Trained, Variable, subset, used
from regimes.landscape.trace_estimators import UNIT

Of = Literal["hessian", "gauss-newton"]
EXACT = 64  # columns up to which Gauss-Newton's traces of all layers are taken exactly


def gauss_newton_trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    rel_stderr: float = RELATIVE,
    generator: torch.Generator | None = None,
    *,
    max_draws: int = 2000,
    chunk: int = 0,
) -> Estimate:
    """Trace of the generalised Gauss-Newton matrix ``mean_n J_n' A_n J_n`` of the mean loss; see `GaussNewtonSplit`.

    For cross-entropy this is the Fisher matrix of the model's own answers (labels drawn from its softmax). Its trace is
    the Hessian's wherever the network is piecewise linear in each parameter tensor.

    Args:
        model, loss_fn, data, mask, rel_stderr, generator, chunk: as in `regimes.hessian_trace`.
        max_draws: the most random draws; the exact trace is taken where it costs less.

    Raises:
        UserError: the loss is not a mean over inputs of a convex function of their outputs, or inputs mix.
    """
    data = pair(data, model)
    if not outputs(model, data[0]).isfinite().all():
        return Estimate(math.nan, math.nan, 0, UNIT)
    split = _split(model, loss_fn, data, mask, chunk)
    gauss = GaussNewtonTrace(split, generator or torch.Generator().manual_seed(0), max_draws)
    gauss.reach(rel_stderr, beside=0.0)
    return gauss.estimate().warned("the Gauss-Newton trace")


def fisher_trace(model: nn.Module, loss_fn: LossFn, data: Data, mask: AnyMask = None, *, chunk: int = 0) -> Estimate:
    """Trace of the *empirical* Fisher matrix: the mean squared gradient of single inputs, ``mean_n |g_n|^2``, by the
    labels that the data have.

    It is no estimate of the Hessian: it goes to zero where a network fits its labels. The Fisher matrix of the model's
    own answers is `gauss_newton_trace` with cross-entropy. Exact for these inputs; the standard error is that of the
    inputs as a sample, the spread of ``|g_n|^2`` over sqrt(n).

    Args:
        model, loss_fn, data, mask, chunk: as in `regimes.hessian_trace`.

    Raises:
        UserError: as `gauss_newton_trace`.
    """
    data = pair(data, model)
    if not outputs(model, data[0]).isfinite().all():
        return Estimate(math.nan, math.nan, 0, UNIT)
    each = _split(model, loss_fn, data, mask, chunk).slope_squares().sum(dim=1)
    return Estimate(float(each.mean()), float(each.std()) / len(each) ** 0.5, len(each), UNIT)


def layer_traces(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    of: Of = "hessian",
    rel_stderr: float = RELATIVE,
    generator: torch.Generator | None = None,
    *,
    max_probes: int = 300,
    chunk: int = 0,
) -> dict[str, Estimate]:
    """Trace of each parameter tensor's diagonal block of the Hessian (or of Gauss-Newton), on the mask's support.

    They add up to the whole trace. One probe serves all tensors; Gauss-Newton's part is exact where the loss has few
    outputs. Probing stops when each tensor's standard error is below ``rel_stderr`` times the sum of the traces'
    absolute values, or after ``max_probes``.

    Args:
        model, loss_fn, data, mask, generator, chunk: as in `regimes.hessian_trace`.
        of: "hessian" or "gauss-newton".

    Returns:
        {parameter: trace}, in the model's order.

    Raises:
        UserError: Gauss-Newton is asked for where the loss does not split.
    """
    if of not in get_args(Of):
        raise UserError(f"layer_traces of = '{of}': allowed: {', '.join(get_args(Of))}")
    generator = generator or torch.Generator().manual_seed(0)
    data = pair(data, model)
    try:
        split = GaussNewtonSplit(model, loss_fn, data, mask, chunk)
    except NotSplittable as why:
        if of == "gauss-newton":
            raise _refused(why) from None
        hessian = HessianOperator(model, loss_fn, data, mask, chunk)
        return _by_tensor(hessian, [], _probed(hessian, generator, rel_stderr, max_probes, None))
    exact = split.columns <= min(EXACT, max_probes)
    first = split.exact() if exact else _drawn(split, generator, rel_stderr, max_probes)
    gauss = [first.mean(dim=0)] if exact else list(first.mean(dim=1))
    if of == "gauss-newton" or split.flat():
        return _by_tensor(split.rest, gauss, [])
    sure = None if not exact else gauss[0]
    return _by_tensor(split.rest, gauss, _probed(split.rest, generator, rel_stderr, max_probes, sure))


def _drawn(split: GaussNewtonSplit, generator: torch.Generator, rel_stderr: float, most: int) -> Tensor:
    """Random draws of Gauss-Newton's traces (draws, n, tensors)."""
    draws: list[Tensor] = []
    while True:
        draws.append(split.draw(generator))
        means = [each.mean(dim=0) for each in draws]
        if len(draws) >= PROBES and (_enough(means, rel_stderr, None) or len(draws) >= most):
            return torch.stack(draws)


def _probed(
    operator: HessianOperator, generator: torch.Generator, rel_stderr: float, most: int, beside: Tensor | None
) -> list[Tensor]:
    """Hutchinson's probes ``v_l (H v)_l`` of every tensor l, (tensors,) each."""
    sizes = [leaf.numel() for leaf in operator.leaves.values()]
    found: list[Tensor] = []
    while True:
        vector = operator.rademacher(generator)
        whole = torch.zeros(operator.live.numel(), dtype=torch.float64)
        whole[operator.live.cpu()] = (vector * (operator @ vector)).double().cpu()
        found.append(torch.stack([part.sum() for part in whole.split(sizes)]))
        if len(found) >= PROBES and (_enough(found, rel_stderr, beside) or len(found) >= most):
            return found


def _enough(found: Sequence[Tensor], rel_stderr: float, beside: Tensor | None) -> bool:
    values = torch.stack(list(found))
    stderr = values.std(dim=0) / len(values) ** 0.5 * student(len(values) - 1)
    centre = values.mean(dim=0) + (0.0 if beside is None else beside)
    return bool((stderr <= rel_stderr * centre.abs().sum()).all())


def _by_tensor(operator: HessianOperator, gauss: Sequence[Tensor], probes: Sequence[Tensor]) -> dict[str, Estimate]:
    """Means of both parts, added; one value of Gauss-Newton is exact."""
    value, square = torch.zeros(2, len(operator.leaves), dtype=torch.float64)
    count = 0
    for part in (gauss, probes):
        if part:
            values = torch.stack(list(part)).double()
            value = value + values.mean(dim=0)
            count += len(values)
            if len(values) > 1:
                square = square + values.var(dim=0) / len(values) * student(len(values) - 1) ** 2
    named = zip(operator.leaves, value.tolist(), square.sqrt().tolist(), strict=True)
    return {name: Estimate(each, spread, count, UNIT) for name, each, spread in named}


def _split(
    model: nn.Module, loss_fn: LossFn, data: tuple[Tensor, Tensor], mask: AnyMask, chunk: int
) -> GaussNewtonSplit:
    try:
        return GaussNewtonSplit(model, loss_fn, data, mask, chunk)
    except NotSplittable as why:
        raise _refused(why) from None


def _refused(why: NotSplittable) -> UserError:
    return UserError(f"Gauss-Newton and Fisher are taken input by input, and here they cannot be: {why}")


def _measure_gauss_newton(subjects: Sequence[Trained], probe: Probe, options: HessianOptions) -> MetricValues:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    trace = gauss_newton_trace(
        subject.model, probe.loss_fn, data, subject.mask, options.rel_stderr, probe.generator, chunk=options.chunk
    )
    return {"gauss_newton_trace": trace}


def _measure_fisher(subjects: Sequence[Trained], probe: Probe, options: HessianOptions) -> MetricValues:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    return {"fisher_trace": fisher_trace(subject.model, probe.loss_fn, data, subject.mask, chunk=options.chunk)}


def _work(options: HessianOptions, images: int) -> float:
    return 15 * used(options.images, images)  # some gradients of single inputs


GAUSS_NEWTON = Metric(
    name="gauss_newton",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={
        "gauss_newton_trace": Variable(UNIT, "Gauss-Newton trace on the mask's support (training loss, eval mode)")
    },
    measure=_measure_gauss_newton,
    work=_work,
)

FISHER = Metric(
    name="fisher",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={
        "fisher_trace": Variable(UNIT, "empirical Fisher trace on the mask's support (training loss, eval mode)")
    },
    measure=_measure_fisher,
    work=_work,
)
