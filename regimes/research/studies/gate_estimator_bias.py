"""Bias and spread of gate gradient estimators, compared with enumeration of all gates of a tiny network."""

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
from regimes.discovery.trace_graph import trace_graph
from regimes.models.build import seeded
from regimes.plots.text_table import TextTable
from regimes.registry import lookup
from regimes.research.studies.teacher_student import Net, teacher_data

UNITS, BLOCKS, INPUTS = 6, 2, 64
DRAWS = 2000
TRAINING_STEPS = 600  # with gates at 0.9, for the trained network
GATE_PROBABILITIES = (0.9, 0.5, 0.1)


def estimator_table() -> TextTable:
    """Return bias and spread for units and blocks, before and after training, at three gate probabilities."""
    batch = Split(*(each[:INPUTS].double() for each in teacher_data(0, INPUTS).train))
    rows = [
        [
            "network",
            "gate probability",
            "gates",
            "estimator",
            "truth",
            "bias",
            "standard deviation of one draw",
            "correct sign",
        ]
    ]
    facts = []
    for learnt in (False, True):
        model = _network(batch, TRAINING_STEPS if learnt else 0)
        for chance in GATE_PROBABILITIES:
            for of, name, truth, found in _estimates(model, batch, chance):
                each = _statistics(truth, found) | {"learnt": learnt, "chance": chance, "of": of, "estimator": name}
                facts.append(each)
                shown = [f"{each[key]:.2g}" for key in ("truth", "bias", "spread")]
                where = ["trained" if learnt else "untrained", f"{chance:g}", of, name]
                rows.append([*where, *shown, f"{each['sign']:.0%}"])
    notes = [
        f"{UNITS} units in {BLOCKS} blocks, {INPUTS} inputs, each with its own gates; truth by enumeration of "
        f"all {2 ** (UNITS + BLOCKS)} gate settings in float64; {DRAWS} draws",
        "truth, bias, standard deviation: root mean square over the gates; correct sign: of the mean over draws",
    ]
    return TextTable("Gate gradient estimators compared with enumeration", rows, notes, facts)


def _network(batch: Split, steps: int) -> nn.Module:
    with seeded(0):
        model = Net(parts=BLOCKS, units=UNITS // BLOCKS, width=8).double()
    gates = Gates(model, trace_graph(model, batch.inputs[:2]))
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
    """(kind of gates, estimator, truth (gates,), estimates (draws, gates))."""
    gates = Gates(model, trace_graph(model, batch.inputs[:2]))
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
                estimate = lookup(ESTIMATORS, name, "estimator")
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


def _statistics(truth: Tensor, found: Tensor) -> dict[str, Any]:
    mean = found.mean(0)
    return {
        "truth": float(truth.square().mean().sqrt()),
        "bias": float((mean - truth).square().mean().sqrt()),
        "spread": float(found.var(0).mean().sqrt()),
        "sign": float((mean.sign() == truth.sign()).double().mean()),
    }
