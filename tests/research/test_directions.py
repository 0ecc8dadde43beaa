"""The study of directions: cells and their truth from a grid, and the regression that judges them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from regimes.hpo.pruned.cell_direction import INTERCEPT, WEIGHTS, features, p_hotter
from regimes.research.studies.directions import KnownDirections, cells_of, fit


def grid(knob: str, values: list[float]) -> xr.Dataset:
    """Test errors with the best temperature in the middle; a barrier on the cold side."""
    away = np.arange(len(values)) - 2.0  # from cold to hot if larger values are hotter
    test = 0.2 + 0.02 * np.abs(away)[:, None] * np.ones((1, 2))
    lmc = np.where(away < 0, -0.3, -0.01)[:, None] * np.ones((1, 2))
    dims = (knob, "density", "dense_seed")
    data = {
        name: (dims, each[..., None]) for name, each in {"test_error": test, "lmc": lmc, "cka": 0 * lmc + 0.9}.items()
    }
    data["train_error"] = (dims, 0 * lmc[..., None] + 0.1)
    return xr.Dataset(data, {knob: values, "density": [0.1, 0.5]}, {"chance_error": 0.9})


def test_a_cell_is_asked_where_it_has_neighbours_and_a_better_one() -> None:
    found = cells_of(grid("learning_rate", [0.1, 0.2, 0.3, 0.4, 0.5]))
    assert found.hotter.tolist() == [True, True, False, False]  # the second and the fourth rate, at both densities
    expected = [features(-0.3, 0.9, 0.1, 0.9), features(-0.01, 0.9, 0.1, 0.9)]
    assert found.values[0] == pytest.approx([*expected[0], 0.25])
    assert found.values[2] == pytest.approx([*expected[1], 0.75])
    smaller = cells_of(grid("batch_size", [80.0, 64.0, 32.0, 16.0, 8.0]))  # hotter is smaller: the same order
    assert (smaller.hotter == found.hotter).all()
    assert smaller.values == pytest.approx(found.values)


def test_the_regression_finds_the_feature_that_decides() -> None:
    random = np.random.default_rng(0)
    grids = []
    for count in (40, 200):
        values = random.uniform(size=(count, 4))
        grids.append(KnownDirections(values, values[:, 0] > 0.5))
    intercept, *slopes = fit(grids, (0, 1, 2))
    assert slopes[0] > 10 * max(abs(slopes[1]), abs(slopes[2]))
    assert -intercept / slopes[0] == pytest.approx(0.5, abs=0.1)


def test_the_packaged_direction_is_that_regression() -> None:
    measures = {"lmc": -0.2, "cka": 0.85, "train_error": 0.15}
    odds = INTERCEPT + float(np.dot(WEIGHTS, features(-0.2, 0.85, 0.15, 0.9)))
    assert p_hotter(measures, 0.9) == pytest.approx(1 / (1 + np.exp(-odds)))
