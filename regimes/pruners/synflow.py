"""SynFlow: pruning by synaptic flow, without training data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.pruners.prune import Candidate, prunable

ROUNDS = 100  # as in the paper; a single round may remove whole layers


def synflow(candidate: Candidate) -> dict[str, Tensor]:
    """Return the synaptic flow ``|w dR/dw|`` of every prunable weight as its score (Tanaka et al. 2020, 2006.05467).

    R is the sum of the outputs for an input of ones, with every weight replaced by its absolute value. In round k of
    100, the share ``density^(k/100)`` of all weights is kept and the flow recomputed; a weight removed in round k
    scores below all that are removed later. Computed in float64, because the flow of a deep network exceeds the range
    of float32.

    Raises:
        UserError: no data given, from which the shape of an input is taken.
    """
    if candidate.data is None:
        raise UserError("pruner 'synflow' needs the shape of the inputs: pass data=")
    model = copy.deepcopy(candidate.model).eval().double()
    for each in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        each.data.abs_()
    weights = prunable(model)
    ones = torch.ones(1, *candidate.data.input_shape, dtype=torch.float64, device=next(model.parameters()).device)
    size = sum(weight.numel() for weight in weights.values())
    fallen = torch.full((size,), -1.0, dtype=torch.float64)  # the round, or -1
    scores = torch.zeros(size, dtype=torch.float64)
    for number in range(1, ROUNDS + 1):
        scores = _flow(model, weights, ones)
        keep = max(1, round(candidate.density ** (number / ROUNDS) * size))
        alive = fallen < 0
        ranked = torch.argsort(torch.where(alive, scores, -torch.inf), descending=True, stable=True)
        lost = ranked[keep : int(alive.sum())]
        fallen[lost] = number
        _remove(weights, fallen >= 0)
    largest = float(scores.max()) or 1.0
    scores = torch.where(fallen < 0, 1 + scores / largest, (fallen - 1 - ROUNDS) / ROUNDS)
    parts = scores.split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _flow(model: nn.Module, weights: dict[str, nn.Parameter], ones: Tensor) -> Tensor:
    with torch.enable_grad():
        gradients = torch.autograd.grad(model(ones).sum(), list(weights.values()), allow_unused=True)
    flows = [
        torch.zeros_like(weight) if gradient is None else gradient * weight.detach()
        for weight, gradient in zip(weights.values(), gradients, strict=True)
    ]
    return torch.cat([flow.flatten() for flow in flows]).nan_to_num().abs().cpu()


def _remove(weights: dict[str, nn.Parameter], gone: Tensor) -> None:
    parts = gone.split([weight.numel() for weight in weights.values()])
    for weight, part in zip(weights.values(), parts, strict=True):
        weight.data.masked_fill_(part.view(weight.shape).to(weight.device), 0.0)
