"""Run folders from strangers, with right checksums: read or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from regimes import UserError
from regimes.cli import app
from regimes.experiment.atomic_files import read_checked, write_checked
from regimes.experiment.run import Result
from regimes.plots.run_info import run_facts
from regimes.record.assemble import open_record
from regimes.record.grid import open_grid

Change = Callable[[dict[str, Any]], object]
LAYOUTS: dict[str, Change] = {
    "no stages": lambda layout: layout.pop("stages"),
    "stages of text": lambda layout: layout.update(stages="abc"),
    "unknown coordinate": lambda layout: layout["stages"][0]["at"].update(epochs=3),
    "another kind": lambda layout: layout["stages"][0].update(kind="bake"),
    "a key that is a number": lambda layout: layout["stages"][0].update(key=7),
    "more cells than memory": lambda layout: layout["coords"].update({str(n): list(range(10**4)) for n in range(3)}),
    "knobs without a name": lambda layout: layout.update(knobs=[{}]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_layout_of_a_stranger(kind: str, tiny: dict[str, Any], run_tiny: Callable[..., Result]) -> None:
    folder = run_tiny(tiny).folder
    layout = read_checked(folder / "layout.json")
    assert layout is not None
    LAYOUTS[kind](layout)
    write_checked(folder / "layout.json", layout)
    with pytest.raises(UserError, match="something else than this version of regimes writes") as error:
        open_record(folder), run_facts(folder)
    assert len(error.value.lines) == 1
    status = CliRunner().invoke(app, ["status", str(folder)])
    assert isinstance(status.exception, (SystemExit, type(None))), status.exception
    assert status.exit_code in (0, 2)


def test_names_and_failures_do_not_control_the_terminal(tiny: dict[str, Any], run_tiny: Callable[..., Result]) -> None:
    folder = run_tiny(tiny).folder
    layout = read_checked(folder / "layout.json")
    assert layout is not None
    write_checked(folder / "layout.json", {**layout, "name": "a\x1b]0;b\x07"})
    status = CliRunner().invoke(app, ["status", str(folder)])
    assert status.exit_code == 0
    assert "\x1b" not in status.output
    with pytest.raises(UserError, match="title = "):
        open_grid(folder)


def test_a_pipe_in_a_run_folder_is_not_waited_for(tiny: dict[str, Any], run_tiny: Callable[..., Result]) -> None:
    result = run_tiny(tiny)
    record = next((result.folder / "records").glob("*/*.json"))
    record.unlink()
    os.mkfifo(record)
    assert int((open_record(result.folder)["status"] == 0).sum()) >= 1
    status = CliRunner().invoke(app, ["status", str(result.folder)])
    assert "not a regular file; will be recomputed" in status.output
    Path(result.folder / "layout.json").unlink()
    os.mkfifo(result.folder / "layout.json")
    with pytest.raises(UserError, match=r"layout\.json: not a regular file"):
        open_record(result.folder)
