"""Warnings reach the terminal once, as one line, whatever the workers; torch's own matters do not."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_toml

from regimes.experiment.warning_lines import MOST, WorkerWarning, send_warnings

Cli = Callable[..., subprocess.CompletedProcess[str]]
RANDOM = "warning: Loud returns random outputs in eval mode"
MINE = """
import warnings
import torch
from torch import nn
from regimes.data.synthetic import synthetic


class OwnWarning(UserWarning):
    pass


class Loud(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)  # torch warns here
        self.first = nn.Linear(8, width)
        self.last = nn.Linear(width, classes)

    def forward(self, x):
        warnings.warn("of one's own,\\n on two lines", OwnWarning)
        torch._nested_tensor_from_tensor_list([x], None, None, None, None)  # torch warns here, too
        x = self.encoder(x[:, None])[:, 0]
        return self.last(nn.functional.dropout(self.first(x).relu(), 0.5, training=True))


def net(input_shape, classes, width=8):
    return Loud(width, classes)


class Plain(nn.Sequential):
    def forward(self, x):
        warnings.warn("of one's own,\\n on two lines", OwnWarning)
        return super().forward(x)


def plain(input_shape, classes):
    return Plain(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes))


def lazy(input_shape, classes):
    return nn.LazyLinear(classes)
"""


@pytest.fixture
def sweep(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "mine.py").write_text(MINE)
    tiny["model"] = {"name": "mine:net"}
    tiny["recipe"] |= {"epochs": 2, "augment": "none"}
    tiny["temperature"] = {"learning_rate": [0.01, 0.1]}
    tiny["load"] = {"density": [0.5]}
    tiny["measure"] = {"metrics": ["error", "lmc", "cka", "hessian_trace"]}
    return tiny


def warned(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # Python's own format, with file and source line
    return [line for line in done.stderr.splitlines() if "warning" in line.lower()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sweep_says_each_warning_once(workers: int, sweep: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    write_toml(tmp_path / "sweep.toml", sweep)
    own, network = sorted(warned(cli("run", "sweep.toml", "--workers", workers)), key=len)
    assert own == "warning: of one's own, on two lines"
    assert network.startswith(RANDOM)


@pytest.mark.parametrize("workers", [1, 2])
def test_searches_and_discoveries_say_each_warning_once(
    workers: int, sweep: dict[str, Any], cli: Cli, tmp_path: Path
) -> None:
    parts = {key: sweep[key] for key in ("data", "model", "recipe")}
    search = {"trials": 2, "batch": 1, "final_seeds": 1, **parts, "space": {"learning_rate": [0.01, 0.1]}}
    write_toml(tmp_path / "search.toml", {**search, "ladder": {"densities": []}, "study": {"pattern": "ladder"}})
    own, network = sorted(warned(cli("hpo", "search.toml", "--workers", workers)), key=len)
    assert own == "warning: of one's own, on two lines"
    assert network.startswith(RANDOM)
    discovery = {**parts, "model": {"name": "mine:plain"}, "discover": {"nu": [0.01, 0.02]}}
    write_toml(tmp_path / "found.toml", discovery)
    assert warned(cli("discover", "found.toml", "--workers", workers)) == ["warning: of one's own, on two lines"]


def test_checkpoints_say_that_outputs_are_random(sweep: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    code = "import torch, mine; torch.save(mine.net((8,), 4).state_dict(), 'a.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    data = [word for key, value in sweep["data"].items() if key != "name" for word in ("--set", f"data.{key}={value}")]
    done = cli("measure", "a.pt", "a.pt", "--model", "mine:net", "--data", "synthetic", *data, "--metrics", "lmc,cka")
    network, same = (line for line in warned(done) if "own" not in line)
    assert network.startswith(RANDOM)
    assert same == "warning: a.pt and a.pt hold the same weights"


def test_a_sweep_in_python_warns_as_usual(sweep: dict[str, Any], tmp_path: Path) -> None:
    """Workers' warnings are issued in the process that called `regimes.run`, under its own filters and classes."""
    write_toml(tmp_path / "sweep.toml", sweep)
    code = """
import warnings, regimes
before = warnings.showwarning
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("default")
    regimes.run("sweep.toml", "run", workers=2)
assert warnings.showwarning is before
print(*sorted({each.category.__name__ for each in found}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert {"NetworkWarning", "OwnWarning"} <= set(done.stdout.split()), done.stderr


def test_a_flood_of_different_warnings_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    sent: list[WorkerWarning] = []
    send_warnings(sent.append)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for number in range(2 * MOST):
            warnings.warn(f"loss is {number}", stacklevel=1)
            warnings.warn("Lazy modules are a new feature under heavy development", stacklevel=1)
    assert [each.text for each in sent[:2]] == ["loss is 0", "loss is 1"]
    assert len(sent) == MOST + 1
    assert "the others are not shown" in sent[-1].text


def test_unknown_classes_of_warnings_are_plain_ones() -> None:
    class Two(UserWarning):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one)

    with pytest.warns(UserWarning, match="text"):
        WorkerWarning("text", b"no pickle", "a.py", 1).issue({})
    with pytest.warns(UserWarning, match="text"):
        WorkerWarning("text", b"cbuiltins\nint\n.", "a.py", 1).issue({})


def test_lazy_layers_without_values_are_refused_in_one_line(sweep: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    sweep["model"] = {"name": "mine:lazy"}
    write_toml(tmp_path / "sweep.toml", sweep)
    done = cli("run", "sweep.toml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "call the model on an input" in done.stderr
