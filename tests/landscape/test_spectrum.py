"""Eigenvalues and their distribution: closed form, brute force in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hessian_problems import NOTHING, Quadratic, exact, mean, symmetric
from torch import Tensor, nn

from regimes import UserError
from regimes.landscape.spectrum import hessian_eigenvalues, hessian_spectrum
from regimes.models.build import build
from regimes.pruners.prune import prune


def network() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = build("mlp", {"widths": [5], "batch_norm": True}, (6,), 3, 0).double()
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 6, dtype=torch.float64, generator=random)
    model(inputs)
    return model, (inputs, torch.randint(0, 3, (40,), generator=random))


@pytest.mark.parametrize("masked", [False, True])
def test_top_eigenvalues_are_those_of_the_exact_hessian(masked: bool) -> None:
    model, data = network()
    mask = prune(model, 0.5) if masked else None
    if mask is not None:
        mask.apply(model)
    truth = torch.linalg.eigvalsh(exact(model, data, mask)).flip(0)
    found = hessian_eigenvalues(model, F.cross_entropy, data, mask, count=4, tolerance=1e-6)
    assert len(found) == 4
    for estimate, value in zip(found, truth.tolist(), strict=False):
        assert abs(estimate.value - value) <= max(estimate.stderr, 1e-9) * 1.01
        assert estimate.stderr <= 1e-6 * abs(value)


def test_fewer_eigenvalues_than_asked_for() -> None:
    found = hessian_eigenvalues(Quadratic(symmetric(3, 0)), mean, NOTHING, count=5)
    truth = torch.linalg.eigvalsh(symmetric(3, 0)).flip(0).tolist()
    assert [each.value for each in found] == pytest.approx(truth)


def test_the_distribution_of_a_small_hessian_is_exact_once_lanczos_has_all_of_it() -> None:
    """Of n distinct eigenvalues n steps find all; each probe's weights are then squares of its own components."""
    A = torch.diag(torch.tensor([-2.0, 0.5, 1.0, 4.0], dtype=torch.float64))
    found = hessian_spectrum(Quadratic(A), mean, NOTHING, probes=3, steps=10)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        np.testing.assert_allclose(nodes, [-2.0, 0.5, 1.0, 4.0], atol=1e-9)
        assert weights.sum() == pytest.approx(1)
    random = torch.Generator().manual_seed(0)
    first = torch.randn(4, generator=random, dtype=torch.float64)
    np.testing.assert_allclose(found.weights[0], (first / first.norm()).square().numpy(), atol=1e-9)
    assert found.below(-2.5).value == 0
    assert found.below(5.0).value == pytest.approx(1)


def test_moments_and_shares_cover_the_exact_ones() -> None:
    model, data = network()
    truth = torch.linalg.eigvalsh(exact(model, data)).numpy()
    found = hessian_spectrum(model, F.cross_entropy, data, probes=60, steps=len(truth))
    assert found.size == len(truth)
    checks = [(found.moment(1), truth.mean()), (found.moment(2), (truth**2).mean())]
    checks += [(found.below(value), (truth <= value).mean()) for value in (-0.01, 0.01, 0.1)]
    for estimate, value in checks:
        assert estimate.stderr > 0
        assert abs(estimate.value - value) < 3.5 * estimate.stderr
    # The density integrates to one and has its mass where the eigenvalues are.
    at = np.linspace(truth.min() - 1, truth.max() + 1, 4001)
    density = found.density(at, 0.02)
    assert float(density.sum() * (at[1] - at[0])) == pytest.approx(1, abs=1e-3)
    mean_of_it = float((density * at).sum() * (at[1] - at[0]))
    assert mean_of_it == pytest.approx(found.moment(1).value, abs=1e-3)


def test_shares_where_eigenvalues_crowd_are_uncertain_and_say_so() -> None:
    """Half of the eigenvalues are zero, and the quadrature has too few points to tell them from small ones."""
    values = torch.cat([torch.zeros(60), 10 ** torch.linspace(-6, 1, 60)]).double()
    A = torch.diag(values)
    found = hessian_spectrum(Quadratic(A), mean, NOTHING, probes=6, steps=8)
    for value in (-1e-9, 1e-9, 1e-3, 0.5):
        share = found.below(value)
        assert abs(share.value - float((values <= value).double().mean())) <= 1.96 * share.stderr
    assert found.below(1e-9).stderr > 0.05
    assert found.below(20.0).value == pytest.approx(1)


def test_a_loss_that_is_not_finite_has_no_spectrum() -> None:
    found = hessian_spectrum(Quadratic(symmetric(4, 0) * math.nan), mean, NOTHING)
    assert math.isnan(found.moment(1).value)
    assert math.isnan(hessian_eigenvalues(Quadratic(symmetric(4, 0) * math.nan), mean, NOTHING)[0].value)


def test_numbers_that_cannot_be_meant() -> None:
    model, data = network()
    with pytest.raises(UserError, match="probes = 1"):
        hessian_spectrum(model, F.cross_entropy, data, probes=1)
    with pytest.raises(UserError, match="max_steps at least count"):
        hessian_eigenvalues(model, F.cross_entropy, data, count=9, max_steps=8)


def test_memory_of_a_trace_stays_under_the_plans_figure() -> None:
    """In a process of its own: PreResNet-20's Hessian trace, 64 inputs at once, which outweigh the fixed parts."""
    script = "from regimes.research.studies.peak_memory import peak; peak(64, images=64)"
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, text=True)
    planned, measured = map(float, told.stdout.split())
    assert 0.6 * planned < measured < planned
