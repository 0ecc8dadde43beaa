"""Estimates do not depend on what decompositions leave open: signs, and bases of degenerate eigenvalues."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hessian_problems import Quadratic, mean, symmetric
from torch import Tensor, nn

import regimes
from regimes.landscape.gauss_newton_split import GaussNewtonSplit
from regimes.landscape.metric import LossFn
from regimes.models.build import build

EIGH, QR = torch.linalg.eigh, torch.linalg.qr
CLASSES = 6


def other_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors by way of other coordinates: other rounding, other bases of degenerate eigenvalues; random signs."""
    random = torch.Generator().manual_seed(A.shape[-1])
    Q = QR(torch.randn(A.shape[-1], A.shape[-1], dtype=A.dtype, generator=random)).Q
    values, vectors = EIGH(Q @ A @ Q.T)
    signs = 2 * torch.randint(0, 2, values.shape, generator=random) - 1
    return values, Q.T @ vectors * signs[..., None, :]


def other_qr(A: Tensor) -> tuple[Tensor, Tensor]:
    """A QR decomposition with random signs."""
    Q, R = QR(A)
    signs = 2 * torch.randint(0, 2, (len(R),), generator=torch.Generator().manual_seed(len(A))).to(A) - 1
    return Q * signs, signs[:, None] * R


def squared(answers: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(answers, torch.eye(CLASSES, dtype=answers.dtype)[targets])


def network(kind: str) -> nn.Module:
    options = {"widths": [10], "batch_norm": True} if kind == "mlp" else {"depth": 8, "width": 2}
    return build(kind, options, (1, 6, 6), CLASSES, 0).double()


def scaled_head(model: nn.Module, factor: float) -> nn.Module:
    """The outputs are multiplied by a factor: probabilities become equal, or nearly 0 and 1."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for each in list(scaled.parameters())[-2:]:
            each.mul_(factor)
    return scaled


def tanh() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, CLASSES)).double()


CASES: dict[str, tuple[nn.Module, LossFn]] = {
    "mlp": (network("mlp"), F.cross_entropy),
    "degenerate: squared error": (network("mlp"), squared),
    "degenerate: equal probabilities": (scaled_head(network("preresnet"), 0), F.cross_entropy),
    "confident": (scaled_head(network("preresnet"), 20), F.cross_entropy),
    "not piecewise linear": (tanh(), F.cross_entropy),
}


def measured(model: nn.Module, loss_fn: LossFn) -> dict[str, float]:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 1, 6, 6, dtype=torch.float64, generator=random)
    data = inputs, torch.randint(0, CLASSES, (40,), generator=random)
    split = GaussNewtonSplit(model, loss_fn, data)
    draws = {f"draw {k}": float(split.draw(random).sum()) for k in range(3)}
    rough = regimes.hessian_trace(model, loss_fn, data, rel_stderr=0.1)
    assert rough.stderr > 0  # estimated, not exact
    spectrum = regimes.hessian_spectrum(model, loss_fn, data, probes=2, steps=12)
    return draws | {
        "trace": rough.value,
        "trace, stderr": rough.stderr,
        "Gauss-Newton": regimes.gauss_newton_trace(model, loss_fn, data, rel_stderr=0.1).value,
        "layers": next(iter(regimes.layer_traces(model, loss_fn, data, rel_stderr=0.2).values())).value,
        "XTrace": regimes.hessian_trace(model, loss_fn, data, rel_stderr=0.1, method="xtrace").value,
        "top": regimes.hessian_top(model, loss_fn, data).value,
        "spectrum": spectrum.moment(3).value,
    }


@pytest.mark.parametrize("case", CASES)
def test_networks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = measured(*CASES[case])
    monkeypatch.setattr(torch.linalg, "eigh", other_eigh)
    monkeypatch.setattr(torch.linalg, "qr", other_qr)
    assert measured(*CASES[case]) == pytest.approx(here, rel=1e-10)


@pytest.mark.parametrize("rank", [3, 9, 60])
def test_xtrace(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an operator of low rank, too, where the last columns of the basis are noise."""
    half = symmetric(60, 3)[:, :rank]
    nothing = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4)

    def trace() -> float:
        return regimes.hessian_trace(Quadratic(half @ half.T), mean, nothing, rel_stderr=0.05, method="xtrace").value

    here = trace()
    monkeypatch.setattr(torch.linalg, "qr", other_qr)
    assert trace() == pytest.approx(here, rel=1e-10)


def test_draws_have_the_variance_of_random_signs() -> None:
    """With the eigenvectors as columns of the root; with another root it would be several times as large."""
    model, _ = CASES["mlp"]
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 1, 6, 6, dtype=torch.float64, generator=random)
    split = GaussNewtonSplit(model, F.cross_entropy, (inputs, torch.zeros(12, dtype=torch.int64)))
    draws = torch.stack([split.draw(random).sum(dim=1) for _ in range(600)])
    signs = 2 * torch.randint(0, 2, (600, 12, split.columns, 1), generator=random) - 1
    plain = torch.stack([split._squares((split.roots @ each.double()).transpose(1, 2)).sum(dim=1) for each in signs])
    assert float(draws.var(dim=0).mean()) == pytest.approx(float(plain.var(dim=0).mean()), rel=0.15)
