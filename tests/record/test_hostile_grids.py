"""Grids from strangers: whatever the file holds, it is read or refused in one line, and no other file is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from regimes import UserError, classify, draw_map
from regimes.cli import app
from regimes.record.export import export
from regimes.record.grid import check_grid, load_netcdf, open_grid, read_grid, save_grid
from regimes.research.abuse.grids import attack

CELLS = ("epochs", "density")


def grid(**change: Any) -> xr.Dataset:
    rng = np.random.default_rng(0)
    variables = {"lmc": (CELLS, -0.2 * rng.random((3, 3))), "cka": (CELLS, 0.6 + 0.4 * rng.random((3, 3)))}
    coords = {"epochs": [10, 40, 160], "density": [0.05, 0.1, 0.4]}
    return xr.Dataset({**variables, **change}, coords, {"title": "ours"})


def edited(file: Path, edit: Callable[[h5py.File], object]) -> Path:
    save_grid(grid(), file)
    with h5py.File(file, "r+") as opened:
        edit(opened)
    return file


def attribute(owner: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[owner].attrs.__setitem__(name, value)


def array(**how: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("odd", **how)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (3,))
    file.create_virtual_dataset("odd", layout)


def cycle(file: h5py.File) -> None:
    group = file.create_group("g")
    group["me"] = group


ODD_FILES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external link": (lambda f: f.__setitem__("odd", h5py.ExternalLink("other.h5", "secret")), "'odd' is a link to an"),
    "external storage": (array(shape=(64,), dtype="u1", external=[("secret.txt", 0, 64)]), "stored in another file"),
    "virtual array": (virtual, "'odd' is stored in another file"),
    "loop of links": (lambda f: f.__setitem__("odd", h5py.SoftLink("/odd")), "'odd' is a link to another place"),
    "dangling link": (lambda f: f.__setitem__("odd", h5py.SoftLink("/none")), "'odd' is a link to another place"),
    "cyclic groups": (cycle, "'g' is a group; allowed: arrays in the root group only"),
    "named type": (lambda f: f.__setitem__("odd", np.dtype("f8")), "'odd' is a datatype"),
    "1e12 cells": (array(shape=(10**6, 10**6), chunks=(1000, 1000), dtype="f8"), "dimensions without a name"),
    "huge scale": (lambda f: array(shape=(10**12,), chunks=(10**6,), dtype="f8")(f).make_scale("odd"), "8,000,000 MB"),  # type: ignore[attr-defined]
    "huge chunk": (
        lambda f: array(shape=(1,), maxshape=(None,), chunks=(4 * 10**8,), dtype="f8")(f).make_scale("odd"),  # type: ignore[attr-defined]
        "arrays of 3,200 MB in all; allowed: 268 MB",
    ),
    "references": (array(shape=(3,), dtype=h5py.ref_dtype), "'odd' has values of type object"),
    "regions": (array(shape=(3,), dtype=h5py.regionref_dtype), "'odd' has values of type object"),
    "compound": (array(shape=(3,), dtype=[("a", "f8"), ("b", "i4")]), r"'odd' has values of type \[\('a'"),
    "enumeration": (array(shape=(3,), dtype=h5py.enum_dtype({"a": 0, "b": 1}, "i1")), "'odd' has values of type int8"),
    "ragged": (array(shape=(3,), dtype=h5py.vlen_dtype("f8")), "'odd' has values of type object"),
    "opaque": (array(shape=(3,), dtype="V7"), "'odd' has values of type"),
    "complex": (array(shape=(3,), dtype="c16"), "'odd' has values of type complex128"),
    "null": (array(data=h5py.Empty("f8")), "'odd' has values of type float64"),
    "reference as title": (lambda f: f.attrs.__setitem__("title", f["lmc"].ref), "'title' is neither text nor numbers"),
    "compound attribute": (attribute("lmc", "x", np.zeros(2, [("a", "f8")])), "'x' is neither text nor numbers"),
    "no dimensions": (lambda f: f["lmc"].attrs.__delitem__("DIMENSION_LIST"), "'lmc' has dimensions without a name"),
    "title of bytes": (lambda f: f.attrs.__setitem__("title", np.bytes_(b"\xff\xfe")), "title = "),
    "long title": (lambda f: f.attrs.__setitem__("title", "x" * 10**6), r"title = 'x{40}'\.\.\.; allowed: printable"),
    "control characters": (lambda f: f.attrs.__setitem__("title", "a\x1b[31m"), "title = 'a\ufffd"),
    "right-to-left": (lambda f: f.attrs.__setitem__("title", "a\u202eb"), "title = 'a\ufffdb'"),
    "title of lines": (lambda f: f.attrs.__setitem__("title", "a\n# b"), "title = 'a # b'"),
    "number as title": (lambda f: f.attrs.__setitem__("title", 7), "title = a value of type int64"),
    "number as units": (attribute("lmc", "units", 1), "lmc.units = a value of type int64; allowed: printable text"),
    "list as hotter": (attribute("epochs", "hotter", ["larger", "smaller"]), "epochs.hotter = a value of type"),
    "text as chance": (lambda f: f.attrs.__setitem__("chance_error", "much"), "chance_error = 'much'; allowed: a fin"),
    "NaN as chance": (lambda f: f.attrs.__setitem__("chance_error", np.nan), "chance_error = a value of type float64"),
    "scale of text": (attribute("lmc", "scale_factor", "x"), "not a netCDF-4 file, or damaged: "),
    "number as coordinates": (attribute("lmc", "coordinates", 4), "not a netCDF-4 file, or damaged: "),
    "name with controls": (lambda f: f.move("cka", "a\x1b[31m"), "is no name of a variable"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_files_are_refused_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, said = ODD_FILES[kind]
    monkeypatch.chdir(tmp_path)
    Path("secret.txt").write_bytes(b"secret" * 20)
    with h5py.File("other.h5", "w") as other:
        other["secret"] = np.ones(3)
    file = edited(tmp_path / "g.nc", edit)
    with pytest.raises(UserError, match=said) as error:
        open_grid(file)
    assert len(error.value.lines) == 1
    assert str(error.value).startswith(f"{file}: ")
    assert len(str(error.value)) < len(str(file)) + 320
    assert str(error.value).isprintable()


def changed(data: xr.Dataset, variable: str, **attributes: Any) -> xr.Dataset:
    data[variable].attrs.update(attributes)
    return data


STATUS = {"flag_meanings": "pending ok"}
ODD_GRIDS = {
    "complex": (grid(odd=(CELLS, np.full((3, 3), 1j))), "'odd' has values of type complex128"),
    "dates": (
        grid(odd=(CELLS, np.full((3, 3), np.datetime64("2020-01-01", "ns")))),
        "'odd' has values of type datetime",
    ),
    "durations": (grid(odd=(CELLS, np.full((3, 3), np.timedelta64(1, "ns")))), "'odd' has values of type timedelta"),
    "objects": (grid(odd=(CELLS, np.full((3, 3), None))), "'odd' has values of type object"),
    "text as error": (grid(val_error=(CELLS, np.full((3, 3), "x"))), "'val_error' has values of type <U1"),
    "truth as error": (grid(test_error=(CELLS, np.ones((3, 3), bool))), "'test_error' has values of type bool"),
    "text as stderr": (grid(lmc_stderr=(CELLS, np.full((3, 3), "x"))), "'lmc_stderr' has values of type <U1"),
    "stderr elsewhere": (grid(lmc_stderr=("foo", np.ones(4))), "'lmc_stderr' has other dimensions than 'lmc'"),
    "text as kept": (grid(kept=(CELLS, np.full((3, 3), "x"))), "'kept' has values of type <U1"),
    "fill value": (grid(hessian_trace=(CELLS, np.full((3, 3), 9.97e36))), "'hessian_trace' has values beyond 1e[+]30"),
    "no values": (grid().expand_dims(dense_seed=[0]).isel(dense_seed=[]), "the dimension 'dense_seed' is empty"),
    "same seeds": (grid().expand_dims(dense_seed=[1, 1]), "'dense_seed' has values that are no distinct integers"),
    "seeds between": (grid().expand_dims(pair=[0.5, 1.0]), "'pair' has values that are no distinct integers"),
    "large seeds": (grid().expand_dims(pair=np.array([2**63], np.uint64)), "'pair' has values that are no distinct"),
    "text along t": (grid().expand_dims(t=["a", "b"]), "'t' has values of type"),
    "unknown status": (grid(status=(CELLS, np.full((3, 3), 9), STATUS)), "'status' has values without a flag_meaning"),
    "NaN status": (grid(status=(CELLS, np.full((3, 3), np.nan), STATUS)), "'status' has values without a flag_meaning"),
    "path as name": (grid(**{"../x": (CELLS, np.ones((3, 3)))}), "'../x' is no name of a variable"),
    "long name": (changed(grid(), "lmc", long_name="x" * 501), "lmc.long_name = 'x{40}'"),
    "given cut": (changed(grid(regime=(CELLS, np.ones((3, 3)))), "regime", given_lmc="x"), "regime.given_lmc = 'x'"),
}


@pytest.mark.parametrize("kind", ODD_GRIDS)
def test_odd_grids_are_refused_in_one_line(kind: str) -> None:
    data, said = ODD_GRIDS[kind]
    with pytest.raises(UserError, match=said) as error:
        check_grid(data.copy(deep=True), "g.nc")
    assert len(error.value.lines) == 1
    assert str(error.value).startswith("g.nc: ")


def test_what_is_no_file_and_what_is_another_format(tmp_path: Path) -> None:
    grid().astype("f4").to_netcdf(tmp_path / "old.nc", engine="scipy", format="NETCDF3_64BIT")
    (tmp_path / "five.nc").write_bytes(b"CDF\x05" + bytes(60))
    for name in ("old.nc", "five.nc"):
        with pytest.raises(UserError, match=rf"netCDF-3; convert it to netCDF-4: nccopy -k nc4 {name} NEW.nc"):
            load_netcdf(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "loop.nc").symlink_to(tmp_path / "loop.nc")
    (tmp_path / "empty.nc").write_bytes(b"")
    for name, said in (
        ("pipe.nc", "not a regular file"),
        ("loop.nc", "no such file or folder"),
        ("empty.nc", "not a netCDF-4 file, or damaged"),
    ):
        with pytest.raises(UserError, match=said):
            load_netcdf(tmp_path / name)
    with pytest.raises(UserError, match="not a regular file"):
        load_netcdf(Path("/dev/zero"))


@pytest.mark.parametrize("words", [("map",), ("advise", "--density", "0.1"), ("export",), ("export", "--to", "csv")])
def test_commands_end_with_one_line_and_code_2(words: tuple[str, ...], tmp_path: Path) -> None:
    file = edited(tmp_path / "g.nc", attribute("/", "title", "a\x1b]0;b\x07"))
    result = CliRunner().invoke(app, [words[0], str(file), *words[1:]])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.output
    assert [each.name for each in tmp_path.iterdir()] == ["g.nc"]


def test_a_rule_that_a_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stranger.py").write_text("open('imported', 'w').close()\n")
    save_grid(changed(classify(grid()), "regime", rule="stranger:rule"), "g.nc")
    draw_map(read_grid("g.nc"), "figures")
    classify(read_grid("g.nc"))
    assert not Path("imported").exists()


def test_seconds_and_days_stay_numbers(tmp_path: Path) -> None:
    for units in ("seconds", "days since 2000-01-01", "days since yesterday"):
        save_grid(grid(took=(CELLS, np.full((3, 3), 2.5), {"units": units})), tmp_path / "g.nc")
        data = read_grid(tmp_path / "g.nc")
        assert data.took.values.tolist() == [[2.5] * 3] * 3
        assert data.took.attrs["units"] == units
        export(data, tmp_path / "again.nc", "nc")
        xr.testing.assert_identical(read_grid(tmp_path / "again.nc"), data)


@settings(max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6).filter(lambda seed: seed % 50))  # every 50th draws figures, which takes seconds
def test_malformed_grids_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    assert attack(seed, tmp_path) in ("read", "refused")
