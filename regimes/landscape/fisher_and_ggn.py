"""Gauss-Newton and Fisher traces, and traces per parameter tensor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from regimes.data.inputs import Inputs
from regimes.errors import UserError
from regimes.landscape.error import outputs
from regimes.landscape.estimate import Estimate, student_factor
from regimes.landscape.gauss_newton_split import GaussNewtonSplit, NotSplittable
from regimes.landscape.gauss_newton_trace import MIN_PROBES, GaussNewtonTrace
from regimes.landscape.hessian import DEFAULT_REL_STDERR, HessianOptions
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import LossFn, Metric, MetricValues, Probe, Trained, Variable, image_count, subset
from regimes.landscape.trace_estimators import CURVATURE_UNIT
from regimes.landscape.trial import NetworkWarning

Of = Literal["hessian", "gauss-newton"]
MAX_EXACT_COLUMNS = 64  # columns up to which the Gauss-Newton traces of all layers are computed exactly


def gauss_newton_trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    rel_stderr: float = DEFAULT_REL_STDERR,
    generator: torch.Generator | None = None,
    *,
    max_draws: int = 2000,
    chunk: int = 0,
) -> Estimate:
    """Return the trace of the generalised Gauss-Newton matrix ``mean_n J_n' A_n J_n`` of the mean loss.

    For cross-entropy this is the Fisher matrix with labels drawn from the model's softmax. Its trace equals that of the
    Hessian wherever the network is piecewise linear in each parameter tensor; see `GaussNewtonSplit`.

    Args:
        model, loss_fn, data, mask, rel_stderr, generator, chunk: as in `regimes.hessian_trace`.
        max_draws: largest number of random draws; the exact trace is computed instead where that costs less.

    Raises:
        UserError: the loss is not a mean of per-input losses that are convex in the outputs, or the outputs depend on
            the other inputs of the batch.
    """
    data = pair(data, model)
    if not outputs(model, data[0]).isfinite().all():
        return Estimate(math.nan, math.nan, 0, CURVATURE_UNIT)
    split = _split(model, loss_fn, data, mask, chunk)
    if not split.roots.any() and bool(split.slopes.any()):
        warnings.warn(
            "the loss is linear in the outputs (a log-softmax inside the model?), so its Gauss-Newton matrix is 0; "
            "return logits instead",
            NetworkWarning,
            stacklevel=2,
        )
    gauss = GaussNewtonTrace(split, generator or torch.Generator().manual_seed(0), max_draws)
    gauss.refine(rel_stderr, offset=0.0)
    return gauss.estimate().warned("the Gauss-Newton trace")


def fisher_trace(model: nn.Module, loss_fn: LossFn, data: Data, mask: AnyMask = None, *, chunk: int = 0) -> Estimate:
    """Return the trace of the *empirical* Fisher matrix: the mean squared per-input gradient, ``mean_n |g_n|^2``.

    The gradients use the labels of the data, so this does not estimate the Hessian: it vanishes where a network fits
    its labels. The Fisher matrix with the model's own labels is `gauss_newton_trace` with cross-entropy. The value is
    exact for these inputs; the standard error treats them as a sample: the standard deviation of ``|g_n|^2`` over
    sqrt(n).

    Args:
        model, loss_fn, data, mask, chunk: as in `regimes.hessian_trace`.

    Raises:
        UserError: as `gauss_newton_trace`.
    """
    data = pair(data, model)
    if not outputs(model, data[0]).isfinite().all():
        return Estimate(math.nan, math.nan, 0, CURVATURE_UNIT)
    each = _split(model, loss_fn, data, mask, chunk).squared_gradients().sum(dim=1)
    return Estimate(float(each.mean()), float(each.std()) / len(each) ** 0.5, len(each), CURVATURE_UNIT)


def layer_traces(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    of: Of = "hessian",
    rel_stderr: float = DEFAULT_REL_STDERR,
    generator: torch.Generator | None = None,
    *,
    max_probes: int = 300,
    chunk: int = 0,
) -> dict[str, Estimate]:
    """Return the trace of each parameter tensor's diagonal block of the Hessian (or Gauss-Newton matrix).

    The traces are taken on the mask's support and add up to the whole trace. Each probe serves all tensors; the
    Gauss-Newton part is exact if the loss has few outputs.

    Args:
        model, loss_fn, data, mask, generator, chunk: as in `regimes.hessian_trace`.
        of: "hessian" or "gauss-newton".
        rel_stderr: probing stops when every tensor's standard error is at most this fraction of the sum of the absolute
            traces.
        max_probes: largest number of probes.

    Returns:
        {parameter name: trace}, in the model's order.

    Raises:
        UserError: an unknown ``of``, or ``of="gauss-newton"`` for a loss that cannot be split; see `GaussNewtonSplit`.
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
    exact = split.columns <= min(MAX_EXACT_COLUMNS, max_probes)
    first = split.exact() if exact else _drawn(split, generator, rel_stderr, max_probes)
    gauss = [first.mean(dim=0)] if exact else list(first.mean(dim=1))
    if of == "gauss-newton" or split.rest_has_zero_diagonal():
        return _by_tensor(split.rest, gauss, [])
    sure = None if not exact else gauss[0]
    return _by_tensor(split.rest, gauss, _probed(split.rest, generator, rel_stderr, max_probes, sure))


