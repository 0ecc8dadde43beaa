"""Records and grids: what is where, what it means, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import regimes
from regimes.errors import UserError
from regimes.experiment.run import Result
from regimes.experiment.store import Store
from regimes.record.grid import check_grid, read_grid, save_grid

Sweep = dict[str, Any]
Run = Callable[..., Result]


def grid(**change: Any) -> xr.Dataset:
    """A small grid as another program might make it."""
    rng = np.random.default_rng(0)
    coords = {"epochs": [10, 40, 160], "density": [0.05, 0.1, 0.4]}
    variables = {
        "lmc": (("epochs", "density"), -0.2 * rng.random((3, 3))),
        "cka": (("epochs", "density"), 0.6 + 0.4 * rng.random((3, 3))),
    }
    return xr.Dataset({**variables, **change}, coords)


def test_every_value_stands_where_its_stage_says(tiny: Sweep, run_tiny: Run) -> None:
    tiny["dense_seeds"], tiny["retrain_seeds"] = 2, 3
    result = run_tiny(tiny)
    record, store = regimes.open(result.folder), Store(result.folder)
    assert record.sizes == {"epochs": 2, "density": 2, "dense_seed": 2, "retrain_seed": 3, "pair": 3, "t": 11}
    seen = 0
    for stage in result.stages:
        found = store.read(stage.key)
        assert found is not None
        for name, entry in found["values"].items():
            name = f"dense_{name}" if stage.kind == "train" else name
            stored = record[name].sel(stage.coords).values
            assert np.array_equal(stored, np.array(entry["value"], dtype=float), equal_nan=True)
            assert record[name].attrs["units"] == entry["units"]
            seen += 1
    assert seen > 100
    assert bool((record.status == 1).all())
    assert record.lmc.attrs["measured_with"] == "images=0, points=11, statistics=all"
    assert record.epochs.attrs["hotter"] == "smaller"
    assert "lmc_stderr" in record
    assert record.kept.sel(density=0.2).values == pytest.approx(0.2, abs=0.01)


def test_a_record_of_an_unfinished_run_says_what_is_pending(tiny: Sweep, run_tiny: Run) -> None:
    result = run_tiny(tiny)
    gone = next(stage for stage in result.stages if stage.kind == "retrain" and stage.coords["density"] == 0.6)
    Store(result.folder).drop(gone.key)
    record = regimes.open(result.folder)
    assert int((record.status == 0).sum()) == 1
    assert np.isnan(record.test_error.sel(gone.coords))


def test_a_record_survives_netcdf(tiny: Sweep, run_tiny: Run, tmp_path: Path) -> None:
    record = regimes.classify(regimes.open(run_tiny(tiny).folder))
    save_grid(record, tmp_path / "x.nc")
    back = read_grid(tmp_path / "x.nc")
    xr.testing.assert_equal(back, record)
    assert back.epochs.attrs["hotter"] == "smaller"
    assert back.regime.dtype == np.int8
    assert back.status.dtype == np.int8
    assert list(back.regime.attrs["flag_values"]) == [-1, 0, 1, 2]
    assert back.regime.attrs["flag_meanings"] == "unknown I II-A II-B"
    assert "_FillValue" not in back.regime.encoding


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in this folder \(run.json is missing\)"):
        regimes.open(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_grid(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(UserError, match="not a netCDF-4 file"):
        read_grid(tmp_path / "text.nc")


def test_a_foreign_grid_is_enough() -> None:
    checked = check_grid(grid(), "g")
    assert checked.epochs.attrs["hotter"] == "smaller"
    own = grid().rename(epochs="noise")
    own["noise"].attrs["hotter"] = "larger"
    assert check_grid(own, "g").noise.attrs["hotter"] == "larger"


def heated(data: xr.Dataset, hotter: str) -> xr.Dataset:
    data["epochs"].attrs["hotter"] = hotter
    return data


NAN = (("epochs", "density"), np.full((3, 3), np.nan))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (grid().rename(epochs="heat"), r"no knob among the dimensions \(heat, density\); allowed: epochs, "),
        (grid().rename(density="sparsity"), r"no load among the dimensions"),
        (grid().drop_vars("lmc"), r"no variable 'lmc'"),
        (grid(cka=(("epochs",), np.ones(3))), r"'cka' lacks the dimension density"),
        (grid().drop_vars("epochs"), r"'epochs' has no coordinate values"),
        (grid().assign_coords(density=[5, 10, 40]), r"density up to 40; allowed: \(0, 1\]; divide percentages"),
        (grid().assign_coords(density=[0.0, 0.1, 0.4]), r"density 0; allowed: \(0, 1\]"),
        (grid(cka=grid().cka * 100), r"cka from .* allowed: -0.2 to 1.001"),
        (grid(lmc=grid().lmc * 100), r"lmc from .*allowed: -1 to 1; divide percentages"),
        (grid(lmc=-grid().lmc), r"lmc is mostly positive .*flip its sign\?"),
        (grid().assign_coords(density=["a", "b", "c"]), r"'density' has values of type <U1; expected numbers"),
        (grid().assign_coords(epochs=["a", "b", "c"]), r"'epochs' has values of type <U1; expected numbers"),
        (grid(cka=(("epochs", "density"), np.full((3, 3), "x"))), r"'cka' has values of type <U1; expected numbers"),
        (grid().assign_coords(epochs=[1, 1, 2]), r"coordinate 'epochs' has duplicate or non-finite values"),
        (heated(grid(), "yes"), r"epochs.hotter = 'yes'; allowed: larger, smaller"),
        (grid(lmc=NAN), r"no cell has both lmc and cka"),
    ],
)
def test_a_grid_that_would_mislead_is_refused_in_one_line(data: xr.Dataset, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        check_grid(data, "grid.nc")
    assert len(error.value.lines) == 1
    assert str(error.value).startswith("grid.nc: ")


def test_whatever_else_a_foreign_grid_holds_is_averaged_over_or_left_alone(tmp_path: Path) -> None:
    one = grid()
    many = xr.concat([one, one + 0.001], dim="seed").transpose("density", "seed", "epochs")
    many["lmc_stderr"] = 0 * one.lmc + 0.01
    many["test_error"] = (("density",), [0.1, 0.2, 0.3])
    many["note"] = (("epochs", "density"), np.full((3, 3), "text"))
    files = regimes.draw_map(regimes.classify(many.assign(lmc=many.lmc.astype("float32"))), tmp_path)
    assert {"phase.png", "lmc.png", "cka.png"} <= {path.name for path in files}


def test_records_are_plain_json(tiny: Sweep, run_tiny: Run) -> None:
    folder = run_tiny(tiny).folder
    for path in folder.glob("records/*/*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in a record"))
