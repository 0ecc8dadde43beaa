"""Diagnosis of networks: measures them with the functions of `regimes.landscape`, and predicts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from regimes.diagnosis.diagnose_cell import SEVERAL_PREDICTIONS
from regimes.diagnosis.diagnosis import Diagnosis
from regimes.diagnosis.measures import MEASURES
from regimes.diagnosis.network_diagnosis import NetworkDiagnosis, diagnose_values
from regimes.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from regimes.data.dataset import Dataset, Split
    from regimes.landscape.estimate import Estimate
    from regimes.pruners.mask import Mask

ERROR_IMAGES = 2_000
LMC_IMAGES = 200  # the packaged rule does not use it
PAIR_IMAGES = 500
HESSIAN_IMAGES = 200  # as in the reference
TRACE_STDERR = 0.1  # relative
CURVE_POINTS = 5  # t = 0, 0.25, 0.5, 0.75, 1, as in the reference
CUT_OF_ERROR = 0.001  # training errors about this small decide


def diagnose(
    models: Sequence[nn.Module],
    data: Dataset | Any,
    diagnosis: Diagnosis | None = None,
    *,
    curve: bool = False,
    images: int = PAIR_IMAGES,
    masks: Sequence[Mask | None] | None = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
) -> NetworkDiagnosis:
    """Measure networks of one setting and diagnose it.

    Training error and loss are measured on at most 2,000 training images, the Hessian trace on 200, and for two or more
    networks LMC on 200, and CKA on mixed images and, with ``curve``, connectivity along a trained curve on ``images``.
    Measures are averaged over networks and pairs. The largest eigenvalue is left out: it takes as long as all the rest
    and adds nothing to the accuracy (``python -m regimes.research study diagnosis``). LMC is reported, but the packaged
    reference has none, so its rule does not use it.

    Args:
        models: trained classifiers of one architecture and one setting, e.g. two seeds; they are not changed.
        data: a `Dataset`, or the training split, un-augmented, as (inputs, targets) or as a loader of such batches.
        diagnosis: a learnt diagnosis; None: the default.
        curve: whether to train and measure a curve per pair, which takes about as long as all the rest.
        images: number of training images for CKA and the curve.
        masks: masks of pruned networks; None: weights that are exactly 0 count as pruned.
        loss_fn: (outputs, targets) -> mean loss; None: cross entropy.
        seed: seed of the random probes and mixtures.

    Raises:
        UserError: no models, targets that are not classes, or values that are not finite.
    """
    from regimes.data.dataset import Dataset, Split
    from regimes.landscape.error import network_task
    from regimes.landscape.inputs import pair
    from regimes.landscape.measure_networks import mask_of_zeros
    from regimes.losses.functions import cross_entropy

    networks = list(models) if isinstance(models, (list, tuple)) else []
    if not networks:
        raise UserError("models: expected a list of at least one network")
    if masks is not None and len(masks) != len(networks):
        raise UserError(f"masks: expected one per network, or None: got {len(masks)} for {len(networks)}")
    split = data.train if isinstance(data, Dataset) else Split(*pair(data, networks[0]))
    if not network_task(networks[0], split, loss_fn or cross_entropy).fraction:
        raise UserError("outputs and loss are those of numbers; a diagnosis is learnt from classifiers")
    kept = [mask_of_zeros(each) for each in networks] if masks is None else list(masks)
    estimates = _measure(networks, kept, split, loss_fn or cross_entropy, images, curve, seed)
    values = {name: value for name, (value, _) in estimates.items()}
    stderrs = {name: stderr for name, (_, stderr) in estimates.items()}
    lost = [name for name, value in values.items() if not math.isfinite(value)]
    if lost:
        raise UserError(f"{lost[0]} is not finite; the networks have diverged, or the data do not belong to them")
    notes = _notes(len(networks), min(len(split.targets), ERROR_IMAGES), any(mask is not None for mask in kept), curve)
    if diagnosis is None and split.targets.dim() > 1 and not split.targets.is_floating_point():
        notes.append(SEVERAL_PREDICTIONS)
    return diagnose_values(diagnosis or Diagnosis.default(), values, stderrs, notes)


def _measure(
    networks: list[nn.Module],
    masks: list[Mask | None],
    split: Split,
    loss_fn: Callable[[Any, Any], Any],
    images: int,
    curve: bool,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Return {measure: (value, standard error)}, means over networks and pairs."""
    import torch

    from regimes.data.dataset import subset
    from regimes.landscape.bezier_path import curve_connectivity
    from regimes.landscape.error import error_and_loss
    from regimes.landscape.estimate import Estimate, UncertainEstimateWarning
    from regimes.landscape.hessian import hessian_trace
    from regimes.landscape.linear_path import linear_connectivity

    measured: dict[str, list[Estimate]] = {name: [] for name in MEASURES}
    few, shared = subset(split, HESSIAN_IMAGES), subset(split, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncertainEstimateWarning)  # shown with the evidence
        for network, mask in zip(networks, masks, strict=True):
            generator = torch.Generator().manual_seed(seed)
            error, loss = error_and_loss(network, subset(split, ERROR_IMAGES), loss_fn)
            measured["train_error"].append(_at_least_one(error))
            measured["train_loss"].append(loss)
            measured["hessian_trace"].append(hessian_trace(network, loss_fn, few, mask, TRACE_STDERR, generator))
        for a, b in combinations(range(len(networks)), 2):
            ends = networks[a], networks[b]
            measured["lmc"].append(linear_connectivity(*ends, subset(split, LMC_IMAGES), loss_fn=loss_fn))
            measured["cka"].append(_mixed_cka(*ends, shared, seed))
            if curve:
                generator = torch.Generator().manual_seed(seed)
                path = curve_connectivity(
                    *ends, shared, mask=_either(masks[a], masks[b]), points=CURVE_POINTS, loss_fn=loss_fn,
                    generator=generator,
                )  # fmt: skip
                peak = -max(path.error[1:-1])
                measured["curve"].append(path)
                measured["curve_peak"].append(Estimate(peak, (peak * (-1 - peak)) ** 0.5 / images**0.5, images))
    return {name: _mean(estimates) for name, estimates in measured.items() if estimates}


