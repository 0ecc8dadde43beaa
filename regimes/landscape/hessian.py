"""Trace and largest eigenvalue of the Hessian, each with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from pydantic import AfterValidator, Field, Strict
from torch import nn

from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.inputs import Data, pair
from regimes.landscape.lanczos import lanczos_top
from regimes.landscape.metric import Images, LossFn, Metric, MetricValues, Probe, Trained, Variable, image_count, subset
from regimes.landscape.trace_estimators import CURVATURE_UNIT, Method, trace

Backend = Literal["own", "pyhessian"]
DEFAULT_REL_STDERR = 0.03  # used if neither rel_stderr nor probes is given
PYHESSIAN_PROBES = 32


def hessian_trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    rel_stderr: float | None = None,
    generator: torch.Generator | None = None,
    *,
    probes: int = 0,
    max_probes: int = 2000,
    method: Method = "auto",
    chunk: int = 0,
    backend: Backend = "own",
) -> Estimate:
    """Return the trace of the Hessian of the mean loss over ``data``, on the mask's support.

    The trace is estimated to a relative standard error by the cheapest applicable method:

    * "split": the Gauss-Newton trace from gradients, plus probes of the rest if its diagonal is not zero
      (`GaussNewtonSplit`). For a ReLU network this takes at most about as many gradients as the network has outputs,
      and is then exact.
    * "xtrace": Hessian-vector products that share a basis (`XTrace`), if the loss cannot be split.
    * "hutchinson": ``tr H = E[v' H v]`` over random signs v, if the bases of XTrace do not fit into memory.

    With ``probes``, a fixed number of Hutchinson probes is used; the standard error is their standard deviation over
    sqrt(probes), widened by Student's factor. Standard errors refer to the trace on *these inputs*.

    Args:
        model: any network; it is measured in eval mode and not changed.
        loss_fn: (outputs, targets) -> mean loss.
        data: inputs (n, ...) and targets (n, ...), or a loader of such batches, which is read into memory.
        mask: live coordinates; see `HessianOperator`.
        rel_stderr: stop when ``stderr <= rel_stderr * abs(value)``; None: 0.03 if ``probes`` is 0.
        generator: CPU generator; None: seed 0.
        probes: fixed number of Hutchinson probes (with "xtrace": of products) instead of ``rel_stderr``, at least 2.
        max_probes: largest number of Hessian-vector products or gradients used to reach ``rel_stderr``, apart from
            those needed for a first standard error.
        method: one of the above, or "auto".
        chunk: inputs per forward pass, to bound memory; 0: all at once.
        backend: "own", or "pyhessian" for the patched reference implementation.

    Raises:
        UserError: fewer than 2 probes, an unknown backend or method, a mask that does not fit, or ``method="split"``
            for a loss that cannot be split.
    """
    _check(probes == 0 or probes >= 2, f"probes = {probes}: a standard error needs at least 2")
    _check(not probes or rel_stderr is None, f"probes = {probes} and rel_stderr = {rel_stderr}: give one of them")
    _check(rel_stderr is None or rel_stderr >= 0, f"rel_stderr = {rel_stderr}: allowed: 0 or more")
    _check(chunk >= 0 and max_probes >= 1, f"chunk = {chunk}, max_probes = {max_probes}: at least 0 and 1")
    _check(backend in ("own", "pyhessian"), f"hessian.backend = '{backend}': allowed: own, pyhessian")
    _check(method in get_args(Method), f"method = '{method}': allowed: {', '.join(get_args(Method))}")
    data = pair(data, model)
    generator = generator or torch.Generator().manual_seed(0)
    if rel_stderr is None and not probes and backend == "own":
        rel_stderr = DEFAULT_REL_STDERR
    if backend == "pyhessian":
        from regimes.landscape.pyhessian import reference_trace

        _check(rel_stderr is None and chunk == 0, "hessian.backend = 'pyhessian' supports neither rel_stderr nor chunk")
        return reference_trace(model, loss_fn, data, mask, probes or PYHESSIAN_PROBES, generator)
    _check(not probes or method != "split", f"probes = {probes}: method 'split' needs rel_stderr instead")
    found = trace(model, loss_fn, data, mask, rel_stderr or 0.0, generator, probes, max_probes, method, chunk)
    return found.warned("the Hessian trace")


def hessian_top(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    generator: torch.Generator | None = None,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 60,
    chunk: int = 0,
    backend: Backend = "own",
) -> Estimate:
    """Return the largest eigenvalue of the Hessian of the mean loss over ``data``, on the mask's support, by Lanczos.

    The value is the largest Ritz value after k steps with full reorthogonalisation, a lower bound of the eigenvalue.
    The field ``stderr`` holds an error bound instead of a standard error: with the residual ``r = |H y - value y|``,
    an eigenvalue lies within r, and within ``r^2 / (gap - r)`` if all others are at least ``gap`` away (Kato, Temple);
    the gap is taken from the next Ritz value. Iteration stops when the bound is below ``tolerance * abs(value)`` three
    times in a row (``python -m regimes.research study calibration`` counts how often that is too early).

    Args:
        model, loss_fn, data, mask, generator, chunk, backend: as in `hessian_trace`.
        tolerance: relative error bound to reach.
        max_steps: largest number of Lanczos steps, one Hessian-vector product each.

    Raises:
        UserError: max_steps below 1, an unknown backend, or a mask that does not fit.
    """
    _check(max_steps >= 1, f"max_steps = {max_steps}: at least 1 is needed")
    data = pair(data, model)
    generator = generator or torch.Generator().manual_seed(0)
    if backend == "pyhessian":
        from regimes.landscape.pyhessian import reference_top

        _check(chunk == 0, "hessian.backend = 'pyhessian' does not support chunk")
        return reference_top(model, loss_fn, data, mask, tolerance, max_steps, generator)
    _check(backend == "own", f"hessian.backend = '{backend}': allowed: own, pyhessian")
    hessian = HessianOperator(model, loss_fn, data, mask, chunk)
    return lanczos_top(hessian, generator, tolerance, max_steps)[0].warned("the largest Hessian eigenvalue")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(otherwise)


def _none_or_two(probes: int) -> int:
    if probes == 1:
        raise ValueError("allowed: 0, or at least 2 (needed for a standard error)")
    return probes


@dataclass(frozen=True)
class HessianOptions:
    """Options of the metrics "hessian_trace", "hessian_top", "gauss_newton" and "fisher".

    Attributes:
        images: number of training images, drawn once for all networks (0: all).
        rel_stderr: relative standard error of the trace to reach.
        probes: fixed number of Hutchinson probes instead of ``rel_stderr``; 0: use ``rel_stderr``.
        tolerance: relative error bound of the largest eigenvalue to reach.
        max_steps: largest number of Lanczos steps.
        chunk: images per forward pass (0: all at once).
        backend: "own" or "pyhessian".
    """

    images: Images = 256
    rel_stderr: Annotated[float, Strict(), Field(gt=0)] = 0.05
    probes: Annotated[int, Strict(), Field(ge=0), AfterValidator(_none_or_two)] = 0
    tolerance: Annotated[float, Strict(), Field(gt=0)] = 1e-2
    max_steps: Annotated[int, Strict(), Field(ge=1)] = 40
    chunk: Annotated[int, Strict(), Field(ge=0)] = 0
    backend: Backend = "own"


def _held(options: HessianOptions, images: int, vectors: int) -> tuple[int, int]:
    """Images whose gradient graph is kept at once, and number of vectors of the weights' size."""
    return options.chunk or image_count(options.images, images), vectors


def _measure_trace(subjects: Sequence[Trained], probe: Probe, options: HessianOptions) -> MetricValues:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    trace = hessian_trace(
        subject.model,
        probe.loss_fn,
        data,
        subject.mask,
        None if options.probes or options.backend == "pyhessian" else options.rel_stderr,
        probe.generator,
        probes=options.probes,
        chunk=options.chunk,
        backend=options.backend,
    )
    return {"hessian_trace": trace}


def _measure_top(subjects: Sequence[Trained], probe: Probe, options: HessianOptions) -> MetricValues:
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


SPLIT_TRACE_PRODUCTS = 6  # approximate cost of a trace to 5 %, in Hessian-vector products; a draw costs less than one


def _work(products: float, options: HessianOptions, images: int) -> float:
    # A Hessian-vector product on a stored graph costs about two gradients, a gradient about three forward passes.
    return products * 6 * image_count(options.images, images)


TRACE = Metric(
    name="hessian_trace",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={
        "hessian_trace": Variable(CURVATURE_UNIT, "Hessian trace on the mask's support (training loss, eval mode)")
    },
    measure=_measure_trace,
    work=lambda options, images: _work(options.probes or SPLIT_TRACE_PRODUCTS, options, images),
    graph=lambda options, images: _held(options, images, 8),
)

TOP = Metric(
    name="hessian_top",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={
        "hessian_top": Variable(
            CURVATURE_UNIT, "largest Hessian eigenvalue on the mask's support (training loss, eval mode)"
        )
    },
    measure=_measure_top,
    work=lambda options, images: _work(12, options, images),
    graph=lambda options, images: _held(options, images, 2 * options.max_steps),  # a basis, and a copy of it
)
