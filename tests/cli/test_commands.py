"""The command line as a user types it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from conftest import write_toml

import regimes
from regimes.cli import app

Sweep = dict[str, Any]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def toml(tiny: Sweep, tmp_path: Path) -> Path:
    return write_toml(tmp_path / "tiny.toml", tiny)


COMMANDS = (
    "new",
    "plan",
    "run",
    "status",
    "clean",
    "export",
    "map",
    "advise",
    "diagnose",
    "measure",
    "discover",
    "hpo",
)


def test_help_lists_the_commands_and_imports_nothing_heavy(cli: Cli) -> None:
    out = cli("--help")
    assert out.returncode == 0
    assert re.findall(r"^│ (\w+)\s", out.stdout.partition("Commands")[2], flags=re.M) == list(COMMANDS)
    code = (
        "import sys, regimes.cli; sys.argv = ['regimes', '--help']\ntry: regimes.cli.main()\nexcept SystemExit: pass\n"
        "print(len(sys.modules), [name for name in ('torch', 'numpy', 'xarray', 'pydantic') if name in sys.modules])"
    )
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, _, heavy = light.stdout.strip().splitlines()[-1].partition(" ")
    assert heavy == "[]"
    assert int(modules) < 700  # imported modules stand for seconds, which depend on how busy the machine is


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_a_help_text(command: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert typer.main.get_command(app).commands[command].help  # type: ignore[attr-defined]
    assert [parameter.name for parameter in parameters if not getattr(parameter, "help", None)] == []


def test_the_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version").stdout.strip() == f"regimes {regimes.__version__}"
    assert importlib.metadata.version("regimes") == regimes.__version__


def test_from_sweep_file_to_phase_diagram(cli: Cli, toml: Path, tmp_path: Path) -> None:
    plan = json.loads(cli("plan", toml, "--json").stdout)
    assert (plan["cells"], plan["dense_trainings"], plan["done"]) == (4, 1, 0)
    assert plan["wall_seconds"] > 0
    assert plan["decay_product"] == pytest.approx([0.1 * 1e-4 * 10] * 2)  # 10 steps: half of four epochs of five
    assert "steps before the first decay: 0.0001\n" in cli("plan", toml).stdout
    assert not (tmp_path / "runs").exists()
    ran = cli("run", toml, "--workers", 2)
    assert ran.returncode == 0, ran.stderr
    assert "30 of 30 stages done" in ran.stdout
    assert "next: regimes map runs/tiny" in ran.stdout
    assert "done     16   to do      0" in cli("plan", toml).stdout
    assert "done      8   to do      8" in cli("plan", toml, "--set", "load.density=[0.2, 0.5]").stdout
    status = cli("status", "runs/tiny")
    assert "retrain  8 ok" in status.stdout
    assert json.loads(cli("status", "runs/tiny", "--json").stdout)["stages"]["measure"] == {"ok": 16}
    drawn = cli("map", "runs/tiny")
    assert drawn.returncode == 0, drawn.stderr
    for name in ("phase.png", "phase.svg", "lmc.png", "cka.svg", "test_error.png", "README.md", "grid.nc"):
        assert (tmp_path / "runs/tiny/map" / name).stat().st_size > 500
    page = (tmp_path / "runs/tiny/map/README.md").read_text()
    for expected in ("Hardware: ", "Versions: Python 3", "retrain: 8 stages", '"batch_size": 32', "Rule `transition`"):
        assert expected in page
    cut = cli("map", "runs/tiny", "--out", "cut", "--lmc", "-0.01", "--cka", "0.9", "--html")
    assert cut.returncode == 0, cut.stderr
    with xr.open_dataset(tmp_path / "cut/grid.nc", engine="h5netcdf") as data:
        assert data.regime.dtype == np.int8
        assert data.regime.attrs["given_lmc"] == -0.01
    assert "<html" in (tmp_path / "cut/page.html").read_text()
    assert "removed 14 weight files" in cli("clean", "runs/tiny").stdout
    assert "to do      0" in cli("plan", toml).stdout


def test_a_grid_from_elsewhere(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dims, shape = ("batch_size", "density"), (3, 4)
    lmc, cka = -0.3 * rng.random(shape), rng.random(shape)
    coords = {"batch_size": [512, 32, 128], "density": [0.1, 0.05, 0.2, 0.8]}
    xr.Dataset({"lmc": (dims, lmc), "cka": (dims, cka)}, coords).to_netcdf(tmp_path / "g.nc", engine="h5netcdf")
    drawn = cli("map", "g.nc")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "g-map/phase.png").exists()
    assert cli("map", "g-map/grid.nc", "--out", "again").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "none.toml"], "regimes: none.toml: no such sweep file"),
        (["plan", "."], "is a folder"),
        (["status", "nowhere"], "nowhere: no run in this folder"),
        (["map", "nowhere"], "nowhere: no such file or folder"),
        (["run", "."], ".: no run in this folder"),
        (["run", ".", "--set", "x=1"], ".: is a run folder; --out, --set and --adaptive need the sweep file instead"),
        (["clean", "nowhere"], "nowhere: no run in this folder"),
        (["run", "tiny.toml", "--device", "cuda"], "no CUDA device available; allowed here: cpu"),
        (["run", "tiny.toml", "--device", "tpu"], "--device tpu: 'tpu' is not a CPU or CUDA device; allowed here: cpu"),
        (["plan", "tiny.toml", "--device", "mps"], "sums are in float64, which MPS does not have; allowed here: cpu"),
        (["run", "tiny.toml", "--device", "cuda:0,cuda:1"], "no CUDA device available; allowed here: cpu"),
        (["run", "tiny.toml", "--device", ""], "'' is not a CPU or CUDA device; allowed here: cpu"),
        (["measure", "a.pt", "--model", "mlp", "--data", "synthetic", "--device", "xpu"], "'xpu' is not a CPU"),
        (
            ["diagnose", "a.pt", "--model", "mlp", "--data", "synthetic", "--device", "cuda:-1"],
            "'cuda:-1' is not a CPU",
        ),
        (["run", "tiny.toml", "--executor", "dask"], "--executor dask: unknown; allowed: processes, ray"),
        (
            ["run", "tiny.toml", "--address", "auto"],
            "--address and --gpus belong to --executor ray; add it, or leave them out",
        ),
        (["run", "tiny.toml", "--lanes", "0"], "--lanes 0: allowed: 1 to 64"),
        (["plan", "tiny.toml", "--lanes", "65"], "--lanes 65: allowed: 1 to 64"),
        (
            ["run", "tiny.toml", "--lanes", "8", "--engine", "eager"],
            "trained one by one, by the engine eager (chosen with",
        ),
        (["map", "tiny.toml"], "not a netCDF-4 file"),
        (["run", "tiny.toml", "--engine", "stackd"], "unknown engine 'stackd' (did you mean 'stacked'?)"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(cli: Cli, toml: Path, words: list[str], said: str) -> None:
    out = cli(*words)
    assert out.returncode == 2
    assert said in out.stderr
    assert "Traceback" not in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_mistakes_in_a_sweep_come_all_at_once(cli: Cli, tiny: Sweep, tmp_path: Path) -> None:
    tiny["load"]["densty"] = [1]
    tiny["model"]["name"] = "mpl"
    out = cli("plan", write_toml(tmp_path / "bad.toml", tiny))
    assert out.returncode == 2
    lines = out.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("regimes: ") and "bad.toml" in line for line in lines)
    assert "did you mean 'mlp'" in out.stderr


def test_a_model_that_does_not_fit_the_data_is_said_before_any_work(cli: Cli, tiny: Sweep, tmp_path: Path) -> None:
    tiny["model"] = {"name": "preresnet", "depth": 8}
    out = cli("run", write_toml(tmp_path / "x.toml", tiny))
    assert out.returncode == 2
    assert "needs images (c, h, w) or signals (c, length), the data has inputs of shape (8,)" in out.stderr
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_done_with_the_data_is_said_before_any_work(cli: Cli, tiny: Sweep, tmp_path: Path) -> None:
    tiny["recipe"]["augment"] = "crop-flip"
    out = cli("plan", write_toml(tmp_path / "x.toml", tiny))
    assert out.returncode == 2
    assert "recipe.augment = 'crop-flip' needs images (c, h, w), the data has shape (8,); use 'none'" in out.stderr
    tiny["recipe"] = {"batch_size": 500}
    out = cli("plan", write_toml(tmp_path / "x.toml", tiny))
    assert "batch size 500 is larger than the training set of 180 images" in out.stderr


def test_damaged_or_unwritable_run_files_get_a_line(cli: Cli, toml: Path, tmp_path: Path) -> None:
    assert cli("run", toml, "--workers", 0).returncode == 0
    layout = tmp_path / "runs/tiny/layout.json"
    layout.write_text(layout.read_text()[:100])
    for words in (["status", "runs/tiny"], ["map", "runs/tiny"], ["run", "runs/tiny"]):
        out = cli(*words)
        assert out.returncode == 2
        assert "layout.json: truncated or not a record; write it again with: regimes run" in out.stderr
    assert cli("run", toml, "--workers", 0).returncode == 0  # which writes it again
    assert cli("status", "runs/tiny").returncode == 0
    (tmp_path / "file").touch()
    out = cli("run", toml, "--out", "file/run")
    assert out.returncode == 2
    assert "Not a directory" in out.stderr
    assert "Traceback" not in out.stderr


OWN = """
import torch
from dataclasses import dataclass
from torch import nn
from regimes import Dataset, Estimate
from regimes.data.augment import Augmentation
from regimes.knobs import Knob
from regimes.landscape.metric import Metric, Variable

