"""SynFlow: pruning by synaptic flow, without training data."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regimes.data.inputs import Inputs, TensorGroup, call
from regimes.errors import UserError
from regimes.losses.functions import logits
from regimes.models.eval_mode import eval_gradients
from regimes.pruners.prune import Candidate

ROUNDS = 100  # as in the paper; a single round may remove whole layers


def synflow(candidate: Candidate) -> dict[str, Tensor]:
    """Return the synaptic flow ``|w dR/dw|`` of every prunable weight as its score (Tanaka et al. 2020, 2006.05467).

    R is the sum of the outputs for an input of ones, with every weight replaced by its absolute value. Integers
    (tokens) and masks are those of the first training input, as they are. In round k of 100, the share
    ``density^(k/100)`` of all weights is kept and the flow recomputed; a weight removed in round k scores below all
    that are removed later. Computed in float64, because the flow of a deep network exceeds the range of float32. The
    flow is conserved from layer to layer only without LayerNorm and attention.

    Raises:
        UserError: no data given, from which the shape of an input is taken; no weight has a finite flow that is not 0.
    """
    candidate.check_real("synflow")
    if candidate.data is None:
        raise UserError("pruner 'synflow' needs the shape of the inputs: pass data=")
    model = copy.deepcopy(candidate.model).eval().double()
    for each in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point() and b.isfinite().all())):
        each.data.abs_()
    named = dict(model.named_parameters())
    weights = {name: named[name].requires_grad_() for name in candidate.weights}
    first = candidate.data.train.inputs[:1].to(next(iter(weights.values())).device)
    ones = first.map(_ones) if isinstance(first, TensorGroup) else _ones(first)
    size = sum(weight.numel() for weight in weights.values())
    fallen = torch.full((size,), -1.0, dtype=torch.float64)  # the round, or -1
    scores = torch.zeros(size, dtype=torch.float64)
    rounds = ROUNDS if candidate.density < 1 else 1
    for number in range(1, rounds + 1):
        flow = _flow(model, weights, ones)
        if number == 1 and not bool((flow.isfinite() & (flow != 0)).any()):
            raise UserError("pruner 'synflow' finds no weight with a finite flow that is not 0; use another pruner")
        scores = flow.nan_to_num().abs()
        keep = max(1, round(candidate.density ** (number / rounds) * size))
        alive = fallen < 0
        ranked = torch.argsort(torch.where(alive, scores, -torch.inf), descending=True, stable=True)
        lost = ranked[keep : int(alive.sum())]
        fallen[lost] = number
        _remove(weights, fallen >= 0)
    largest = float(scores.max()) or 1.0
    scores = torch.where(fallen < 0, 1 + scores / largest, (fallen - 1 - ROUNDS) / ROUNDS)
    parts = scores.split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _ones(inputs: Tensor) -> Tensor:
    return torch.ones(inputs.shape, dtype=torch.float64, device=inputs.device) if inputs.is_floating_point() else inputs


def _flow(model: nn.Module, weights: Mapping[str, Tensor], ones: Inputs) -> Tensor:
    with eval_gradients(model):
        total = logits(call(model, ones)).sum()
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    flows = [
        torch.zeros_like(weight) if gradient is None else gradient * weight.detach()
        for weight, gradient in zip(weights.values(), gradients, strict=True)
    ]
    return torch.cat([flow.flatten() for flow in flows]).cpu()


def _remove(weights: Mapping[str, Tensor], gone: Tensor) -> None:
    parts = gone.split([weight.numel() for weight in weights.values()])
    for weight, part in zip(weights.values(), parts, strict=True):
        weight.data.masked_fill_(part.view(weight.shape).to(weight.device), 0.0)
