"""Choice of the Hessian trace estimator (Gauss-Newton split, XTrace or Hutchinson), and Hutchinson's estimator."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from regimes.data.inputs import Inputs
from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.gauss_newton_split import GaussNewtonSplit, NotSplittable
from regimes.landscape.gauss_newton_trace import split_trace
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.metric import LossFn
from regimes.landscape.trial import NetworkWarning
from regimes.landscape.xtrace import columns_that_fit, xtrace

Method = Literal["auto", "split", "xtrace", "hutchinson"]
MIN_HUTCHINSON_PROBES = 32  # probes before the standard error is used to stop
MIN_XTRACE_VECTORS = 48  # test vectors that must fit into memory for XTrace to be used
CURVATURE_UNIT = "nat"  # loss in nats per squared weight; weights have no unit


def trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: tuple[Inputs, Tensor],
    mask: AnyMask,
    rel_stderr: float,
    generator: torch.Generator,
    probes: int,
    max_probes: int,
    method: Method,
    chunk: int,
) -> Estimate:
    """Return the trace by the given method, or by the cheapest applicable one; see `regimes.hessian_trace`.

    Raises:
        UserError: ``method="split"`` for a loss that cannot be split.
    """
    hessian = HessianOperator(model, loss_fn, data, mask, chunk)
    if probes and method == "xtrace":
        return xtrace(hessian, generator, 0.0, probes)
    if probes:
        return hutchinson(hessian, generator, probes, None, probes)
    if method in ("auto", "split"):
        try:
            return split_trace(GaussNewtonSplit(model, loss_fn, data, mask, chunk), generator, rel_stderr, max_probes)
        except NotSplittable as why:
            if method == "split":
                raise UserError(f"method = 'split': {why}; use 'auto' or 'xtrace'") from None
            warnings.warn(
                f"no Gauss-Newton split ({why}): the Hessian is probed as a whole", NetworkWarning, stacklevel=3
            )
    if method == "xtrace" or (method == "auto" and columns_that_fit(hessian.size) >= MIN_XTRACE_VECTORS):
        return xtrace(hessian, generator, rel_stderr, max_probes)
    return hutchinson(hessian, generator, MIN_HUTCHINSON_PROBES, rel_stderr, max_probes)


def hutchinson(
    hessian: HessianOperator, generator: torch.Generator, probes: int, rel_stderr: float | None, max_probes: int
) -> Estimate:
    """Return the trace by Hutchinson's estimator, the mean of ``v' H v`` over random sign vectors v.

    Args:
        hessian: the operator.
        generator: CPU generator.
        probes: smallest number of probes.
        rel_stderr: relative standard error to reach; None: stop after ``probes``.
        max_probes: largest number of probes.
    """
    draws: list[float] = []
    while True:
        vector = hessian.rademacher(generator)
        draws.append(float(vector @ (hessian @ vector)))
        if len(draws) < probes:
            continue
        estimate = Estimate.mean_of_few(draws, CURVATURE_UNIT)
        enough = rel_stderr is None or estimate.stderr <= rel_stderr * abs(estimate.value)
        if enough or len(draws) >= max_probes or not math.isfinite(estimate.value):
            return estimate
