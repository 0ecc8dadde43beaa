"""Trace and top eigenvalue: closed form, brute force in float64, an independent library."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hessian_problems import NOTHING, Quadratic, exact, mean, symmetric
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import Mask, UserError, hessian_top, hessian_trace
from regimes.landscape.hessian_operator import HessianOperator
from regimes.models.build import build
from regimes.pruners.prune import prune


@pytest.fixture(params=["mlp", "preresnet"])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, Tensor], Mask]:
    options = {"mlp": {"widths": [6], "batch_norm": True}, "preresnet": {"depth": 8, "width": 2}}[request.param]
    model = build(request.param, options, (1, 6, 6), 3, 0).double()
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 1, 6, 6, dtype=torch.float64, generator=random)
    targets = torch.randint(0, 3, (24,), generator=random)
    model(inputs)  # BatchNorm statistics of its own
    mask = prune(model, 0.4)
    mask.apply(model)
    return model, (inputs, targets), mask


# -- closed form ------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(size=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_quadratic_top_eigenvalue_is_exact(size: int, seed: int) -> None:
    A = symmetric(size, seed)
    top = hessian_top(Quadratic(A), mean, NOTHING, tolerance=1e-10, max_steps=size)
    largest = float(torch.linalg.eigvalsh(A)[-1])
    assert top.value == pytest.approx(largest, abs=1e-8)
    assert abs(top.value - largest) <= top.stderr + 1e-9


def test_trace_of_a_diagonal_hessian_needs_no_luck() -> None:
    A = torch.diag(torch.arange(1.0, 8.0, dtype=torch.float64))
    trace = hessian_trace(Quadratic(A), mean, NOTHING, probes=3)
    assert trace.value == pytest.approx(28.0)
    assert trace.stderr == pytest.approx(0.0, abs=1e-12)
    assert trace.samples == 3


def test_trace_error_follows_hutchinsons_variance() -> None:
    A = symmetric(10, 3)
    trace = hessian_trace(Quadratic(A), mean, NOTHING, probes=4000)
    variance = 2 * float((A**2).sum() - (A.diagonal() ** 2).sum())  # of one probe of signs
    assert trace.stderr == pytest.approx(math.sqrt(variance / 4000), rel=0.1)
    assert abs(trace.value - float(A.trace())) < 4 * trace.stderr


def decaying(size: int, seed: int, power: float = 1.5) -> Tensor:
    """A symmetric matrix whose spectrum falls off as that of a trained network's Hessian does."""
    Q = torch.linalg.qr(symmetric(size, seed)).Q
    return Q @ torch.diag(torch.arange(1.0, size + 1, dtype=torch.float64) ** -power) @ Q.T


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_requested_error_is_reached(method: str) -> None:
    A = symmetric(60, 3) + 5 * torch.eye(60, dtype=torch.float64)
    trace = hessian_trace(Quadratic(A), mean, NOTHING, rel_stderr=0.05, method=method)  # type: ignore[arg-type]
    assert trace.stderr <= 0.05 * abs(trace.value)
    assert trace.samples > 4
    assert abs(trace.value - float(A.trace())) < 4 * trace.stderr + 1e-9


# -- XTrace -----------------------------------------------------------------------------------------------------------


def test_xtrace_needs_far_fewer_products_where_the_spectrum_decays() -> None:
    A = decaying(400, 1)
    found = {
        method: hessian_trace(Quadratic(A), mean, NOTHING, rel_stderr=0.02, method=method)  # type: ignore[arg-type]
        for method in ("auto", "xtrace", "hutchinson")
    }
    assert max(found["auto"].samples, found["xtrace"].samples) < found["hutchinson"].samples / 4
    for trace in found.values():
        assert trace.value == pytest.approx(float(A.trace()), rel=0.06)


