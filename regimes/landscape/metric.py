"""What a metric of a sweep is: what it needs, its options, what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, Strict
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.data.dataset import subset as subset
from regimes.landscape.estimate import Estimate
from regimes.pruners.mask import Mask

LossFn = Callable[[Tensor, Tensor], Tensor]


def _enough(images: int) -> int:
    if images and images < 8:
        raise ValueError("allowed: 0 (all images) or at least 8")
    return images


Images = Annotated[int, Strict(), Field(ge=0), AfterValidator(_enough)]  # an option: how many images; 0: all


def used(asked: int, there: int) -> int:
    """How many images an option means: as many as there are for 0, no more than there are."""
    return min(asked, there) or there


@dataclass(frozen=True)
class Trained:
    """A retrained network and the mask it was trained under."""

    model: nn.Module
    mask: Mask | None


@dataclass(frozen=True)
class Probe:
    """What a metric measures with: the data, the loss (mean over a batch), and a generator on the CPU."""

    data: Dataset
    loss_fn: LossFn
    generator: torch.Generator


@dataclass(frozen=True)
class Variable:
    """A variable that a metric puts into the record: its units, its long name, whether it is an error (or a difference
    of errors): a fraction where targets are classes, a loss where they are numbers."""

    units: str
    long_name: str
    error: bool = False


@dataclass(frozen=True)
class Curve:
    """A measured function of one coordinate, e.g. the error along a line."""

    values: Sequence[float]
    coordinate: str
    at: Sequence[float]


MetricValues = Mapping[str, Estimate | Curve]


@dataclass(frozen=True)
class Metric:
    """A measurement that a sweep can name.

    Attributes:
        name: its name in ``[measure] metrics``.
        subject: "model" for one retrained network, "pair" for two retrained copies of one pruned network.
        options: a frozen dataclass of the options it takes, with their defaults.
        table: the name of its table of options, ``[measure.TABLE]``; metrics may share one.
        variables: {variable: what it is}, everything that ``measure`` returns.
        measure: ``(subjects, probe, options) -> {variable: Estimate | Curve}``; the subjects are left as they were.
        graph: ``(options, images) -> (images, vectors)``: how many images' gradient has its graph held at once, and
            how many vectors of the weights' size, for the plan's estimate of memory; None: no second derivatives.
        classes: whether it is for classifiers only.
        needs: a module that it imports beside this package's own needs, and what to install for it.
        work: ``(options, images) -> forward passes of one image``, for the plan's estimate of time.
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
