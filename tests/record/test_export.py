"""A record as a file for other tools: whole, readable beside diverged cells, nothing overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
import xarray as xr

import regimes
from regimes.experiment.run import Result
from regimes.record.export import table

Sweep = dict[str, Any]
Run = Callable[..., Result]


def test_a_record_is_exported_whole(
    tiny: Sweep, run_tiny: Run, cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    result = run_tiny(tiny)
    record = regimes.open(result.folder)
    for form in ("nc", "csv"):
        said = cli("export", result.folder, "--to", form, "--out", f"all.{form}")
        assert said.returncode == 0, said.stderr
    with xr.open_dataset(tmp_path / "all.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back.load(), record)
    rows = pd.read_csv(tmp_path / "all.csv")
    pd.testing.assert_frame_equal(rows, table(record), check_dtype=False)
    for name in ("lmc", "test_error", "dense_test_error", "lmc_error"):
        assert len(rows[rows.variable == name]) == record[name].notnull().sum()
    one = rows[(rows.variable == "lmc") & (rows.epochs == 4) & (rows.density == 0.2)]
    assert one["value"].item() == pytest.approx(float(record.lmc.sel(epochs=4, density=0.2).item()))
    assert one["stderr"].item() == pytest.approx(float(record.lmc_stderr.sel(epochs=4, density=0.2).item()))
    assert set(rows.status.dropna()) == {"ok"}
    assert cli("export", result.folder, "--to", "xlsx").returncode == 2


@pytest.mark.parametrize("order", [[1e9, 0.1], [0.1, 1e9]])
def test_a_diverged_cell_leaves_the_record_readable(
    tiny: Sweep, run_tiny: Run, order: list[float], cli: Callable[..., CompletedProcess[str]]
) -> None:
    result = run_tiny({**tiny, "temperature": {"learning_rate": order}, "recipe": {"epochs": 3, "batch_size": 32}})
    record = regimes.open(result.folder)
    assert record.status.sel(learning_rate=1e9).values.ravel().tolist() == [2, 2]
    assert record.lmc_error.sel(learning_rate=0.1).notnull().all()
    assert record.lmc_error.sel(learning_rate=1e9).isnull().all()
    assert set(table(record).learning_rate) == {0.1}
    assert cli("export", result.folder, "--to", "csv").returncode == 0


def test_export_neither_overwrites_nor_cuts_names(
    tiny: Sweep, run_tiny: Run, cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = run_tiny({**tiny, "measure": {"metrics": ["error"]}}, "lr-0.1").folder
    assert cli("export", folder).returncode == 0
    file = tmp_path / "lr-0.1.nc"
    assert file.exists()
    again = cli("export", file)
    assert again.returncode == 2
    assert "would overwrite" in again.stderr
    said = cli("export", file, "--to", "csv", "--out", "x.csv")
    assert said.returncode == 0, said.stderr
