"""Which way to the trace of a Hessian: taken apart, by products that share a basis, or by random signs."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.gauss_newton_split import GaussNewtonSplit, NotSplittable
from regimes.landscape.gauss_newton_trace import split_trace
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.metric import LossFn
from regimes.landscape.xtrace import columns_that_fit, xtrace

Method = Literal["auto", "split", "xtrace", "hutchinson"]
LEAST = 32  # probes of Hutchinson's before their spread is believed
ENOUGH = 48  # test vectors that have to fit into memory, or XTrace is not begun
UNIT = "nat"  # curvature of a loss in nats per squared weight; weights have no unit


def trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: tuple[Tensor, Tensor],
    mask: AnyMask,
    rel_stderr: float,
    generator: torch.Generator,
    probes: int,
    max_probes: int,
    method: Method,
    chunk: int,
) -> Estimate:
    """The trace by one method, or by the cheapest that serves; see `regimes.hessian_trace`.

    Raises:
        UserError: a split is asked for, and the loss does not split.
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
                raise UserError(f"method = 'split': {why}; take 'auto' or 'xtrace'") from None
    if method == "xtrace" or (method == "auto" and columns_that_fit(hessian.size) >= ENOUGH):
        return xtrace(hessian, generator, rel_stderr, max_probes)
    return hutchinson(hessian, generator, LEAST, rel_stderr, max_probes)


def hutchinson(
    hessian: HessianOperator, generator: torch.Generator, probes: int, rel_stderr: float | None, max_probes: int
) -> Estimate:
    """The mean of ``v' H v`` over random signs v."""
    draws: list[float] = []
    while True:
        vector = hessian.rademacher(generator)
        draws.append(float(vector @ (hessian @ vector)))
        if len(draws) < probes:
            continue
        estimate = Estimate.mean_of_few(draws, UNIT)
        enough = rel_stderr is None or estimate.stderr <= rel_stderr * abs(estimate.value)
        if enough or len(draws) >= max_probes or not math.isfinite(estimate.value):
            return estimate
