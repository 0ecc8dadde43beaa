"""The text study on a made grid: shares of right directions by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from regimes.record.grid import save_grid
from regimes.research.studies import text

RATES, DENSITIES = [1e-3, 3e-3, 1e-2, 3e-2], [0.1, 0.3, 0.6]


def made() -> xr.Dataset:
    """Test errors that are lowest at the third of four learning rates, at every density."""
    error = np.abs(np.arange(4) - 2)[:, None, None, None] * 0.05 + 0.3 + np.zeros((4, 3, 2, 3))
    dims = ("learning_rate", "density", "dense_seed", "retrain_seed")
    pairs = (*dims[:3], "pair")
    data = dict.fromkeys(("test_error", "train_error", "train_loss", "hessian_trace"), (dims, error))
    data |= {"lmc": (pairs, -0.1 - error / 10), "cka": (pairs, 1 - error / 10)}
    data["dense_test_error"] = (dims[::2], error[:, 0, :, 0])  # type: ignore[assignment]
    coords = {"learning_rate": RATES, "density": DENSITIES}
    return xr.Dataset(data, coords, {"chance_error": 0.8, "predictions_per_input": 32})


def test_text_study(tmp_path: Path) -> None:
    save_grid(made(), tmp_path / text.GRID)
    page = text.study(tmp_path, tmp_path, print)
    means, directions, *_ = page.tables
    assert means.rows[1][:3] == ["0.001", "40.0 %", "40.0 %"]
    shares = {each["name"]: each["shares"] for each in directions.facts}
    # Two rates are colder than the best one, one is hotter; the best itself is left out.
    assert shares["always hotter"] == pytest.approx([2 / 3] * 4)
    assert shares["always colder"] == pytest.approx([1 / 3] * 4)
    page.write(tmp_path, "python -m regimes.research study text", 1.0)
    assert "Directions that lower the test error" in (tmp_path / "README.md").read_text()
