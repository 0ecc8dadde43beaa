"""The commands that ask a map, as a user types them: answers, machine-readable ones, and one line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser import shown_in_browser
from known_grids import world
from typer.testing import CliRunner

from regimes import UserError, classify, draw_map
from regimes.cli import app
from regimes.cli.options import positions
from regimes.plots.border import probability_field
from regimes.plots.html_page import cells_of, curves_of, numbers_of, write_page
from regimes.plots.phase_diagram import phase_diagram
from regimes.regime_map.regime_map import RegimeMap

Cli = Callable[..., subprocess.CompletedProcess[str]]
ASK = {
    "map": ("--out", "m"),
    "advise": ("--density", "0.1", "--at", "learning_rate=0.1"),
    "advise ": ("--density", "0.1"),
}


def saved(data: xr.Dataset, file: Path) -> Path:
    data.to_netcdf(file, engine="h5netcdf")
    return file


def test_answers_for_people_and_for_machines(cli: Cli, tmp_path: Path) -> None:
    saved(world(), tmp_path / "g.nc")
    said = cli("advise", "g.nc", "--density", "0.02", "--at", "learning_rate=0.01")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("hotter: to learning_rate 0.398")
    advice = json.loads(cli("advise", "g.nc", "--density", "0.02", "--at", "learning_rate=0.01", "--json").stdout)
    assert advice["direction"] == "hotter"
    assert set(advice) >= {"regime", "target", "expected_error", "confidence", "evidence"}
    chosen = json.loads(cli("advise", "g.nc", "--density", "0.8", "--json").stdout)
    assert chosen["selected"]["learning_rate"] == pytest.approx(0.0251, rel=0.01)
    rungs = json.loads(cli("advise", "g.nc", "--rungs", "--json").stdout)
    assert [each["density"] for each in rungs] == sorted(each["density"] for each in rungs)
    assert "trusted" in cli("advise", "g.nc", "--rungs", "--density", "0.5").stdout
    saved(world().rename(learning_rate="sam_rho"), tmp_path / "rho.nc")
    assert cli("advise", "rho.nc", "--density", "0.02", "--knob", "sam_rho").stdout.startswith("sam_rho 0.398")


def test_mistakes_of_the_one_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(world(), tmp_path / "g.nc")
    monkeypatch.chdir(tmp_path)
    for words, code, line in (
        (("advise", "g.nc", "--density", "0.001", "--at", "learning_rate=0.1"), 3, "density 0.001 is outside"),
        (("advise", "g.nc", "--density", "0.1", "--at", "learning_rate=9"), 3, "learning_rate 9 is outside"),
        (("advise", "g.nc", "--density", "1"), 3, "density 1 is outside"),
        (
            ("advise", "g.nc", "--density", "0.1", "--at", "learning_rate"),
            2,
            "--at learning_rate: allowed: KNOB=NUMBER",
        ),
        (("advise", "g.nc", "--density", "0.1", "--at", "lr=0.1"), 2, "unknown axis 'lr'"),
        (("advise", "g.nc", "--density", "0.1", "--knob", "sam_rho"), 2, "this grid varies learning_rate, not sam_rho"),
        (("advise", "g.nc", "--density", "0.1", "--adviser", "best"), 2, "unknown adviser 'best'"),
        (("advise", "g.nc", "--density", "0.1", "--knob", "epochs"), 2, "--knob epochs: allowed: learning_rate"),
        (("advise", "g.nc"), 2, "--density: one value is needed"),
        (("advise", "g.nc", "--rungs", "--knob", "learning_rate"), 2, "--rungs takes --density and --at only"),
        (("map", "g.nc", "--mark", "learning_rate=7,density=0.1"), 3, "learning_rate 7 is outside"),
        (("run", "g.toml", "--budget", "5"), 2, "--budget belongs to --adaptive"),
    ):
        said = CliRunner().invoke(app, words)
        assert said.exit_code == code, said.stderr
        assert said.stderr.startswith(f"regimes: {line}")
        assert len(said.stderr.splitlines()) == 1
    with pytest.raises(UserError, match="'a' is given twice"):
        positions(["a=1", "a=2"])
    assert positions(["a=1,b=2", "c=3"]) == {"a": 1.0, "b": 2.0, "c": 3.0}


def malformed() -> dict[str, tuple[xr.Dataset, str]]:
    good = world()
    flipped = good.assign(lmc=-good["lmc"])
    nan = good.assign(lmc=good["lmc"] * np.nan)
    return {
        "no density": (good.isel(density=0, drop=True), "no load among the dimensions"),
        "percent": (good.assign_coords(density=good["density"] * 100), "allowed: (0, 1]; divide percentages by 100"),
        "flipped": (flipped, "flip its sign?"),
        "cka": (good.assign(cka=good["cka"] * 100), "allowed: -0.2 to 1.001"),
        "nan": (nan, "nothing to classify"),
        "knob": (good.rename(learning_rate="lr"), "no knob among the dimensions"),
        "no lmc": (good.drop_vars("lmc"), "no variable 'lmc'"),
        "empty": (xr.Dataset(), "no knob among the dimensions"),
        "no cells": (good.isel(learning_rate=slice(0, 0)), ""),
    }


@pytest.mark.parametrize("name", malformed())
def test_every_malformed_grid_gets_one_line_from_every_command(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, line = malformed()[name]
    saved(data, tmp_path / "g.nc")
    monkeypatch.chdir(tmp_path)
    for command, more in ASK.items():
        said = CliRunner().invoke(app, [command.strip(), "g.nc", *more])
        assert said.exit_code == 2, (command, said.stderr)
        assert len(said.stderr.splitlines()) == 1, (command, said.stderr)
        assert said.stderr.startswith("regimes: g.nc: ")
        assert line in said.stderr


def test_a_grid_with_a_knob_density_lmc_and_cka_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(world()[["lmc", "cka"]].mean(("dense_seed", "pair")), tmp_path / "g.nc")
    monkeypatch.chdir(tmp_path)
    for command, more in ASK.items():
        said = CliRunner().invoke(app, [command.strip(), "g.nc", *more])
        assert said.exit_code == 0, said.stderr


def test_the_diagram_has_border_band_arrows_and_mark(tmp_path: Path) -> None:
    data = classify(world())
    chart = RegimeMap.of(data)
    figure = phase_diagram(data, chart, {"learning_rate": 0.1, "density": 0.1})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("advice: hotter or colder, by test errors" in each for each in labels)
    assert any("yours: learning_rate 0.1, density 0.1" in each for each in labels)
    assert any("80 %" in each for each in labels)
    fine = probability_field(chart)
    assert fine is not None
    np.testing.assert_allclose(fine.regimes.sum(-1), 1.0)
    # At a cell's middle the field is the cell's own: rows from the hottest down.
    marks = [int(np.abs(fine.x - 0.5).argmin()), int(np.abs(fine.y - 5.5).argmin())]
    coldest = chart.regimes(0.02, {"learning_rate": 0.01})
    assert fine.regimes[marks[1], marks[0], 0] == pytest.approx(coldest["I"], abs=0.05)
    files = {each.name for each in draw_map(data, tmp_path / "m")}
    assert {"phase.png", "phase.svg", "phase.pdf"} <= files
    page = (tmp_path / "m" / "README.md").read_text()
    assert "## Advice compared with baselines" in page
    assert "| lowest dense test error |" in page
    assert "| oracle |" in page
    two = classify(xr.concat([world(size=(4, 4))] * 2, dim="width").assign_coords(width=[4, 8]))
    wide = RegimeMap.of(two)
    with pytest.raises(UserError, match="one knob and no width"):
        phase_diagram(two, wide, {"learning_rate": 0.1, "density": 0.1, "width": 4})


def test_the_same_data_draw_the_same_files(tmp_path: Path) -> None:
    data = classify(world(size=(4, 4)))
    for folder in ("a", "b"):
        draw_map(data, tmp_path / folder)
    for name in ("phase.png", "phase.svg", "phase.pdf", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def with_curves() -> xr.Dataset:
    data = world()
    t = np.linspace(0, 1, 11)
    hump = (-data["lmc"]).expand_dims(t=t) * xr.DataArray(4 * t * (1 - t), {"t": t}, "t")
    return classify(data.assign(lmc_error=hump.transpose(*data["lmc"].dims, "t")))


def test_the_page_holds_every_number_and_curve(tmp_path: Path) -> None:
    data = with_curves()
    cells, numbers, curves = cells_of(data), numbers_of(data), curves_of(data)
    assert len(cells) == 30
    assert curves is not None
    assert set(cells["cell"]) == set(numbers["cell"]) == set(curves["cell"])
    hot = cells.iloc[0]
    assert hot["temperature"] == "1"
    mean = float(data["test_error"].mean(("dense_seed", "retrain_seed")).sel(learning_rate=1.0, density=0.02))
    lines = numbers[numbers["cell"] == hot["cell"]]["line"].str.cat(sep="\\n")
    assert f"test_error  {mean:.4g}" in lines
    file = write_page(data, tmp_path / "p.html")
    text = file.read_text()
    assert "https://cdn" not in text
    assert file.stat().st_size < 2_000_000
    with pytest.raises(UserError, match="classify it first"):
        write_page(world(), tmp_path / "q.html")


def test_a_title_is_text_on_the_page(tmp_path: Path) -> None:
    data, title = with_curves(), "</script><img src=x onerror=alert(1)>"
    plain = write_page(data, tmp_path / "p.html").read_text()
    marked = write_page(data.assign_attrs(title=title), tmp_path / "q.html").read_text()
    assert title not in marked
    assert marked.count("</script>") == plain.count("</script>")
    assert "\\u003c/script>\\u003cimg src=x" in marked


HOVER = """<pre id="said"></pre><script>
const waiting = setInterval(() => {
  const cells = [...document.querySelectorAll('g.mark-rect path')];
  if (cells.length < 30) return;
  clearInterval(waiting);
  const cell = cells[17];
  cell.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, view: window}));
  document.getElementById('said').textContent = cell.getAttribute('aria-label');
}, 100)</script>"""


def test_pointing_at_a_cell_in_a_real_browser(tmp_path: Path) -> None:
    head, tail = write_page(with_curves(), tmp_path / "p.html").read_text().rsplit("</body>", 1)
    (tmp_path / "p.html").write_text(f"{head}{HOVER}</body>{tail}")
    page = shown_in_browser(tmp_path / "p.html")
    pointed = re.search(r'id="said">[^<]*cell: ([^<;]*);', page)
    assert pointed is not None
    assert pointed[1] != "learning_rate 1, density 2 %"  # the one that is shown at first
    assert page.count(f">{pointed[1]}<") == 1
    assert len(re.findall(r'class="mark-line role-mark[^"]*"', page)) >= 1
