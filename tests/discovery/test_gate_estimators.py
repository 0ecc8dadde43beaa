"""What a gate is worth: estimators against exact enumeration, and gates as they are drawn."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.discovery import ESTIMATORS
from regimes.discovery.gates import GateDraw, Gates, draw
from regimes.discovery.trace_graph import trace_graph
from regimes.registry import lookup


class Bent(nn.Module):
    """Four units of known effect: their sum goes through a cubic."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.tanh(self.up(x)))
        return out


def exact(model: nn.Module, gates: Gates, theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """``E[L(1) - L(0)]`` of each gate by enumeration of all others."""
    out = torch.zeros(4, dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=4):
        xi = torch.tensor(bits, dtype=torch.float64)
        chance = torch.where(xi == 1, theta, 1 - theta)
        with torch.no_grad(), gates.at(GateDraw(xi[None], torch.zeros(1, 0, dtype=torch.float64))):
            loss = F.cross_entropy(model(inputs), targets)
        for unit in range(4):
            others = float(chance.prod() / chance[unit])
            out[unit] += (2 * xi[unit] - 1) * others * loss
    return out


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_against_exact_enumeration(name: str) -> None:
    """The mean over draws lies where theory says: trapezoid and curved near the truth, straight-through within its
    bias; all point the same way."""
    torch.manual_seed(0)
    model = Bent().double()
    inputs = torch.randn(40, 3, dtype=torch.float64)
    targets = torch.randint(0, 2, (40,))
    gates = Gates(model, trace_graph(model, inputs))
    theta = torch.tensor([0.9, 0.5, 0.3, 0.7], dtype=torch.float64)
    truth = exact(model, gates, theta, inputs, targets)
    estimate = lookup(ESTIMATORS, name, "estimator")
    random = torch.Generator().manual_seed(1)
    found = []
    for _ in range(400):
        drawn = draw(theta, torch.zeros(0, dtype=torch.float64), 40, random)
        with gates.at(drawn):
            F.cross_entropy(model(inputs), targets).backward()
        assert drawn.units.grad is not None
        found.append(estimate(40 * drawn.units.grad, drawn.units.detach()))
    gates.remove()
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / 20
    close = 0.03 if name == "straight-through" else 0.01
    assert float((mean - truth).abs().max()) < close + 3 * float(error.max())
    assert torch.equal(mean.sign(), truth.sign())


def test_estimators_on_a_quadratic_in_one_gate() -> None:
    """``L = a xi + b xi^2``: the truth is ``a + b``; the trapezoid has it, the straight-through slope has
    ``a + 2 b theta``."""
    a, b = -0.3, 0.2
    gates = torch.tensor([[1.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    slopes = a + 2 * b * gates
    named = {name: float(lookup(ESTIMATORS, name, "estimator")(slopes, gates)) for name in ESTIMATORS}
    assert named["trapezoid"] == pytest.approx(a + b)
    assert named["straight-through"] == pytest.approx(a + 2 * b * 0.75)
    assert float(lookup(ESTIMATORS, "trapezoid", "estimator")(slopes[:3], gates[:3])) == pytest.approx(a + 2 * b)
    c = float((slopes**2).mean())  # stands for the second derivative
    assert named["curved"] == pytest.approx(a + 2 * b * 0.75 - c / 4)


def test_gates_are_drawn_with_their_probabilities() -> None:
    theta = torch.tensor([0.0, 0.2, 0.9, 1.0])
    drawn = draw(theta, torch.tensor([0.5]), 20_000, torch.Generator().manual_seed(0))
    assert set(drawn.units.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.units.detach().mean(0), theta, rtol=0, atol=0.012)
    assert float(drawn.units.detach()[:, 0].sum()) == 0
    assert float(drawn.units.detach()[:, 3].sum()) == 20_000
