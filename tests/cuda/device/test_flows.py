"""Whole commands on a GPU, as typed and with worker processes, compared with the same commands on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import done, write_toml
from PIL import Image

import regimes
from regimes.experiment.store import Store
from regimes.landscape import METRICS
from regimes.models.build import build

METRIC_NAMES = [name for name in METRICS if name != "lmc_matched"]  # matching needs minutes
SWEEP: dict[str, Any] = {
    "name": "flow",
    "retrain_seeds": 2,
    "model": {"name": "preresnet", "depth": 8, "width": 4},
    "recipe": {"epochs": 2, "batch_size": 16, "augment": "crop-flip"},
    "temperature": {"learning_rate": [0.02, 0.1]},
    "load": {"density": [0.3], "pruner": "snip", "allocation": "global"},
    "measure": {"metrics": METRIC_NAMES, "curve": {"epochs": 1, "images": 32}, "hessian": {"images": 32}},
}


def typed(folder: Path, *words: object) -> str:
    command = [str(Path(sys.executable).with_name("regimes")), *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images, which are held as bytes, and a sweep of them."""
    root, random = tmp_path_factory.mktemp("flow"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for number, name in enumerate("abc"):
            (root / "images" / split / name).mkdir(parents=True)
            for each in range(count):
                pixels = random.integers(0, 160, (8, 8, 3), dtype=np.uint8)
                pixels[..., number] += 95
                Image.fromarray(pixels).save(root / "images" / split / name / f"{each}.png")
    write_toml(root / "flow.toml", {**SWEEP, "data": {"name": "imagefolder", "root": str(root / "images")}})
    return root


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> xr.Dataset:
    typed(folder, "run", "flow.toml", "--out", "cpu", "--engine", "eager", "--workers", "1")
    return regimes.open(folder / "cpu")


@pytest.mark.parametrize("engine", ["eager", "graphed", "stacked"])
def test_run(folder: Path, on_cpu: xr.Dataset, engine: str) -> None:
    out = f"gpu-{engine}"
    few = [] if engine == "eager" else ["--set", 'measure.metrics=["error", "cka"]']
    typed(folder, "run", "flow.toml", *few, "--out", out, "--engine", engine, "--workers", "1", "--device", "cuda")
    found = regimes.open(folder / out)
    assert few or found.keys() == on_cpu.keys()
    for name in map(str, found):
        one, other = on_cpu[name].values, found[name].values
        if one.dtype.kind != "f":
            continue
        scale = max(1e-2, float(np.nanmax(np.abs(one), initial=0)))
        assert np.allclose(one, other, rtol=2e-2, atol=2e-3 * scale, equal_nan=True), (name, one, other)


def test_automatic_choice_and_resumption(folder: Path) -> None:
    few = ["--set", 'measure.metrics=["error"]', "--set", "temperature.learning_rate=[0.1]"]
    typed(folder, "run", "flow.toml", *few, "--out", "auto", "--workers", "2", "--device", "cuda")
    typed(folder, "run", "flow.toml", "--out", "auto", "--workers", "1", "--device", "cuda:0")
    info = Store(folder / "auto").run_info
    assert info is not None
    assert (info["numerics"]["device"], info["numerics"]["processor"]) == ("cuda", torch.cuda.get_device_name())


def test_two_devices(folder: Path) -> None:
    few = ["--set", 'measure.metrics=["error", "cka"]', "--engine", "graphed", "--lanes", "2"]
    plan = json.loads(typed(folder, "plan", "flow.toml", *few, "--device", "cuda,cuda:1", "--json"))
    assert (plan["workers"], plan["lanes"]) == (2, {"train": 2, "retrain": 2})
    typed(folder, "run", "flow.toml", *few, "--out", "one", "--workers", "0", "--device", "cuda:1")
    typed(folder, "run", "flow.toml", *few, "--out", "two", "--workers", "3", "--device", "cuda:0,cuda:1")
    assert done(Store(folder / "one")) == done(Store(folder / "two"))
    words = ["measure", "a.pt", "--model", "mlp", "--data", "digits", "--device", "cuda:0,cuda:1"]
    command = [str(Path(sys.executable).with_name("regimes")), *words]
    refused = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "regimes: --device cuda:0,cuda:1: one device is allowed here, e.g. --device cuda:0\n"


def test_measure_and_diagnose(folder: Path) -> None:
    paths = []
    for seed in (0, 1):
        paths.append(folder / f"{seed}.pt")
        torch.save(build("preresnet", {"depth": 8, "width": 4}, (3, 8, 8), 3, seed).state_dict(), paths[-1])
    for command in ("measure", "diagnose"):
        words = [command, *paths, "--model", "preresnet", "--data", "imagefolder", "--json"]
        words += ["--set", "model.depth=8", "--set", "model.width=4", "--set", f"data.root={folder / 'images'}"]
        one, other = (json.loads(typed(folder, *words, "--device", device)) for device in ("cpu", "cuda"))
        assert _close(one, other), (command, one, other)


def test_discover(folder: Path) -> None:
    write_toml(
        folder / "discover.toml",
        {
            "name": "smaller",
            "data": {"name": "imagefolder", "root": str(folder / "images")},
            "model": SWEEP["model"],
            "recipe": {"epochs": 2, "batch_size": 16},
            "discover": {"warm": 0.1, "ramp": 0.1},
        },
    )
    one, other = (
        json.loads(
            typed(folder, "discover", "discover.toml", "--out", f"discovered-{device}", "--device", device, "--json")
        )
        for device in ("cpu", "cuda")
    )
    assert _close(one, other), (one, other)


def test_search(folder: Path) -> None:
    write_toml(
        folder / "hpo.toml",
        {
            "name": "search",
            "trials": 6,
            "batch": 3,
            "final_seeds": 1,
            "data": {"name": "imagefolder", "root": str(folder / "images")},
            "model": {**SWEEP["model"], "width": 8},
            "recipe": {"epochs": 4, "batch_size": 16},
            "space": {"learning_rate": {"low": 0.001, "high": 1.0, "log": True}},
            "ladder": {"densities": [0.3], "reports": [0.5], "proxy_reports": []},
        },
    )
    found = json.loads(typed(folder, "hpo", "hpo.toml", "--out", "search", "--device", "cuda:0,cuda:1", "--json"))
    assert found["winner"]


def _close(one: Any, other: Any) -> bool:
    """Whether two JSON values agree but for times, names and rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _close(each, other[name]) for name, each in one.items() if "second" not in name
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float):
        return bool(np.isclose(one, other, rtol=2e-2, atol=1e-3, equal_nan=True))
    return isinstance(one, str) or bool(one == other)
