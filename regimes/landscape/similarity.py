"""Similarity of two networks' outputs: linear centred kernel alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.error import outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Images, Measured, Metric, Probe, Trained, Variable, subset

On = Literal["softmax", "logits"]
GROUPS = 20  # of the jackknife


def cka(a: nn.Module, b: nn.Module, inputs: Tensor, on: On = "softmax", debiased: bool = False) -> Estimate:
    """Linear CKA between two networks' outputs over ``inputs``, exact over the whole set, in float64.

    Args:
        a, b: networks; they are run in eval mode and left as they were.
        inputs: (n, ...).
        on: what is compared. The study takes "softmax"; "logits" gives other values, so a record says which.
        debiased: see `cka_of_features`.
    """
    if on not in ("softmax", "logits"):
        raise UserError(f"cka on = '{on}': allowed: softmax, logits")
    features = [outputs(model, inputs).double() for model in (a, b)]
    if on == "softmax":
        features = [each.softmax(dim=1) for each in features]
    return cka_of_features(features[0], features[1], debiased)


def cka_of_features(X: Tensor, Y: Tensor, debiased: bool = False) -> Estimate:
    """Linear CKA of two feature matrices (n, p) and (n, q).

    ``CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))``. The biased HSIC of linear kernels is ``|X'Y|_F^2`` of the
    centred features: its CKA rises when n is small. The debiased one takes the U-statistic instead, which is zero on
    average for independent features. The standard error is a jackknife over 20 groups of inputs.

    CKA of features that do not vary is 0/0; here two constant matrices are alike (1), a constant and a varying one are
    not (0), so that CKA of a network with itself is always 1 and NaN never appears.
    """
    if len(X) != len(Y):
        raise UserError(f"CKA compares the same inputs: got {len(X)} and {len(Y)} rows")
    if len(X) < 4:
        raise UserError(f"CKA needs at least 4 inputs, got {len(X)}")
    X, Y = _centred(X), _centred(Y)
    value = _cka(X, Y, debiased)
    groups = min(GROUPS, len(X) // 4)
    if groups < 2:
        return Estimate(value, float("nan"), len(X))
    # Groups drawn at random: data may stand class by class, or class after class in turn.
    group = torch.randperm(len(X), generator=torch.Generator().manual_seed(0)).to(X.device) % groups
    left_out = torch.tensor([_cka(X[group != each], Y[group != each], debiased) for each in range(groups)])
    variance = (groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum())
    return Estimate(value, variance**0.5, len(X))


def _centred(X: Tensor) -> Tensor:
    X = X.double()
    centred = X - X.mean(dim=0)
    rounding = 1e-6 * float(X.abs().max())  # float32 outputs that ought to be equal differ by less
    return centred if float(centred.abs().max()) > rounding else torch.zeros_like(X)


def _cka(X: Tensor, Y: Tensor, debiased: bool) -> float:
    hsic = _hsic_debiased if debiased else _hsic
    X, Y = X - X.mean(dim=0), Y - Y.mean(dim=0)
    xx, yy = hsic(X, X), hsic(Y, Y)
    if xx <= 0 or yy <= 0:
        return 1.0 if xx <= 0 and yy <= 0 else 0.0
    return hsic(X, Y) / (xx * yy) ** 0.5


def _hsic(X: Tensor, Y: Tensor) -> float:
    return float((X.T @ Y).square().sum())


def _hsic_debiased(X: Tensor, Y: Tensor) -> float:
    """The U-statistic of Song et al. 2012 (up to a factor that cancels in CKA), without any (n, n) matrix."""
    n = len(X)
    x_norms, y_norms = X.square().sum(dim=1), Y.square().sum(dim=1)  # (n,)
    x_rows, y_rows = X @ X.sum(dim=0) - x_norms, Y @ Y.sum(dim=0) - y_norms  # (n,) row sums without the diagonal
    product = (X.T @ Y).square().sum() - x_norms @ y_norms
    product = product + x_rows.sum() * y_rows.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (x_rows @ y_rows)
    return float(product)


@dataclass(frozen=True)
class CkaOptions:
    """Options of the metric "cka": what is compared, debiased or not, images used (0: all) of which split.

    The study takes un-augmented training images; where networks fit those perfectly, CKA saturates, and the validation
    images tell more."""

    on: On = "softmax"
    debiased: bool = False
    images: Images = 0
    split: Literal["train", "val", "test"] = "train"


def _measure(subjects: Sequence[Trained], probe: Probe, options: CkaOptions) -> Measured:
    a, b = subjects
    split = subset(getattr(probe.data, options.split), options.images)
    if options.on == "softmax" and split.targets.is_floating_point():
        raise UserError(
            "measure.cka.on = 'softmax' is for classes, the data have numbers as targets; set on = 'logits'"
        )
    return {"cka": cka(a.model, b.model, split.inputs, options.on, options.debiased)}


CKA = Metric(
    name="cka",
    subject="pair",
    options=CkaOptions,
    table="cka",
    variables={"cka": Variable("1", "linear CKA between two retrained copies")},
    measure=_measure,
    work=lambda options, images: 2 * (min(options.images, images) or images),
)
