"""Surfaces under the noise of seeds: against an independent library, simulation, and what intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from regimes.errors import OutsideRange
from regimes.regime_map.axes import Axis
from regimes.regime_map.gaussian_process import LEVEL_VARIANCE, Prior, _negative_log_likelihood, error_covariance, fit
from regimes.regime_map.noise_model import variance_between_seeds, variance_by_size

SIDE = np.linspace(0, 1, 6)
PLACES = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), -1).reshape(-1, 2)
ROWS = np.repeat(np.arange(6), 6)
ONES, NOTHING = np.ones(36), np.zeros(36)


def hill(places: np.ndarray) -> np.ndarray:
    return np.sin(2 * places[:, 0]) + places[:, 1] ** 2


def seeds(seed: int, count: int, grid: float = 0.0, row: float = 0.1, cell: float = 0.2) -> np.ndarray:
    """The hill with errors of the whole grid, of rows and of cells: (36, count)."""
    random = np.random.default_rng(seed)
    noise = grid * random.standard_normal((1, count)) + cell * random.standard_normal((36, count))
    return hill(PLACES)[:, None] + noise + row * random.standard_normal((6, count))[ROWS]


def test_the_posterior_is_scikit_learns_where_noise_is_independent() -> None:
    values = hill(PLACES)[:, None] + 0.05 * np.random.default_rng(0).standard_normal((36, 1))
    found = fit(PLACES, values, np.arange(36), np.full(36, 0.01), ONES, 0.01)
    model, scale, centre = found._model, values.std(), values.mean()
    shared = np.diag(found._errors) / scale**2 + model.rough**2 + 1e-9
    kernel = ConstantKernel(LEVEL_VARIANCE) + DotProduct(sigma_0=0.0) + model.height**2 * Matern(model.lengths, nu=1.5)
    peer = GaussianProcessRegressor(kernel, alpha=shared, optimizer=None)
    peer.fit(PLACES - 0.5, (values[:, 0] - centre) / scale)
    between_cells = np.random.default_rng(1).random((20, 2))
    mean, spread = peer.predict(between_cells - 0.5, return_std=True)
    ours, ours_spread = found.predict(between_cells)
    np.testing.assert_allclose(ours, centre + scale * mean, atol=1e-6)
    np.testing.assert_allclose(ours_spread**2, scale**2 * (spread**2 + model.rough**2), rtol=1e-5)


def test_marginals_joint_and_draws_agree() -> None:
    found = fit(PLACES, seeds(0, 4), ROWS, NOTHING, ONES, 0.01)
    mean, covariance = found.posterior(PLACES[:10])
    at, spread = found.predict(PLACES[:10])
    np.testing.assert_allclose(mean, at)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), spread)
    drawn = found.sample(PLACES[:10], 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * spread.max() / 20_000**0.5)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.05 * spread.max() ** 2)


def test_errors_of_cell_means_have_the_covariance_that_seeds_give_them() -> None:
    """Brute force: the covariance of cell means over many grids, against the average estimate from single grids."""
    grids = [seeds(seed, 5, grid=0.1, row=0.2, cell=0.2) for seed in range(400)]
    truth = np.cov(np.stack([each.mean(1) for each in grids]).T)
    found = np.mean([error_covariance(each, ROWS, ONES)[0] for each in grids[:100]], axis=0)
    same = (ROWS[:, None] == ROWS[None]) & ~np.eye(36, dtype=bool)
    for part in (np.eye(36, dtype=bool), same, ROWS[:, None] != ROWS[None]):
        assert found[part].mean() == pytest.approx(truth[part].mean(), rel=0.15)


def test_seeds_measured_here_and_there_count_as_what_they_are() -> None:
    values = seeds(0, 3)
    values[::2, 1:] = np.nan
    errors, _ = error_covariance(values, ROWS, ONES)
    assert errors is not None
    assert np.diag(errors)[::2].mean() > 2 * np.diag(errors)[1::2].mean()
    assert np.linalg.eigvalsh(errors).min() > -1e-9


@pytest.mark.parametrize("count", [3, 5])
def test_intervals_cover_the_surface(count: int) -> None:
    covered = []
    for seed in range(30):
        mean, spread = fit(PLACES, seeds(seed, count), ROWS, NOTHING, ONES, 0.01).predict(PLACES)
        covered.append(np.abs(mean - hill(PLACES)) < 1.96 * spread)
    assert 0.9 < np.mean(covered) < 0.995


def test_a_flat_grid_and_few_cells_are_no_trouble() -> None:
    flat = fit(PLACES, np.zeros((36, 3)), ROWS, NOTHING, ONES, 0.5)
    assert np.abs(flat.predict(PLACES)[0]).max() < 1e-6
    one = fit(PLACES[:1], np.ones((1, 1)), ROWS[:1], NOTHING[:1], ONES[:1], 0.5)
    assert np.isfinite(one.predict(PLACES)[0]).all()


def test_noise_by_size_finds_both_parts() -> None:
    random = np.random.default_rng(0)
    mean = -np.linspace(0, 0.5, 60)
    truth = 0.01**2 + (0.3 * mean) ** 2
    drawn = mean[:, None] + np.sqrt(truth)[:, None] * random.standard_normal((60, 4))
    found = variance_by_size("lmc", mean, variance_between_seeds(drawn, drawn.mean(1)))
    assert found[0] == pytest.approx(truth[0], rel=0.8)
    assert found[-1] == pytest.approx(truth[-1], rel=0.3)
    assert (variance_by_size("lmc", mean, np.full(60, np.nan)) == 0).all()


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=8, unique=True),
    sign=st.sampled_from([1, -1]),
    share=st.floats(0, 1),
)
def test_places_and_values_are_inverse(values: list[float], sign: int, share: float) -> None:
    ordered = tuple(sorted(values))
    if ordered[1] - ordered[0] < 1e-3 * ordered[-1] or (ordered[0] == 0 and ordered[1] < 1e-3):
        return  # closer than a coordinate can tell
    positive = [each for each in ordered if each > 0]
    wide = len(positive) > 1 and positive[-1] > 4 * positive[0]
    axis = Axis("x", ordered, ("log" if ordered[0] > 0 else "symlog") if wide else "linear", False, sign)
    marks = axis.place(np.array(ordered))
    assert (np.diff(marks * sign) > 0).all()
    assert {round(float(marks.min()), 9), round(float(marks.max()), 9)} == {0.0, 1.0}
    value = float(axis.value(np.array([share]))[0])
    value = min(max(value, ordered[0]), ordered[-1])
    assert float(axis.place(value)) == pytest.approx(share, abs=1e-6)
    with pytest.raises(OutsideRange, match="outside the measured range"):
        axis.place(ordered[-1] * 1.1)


def test_the_likelihood_has_the_gradient_that_it_is_fitted_by() -> None:
    random = np.random.default_rng(0)
    places, y, noise = random.random((12, 2)), random.standard_normal(12), 0.3

    def likelihood(theta: np.ndarray) -> tuple[float, np.ndarray]:
        height, *lengths, rough = np.exp(theta)
        covariance, gradient = Prior(height, np.array(lengths), rough).with_gradient(places)
        return _negative_log_likelihood(covariance + noise**2 * np.eye(12), gradient, y)

    theta, step = np.log([0.8, 0.4, 0.9, 0.2]), 1e-6
    expected = [
        (likelihood(theta + step * each)[0] - likelihood(theta - step * each)[0]) / (2 * step) for each in np.eye(4)
    ]
    assert likelihood(theta)[1] == pytest.approx(expected, abs=1e-6)
    same = Prior(0.8, np.array([0.4, 0.9]), 0.2)
    assert same.with_gradient(places)[0] == pytest.approx(same.covariance(places, places), abs=1e-12)
