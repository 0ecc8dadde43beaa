"""Curvature of the loss: trace and top eigenvalue of the Hessian, each with its standard error."""

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
from regimes.landscape.metric import Images, LossFn, Metric, MetricValues, Probe, Trained, Variable, subset, used
from regimes.landscape.trace_estimators import UNIT, Method, trace

Backend = Literal["own", "pyhessian"]
RELATIVE = 0.03  # standard error of a trace for which neither an error nor probes are asked
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
    """Trace of the Hessian of the mean loss over ``data``, on the mask's support.

    To a relative standard error, by the cheapest method that serves:

    * "split": Gauss-Newton from gradients, and probes of the rest where that has a diagonal (`Split`). The trace of a
      ReLU network takes about as many gradients as it has outputs, then it is exact, or fewer.
    * "xtrace": products that share a basis (`XTrace`), where the loss does not split.
    * "hutchinson": ``tr H = E[v' H v]`` over random signs v, where XTrace's bases would not fit into memory.

    With ``probes`` alone: so many of Hutchinson's; their spread over sqrt(probes), with Student's factor, is the
    standard error. It tells how well the trace *of these inputs* is known.

    Args:
        model: any network; it is measured in eval mode and left as it was.
        loss_fn: (outputs, targets) -> mean loss.
        data: inputs (n, ...) and targets (n, ...), or a loader of such batches, which is read into memory.
        mask: the live coordinates; see `HessianOperator`.
        rel_stderr: go on until stderr <= rel_stderr * abs(value), or ``max_probes``; None: 0.03 if no probes are given.
        generator: on the CPU; None: seed 0.
        probes: so many of Hutchinson's probes (of XTrace's products) in place of ``rel_stderr``, at least 2.
        max_probes: the most Hessian-vector products (or gradients) that ``rel_stderr`` may ask for, but for those that
            a first standard error takes.
        method: one of the above, or "auto". "split" raises where the loss does not split.
        chunk: inputs per forward pass, which bounds memory; 0: all at once.
        backend: "own", or "pyhessian" for the repaired reference.

    Raises:
        UserError: fewer than 2 probes, an unknown backend or method, a mask that does not fit, a loss that does not
            split where a split is asked for.
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
        rel_stderr = RELATIVE
    if backend == "pyhessian":
        from regimes.landscape.pyhessian import reference_trace

        _check(rel_stderr is None and chunk == 0, "hessian.backend = 'pyhessian' takes neither rel_stderr nor chunk")
        return reference_trace(model, loss_fn, data, mask, probes or PYHESSIAN_PROBES, generator)
    _check(not probes or method != "split", f"probes = {probes}: 'split' works to a rel_stderr")
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
    """Largest eigenvalue of the Hessian of the mean loss over ``data``, on the mask's support, by Lanczos.

    The value is the largest Ritz value after k steps with full reorthogonalisation, a lower bound of the eigenvalue.
    As its standard error stands a bound rather than a deviation: with the residual ``r = |H y - value y|``, an
    eigenvalue lies within r, and within ``r^2 / (gap - r)`` where the others are at least ``gap`` away (Kato, Temple);
    the next Ritz value is taken for the next eigenvalue. Steps stop when the bound is below ``tolerance * abs(value)``
    three times in a row (``python -m regimes.research study calibration`` counts how often that was too early).

    Args:
        tolerance: relative error to stop at.
        max_steps: the most Lanczos steps; each is one Hessian-vector product.
        model, loss_fn, data, mask, generator, chunk, backend: as in `hessian_trace`.
    """
    _check(max_steps >= 1, f"max_steps = {max_steps}: at least 1 is needed")
    data = pair(data, model)
    generator = generator or torch.Generator().manual_seed(0)
    if backend == "pyhessian":
        from regimes.landscape.pyhessian import reference_top

        _check(chunk == 0, "hessian.backend = 'pyhessian' takes no chunk")
        return reference_top(model, loss_fn, data, mask, tolerance, max_steps, generator)
    _check(backend == "own", f"hessian.backend = '{backend}': allowed: own, pyhessian")
    hessian = HessianOperator(model, loss_fn, data, mask, chunk)
    return lanczos_top(hessian, generator, tolerance, max_steps)[0].warned("the largest Hessian eigenvalue")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(otherwise)


def _none_or_two(probes: int) -> int:
    if probes == 1:
        raise ValueError("allowed: 0, or at least 2: a standard error needs them")
    return probes


@dataclass(frozen=True)
class HessianOptions:
    """Options of both Hessian metrics.

    Attributes:
        images: training images, drawn once for all networks (0: all).
        rel_stderr: relative standard error of the trace to go on for.
        probes: so many Hutchinson probes of the trace instead, whatever its standard error becomes; 0: none.
        tolerance: relative error of the top eigenvalue.
        max_steps: the most Lanczos steps.
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
    """Images whose gradient's graph is held at once, and vectors of the weights' size."""
    return options.chunk or used(options.images, images), vectors


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


SPLIT = 6  # products that a trace to 5 % costs, about: a draw is less than a product


def _work(products: float, options: HessianOptions, images: int) -> float:
    # A Hessian-vector product on a kept graph costs about two gradients, a gradient about three forward passes.
    return products * 6 * used(options.images, images)


TRACE = Metric(
    name="hessian_trace",
    subject="model",
    options=HessianOptions,
    table="hessian",
    variables={"hessian_trace": Variable(UNIT, "Hessian trace on the mask's support (training loss, eval mode)")},
    measure=_measure_trace,
    work=lambda options, images: _work(options.probes or SPLIT, options, images),
    graph=lambda options, images: _held(options, images, 8),
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
    graph=lambda options, images: _held(options, images, 2 * options.max_steps),  # a basis, and a copy of it
)