def data(n=120):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Dataset.from_arrays(train=(x[:80], y[:80]), test=(x[80:], y[80:]), title="mine")

def net(input_shape, classes, width=8):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, classes))

def steps(recipe, value):
    return {"label_smoothing": value}

smoothing = Knob("smoothing", "1", "label smoothing", "larger", float, 0.0, False, steps)
gentle = Augmentation(pad=0.0, flip=False)

def _norm(subjects, probe, options):
    return {"norm": Estimate(sum(float(p.norm()) for p in subjects[0].model.parameters()), 0.0, 1)}

@dataclass(frozen=True)
class Options:
    pass

norm = Metric("norm", "model", Options, "norm", {"norm": Variable("1", "weight norm")}, _norm, lambda o, n: 1.0)

def halves(candidate):
    return {name: torch.arange(w.numel(), dtype=torch.float).view_as(w) for name, w in candidate.weights.items()}
"""


def test_a_model_data_and_pruner_of_ones_own(cli: Cli, tiny: Sweep, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.py").write_text(OWN)
    tiny |= {"data": {"name": "own:data", "n": 150}, "model": {"name": "own:net", "width": 10}}
    tiny["recipe"] = {"epochs": 4, "batch_size": 16, "augment": "own:gentle"}
    tiny["load"] |= {"pruner": "own:halves"}
    tiny["temperature"] = {"own:smoothing": [0.0, 0.1]}
    tiny["measure"]["metrics"].append("own:norm")
    file = write_toml(tmp_path / "mine/s.toml", tiny)
    ran = cli("run", file, "--workers", 2)
    assert ran.returncode == 0, ran.stderr
    record = regimes.open(tmp_path / "runs/tiny")
    assert record.sizes["smoothing"] == 2
    assert (record["norm"] > 0).all()
    drawn = cli("map", "runs/tiny")
    assert drawn.returncode == 0, drawn.stderr
    for _ in range(2):  # what stands beside the sweep file is found from the run's folder, again and again
        assert cli("clean", "runs/tiny").returncode == 0
        assert cli("run", "runs/tiny", "--workers", 0).returncode == 0
    (tmp_path / "mine/own.py").write_text(OWN.replace("Tanh", "ReLU"))
    plan = json.loads(cli("plan", file, "--json").stdout)
    assert plan["done"] == 0  # another network, other cells
    tiny["model"]["widht"] = 3
    out = cli("plan", write_toml(tmp_path / "mine/t.toml", tiny))
    assert "model.widht: unknown key (did you mean 'width'?); allowed: name, width" in out.stderr


def test_failures_are_seen_at_once_kept_and_retried(cli: Cli, tiny: Sweep, tmp_path: Path) -> None:
    flaky = OWN + "\nimport os, sys\ndef bad(candidate):\n"  # fails in the run, though not when it is tried
    flaky += "    in_worker = 'regimes.experiment.worker' in sys.orig_argv\n"
    flaky += "    if in_worker and not os.path.exists('mended'): raise ValueError('no luck')\n"
    flaky += "    return halves(candidate)\n"
    (tmp_path / "flaky.py").write_text(flaky)
    tiny["load"] |= {"pruner": "flaky:bad"}
    file = write_toml(tmp_path / "s.toml", tiny)
    ran = cli("run", file, "--workers", 1)
    assert ran.returncode == 1
    assert "failed: prune epochs=2 dense_seed=0 density=0.2: ValueError: no luck" in ran.stderr
    assert "retry with: regimes run runs/tiny --retry-failed" in ran.stderr
    assert "Traceback" not in ran.stderr
    stages = json.loads(cli("plan", file, "--json").stdout)["stages"]
    assert stages["prune"] == {"all": 4, "done": 0, "todo": 0}
    assert stages["measure"] == {"all": 16, "done": 0, "todo": 0}
    fast = cli("run", file, "--fail-fast", "--out", "fast", "--workers", "1")
    assert fast.returncode == 1
    assert fast.stderr.count("failed: prune") == 1
    status = cli("status", "runs/tiny").stdout
    assert "prune    4 failed" in status
    assert "ValueError: no luck" in status
    assert cli("run", file, "--workers", 1).returncode == 1
    (tmp_path / "mended").touch()
    again = cli("run", "runs/tiny", "--retry-failed", "--workers", 1)
    assert again.returncode == 0, again.stderr
    assert "30 of 30 stages done" in again.stdout


@pytest.mark.parametrize(
    ("table", "key", "value", "said"),
    [
        (
            "model",
            "dropout",
            2.0,
            "[model] name = 'mlp' raised ValueError: dropout probability has to be between 0 and 1",
        ),
        ("model", "widths", ["8"], "model.widths.0: should be a valid integer, got '8'"),
        ("data", "train", -5, "[data] name = 'synthetic' raised"),
        ("data", "shape", "x", "data.shape: should be a valid array, got 'x'"),
    ],
)
def test_options_that_do_not_fit_are_said_before_any_work(
    cli: Cli, tiny: Sweep, tmp_path: Path, table: str, key: str, value: Any, said: str
) -> None:
    tiny[table][key] = value
    out = cli("run", write_toml(tmp_path / "x.toml", tiny))
    assert out.returncode == 2
    assert said in out.stderr
    assert "Traceback" not in out.stderr
