"""Similarity of two networks' outputs or layer activations: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regimes.data.inputs import Inputs, call
from regimes.errors import UserError
from regimes.landscape.error import (
    JACKKNIFE_GROUPS,
    inputs_per_pass,
    jackknife_stderr,
    network_task,
    outputs,
)
from regimes.landscape.estimate import Estimate
from regimes.landscape.inputs import inputs_of
from regimes.landscape.metric import Images, Metric, MetricValues, Probe, Trained, Variable, image_count, subset
from regimes.losses.tasks import Task, task_of_outputs
from regimes.models.eval_mode import eval_mode
from regimes.registry import nearest

MAX_FEATURE_BYTES = 2**32  # float64 features of both networks together


def cka(
    a: nn.Module,
    b: nn.Module,
    inputs: Tensor | Iterable[Any],
    on: str = "softmax",
    debiased: bool = False,
    *,
    task: Task | None = None,
    counted: Tensor | None = None,
) -> Estimate:
    """Return linear CKA between two networks' outputs, or a layer's outputs, over all ``inputs``, in float64.

    Where a network makes several predictions per input (tokens, pixels), each is a row of the features of "softmax" and
    "logits".

    Args:
        a, b: networks; they are evaluated in eval mode and not changed.
        inputs: (n, ...), or a loader of batches, which is read into memory.
        on: features to compare: "softmax" (as in Zhou et al. 2023), "logits", or the name of a layer as in
            ``model.named_modules()``, whose outputs are flattened to one row per input.
        debiased: whether to use the debiased estimator; see `cka_of_features`.
        task: the dimension of the classes; None: see `task_of_outputs`.
        counted: which of several predictions per input count, a boolean tensor (n, ...); None: all.

    Raises:
        UserError: no such layer, outputs that are not class scores with "softmax", or features that need too much
            memory.
    """
    inputs = inputs_of(inputs, a)
    if on in ("softmax", "logits"):
        features = [_output_features(outputs(model, inputs), on, task, counted) for model in (a, b)]
    else:
        features = [layer_outputs(model, on, inputs) for model in (a, b)]
    dtype = next((each.dtype for each in a.parameters()), torch.float32)
    owner = None
    if on in ("softmax", "logits") and _predictions(a, inputs, counted) > 1:  # inputs are left out whole
        owner = torch.arange(len(inputs)).repeat_interleave(_predictions(a, inputs, counted))
        owner = owner if counted is None else owner[counted.reshape(-1).cpu()]
    x, y = features
    return cka_of_features(x, y, debiased, 8 * torch.finfo(dtype.to_real()).eps, owner)


def _output_features(answers: Tensor, on: str, task: Task | None, counted: Tensor | None) -> Tensor:
    """Softmax or logits (rows, classes) of every prediction, in float64; of other outputs, one row per input."""
    if answers.is_complex():
        answers = torch.view_as_real(answers).flatten(1)
    task = task or task_of_outputs(answers)
    if task.kind == "loss" or (on == "logits" and task.kind == "binary"):
        if on == "softmax":
            raise UserError(f"cka on = 'softmax' needs classes, the outputs have shape {tuple(answers.shape)}")
        return answers.double().reshape(len(answers), -1)
    found = task.rows(answers.double())
    if 2 * 8 * found.numel() > MAX_FEATURE_BYTES:
        raise UserError(
            f"cka: {len(answers)} inputs with {answers[0].numel()} outputs need more than "
            f"{MAX_FEATURE_BYTES / 1e9:.0f} GB; use fewer images"
        )
    found = (found.softmax(dim=-1) if on == "softmax" else found).flatten(0, 1)
    return found if counted is None else found[counted_rows(counted, len(found))]


def counted_rows(counted: Tensor, rows: int) -> Tensor:
    """Return which rows count (rows,).

    Raises:
        UserError: another number of them.
    """
    if counted.numel() != rows:
        raise UserError(f"counted has {counted.numel()} values for {rows} predictions")
    return counted.reshape(-1)


def layer_outputs(model: nn.Module, name: str, inputs: Inputs) -> Tensor:
    """Return the outputs of a layer for every input, flattened to (n, features), in float64 and eval mode.

    Raises:
        UserError: no such layer, a layer that does not return exactly one tensor per forward pass, or too many features
            to keep in memory.
    """
    layers = dict(model.named_modules())
    if not name or name not in layers:
        names = [each for each in layers if each]
        raise UserError(
            f"cka on = '{name}': no such layer{nearest(name, names)}; allowed: softmax, logits, or the name of a layer"
        )
    caught: list[Tensor] = []
    rows: list[Tensor] = []
    hook = layers[name].register_forward_hook(lambda module, args, output: caught.append(_kept(output)))
    try:
        with eval_mode(model):
            for part in inputs.split(inputs_per_pass(inputs)):
                caught.clear()
                call(model, part)
                if len(caught) != 1 or not isinstance(caught[0], Tensor) or len(caught[0]) != len(part):
                    raise UserError(
                        f"cka on = '{name}': this layer must return one tensor per forward pass, one row per input"
                    )
                if not rows and 2 * 8 * len(inputs) * caught[0][0].numel() > MAX_FEATURE_BYTES:
                    raise UserError(
                        f"cka on = '{name}': {len(inputs)} inputs with {caught[0][0].numel()} features need more than "
                        f"{MAX_FEATURE_BYTES / 1e9:.0f} GB; use fewer images"
                    )
                rows.append(caught[0].flatten(1).double())
    finally:
        hook.remove()
    return torch.cat(rows)


def _kept(output: Any) -> Any:
    """Copy the output: later layers may work in place."""
    return output.detach().clone() if isinstance(output, Tensor) else output


def _predictions(model: nn.Module, inputs: Inputs, counted: Tensor | None) -> int:
    """Number of predictions per input that are rows of their own."""
    if counted is not None:
        return counted[0].numel()
    answers = outputs(model, inputs[:1])
    return 1 if answers.dim() < 3 or answers.is_complex() else task_of_outputs(answers).rows(answers).shape[1]


def cka_of_features(
    X: Tensor, Y: Tensor, debiased: bool = False, rounding: float | None = None, owner: Tensor | None = None
) -> Estimate:
    """Return the linear CKA of two feature matrices (n, p) and (n, q).

    ``CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))`` (Kornblith et al. 2019, arXiv 1905.00414). The biased HSIC of
    linear kernels is ``|X'Y|_F^2`` of the centred features; its CKA is too large for small n. The debiased version uses
    the U-statistic of Song et al. 2012 instead, which is zero on average for independent features. The standard error
    is a jackknife over 20 groups of inputs.

    CKA of constant features is 0/0; it is defined here as 1 for two constant matrices and 0 for a constant and a
    varying one, so that CKA of a network with itself is always 1. Values that are not finite give NaN.

    Args:
        X, Y: features of the same inputs, one row per input; at least 4 rows.
        debiased: whether to use the debiased HSIC.
        rounding: features that vary by less than this fraction of the largest absolute value count as constant; None:
            eight times the machine epsilon of X's dtype and of Y's.
        owner: input that each row belongs to (rows,), for the jackknife; None: one row per input.

    Raises:
        UserError: different numbers of rows, or fewer than 4.
    """
    if len(X) != len(Y):
        raise UserError(f"CKA needs the features of the same inputs, got {len(X)} and {len(Y)} rows")
    if len(X) < 4:
        raise UserError(f"CKA needs at least 4 inputs, got {len(X)}")
    if not (X.isfinite().all() and Y.isfinite().all()):
        return Estimate(float("nan"), float("nan"), len(X))
    X, Y = _centred(X, rounding), _centred(Y, rounding)
    value = _cka(X, Y, debiased)
    inputs = len(X) if owner is None else int(owner.max()) + 1
    groups = min(JACKKNIFE_GROUPS, inputs // 4)
    if groups < 2:
        return Estimate(value, float("nan"), len(X))
    # Random groups: data may be sorted by class, or alternate between classes.
    group = torch.randperm(inputs, generator=torch.Generator().manual_seed(0)) % groups
    group = (group if owner is None else group[owner]).to(X.device)
    left_out = torch.tensor(
        [_cka(X[group != each], Y[group != each], debiased) for each in range(groups)], dtype=torch.float64
    )
    return Estimate(value, jackknife_stderr(left_out), len(X))


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
    """Return ``|X'Y|_F^2``; with fewer inputs than features, from the two Gram matrices, which are smaller."""
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
    """Options of the metric "cka".

    Zhou et al. 2023 use training images without augmentation. If the networks fit those perfectly, CKA saturates, and
    validation images are more informative.

    Attributes:
        on: features to compare: "softmax", "logits" or the name of a layer.
        debiased: whether to use the debiased estimator.
        images: number of images used (0: all).
        split: split the images are taken from.
    """

    on: str = "softmax"
    debiased: bool = False
    images: Images = 0
    split: Literal["train", "val", "test"] = "train"


def _measure(subjects: Sequence[Trained], probe: Probe, options: CkaOptions) -> MetricValues:
    a, b = subjects
    split = subset(getattr(probe.data, options.split), options.images)
    task = network_task(a.model, split, probe.loss_fn)
    if options.on == "softmax" and not task.fraction:
        raise UserError(
            "measure.cka.on = 'softmax' needs classes, but the targets of this data set are others; set on = 'logits'"
        )
    counted = task.counted(split.targets, probe.loss_fn) if split.targets.dim() > 1 and task.kind == "class" else None
    found = cka(a.model, b.model, split.inputs, options.on, options.debiased, task=task, counted=counted)
    return {"cka": found}


CKA = Metric(
    name="cka",
    subject="pair",
    options=CkaOptions,
    table="cka",
    variables={"cka": Variable("1", "linear CKA between two retrained copies")},
    measure=_measure,
    work=lambda options, images: 2 * image_count(options.images, images),
)
