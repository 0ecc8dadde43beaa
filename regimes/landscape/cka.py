"""Similarity of two networks' outputs, or of what a layer puts out: linear centred kernel alignment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.landscape.error import evaluating, images_at_once, outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import inputs_of
from regimes.landscape.metric import Images, Metric, MetricValues, Probe, Trained, Variable, subset, used
from regimes.registry import nearest

HELD = 2**32  # bytes of features, in float64, that are held for both networks together
GROUPS = 20  # of the jackknife


def cka(
    a: nn.Module, b: nn.Module, inputs: Tensor | Iterable[Any], on: str = "softmax", debiased: bool = False
) -> Estimate:
    """Linear CKA between two networks' outputs, or outputs of a layer, over ``inputs``: exact over the whole set, in
    float64.

    Args:
        a, b: networks; they are run in eval mode and left as they were.
        inputs: (n, ...), or a loader of batches, which is read into memory.
        on: what is compared: "softmax" as in the study, "logits" (which gives other values, so a record says which),
            or the name of a layer as in ``model.named_modules()``, whose outputs are flattened to one row an input.
        debiased: see `cka_of_features`.

    Raises:
        UserError: no such layer, or more features than may be held.
    """
    inputs = inputs_of(inputs, a)
    if on in ("softmax", "logits"):
        features = [outputs(model, inputs).double() for model in (a, b)]
        if on == "softmax":
            if features[0].dim() < 2 or features[0].shape[1] < 2:
                raise UserError(f"cka on = 'softmax' is for classes, the outputs have shape {tuple(features[0].shape)}")
            features = [each.softmax(dim=1) for each in features]
        features = [each.reshape(len(inputs), -1) for each in features]
    else:
        features = [layer_outputs(model, on, inputs) for model in (a, b)]
    dtype = next((each.dtype for each in a.parameters()), torch.float32)
    return cka_of_features(features[0], features[1], debiased, rounding=8 * torch.finfo(dtype).eps)


def layer_outputs(model: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """What a layer puts out for every input, flattened (n, features), float64, in eval mode.

    Raises:
        UserError: no such layer, one that is not called once a pass or gives no tensor, or too much to hold.
    """
    layers = dict(model.named_modules())
    if not name or name not in layers:
        names = [each for each in layers if each]
        raise UserError(f"cka on = '{name}': no such layer{nearest(name, names)}; allowed: softmax, logits, or a layer")
    caught: list[Tensor] = []
    rows: list[Tensor] = []
    hook = layers[name].register_forward_hook(lambda module, args, output: caught.append(_kept(output)))
    try:
        with evaluating(model):
            for part in inputs.split(images_at_once(inputs)):
                caught.clear()
                model(part)
                if len(caught) != 1 or not isinstance(caught[0], Tensor) or len(caught[0]) != len(part):
                    raise UserError(f"cka on = '{name}': this layer does not put out one tensor a pass, a row an input")
                if not rows and 2 * 8 * len(inputs) * caught[0][0].numel() > HELD:
                    raise UserError(
                        f"cka on = '{name}': {len(inputs)} inputs with {caught[0][0].numel()} features are more than "
                        f"{HELD / 1e9:.0f} GB; take fewer images"
                    )
                rows.append(caught[0].flatten(1).double())
    finally:
        hook.remove()
    return torch.cat(rows)


def _kept(output: Any) -> Any:
    """A copy: what follows may work in place."""
    return output.detach().clone() if isinstance(output, Tensor) else output


def cka_of_features(X: Tensor, Y: Tensor, debiased: bool = False, rounding: float | None = None) -> Estimate:
    """Linear CKA of two feature matrices (n, p) and (n, q).

    ``CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))``. The biased HSIC of linear kernels is ``|X'Y|_F^2`` of the
    centred features: its CKA rises when n is small. The debiased one takes the U-statistic instead, which is zero on
    average for independent features. The standard error is a jackknife over 20 groups of inputs.

    CKA of features that do not vary is 0/0; here two constant matrices are alike (1), a constant and a varying one are
    not (0), so that CKA of a network with itself is always 1. What varies by less than ``rounding`` times the largest
    number counts as constant (None: eight times what the numbers' own type rounds to). Only numbers that are not finite
    give NaN.
    """
    if len(X) != len(Y):
        raise UserError(f"CKA compares the same inputs: got {len(X)} and {len(Y)} rows")
    if len(X) < 4:
        raise UserError(f"CKA needs at least 4 inputs, got {len(X)}")
    if not (X.isfinite().all() and Y.isfinite().all()):
        return Estimate(float("nan"), float("nan"), len(X))
    X, Y = _centred(X, rounding), _centred(Y, rounding)
    value = _cka(X, Y, debiased)
    groups = min(GROUPS, len(X) // 4)
    if groups < 2:
        return Estimate(value, float("nan"), len(X))
    # Groups drawn at random: data may stand class by class, or class after class in turn.
    group = torch.randperm(len(X), generator=torch.Generator().manual_seed(0)).to(X.device) % groups
    left_out = torch.tensor(
        [_cka(X[group != each], Y[group != each], debiased) for each in range(groups)], dtype=torch.float64
    )
    variance = (groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum())
    return Estimate(value, variance**0.5, len(X))


def _centred(X: Tensor, rounding: float | None) -> Tensor:
    least = 8 * torch.finfo(X.dtype).eps if rounding is None else rounding
    X = X.double()
    centred = X - X.mean(dim=0)
    return centred if float(centred.abs().max()) > least * float(X.abs().max()) else torch.zeros_like(X)


def _cka(X: Tensor, Y: Tensor, debiased: bool) -> float:
    X, Y = X - X.mean(dim=0), Y - Y.mean(dim=0)
    hsic = _hsic_debiased if debiased else _hsic
    xx, yy = hsic(X, X), hsic(Y, Y)
    if xx <= 0 or yy <= 0:
        return 1.0 if xx <= 0 and yy <= 0 else 0.0
    return hsic(X, Y) / (xx * yy) ** 0.5


def _cross(X: Tensor, Y: Tensor) -> Tensor:
    """``|X'Y|_F^2``; where inputs are fewer than features, from both matrices of inner products, which are smaller."""
    if len(X) < min(X.shape[1], Y.shape[1]):
        return ((X @ X.T) * (Y @ Y.T)).sum()
    return (X.T @ Y).square().sum()


def _hsic(X: Tensor, Y: Tensor) -> float:
    return float(_cross(X, Y))


def _hsic_debiased(X: Tensor, Y: Tensor) -> float:
    """The U-statistic of Song et al. 2012, up to a factor that cancels in CKA."""
    n = len(X)
    x_norms, y_norms = X.square().sum(dim=1), Y.square().sum(dim=1)  # (n,)
    x_rows, y_rows = X @ X.sum(dim=0) - x_norms, Y @ Y.sum(dim=0) - y_norms  # (n,) row sums without the diagonal
    product = _cross(X, Y) - x_norms @ y_norms
    product = product + x_rows.sum() * y_rows.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (x_rows @ y_rows)
    return float(product)


@dataclass(frozen=True)
class CkaOptions:
    """Options of the metric "cka": what is compared (softmax, logits, or a layer's name), debiased or not, images used
    (0: all) of which split.

    The study takes un-augmented training images; where networks fit those perfectly, CKA saturates, and the validation
    images tell more."""

    on: str = "softmax"
    debiased: bool = False
    images: Images = 0
    split: Literal["train", "val", "test"] = "train"


def _measure(subjects: Sequence[Trained], probe: Probe, options: CkaOptions) -> MetricValues:
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
    work=lambda options, images: 2 * used(options.images, images),
)
