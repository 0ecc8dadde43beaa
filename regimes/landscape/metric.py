"""Definition of a metric: its inputs, options and variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, Strict
from torch import nn

from regimes.data.dataset import Dataset
from regimes.data.dataset import subset as subset
from regimes.landscape.estimate import Estimate
from regimes.losses.functions import LossFn as LossFn
from regimes.losses.tasks import ErrorFunction
from regimes.pruners.mask import Mask

TORCH_NATS = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")


def _enough(images: int) -> int:
    if images and images < 8:
        raise ValueError("allowed: 0 (all images) or at least 8")
    return images


Images = Annotated[int, Strict(), Field(ge=0), AfterValidator(_enough)]  # type of an option: number of images; 0: all


def in_nats(loss: str) -> bool:
    """Whether a loss, a name in `LOSSES` or an import path, is measured in nats: the cross-entropies, also torch's."""
    return loss in ("cross-entropy", "binary-cross-entropy", *(f"torch.nn.functional:{name}" for name in TORCH_NATS))


def image_count(requested: int, available: int) -> int:
    """Return the number of images an option selects: all available ones for 0, and never more than those."""
    return min(requested, available) or available


@dataclass(frozen=True)
class Trained:
    """A network to measure.

    Attributes:
        model: the network.
        mask: the mask it was trained with; None if it is not pruned.
    """

    model: nn.Module
    mask: Mask | None


@dataclass(frozen=True)
class Probe:
    """Inputs of a measurement, apart from the networks.

    Attributes:
        data: the data set.
        loss_fn: (outputs, targets) -> mean loss.
        generator: CPU generator for random probes.
        error: error function of one's own; None: inferred, see `infer_task`.
    """

    data: Dataset
    loss_fn: LossFn
    generator: torch.Generator
    error: ErrorFunction | None = None


@dataclass(frozen=True)
class Variable:
    """Description of a variable in the record.

    Attributes:
        units: its units.
        long_name: its description.
        error: whether it is an error or a difference of errors: a fraction for classes, a loss for regression.
        of_loss: whether nats in its units are those of the recipe's loss, so that another loss has another unit; not of
            an entropy or divergence of the predictions themselves.
    """

    units: str
    long_name: str
    error: bool = False
    of_loss: bool = True


@dataclass(frozen=True)
class Curve:
    """A measured function of one coordinate, e.g. the error along a line.

    Attributes:
        values: the measured values.
        coordinate: name of the coordinate.
        at: the coordinates of the values.
    """

    values: Sequence[float]
    coordinate: str
    at: Sequence[float]


MetricValues = Mapping[str, Estimate | Curve]


@dataclass(frozen=True)
class Metric:
    """A metric that sweeps and `regimes.measure` can use by name.

    Attributes:
        name: its name in ``[measure] metrics``.
        subject: "model" for one retrained network, "pair" for two retrained copies of one pruned network.
        options: frozen dataclass of its options, with their defaults.
        table: name of its option table, ``[measure.TABLE]``; metrics may share one.
        variables: {variable: description}, one for every variable that ``measure`` returns.
        measure: ``(subjects, probe, options) -> {variable: Estimate | Curve}``; must not change the subjects.
        work: ``(options, images) -> forward passes of one image``, for the plan's time estimate.
        graph: ``(options, images) -> (images, vectors)``, for the plan's memory estimate: the number of images whose
            gradient graph is kept at once, and of vectors of the weights' size; None: no second derivatives.
        classes: whether it supports classifiers only.
        needs: optional dependency as (module, requirement to install); None: no extra dependency.
    """

    name: str
    subject: Literal["model", "pair"]
    options: type
    table: str
    variables: Mapping[str, Variable]
    measure: Callable[[Sequence[Trained], Probe, Any], MetricValues]
    work: Callable[[Any, int], float]
    graph: Callable[[Any, int], tuple[int, int]] | None = None
    classes: bool = False
    needs: tuple[str, str] | None = None
