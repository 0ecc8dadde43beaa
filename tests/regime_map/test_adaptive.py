"""Adaptive sweeps: the same rounds wherever they are run, killed or not; fewer cells for the same map."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import TINY, done, write_toml

from regimes import UserError
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment.store import Store
from regimes.plots.run_info import run_facts
from regimes.regime_map import ROUNDS_FILE
from regimes.regime_map.acquisition import MapKnowledge, converged, first_cells, next_cells
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.run_adaptive import run_adaptive
from regimes.regime_map.transition import transition
from regimes.research.studies.adaptive_replay import mask_unmeasured, random_cells, replay_adaptive
from regimes.research.studies.synthetic_grids import NOISES, synthetic_grid

SWEEP = {
    **TINY,
    "dense_seeds": 2,
    "retrain_seeds": 2,
    "temperature": {"learning_rate": [0.02, 0.1, 0.5]},
    "load": {"density": [0.05, 0.2, 0.8]},
    "measure": {"metrics": ["error", "lmc", "cka"]},
}


def rounds(folder: Path) -> list[list[dict[str, float]]]:
    found: list[list[dict[str, float]]] = json.loads((folder / ROUNDS_FILE).read_text())["content"]["rounds"]
    return found


def named(data: xr.Dataset) -> np.ndarray:
    return transition(MeasuredGrid.of(data), {}).probability.argmax(1)


def test_the_first_round_spreads_over_the_grid() -> None:
    data, _ = synthetic_grid("diagonal", NOISES["usual"], 0.12, 0)
    places = MeasuredGrid.of(data).places
    chosen = first_cells(places, 3)
    assert len({place for place, _ in chosen}) == len(chosen)
    assert {seed for _, seed in chosen} == {0, 1, 2}
    quarters = {tuple((places[place] > 0.5).astype(int)) for place, _ in chosen}
    assert len(quarters) == 4


def test_rounds_hold_cells_that_are_not_measured_until_none_is_left() -> None:
    data, _ = synthetic_grid("diagonal", NOISES["usual"], 0.12, 0, (4, 4), 2)
    seen: set[tuple[int, int]] = set()
    sizes = []
    for cells, grid, _ in replay_adaptive(data, 5):
        shown = np.isfinite(MeasuredGrid.of(grid).seeds("lmc"))
        now = set(zip(*np.nonzero(shown), strict=True))
        assert seen < now
        assert len(now) == cells
        sizes.append(cells - len(seen))
        seen = now
    assert len(seen) == 32
    assert all(size == 5 for size in sizes[1:-1])


def test_cells_go_where_the_border_is_uncertain() -> None:
    data, truth = synthetic_grid("level", NOISES["usual"], 0.01, 0, (9, 9), 3)
    start = mask_unmeasured(data, first_cells(MeasuredGrid.of(data).places, 3))
    cells, known = next_cells(start, 12, 3)
    columns = np.array([place % 9 for place, _ in cells])
    border = (truth == 0).sum(1).mean() - 0.5
    assert np.abs(columns - border).mean() < np.abs(np.arange(9) - border).mean()
    assert known.wrong > 0


def test_a_third_of_the_cells_names_them_as_well_as_all() -> None:
    """On average over maps; on the one without regime I, 5 % more of the cells are wrong."""
    ours, whole, chance = [], [], []
    for shape, seed in itertools.product(("diagonal", "curved", "no I"), range(5)):
        data, truth = synthetic_grid(shape, NOISES["usual"], 0.04, seed, (9, 9), 3)
        for cells, grid, _ in replay_adaptive(data, 12):
            if cells + 12 > 81:
                ours.append((named(grid) == truth.reshape(-1)).mean())
                chance.append((named(random_cells(data, cells, seed)) == truth.reshape(-1)).mean())
                break
        whole.append((named(data) == truth.reshape(-1)).mean())
    assert np.mean(ours) > np.mean(whole) - 0.035
    assert np.mean(ours) > np.mean(chance)
    assert (np.mean(np.reshape(ours, (3, 5)), 1) > np.mean(np.reshape(chance, (3, 5)), 1) - 0.02).all()


def test_known_once_is_not_enough() -> None:
    good, bad = MapKnowledge(0.0, 0.0), MapKnowledge(0.5, 0.5)
    assert not converged([good])
    assert not converged([good, bad, good])
    assert converged([bad, good, good])


def test_a_run_that_is_stopped_and_resumed_chooses_the_same_cells(tmp_path: Path) -> None:
    sweep = resolve_sweep(SWEEP)
    whole = run_adaptive(sweep, tmp_path / "whole", workers=0, engine="eager")
    part = run_adaptive(sweep, tmp_path / "part", workers=0, engine="eager", budget=9)
    assert part.cells[0] == 9
    assert not part.converged
    resumed = run_adaptive(sweep, tmp_path / "part", workers=0, engine="eager", budget=9)
    assert resumed.cells == part.cells
    for folder in ("whole", "part"):
        for each in (tmp_path / folder / "records").rglob("*.json"):
            assert (tmp_path / "whole" / "records" / each.parent.name / each.name).exists()
    first, second = rounds(tmp_path / "whole"), rounds(tmp_path / "part")
    assert first[0] == second[0]
    assert second[1] == first[1][: len(second[1])]
    assert whole.cells[1] == 18
    assert whole.converged or whole.cells[0] == 18


def test_killed_in_the_middle_it_goes_on_with_the_same_cells(tmp_path: Path) -> None:
    file = write_toml(tmp_path / "tiny.toml", SWEEP)
    command = [str(Path(sys.executable).with_name("regimes")), "run", str(file), "--adaptive", "--workers", "1"]
    command += ["--engine", "eager", "--out"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    killed = 0
    for wanted in (20, 70):
        process = subprocess.Popen([*command, "part"], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "part").glob("records/*/*.json"))) < wanted:
            time.sleep(0.01)
        killed += process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed >= 1
    last = subprocess.run([*command, "part"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "of 18 cells in" in last.stdout
    assert rounds(tmp_path / "part") == rounds(tmp_path / "whole")
    assert done(Store(tmp_path / "part")) == done(Store(tmp_path / "whole"))


def test_what_an_adaptive_run_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the metrics lmc and cka; add lmc, cka"):
        run_adaptive(resolve_sweep({**SWEEP, "measure": {"metrics": ["error"]}}), tmp_path / "a", workers=0)
    with pytest.raises(UserError, match="--budget 2: less than the 8 cells of the first round"):
        run_adaptive(resolve_sweep(SWEEP), tmp_path / "a", workers=0, budget=2)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ROUNDS_FILE).write_text("{")
    with pytest.raises(UserError, match="truncated or not a record; remove it"):
        run_adaptive(resolve_sweep(SWEEP), tmp_path / "a", workers=0)


def test_a_sweep_elsewhere_with_a_model_beside_it_keeps_its_origin(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    source = "from torch import nn\n\n\ndef net(input_shape, classes):\n"
    source += "    return nn.Sequential(nn.Linear(*input_shape, 9), nn.ReLU(), nn.Linear(9, classes))\n"
    (tmp_path / "far/own_net.py").write_text(source)
    write_toml(tmp_path / "far/tiny.toml", {**SWEEP, "model": {"name": "own_net:net"}})
    command = [str(Path(sys.executable).with_name("regimes")), "run", "far/tiny.toml", "--adaptive", "--budget", "8"]
    said = subprocess.run([*command, "--workers", "1", "--out", "r"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "8 of 18 cells in" in said.stdout
    assert run_facts(tmp_path / "r")["file"] == "far/tiny.toml --adaptive"
