"""Discovery as a user asks for it: from a file, killed and resumed, in a sweep; mistakes get a line."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import write_toml
from safetensors.torch import load_file

import regimes
from regimes import UserError
from regimes.config.discovery_file import resolve_discovery
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment.atomic_files import write_checked
from regimes.experiment.run import Result
from regimes.experiment.run_discovery import PROGRESS, RECORD, context_of, run_task, tasks
from regimes.record.grid import check_grid, read_grid

Cli = Callable[..., subprocess.CompletedProcess[str]]

# A course that decides on structures even in a handful of steps.
THOROUGH = {"alpha": 0.3, "warm": 0.1, "ramp": 0.1, "fall": 0.2, "settle": 0.7, "drawn": 1.0}
ASKED: dict[str, Any] = {
    "name": "found",
    "seeds": 1,
    "data": {"name": "synthetic", "shape": [3, 8, 8], "train": 200, "test": 80, "spread": 2.0},
    "model": {"name": "preresnet", "depth": 8, "width": 4},
    "recipe": {"epochs": 8, "batch_size": 20, "learning_rate": 0.05, "augment": "none"},
    "discover": {"nu": [0.0, 0.3], **THOROUGH},
}


@pytest.fixture
def asked() -> dict[str, Any]:
    return copy.deepcopy(ASKED)


def numbers(folder: Path) -> dict[str, Any]:
    """All of a record that is no measured time."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())["content"]
    record["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]
    return {key: each for key, each in record.items() if not key.endswith("_seconds")}


def test_from_a_file_to_networks_and_pictures(cli: Cli, asked: dict[str, Any], tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "found.toml", asked)
    first = cli("discover", toml, "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert "nu 0.3, seed 0" in first.stdout
    assert "2 of 2 done" in first.stderr
    run = tmp_path / "runs/found"
    for nu in ("0", "0.3"):
        names = {each.name for each in (run / f"nu-{nu}-seed-0").iterdir()}
        assert names == {
            RECORD,
            "network.safetensors",
            "network.json",
            "network.pt2",
            "structure.png",
            "structure.svg",
        }
    assert (run / "front.png").exists()
    whole, small = (numbers(run / f"nu-{nu}-seed-0") for nu in ("0", "0.3"))
    assert whole["macs"] == whole["full_macs"] == small["full_macs"]
    assert small["macs"] < 0.9 * small["full_macs"]
    before = {each: each.stat().st_mtime_ns for each in run.rglob("*.safetensors")}
    again = json.loads(cli("discover", toml, "--json").stdout)
    assert [each["nu"] for each in again] == [0.0, 0.3]
    assert {each: each.stat().st_mtime_ns for each in run.rglob("*.safetensors")} == before
    alone = cli("discover", toml, "--out", tmp_path / "alone", "--set", "discover.nu=0.3")
    assert "epoch 8/8" in alone.stderr
    assert "units left: blocks.0.conv1" in alone.stdout
    assert numbers(tmp_path / "alone/nu-0.3-seed-0") == small  # whatever stood beside it, in whichever process
    other = cli("discover", toml, "--set", "recipe.epochs=7")
    assert other.returncode == 2
    assert "holds a different discovery; choose another --out" in other.stderr


KILLABLE = (
    "import sys, regimes.experiment.run_discovery as d; d.SAVE_INTERVAL = 0.0; import regimes.cli; regimes.cli.main()"
)


def test_killed_in_the_middle_it_finds_the_same_network(asked: dict[str, Any], tmp_path: Path) -> None:
    """kill -9, three times; no epoch that was noted is trained again."""
    asked |= {"seeds": 1, "recipe": {**asked["recipe"], "epochs": 30}}
    asked["discover"]["nu"] = 0.3
    toml = write_toml(tmp_path / "found.toml", asked)

    def command(out: str) -> list[str]:
        return [sys.executable, "-c", KILLABLE, "discover", str(toml), "--out", str(tmp_path / out)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    folder = tmp_path / "broken/nu-0.3-seed-0"
    note = folder / f"{PROGRESS}.json"
    for wanted in (3, 12, 22):  # before pressure, among removals, settled
        process = subprocess.Popen(command("broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (note.exists() and _epoch(note) >= wanted):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / RECORD).exists()
        assert _epoch(note) >= wanted
    out = subprocess.run(command("broken"), check=True, capture_output=True, text=True)
    assert "epoch 1/30" not in out.stderr
    assert numbers(folder) == numbers(tmp_path / "whole/nu-0.3-seed-0")
    one, two = (load_file(each / "network.safetensors") for each in (folder, tmp_path / "whole/nu-0.3-seed-0"))
    assert all(np.array_equal(one[name], two[name]) for name in {*one, *two})
    assert not list(folder.glob(f"{PROGRESS}*"))


def _epoch(note: Path) -> int:
    try:
        return int(json.loads(note.read_text())["content"]["epoch"])
    except (OSError, ValueError):
        return 0


def test_one_that_diverges_fails_alone(cli: Cli, asked: dict[str, Any], tmp_path: Path) -> None:
    """nu = 0.3 of a network whose loss explodes; what is done stays."""
    asked["recipe"] |= {"learning_rate": 1e6, "epochs": 3}
    toml = write_toml(tmp_path / "found.toml", asked)
    out = cli("discover", toml)
    assert out.returncode == 1
    assert "regimes: nu 0.3, seed 0: diverged in epoch 1: its loss was not finite; try a smaller" in out.stderr
    assert "Traceback" not in out.stderr


def test_workers_of_a_killed_command_end(asked: dict[str, Any], tmp_path: Path) -> None:
    asked["recipe"] |= {"epochs": 100_000}
    toml = write_toml(tmp_path / "found.toml", asked)
    command = [str(Path(sys.executable).with_name("regimes")), "discover", str(toml), "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)

    def alive() -> list[str]:
        told = subprocess.run(
            ["ps", "-o", "stat=", "-g", str(process.pid)], capture_output=True, text=True, check=False
        )
        return [each for each in told.stdout.split() if not each.startswith("Z")]  # an orphan waits for init to bury it

    def wait(until: Callable[[], bool]) -> None:
        limit = time.monotonic() + 100
        while not until() and time.monotonic() < limit:
            time.sleep(0.1)

    wait(lambda: len(alive()) >= 4)  # the command, two workers, their tracker
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait(lambda: not alive())
    assert alive() == []


@pytest.mark.parametrize(
    ("table", "key", "value", "line"),
    [
        ("discover", "nu", -1.0, "discover.nu: .*greater than or equal to 0"),
        ("discover", "nu", [0.1, 0.1], "discover.nu: duplicate value 0.1"),
        ("discover", "alpha", 1.5, "discover.alpha: .*less than or equal to 1"),
        ("discover", "nuu", 1.0, "discover.nuu: unknown key .did you mean 'nu'"),
        ("discover", "estimator", "curvy", "discover.estimator: unknown estimator 'curvy' .did you mean 'curved'"),
        ("discover", "settle", 0.1, "discover.settle: must be above warm \\+ ramp = 0.2, got 0.1"),
        ("model", "name", "resnett", "model.name: unknown model 'resnett' .did you mean 'resnet'"),
        ("recipe", "epochs", 0, "recipe.epochs"),
    ],
)
def test_mistakes_in_a_file_get_a_line(asked: dict[str, Any], table: str, key: str, value: Any, line: str) -> None:
    asked[table][key] = value
    with pytest.raises(UserError, match=line) as found:
        resolve_discovery(asked, "found.toml")
    assert all(each.startswith("found.toml: ") for each in found.value.lines)


def test_tables_that_are_missing_or_unknown(asked: dict[str, Any]) -> None:
    del asked["data"]
    asked |= {"discovery": {}, "seeds": 0}
    with pytest.raises(UserError) as found:
        resolve_discovery(asked)
    assert [line.split(": ")[1] for line in found.value.lines] == ["discovery", "data"]
    with pytest.raises(UserError, match="seeds: should be greater than or equal to 1, got 0"):
        resolve_discovery({**ASKED, "seeds": 0})


# -- in a sweep -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(asked: dict[str, Any]) -> dict[str, Any]:
    """Two temperatures, two pressures."""
    return {
        "name": "swept",
        "dense_seeds": 2,
        "retrain_seeds": 2,
        "data": asked["data"],
        "model": asked["model"],
        "recipe": asked["recipe"],
        "retrain": {"epochs": 2},
        "temperature": {"epochs": [4, 8]},
        "load": {"pruner": "discovered", "nu": [0.05, 0.5], "discover": THOROUGH},
        "measure": {"metrics": ["error", "lmc", "cka"]},
    }


def test_discovered_networks_stand_on_the_map(
    sweep: dict[str, Any], run_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    result = run_tiny(sweep)
    assert not result.progress.failed
    record = regimes.open(result.folder)
    assert record.lmc.dims == ("epochs", "nu", "dense_seed", "pair")
    assert record.kept.dims == ("epochs", "nu", "dense_seed")
    assert bool((record.kept.sel(nu=0.5) < record.kept.sel(nu=0.05)).sel(epochs=8).all())
    assert bool((record.status == 1).all())
    grid = read_grid(result.folder)
    np.testing.assert_allclose(grid.density, np.sort(record.kept.mean(["epochs", "dense_seed"])))
    for nu in (0.05, 0.5):
        density = float(record.kept.sel(nu=nu).mean())
        np.testing.assert_array_equal(grid.lmc.sel(density=density, method="nearest"), record.lmc.sel(nu=nu))
    labelled = regimes.classify(record)
    assert labelled.regime.dims == ("epochs", "density")
    regimes.draw_map(labelled, tmp_path / "map")
    page = (tmp_path / "map/README.md").read_text()
    assert "Networks are discovered, not pruned; nu (mean density): " in page
    assert {stage.kind for stage in result.stages} == {"train", "discover", "retrain", "measure"}
    again = run_tiny(sweep, "two", workers=2)
    xr.testing.assert_identical(record, regimes.open(again.folder))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"density": [0.1]}, "load.density: the load axis of pruner 'discovered' is nu"),
        ({"pruner": "magnitude", "density": [0.1]}, "load.nu: the load axis of pruner 'magnitude' is density"),
        ({"allocation": "uniform"}, "load.allocation: not allowed with pruner = 'discovered', got 'uniform'"),
        ({"rewind": 2}, "load.rewind: not allowed with pruner"),
        ({"nu": []}, "load.nu: must be a list"),
        ({"discover": {"nu": 0.3}}, "load.discover.nu: set load.nu instead"),
        ({"discover": {"alpha": 2.0}}, "load.discover.alpha"),
        ({"pruner": "discoverd"}, "load.density: missing"),
    ],
)
def test_load_axes_that_cannot_be_meant(sweep: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    sweep["load"] |= changes
    with pytest.raises(UserError, match=line):
        resolve_sweep(sweep)


def test_a_sweep_of_what_can_lose_nothing_is_refused_before_any_work(
    sweep: dict[str, Any], run_tiny: Callable[..., Result]
) -> None:
    sweep["model"], sweep["data"] = {"name": "mlp", "widths": []}, {"name": "synthetic", "shape": [8]}
    with pytest.raises(UserError, match="nothing in MLP can be removed"):
        run_tiny(sweep)


def test_pressures_that_give_one_density_stand_there_once() -> None:
    dims = ("epochs", "nu", "dense_seed")
    values = np.stack([np.full((2, 1), each) for each in (1.0, 1.0, 0.3)], axis=1)
    grid = xr.Dataset(
        {"kept": (dims, values), "lmc": (dims, -values / 10), "cka": (dims, values)},
        {"epochs": [1, 2], "nu": [0.0, 0.01, 1.0]},
    )
    with pytest.warns(UserWarning, match="nu 0.01 have the same density as others"):
        found = check_grid(grid, "grid.nc")
    assert found.density.values.tolist() == [0.3, 1.0]
    assert found.nu.values.tolist() == [1.0, 0.0]


def test_files_that_are_missing_or_truncated_are_made_again(asked: dict[str, Any], tmp_path: Path) -> None:
    asked["discover"]["nu"] = 0.3
    wanted = resolve_discovery(asked)
    context = context_of(wanted, "cpu", tmp_path)
    (task,) = tasks(wanted, tmp_path)
    first = run_task(task, context)
    (task.folder / "network.json").unlink()
    note = {"key": first["key"], "epoch": 3, "facts": {}}
    write_checked(task.folder / f"{PROGRESS}.json", note)
    (task.folder / f"{PROGRESS}.3.safetensors").write_bytes(b"torn")
    assert run_task(task, context)["test_error"] == first["test_error"]
    assert (task.folder / "network.json").exists()
    assert not list(task.folder.glob(f"{PROGRESS}*"))
