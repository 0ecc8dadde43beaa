"""Figures and the report: there, right way up, the same every time, honest about what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from known_grids import diagram

from regimes import UserError, classify, draw_map
from regimes.plots.grid_matrix import best_rows, table
from regimes.plots.metric_panel import panel, panel_names, with_excess
from regimes.plots.phase_diagram import phase_diagram


def labelled(**change: float) -> xr.Dataset:
    data = classify(diagram(0, **change)[0])  # type: ignore[arg-type]
    errors = 0.1 - 0.01 * np.arange(6)[:, None] * np.ones(6)
    data["test_error"] = (("epochs", "density"), errors)
    return data


def test_rows_are_hottest_first_and_columns_by_density() -> None:
    data = labelled().isel(epochs=[3, 0, 5, 1, 2, 4], density=[5, 0, 3, 1, 2, 4])
    cells = table(data["test_error"], data)
    assert list(cells.index) == ["5", "10", "20", "40", "80", "160"]
    assert list(cells.columns) == ["3", "5", "8", "14", "30", "80"]
    assert cells.iloc[0, 0] == pytest.approx(0.1)
    batch = data.rename(epochs="learning_rate")
    batch["learning_rate"].attrs = {"hotter": "larger"}
    assert next(iter(table(batch["test_error"], batch).index)) == "160"


def test_phase_diagram_names_every_cell_and_marks_the_best() -> None:
    data = labelled()
    axes = phase_diagram(data).axes[0]
    words = [text.get_text() for text in axes.texts]
    cells = table(data["regime"], data).to_numpy().astype(int)
    assert words == [["I", "II-A", "II-B"][number] for number in cells.flatten()]
    assert best_rows(data) == dict.fromkeys(range(6), 5)
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(dots) == 6
    neighbours = (cells[:, 1:] != cells[:, :-1]).sum() + (cells[1:] != cells[:-1]).sum()
    assert len(axes.lines) - len(dots) == neighbours
    assert axes.get_xlabel() == "density (% of prunable weights kept)"
    assert "hotter ↑" in axes.get_ylabel()


def test_absent_regime_is_said_in_the_legend() -> None:
    legend = phase_diagram(labelled(barrier=0.0)).legends[0]
    words = [text.get_text() for text in legend.get_texts()]
    assert any(word.startswith("I ") and "(not seen)" in word for word in words)


def test_panels_survive_holes() -> None:
    data = labelled()
    data["test_error"][2, 3] = np.nan
    data["lmc"][:, 0] = np.nan
    for name in panel_names(data):
        panel(data, name)
    assert set(panel_names(data)) == {"lmc", "cka", "test_error"}
    assert set(panel_names(data.rename(density="width"))) == {"lmc", "cka", "test_error"}


def test_same_data_same_files(tmp_path: Path) -> None:
    data = labelled()
    one, two = (draw_map(data, tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert {path.suffix for path in one} == {".png", ".svg", ".pdf", ".md"}
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_report_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    data = labelled(barrier=0.0)
    page = draw_map(data, tmp_path)[-1].read_text()
    assert "**I** (poorly connected: a barrier between two retrained copies): not seen in these data." in page
    assert "no cliff of the barrier is seen" in page
    assert "| 3 % | 5.00 % | 160 |" in page
    for line in page.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.split("(")[1].rstrip(")")).exists()


def test_unclassified_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="classify it first"):
        draw_map(diagram(0)[0], tmp_path)


def test_normalised_error_by_hand() -> None:
    """Each cell's mean over copies, minus the lowest of its density."""
    errors = np.array([[[0.2, 0.4], [0.5, 0.5]], [[0.1, 0.1], [0.6, 0.8]]])  # (epochs, density, copy)
    data = xr.Dataset(
        {"test_error": (("epochs", "density", "retrain_seed"), errors)}, {"epochs": [5, 10], "density": [0.1, 0.2]}
    )
    np.testing.assert_allclose(with_excess(data)["test_error_excess"], [[0.2, 0.0], [0.0, 0.2]], atol=1e-12)
