"""Estimators of what a gate is worth, against enumeration of all gates of a tiny network: bias and spread."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from regimes.data.dataset import Split
from regimes.discovery import ESTIMATORS
from regimes.discovery.gates import GateDraw, Gates, draw
from regimes.discovery.trace_graph import anatomy_of
from regimes.models.build import seeded
from regimes.plots.text_table import TextTable
from regimes.registry import load
from regimes.research.studies.teacher_student import Net, lessons

UNITS, BLOCKS, INPUTS = 6, 2, 64
DRAWS = 2000
STEPS = 600  # of training under gates at 0.9, for the network that has learnt
CHANCES = (0.9, 0.5, 0.1)


def estimators() -> TextTable:
    """Bias and spread for units and blocks, of a network before and after it has learnt, gates at three places."""
    batch = Split(*(each[:INPUTS].double() for each in lessons(0, INPUTS).train))
    rows = [["network", "gates at", "of", "estimator", "truth", "bias", "spread of one draw", "right sign"]]
    facts = []
    for learnt in (False, True):
        model = _network(batch, STEPS if learnt else 0)
        for chance in CHANCES:
            for of, name, truth, found in _estimates(model, batch, chance):
                each = _said(truth, found) | {"learnt": learnt, "chance": chance, "of": of, "estimator": name}
                facts.append(each)
                shown = [f"{each[key]:.2g}" for key in ("truth", "bias", "spread")]
                where = ["learnt" if learnt else "fresh", f"{chance:g}", of, name]
                rows.append([*where, *shown, f"{each['sign']:.0%}"])
    notes = [
        f"{UNITS} units in {BLOCKS} blocks, {INPUTS} inputs, each with gates of its own; truth by all "
        f"{2 ** (UNITS + BLOCKS)} settings in float64; {DRAWS} draws",
        "truth, bias, spread: root mean square over the gates; right sign: of the mean over draws",
    ]
    return TextTable("Estimators of a gate's worth, against enumeration", rows, notes, facts)


def _network(batch: Split, steps: int) -> nn.Module:
    with seeded(0):
        model = Net(parts=BLOCKS, units=UNITS // BLOCKS, width=8).double()
    gates = Gates(model, anatomy_of(model, batch.inputs[:2]))
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        sgd.zero_grad()
        with gates.at(draw(_all(UNITS, 0.9), _all(BLOCKS, 0.9), len(batch.targets), random)):
            mse_loss(model(batch.inputs), batch.targets.double()).backward()
        sgd.step()
    gates.remove()
    return model


def _estimates(model: nn.Module, batch: Split, chance: float) -> list[tuple[str, str, Tensor, Tensor]]:
    """(of what, estimator, truth (gates,), estimates (draws, gates))."""
    gates = Gates(model, anatomy_of(model, batch.inputs[:2]))
    targets = batch.targets.double()

    def loss(drawn: GateDraw) -> Tensor:
        with gates.at(drawn):
            return mse_loss(model(batch.inputs), targets)

    truth = _truth(loss, chance)
    random = torch.Generator().manual_seed(2)
    found: dict[tuple[str, str], list[Tensor]] = {}
    for _ in range(DRAWS):
        drawn = draw(_all(UNITS, chance), _all(BLOCKS, chance), len(targets), random)
        loss(drawn).backward()
        for of, each in (("units", drawn.units), ("blocks", drawn.blocks)):
            assert each.grad is not None
            for name in ESTIMATORS:
                estimate = load(ESTIMATORS, name, "estimator")
                found.setdefault((of, name), []).append(estimate(len(targets) * each.grad, each.detach()))
        found.setdefault(("blocks", "exact difference"), []).append(_differences(loss, drawn))
    gates.remove()
    parts = {"units": truth[:UNITS], "blocks": truth[UNITS:]}
    return [(of, name, parts[of], torch.stack(each)) for (of, name), each in found.items()]


def _all(count: int, chance: float) -> Tensor:
    return torch.full((count,), chance, dtype=torch.float64)


@torch.no_grad()
def _truth(loss: Callable[[GateDraw], Tensor], chance: float) -> Tensor:
    """``E[L(1) - L(0)]`` of each gate: units, then blocks."""
    out = torch.zeros(UNITS + BLOCKS, dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=UNITS + BLOCKS):
        xi = torch.tensor(bits, dtype=torch.float64)
        weight = torch.where(xi == 1, chance, 1 - chance)
        value = loss(GateDraw(xi[None, :UNITS], xi[None, UNITS:]))
        out += (2 * xi - 1) * weight.prod() / weight * value
    return out


@torch.no_grad()
def _differences(loss: Callable[[GateDraw], Tensor], drawn: GateDraw) -> Tensor:
    found = []
    for block in range(BLOCKS):
        ends = []
        for gate in (1.0, 0.0):
            blocks = drawn.blocks.detach().clone()
            blocks[:, block] = gate
            ends.append(loss(GateDraw(drawn.units.detach(), blocks)))
        found.append(ends[0] - ends[1])
    return torch.stack(found)


def _said(truth: Tensor, found: Tensor) -> dict[str, Any]:
    mean = found.mean(0)
    return {
        "truth": float(truth.square().mean().sqrt()),
        "bias": float((mean - truth).square().mean().sqrt()),
        "spread": float(found.var(0).mean().sqrt()),
        "sign": float((mean.sign() == truth.sign()).double().mean()),
    }