def _at_least_one(error: Estimate) -> Estimate:
    """Return an error whose standard error is at least that of one wrong prediction: zero of n is not exactly 0."""
    from dataclasses import replace

    share = max(error.value, 1 / error.samples)
    return replace(error, stderr=max(error.stderr, math.sqrt(share * max(1 - share, 0) / error.samples)))


def _mean(estimates: Iterable[Estimate]) -> tuple[float, float]:
    """Return the mean of independent estimates with its standard error, NaN if one is unknown."""
    held = list(estimates)
    return (
        math.fsum(each.value for each in held) / len(held),
        math.sqrt(math.fsum(each.stderr**2 for each in held)) / len(held),
    )


def _mixed_cka(a: nn.Module, b: nn.Module, split: Split, seed: int) -> Estimate:
    """Return the CKA of two networks' softmax outputs on mixtures of two images, as the reference has it.

    On training images themselves networks that interpolate agree, so CKA would say nothing of them. The weights of the
    mixtures are uniform; those of the reference are not stated.
    """
    import torch

    from regimes.data.inputs import TensorGroup
    from regimes.landscape.cka import cka
    from regimes.losses.functions import IGNORED

    inputs = split.inputs[torch.arange(len(split.targets))]
    if isinstance(inputs, TensorGroup) or not inputs.is_floating_point():  # tokens have no mixtures
        return cka(a, b, inputs, counted=split.targets != IGNORED if split.targets.dim() > 1 else None)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    weight = torch.rand(len(inputs), generator=generator).to(inputs.device, inputs.dtype)
    weight = weight.reshape(-1, *[1] * (inputs.dim() - 1))
    return cka(a, b, weight * inputs + (1 - weight) * inputs[order])


def _either(one: Mask | None, other: Mask | None) -> Mask | None:
    """Return the union of two masks; None if either network is unmasked."""
    from regimes.pruners.mask import Mask

    if one is None or other is None:
        return None
    return Mask({name: layer | other.layers[name] for name, layer in one.layers.items()})


def _notes(networks: int, images: int, pruned: bool, curve: bool) -> list[str]:
    notes = []
    if 1 / images >= CUT_OF_ERROR:
        notes.append(f"{images} training images cannot show errors below {1 / images:.2g}, where the first cut lies")
    if networks == 1:
        notes.append("one network alone: pass two seeds of one setting for connectivity and CKA")
    elif not curve:
        notes.append(
            "no trained curve (curve=True, --curve): the most similar networks of the reference stand in for it"
        )
    if pruned:
        notes.append("the networks are pruned; the packaged reference has dense networks only")
    return notes
