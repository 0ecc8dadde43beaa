"""CKA: closed form, brute force with (n, n) Gram matrices, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import UserError, cka
from regimes.landscape.cka import cka_of_features


def features(seed: int, n: int = 40, p: int = 5) -> Tensor:
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force(X: Tensor, Y: Tensor, debiased: bool) -> float:
    """From the definition, with whole Gram matrices."""
    n = len(X)

    def hsic(K: Tensor, L: Tensor) -> float:
        if not debiased:
            H = torch.eye(n, dtype=K.dtype) - 1 / n
            return float(torch.trace(K @ H @ L @ H))
        K, L = K - torch.diag(K.diagonal()), L - torch.diag(L.diagonal())
        one = torch.ones(n, dtype=K.dtype)
        first = torch.trace(K @ L)
        second = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return float(first + second - 2 / (n - 2) * (one @ K @ L @ one))

    K, L = X @ X.T, Y @ Y.T
    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(6, 50), p=st.integers(1, 8), debiased=st.booleans())
def test_equals_brute_force(seed: int, n: int, p: int, debiased: bool) -> None:
    X, Y = features(seed, n, p), features(seed + 1, n, p + 1) + features(seed, n, p + 1) + 7.0
    assert cka_of_features(X, Y, debiased).value == pytest.approx(brute_force(X, Y, debiased), rel=1e-7, abs=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), debiased=st.booleans())
def test_invariances(seed: int, scale: float, debiased: bool) -> None:
    X, Y = features(seed), features(seed) + 0.5 * features(seed + 1)
    value = cka_of_features(X, Y, debiased).value
    rotation = torch.linalg.qr(features(seed + 2, 5, 5)).Q
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    assert cka_of_features(X, X, debiased).value == pytest.approx(1.0)
    assert cka_of_features(Y, X, debiased).value == pytest.approx(value)
    assert cka_of_features(scale * X @ rotation + 3, Y, debiased).value == pytest.approx(value)
    assert cka_of_features(X[order], Y[order], debiased).value == pytest.approx(value)
    assert value <= 1.0 + 1e-12


def test_by_hand() -> None:
    X = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    Y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert cka_of_features(X, Y).value == 0.0
    assert cka_of_features(X, -2 * X + 1).value == pytest.approx(1.0)
    both = torch.cat([X, Y], dim=1)  # X'[X Y] = (4, 0); |.|^2 = 16; over 4 * sqrt(16 + 16)
    assert cka_of_features(X, both).value == pytest.approx(16 / (4 * math.sqrt(32)))


def test_never_nan() -> None:
    still, moving = torch.ones(10, 3), features(0, 10, 3)
    assert cka_of_features(still, still).value == 1.0
    assert cka_of_features(still, moving).value == 0.0
    assert cka_of_features(moving, still).value == 0.0
    nearly = still.clone()
    nearly[3, 1] = torch.nextafter(nearly[3, 1], torch.tensor(2.0))  # one rounding step is no variation
    assert cka_of_features(nearly, still).value == 1.0


def test_debiasing_takes_the_bias_of_few_samples_away() -> None:
    biased = [cka_of_features(features(s, 20, 10), features(s + 999, 20, 10)).value for s in range(60)]
    debiased = [cka_of_features(features(s, 20, 10), features(s + 999, 20, 10), True).value for s in range(60)]
    assert sum(biased) / 60 > 0.2
    assert abs(sum(debiased) / 60) < 0.05


def test_jackknife_error_matches_the_spread_over_samples() -> None:
    def pair(seed: int) -> tuple[Tensor, Tensor]:
        X = features(seed, 400, 4)
        return X, X + features(seed + 5000, 400, 4)

    estimates = [cka_of_features(*pair(seed)) for seed in range(80)]
    spread = torch.tensor([each.value for each in estimates]).std()
    claimed = torch.tensor([each.stderr for each in estimates]).mean()
    assert float(claimed) == pytest.approx(float(spread), rel=0.35)


def test_on_networks_softmax_and_logits_differ_and_self_is_one() -> None:
    a, b = nn.Linear(6, 3), nn.Linear(6, 3)
    inputs = features(0, 50, 6).float()
    assert cka(a, a, inputs).value == pytest.approx(1.0)
    assert cka(a, b, inputs, on="logits").value != pytest.approx(cka(a, b, inputs).value, abs=1e-4)
    with pytest.raises(UserError, match="softmax, logits"):
        cka(a, b, inputs, on="outputs")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 4"):
        cka(a, b, inputs[:3])