def test_standard_error_of_xtrace_covers_the_truth() -> None:
    A = decaying(300, 2)
    hits = 0
    for seed in range(60):
        trace = hessian_trace(
            Quadratic(A),
            mean,
            NOTHING,
            rel_stderr=0.03,
            generator=torch.Generator().manual_seed(seed),
            method="xtrace",
        )
        assert trace.samples < 300
        hits += abs(trace.value - float(A.trace())) <= 1.96 * trace.stderr
    assert hits >= 52  # of 60: at least 87 %


def test_xtrace_is_unbiased_for_any_symmetric_matrix() -> None:
    A = symmetric(120, 5)  # as many negative eigenvalues as positive ones, none small
    traces = [
        hessian_trace(
            Quadratic(A), mean, NOTHING, probes=24, method="xtrace", generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(80)
    ]
    values = torch.tensor([trace.value for trace in traces])
    assert abs(float(values.mean() - A.trace())) < 4 * float(values.std()) / 80**0.5
    spread = sum(trace.stderr for trace in traces) / 80
    assert 0.7 < spread / float(values.std()) < 1.6


def test_xtrace_of_few_coordinates_or_low_rank_is_exact() -> None:
    few = hessian_trace(Quadratic(symmetric(12, 3)), mean, NOTHING, rel_stderr=0.01, method="xtrace")
    assert few.value == pytest.approx(float(symmetric(12, 3).trace()))
    assert few.stderr == 0.0
    assert few.samples == 12
    thin = symmetric(200, 4)[:, :5]
    low = hessian_trace(Quadratic(thin @ thin.T), mean, NOTHING, rel_stderr=0.01, method="xtrace")
    assert low.value == pytest.approx(float(thin.square().sum()), rel=1e-6)
    assert low.samples == 16


@pytest.mark.parametrize("rank", [3, 8, 9, 10, 13, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_xtrace_counts_nothing_twice_where_few_coordinates_curve(rank: int, dtype: torch.dtype) -> None:
    spectrum = torch.zeros(400, dtype=dtype)
    spectrum[:rank] = torch.arange(1, rank + 1, dtype=dtype) * 2
    nothing = (torch.zeros(4, 1, dtype=dtype), torch.zeros(4))
    trace = hessian_trace(Quadratic(torch.diag(spectrum)), mean, nothing, rel_stderr=1e-3, method="xtrace")
    assert trace.value == pytest.approx(float(spectrum.sum()), rel=5e-3)


def test_xtrace_of_a_loss_that_is_not_finite_is_nan() -> None:
    A = symmetric(40, 3) * math.nan
    assert math.isnan(hessian_trace(Quadratic(A), mean, NOTHING, rel_stderr=0.1).value)


@pytest.mark.parametrize("chunk", [0, 7])
def test_batched_products_are_the_products(network: tuple[nn.Module, tuple[Tensor, Tensor], Mask], chunk: int) -> None:
    model, data, mask = network
    one = HessianOperator(model, F.cross_entropy, data, mask, chunk, vectors_per_pass=1)
    vectors = torch.randn(one.size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each = torch.stack([one @ vector for vector in vectors.T], dim=1)
    assert torch.allclose(one.matmat(vectors), each)
    assert torch.allclose(
        HessianOperator(model, F.cross_entropy, data, mask, chunk, vectors_per_pass=3).matmat(vectors), each
    )


def test_loss_without_curvature_has_none() -> None:
    model = nn.Linear(3, 1, bias=False)
    data = (torch.ones(4, 3), torch.zeros(4))
    assert hessian_trace(model, mean, data, probes=2).value == 0.0


# -- brute force in float64 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [0, 7])
def test_operator_equals_the_exact_hessian(
    network: tuple[nn.Module, tuple[Tensor, Tensor], Mask], masked: bool, chunk: int
) -> None:
    model, data, mask = network
    H = exact(model, data, mask if masked else None)
    operator = HessianOperator(model, F.cross_entropy, data, mask if masked else None, chunk)
    assert operator.size == len(H)
    for column in range(0, len(H), max(1, len(H) // 9)):
        unit = torch.zeros(len(H), dtype=torch.float64)
        unit[column] = 1.0
        assert torch.allclose(operator @ unit, H[:, column], atol=1e-10)


def test_estimates_cover_the_exact_values(network: tuple[nn.Module, tuple[Tensor, Tensor], Mask]) -> None:
    model, data, mask = network
    H = exact(model, data, mask)
    trace = hessian_trace(model, F.cross_entropy, data, mask, probes=300)
    top = hessian_top(model, F.cross_entropy, data, mask, tolerance=1e-6)
    assert abs(trace.value - float(H.trace())) < 4 * trace.stderr
    assert trace.stderr < 0.2 * abs(float(H.trace()))
    assert top.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-5)


def test_pruned_coordinates_do_not_count(network: tuple[nn.Module, tuple[Tensor, Tensor], Mask]) -> None:
    model, data, mask = network
    full, support = (float(exact(model, data, each).trace()) for each in (None, mask))
    assert abs(full - support) > 0.02 * abs(full)  # otherwise this test could not tell
    trace = hessian_trace(model, F.cross_entropy, data, mask, probes=400)
    assert abs(trace.value - support) < 4 * trace.stderr


# -- an independent library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_pyhessian_agrees(network: tuple[nn.Module, tuple[Tensor, Tensor], Mask], masked: bool) -> None:
    model, data, mask = network
    model, data = model.float(), (data[0].float(), data[1])
    chosen = mask if masked else None
    own = hessian_trace(model, F.cross_entropy, data, chosen, probes=300)
    for _ in range(2):  # the second object on one model returned twice the Hessian
        reference = hessian_trace(model, F.cross_entropy, data, chosen, probes=300, backend="pyhessian")
        assert abs(own.value - reference.value) < 4 * math.hypot(own.stderr, reference.stderr)
    assert reference.samples == 300
    assert own.stderr == pytest.approx(reference.stderr, rel=0.4)
    H = exact(model.double(), (data[0].double(), data[1]), chosen)
    assert abs(reference.value - float(H.trace())) < 4 * reference.stderr
    model.float()
    top = hessian_top(model, F.cross_entropy, data, chosen, tolerance=1e-4)
    theirs = hessian_top(model, F.cross_entropy, data, chosen, tolerance=1e-6, max_steps=500, backend="pyhessian")
    assert top.value == pytest.approx(theirs.value, rel=1e-2)
    assert theirs.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-2)


def test_pyhessian_is_repaired_where_it_stops_or_breaks() -> None:
    negative = Quadratic(-torch.eye(5, dtype=torch.float64) + 0.3 * symmetric(5, 0))
    negative.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    negative.train()
    trace = hessian_trace(negative, mean, NOTHING, probes=40, backend="pyhessian")
    assert trace.samples == 40
    assert abs(trace.value - float(negative.A.trace())) < 4 * trace.stderr
    assert negative.training
    assert all(each.grad is None for each in negative.parameters())


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_said_in_one_line() -> None:
    model, data = nn.Linear(2, 2), (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="at least 2"):
        hessian_trace(model, F.cross_entropy, data, probes=1)
    with pytest.raises(UserError, match="allowed: own, pyhessian"):
        hessian_trace(model, F.cross_entropy, data, backend="other")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="supports neither rel_stderr nor chunk"):
        hessian_trace(model, F.cross_entropy, data, rel_stderr=0.1, backend="pyhessian")
    with pytest.raises(UserError, match=r"the mask names unknown parameters nothing.here"):
        hessian_trace(model, F.cross_entropy, data, mask={"nothing.here": torch.ones(1)})
    with pytest.raises(UserError, match="no live parameter"):
        hessian_trace(model, F.cross_entropy, data, mask={k: torch.zeros_like(v) for k, v in model.named_parameters()})
