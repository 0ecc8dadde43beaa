"""The MNIST-1D study: its tests, what it confirms on grids made for it, and its page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from regimes.record.grid import save_grid
from regimes.research.studies import mnist1d, mnist1d_ablation
from regimes.research.studies.paired_tests import holm, paired_test
from regimes.research.studies.stated_comparisons import STATED, outcomes

SIZES, DENSITIES = [8, 16, 24, 32, 64, 128], [0.08, 0.11, 0.15, 0.2, 0.35, 0.6]
STATEMENT = Path(__file__).parents[2] / "reports/mnist1d/COMPARISONS.md"


def made(noise: float, seeds: int = 8) -> xr.Dataset:
    """A grid with all claims true: a cliff at cold and low, an optimum that moves towards colder with density."""
    random = np.random.default_rng(0)
    cold, density = np.meshgrid(np.log2(SIZES), DENSITIES, indexing="ij")
    best = 3.5 + 3 * density / 0.6
    error = 0.05 + 0.02 * (cold - best) ** 2
    lmc = np.where((cold > 5.5) & (density < 0.3), -0.4, -0.01)
    cka = 0.9 + 0.01 * cold
    dims = ("batch_size", "density", "dense_seed", "pair")
    data = {
        name: (dims, (each[..., None] + noise * random.standard_normal((*each.shape, seeds)))[..., None])
        for name, each in {"test_error": error, "lmc": lmc, "cka": cka, "train_error": error}.items()
    }
    data["dense_test_error"] = (dims[::2], 0.05 + 0.01 * random.random((6, seeds)))  # type: ignore[assignment]
    coords = {"batch_size": SIZES, "density": DENSITIES, "dense_seed": range(3, 3 + seeds)}
    return xr.Dataset(data, coords)


def test_paired_test_is_scipys() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 9))
    found, truth = paired_test(a - b), stats.ttest_rel(a, b)
    assert (found.t, found.p) == pytest.approx((truth.statistic, truth.pvalue))
    assert (found.mean, found.positive, found.n) == (pytest.approx((a - b).mean()), int((a > b).sum()), 9)
    assert paired_test(np.array([1.0, np.nan, 3.0])).n == 2
    assert np.isnan(paired_test(np.array([1.0])).t)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, float("nan"), 0.9]) == pytest.approx([1, 1, 1])


def test_comparisons_are_those_of_the_statement() -> None:
    text = STATEMENT.read_text()
    family = dict(re.findall(r"([A-E]\d?) (\d)", re.findall(r"Family: all (?:.|\n)*?\)", text)[0]))
    assert {row: int(count) for row, count in family.items()} == {
        row: sum(each.row == row for each in STATED) for row in {each.row for each in STATED}
    }
    assert f"all {len(STATED)} tests" in text
    first, last = re.findall(r"dense seeds (\d+) to (\d+) \(n = 8\)", text)[0]
    assert (int(first), int(last)) == (mnist1d.FRESH_SEEDS[0], mnist1d.FRESH_SEEDS[-1])


def test_what_is_true_is_confirmed_and_noise_is_not() -> None:
    found = outcomes(made(0.002))
    assert [each.comparison.row for each in found if not each.confirmed] == []
    noise = made(0.0)
    for name in ("test_error", "lmc", "cka"):
        noise[name] = 0 * noise[name] + 0.01 * np.random.default_rng(1).standard_normal(noise[name].shape)
    claims = {"D1", "D2"}  # without a barrier anywhere these hold
    assert {each.comparison.row for each in outcomes(noise) if each.confirmed} <= claims


def test_the_interaction_needs_a_change_of_sign() -> None:
    grid = made(0.002)
    grid["test_error"] = grid["test_error"] + 0.3 * (np.log2(grid["batch_size"]) > 5)
    (found,) = (each for each in outcomes(grid) if each.comparison.row == "E")
    assert found.adjusted < 0.01
    assert not found.confirmed


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist1d, "BOOTSTRAP_DRAWS", 20)
    save_grid(made(0.01), tmp_path / mnist1d.GRID)
    few = made(0.01, 3).sel(batch_size=[16, 64, 128], density=[0.11, 0.2, 0.6])
    for name in mnist1d_ablation.VARIANTS:
        save_grid(few, tmp_path / mnist1d_ablation.file_name(name))
    page = mnist1d.study(tmp_path, tmp_path, lambda line: None)
    page.write(tmp_path, "python -m regimes.research study mnist1d", 1.0)
    text = (tmp_path / "README.md").read_text()
    assert "| B2 | test error: 64 above 16, 11 % |" in text
    assert "| joint |" in text
    assert text.count("\n| MLP |") == 1
