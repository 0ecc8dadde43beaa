"""Curvature of the loss: trace and top eigenvalue of the Hessian, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Images, LossFn, Measured, Metric, Probe, Trained, Variable, subset
from regimes.landscape.operator import HessianOperator
from regimes.landscape.xtrace import columns_that_fit, xtrace
from regimes.pruners.mask import Mask

Backend = Literal["own", "pyhessian"]
Method = Literal["auto", "hutchinson", "xtrace"]
ENOUGH = 48  # test vectors that have to fit into memory, or XTrace is not begun
AnyMask = Mask | Mapping[str, Tensor] | None
UNIT = "nat"  # curvature of a loss in nats per squared weight; weights have no unit


def hessian_trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: tuple[Tensor, Tensor],
    mask: AnyMask = None,
    rel_stderr: float | None = None,
    generator: torch.Generator | None = None,
    *,
    probes: int = 32,
    max_probes: int = 2000,
    method: Method = "auto",
    chunk: int = 0,
    backend: Backend = "own",
) -> Estimate:
    """Trace of the Hessian of the mean loss over ``data``, on the mask's support.

    Without ``rel_stderr``: Hutchinson's estimator with a fixed number of probes, ``tr H = E[v' H v]`` over random signs
    v; its standard error is the spread of ``v' H v`` over sqrt(probes). With it: XTrace (see `XTrace`), which comes to
    a small standard error with far fewer products where the spectrum decays; Hutchinson where its bases would not fit
    into memory. The standard error tells how well the trace *of these inputs* is known.

    Args:
        model: any network; it is measured in eval mode and left as it was.
        loss_fn: (outputs, targets) -> mean loss.
        data: inputs (n, ...), targets (n, ...).
        mask: the live coordinates; see `HessianOperator`.
        rel_stderr: go on until stderr <= rel_stderr * abs(value), or ``max_probes``.
        generator: on the CPU; None: seed 0.
        probes: number of Hutchinson's probes, at least 2 (with ``rel_stderr``: the least number); XTrace takes it as
            its number of products where no ``rel_stderr`` is given, and not at all where one is.
        max_probes: the most Hessian-vector products that ``rel_stderr`` may ask for.
        method: "hutchinson", "xtrace", or "auto" as said above.
        chunk: inputs per forward pass, which bounds memory; 0: all at once.
        backend: "own", or "pyhessian" for the repaired reference.

    Raises:
        UserError: fewer than 2 probes, an unknown backend, or a mask that does not fit.
    """
    _check(probes >= 2, f"probes = {probes}: a standard error needs at least 2")
    generator = generator or torch.Generator().manual_seed(0)
    if backend == "pyhessian":
        from regimes.landscape.pyhessian import reference_trace

        _check(rel_stderr is None and chunk == 0, "hessian.backend = 'pyhessian' takes neither rel_stderr nor chunk")
        return reference_trace(model, loss_fn, data, mask, probes, generator)
    _check(backend == "own", f"hessian.backend = '{backend}': allowed: own, pyhessian")
    _check(method in ("auto", "hutchinson", "xtrace"), f"method = '{method}': allowed: auto, hutchinson, xtrace")
    hessian = HessianOperator(model, loss_fn, data, mask, chunk)
    fits = rel_stderr is not None and columns_that_fit(hessian.size) >= ENOUGH
    if method == "xtrace" or (method == "auto" and fits):
        return xtrace(hessian, generator, rel_stderr or 0.0, max_probes if rel_stderr else probes)
    return hutchinson(hessian, generator, probes, rel_stderr, max_probes)


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
        estimate = Estimate.mean(draws, UNIT)
        enough = rel_stderr is None or estimate.stderr <= rel_stderr * abs(estimate.value)
        if enough or len(draws) >= max_probes or not math.isfinite(estimate.value):
            return estimate


def hessian_top(
    model: nn.Module,
    loss_fn: LossFn,
    data: tuple[Tensor, Tensor],
    mask: AnyMask = None,
    generator: torch.Generator | None = None,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 60,
    chunk: int = 0,
    backend: Backend = "own",
) -> Estimate:
    """Largest eigenvalue of the Hessian of the mean loss over ``data``, on the mask's support, by Lanczos.

    The value is the largest Ritz value after k steps with full reorthogonalisation, a lower bound of the eigenvalue.
    As its standard error stands a bound rather than a deviation: with the residual ``r = |H y - value y|``, an
    eigenvalue lies within r, and within ``r^2 / (gap - r)`` where the others are at least ``gap`` away (Kato, Temple);
    the next Ritz value is taken for the next eigenvalue. Steps stop when the bound is below ``tolerance * abs(value)``
    twice in a row.

    Args:
        tolerance: relative error to stop at.
        max_steps: the most Lanczos steps; each is one Hessian-vector product.
        model, loss_fn, data, mask, generator, chunk, backend: as in `hessian_trace`.
    """
    _check(max_steps >= 1, f"max_steps = {max_steps}: at least 1 is needed")
    generator = generator or torch.Generator().manual_seed(0)
    if backend == "pyhessian":
        from regimes.landscape.pyhessian import reference_top

        _check(chunk == 0, "hessian.backend = 'pyhessian' takes no chunk")
        return reference_top(model, loss_fn, data, mask, tolerance, max_steps, generator)
    _check(backend == "own", f"hessian.backend = '{backend}': allowed: own, pyhessian")
    return lanczos_top(HessianOperator(model, loss_fn, data, mask, chunk), generator, tolerance, max_steps)


def lanczos_top(hessian: HessianOperator, generator: torch.Generator, tolerance: float, max_steps: int) -> Estimate:
    """Run Lanczos on an operator until the largest Ritz value is known to ``tolerance``; see `hessian_top`."""
    vector = hessian.normal(generator)
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value, bound, met = math.nan, math.nan, 0
    for step in range(min(max_steps, hessian.size)):
        image = hessian @ basis[-1]
        diagonal.append(float(basis[-1] @ image))
        if not math.isfinite(diagonal[-1]):
            return Estimate(math.nan, math.nan, step + 1, UNIT)
        known = torch.stack(basis)  # (k, size)
        for _ in range(2):  # once is not enough in float32
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            edge = torch.tensor(beside, dtype=torch.float64)
            small = small + torch.diag(edge, 1) + torch.diag(edge, -1)
        values, vectors = torch.linalg.eigh(small)
        value, bound = float(values[-1]), _bound(values, length * abs(float(vectors[-1, -1])))
        met = met + 1 if bound <= tolerance * abs(value) else 0
        if met == 2 or length <= 1e-12 * float(values.abs().max()):
            break
        beside.append(length)
        basis.append(image / length)
    return Estimate(value, bound, len(diagonal), UNIT)


def _bound(values: Tensor, residual: float) -> float:
    """How far the largest Ritz value may be from an eigenvalue."""
    gap = float(values[-1] - values[-2]) if len(values) > 1 else 0.0
    return min(residual, residual**2 / (gap - residual)) if gap > residual else residual


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(otherwise)


@dataclass(frozen=True)
class HessianOptions:
    """Options of both Hessian metrics.

    Attributes:
        images: training images, drawn once for all networks (0: all).
        probes: Hutchinson probes of the trace.
        rel_stderr: relative standard error of the trace to go on for; 0: just ``probes``.
        tolerance: relative error of the top eigenvalue.
        max_steps: the most Lanczos steps.
        chunk: images per forward pass (0: all at once).
        backend: "own" or "pyhessian".
    """

    images: Images = 256
    probes: Annotated[int, Strict(), Field(ge=2)] = 24
    rel_stderr: Annotated[float, Strict(), Field(ge=0)] = 0.0
    tolerance: Annotated[float, Strict(), Field(gt=0)] = 1e-2
    max_steps: Annotated[int, Strict(), Field(ge=1)] = 40
    chunk: Annotated[int, Strict(), Field(ge=0)] = 0
    backend: Backend = "own"


def _measure_trace(subjects: Sequence[Trained], probe: Probe, options: HessianOptions) -> Measured:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    trace = hessian_trace(
        subject.model,
        probe.loss_fn,
        data,
        subject.mask,
        options.rel_stderr or None,
        probe.generator,
        probes=options.probes,
        chunk=options.chunk,
        backend=options.backend,
    )
    return {"hessian_trace": trace}


def _measure_top(subjects: Sequence[Trained], probe: Probe, options: HessianOptions) -> Measured:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    top = hessian_top(
        subject.model,
        probe.loss_fn,
        data,
        subject.mask,
        probe.generator,
        tolerance=options.tolerance,
        max_steps=options.max_steps,
        chunk=options.chunk,
        backend=options.backend,
    )
    return {"hessian_top": top}


def _work(products: float, options: HessianOptions, images: int) -> float:
    # A Hessian-vector product on a kept graph costs about two gradients, a gradient about three forward passes.
    return products * 6 * (min(options.images, images) or images)


TRACE = Metric(
    name="hessian_trace",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={"hessian_trace": Variable(UNIT, "Hessian trace on the mask's support (training loss, eval mode)")},
    measure=_measure_trace,
    work=lambda options, images: _work(options.probes, options, images),
)

TOP = Metric(
    name="hessian_top",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={
        "hessian_top": Variable(UNIT, "largest Hessian eigenvalue on the mask's support (training loss, eval mode)")
    },
    measure=_measure_top,
    work=lambda options, images: _work(12, options, images),
)