def _drawn(split: GaussNewtonSplit, generator: torch.Generator, rel_stderr: float, most: int) -> Tensor:
    """Random draws of the Gauss-Newton traces (draws, n, tensors)."""
    draws: list[Tensor] = []
    while True:
        draws.append(split.draw(generator))
        means = [each.mean(dim=0) for each in draws]
        if len(draws) >= MIN_PROBES and (_enough(means, rel_stderr, None) or len(draws) >= most):
            return torch.stack(draws)


def _probed(
    operator: HessianOperator, generator: torch.Generator, rel_stderr: float, most: int, offset: Tensor | None
) -> list[Tensor]:
    """Hutchinson probes ``v_l' (H v)_l`` of every tensor l, each of shape (tensors,)."""
    sizes = [leaf.numel() for leaf in operator.leaves.values()]
    found: list[Tensor] = []
    while True:
        vector = operator.rademacher(generator)
        whole = torch.zeros(operator.live.numel(), dtype=torch.float64)
        whole[operator.live.cpu()] = (vector * (operator @ vector)).double().cpu()
        found.append(torch.stack([part.sum() for part in whole.split(sizes)]))
        if len(found) >= MIN_PROBES and (_enough(found, rel_stderr, offset) or len(found) >= most):
            return found


def _enough(draws: Sequence[Tensor], rel_stderr: float, offset: Tensor | None) -> bool:
    values = torch.stack(list(draws))
    stderr = values.std(dim=0) / len(values) ** 0.5 * student_factor(len(values) - 1)
    centre = values.mean(dim=0) + (0.0 if offset is None else offset)
    return bool((stderr <= rel_stderr * centre.abs().sum()).all())


def _by_tensor(operator: HessianOperator, gauss: Sequence[Tensor], probes: Sequence[Tensor]) -> dict[str, Estimate]:
    """Add the means of both parts; a single Gauss-Newton value is exact."""
    value, square = torch.zeros(2, len(operator.leaves), dtype=torch.float64)
    count = 0
    for part in (gauss, probes):
        if part:
            values = torch.stack(list(part)).double()
            value = value + values.mean(dim=0)
            count += len(values)
            if len(values) > 1:
                square = square + values.var(dim=0) / len(values) * student_factor(len(values) - 1) ** 2
    named = zip(operator.leaves, value.tolist(), square.sqrt().tolist(), strict=True)
    return {name: Estimate(each, spread, count, CURVATURE_UNIT) for name, each, spread in named}


def _split(
    model: nn.Module, loss_fn: LossFn, data: tuple[Inputs, Tensor], mask: AnyMask, chunk: int
) -> GaussNewtonSplit:
    try:
        return GaussNewtonSplit(model, loss_fn, data, mask, chunk)
    except NotSplittable as why:
        raise _refused(why) from None


def _refused(why: NotSplittable) -> UserError:
    return UserError(f"Gauss-Newton and Fisher traces need per-input gradients, which are not available here: {why}")


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
    return 15 * image_count(options.images, images)  # some gradients of single inputs


GAUSS_NEWTON = Metric(
    name="gauss_newton",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={
        "gauss_newton_trace": Variable(
            CURVATURE_UNIT, "Gauss-Newton trace on the mask's support (training loss, eval mode)"
        )
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
        "fisher_trace": Variable(
            CURVATURE_UNIT, "empirical Fisher trace on the mask's support (training loss, eval mode)"
        )
    },
    measure=_measure_fisher,
    work=_work,
)
