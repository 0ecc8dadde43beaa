"""Sweeps over models whose layers are pruned in another way, or not: done, said in plan and record, or refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_toml

import regimes
from regimes import UserError
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment.run import Result, prepare
from regimes.registry import allow_imports_from

Sweep = dict[str, Any]

OWN = """
import torch
import regimes
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

def tokens(n=120):
    x = torch.randint(0, 10, (n, 4), generator=torch.Generator().manual_seed(0))
    return regimes.Dataset.from_arrays(train=(x, x[:, 0] % 3), test=(x, x[:, 0] % 3), title="tokens")

def words(input_shape, classes):
    return nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, classes))

def net(input_shape, classes, norm="spectral_norm"):
    apply = {"hook": spectral_norm}.get(norm) or getattr(parametrizations, norm)
    return nn.Sequential(apply(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, classes))


class Casts(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.first, self.head = nn.Linear(8, 6), nn.Linear(6, classes)

    def forward(self, inputs):
        return self.head(self.first(inputs.float()).relu())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("own")
    (found / "covered.py").write_text(OWN)
    allow_imports_from(str(found))
    return found


@pytest.fixture
def own(tiny: Sweep, folder: Path) -> Sweep:
    tiny["recipe"]["augment"] = "none"
    return {**tiny, "temperature": {"epochs": [2]}, "load": {"density": [0.2]}, "measure": {"metrics": ["error"]}}


@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm"])
def test_layers_under_a_norm_go_through_a_sweep(norm: str, own: Sweep, run_tiny: Callable[..., Result]) -> None:
    result = run_tiny({**own, "model": {"name": "covered:net", "norm": norm}})
    record = regimes.open(result.folder)
    assert (record["status"] == 1).all()
    assert record["kept"].values.flatten().tolist() == [pytest.approx(round(0.2 * 168) / 168)]
    assert record.attrs["prunable"].startswith("168 of ")


@pytest.mark.parametrize(("norm", "message"), [("hook", "old hook of spectral norm"), ("orthogonal", "_Orthogonal")])
def test_layers_that_cannot_be_pruned_are_refused_before_any_training(
    norm: str, message: str, own: Sweep, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(resolve_sweep({**own, "model": {"name": "covered:net", "norm": norm}}), tmp_path / "none")
    own["load"] = {"density": [0.02]}
    with pytest.raises(UserError, match=r"keeps 3 weights, .* 12 together"):
        prepare(resolve_sweep({**own, "model": {"name": "covered:net", "norm": "weight_norm"}}), tmp_path / "none")


def test_embeddings_are_pruned_on_request_and_plan_says_what_is(
    own: Sweep, folder: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    own |= {"data": {"name": "covered:tokens"}, "model": {"name": "covered:words"}}
    file = write_toml(folder / "words.toml", own)
    out = cli("plan", file)
    assert "  prunable: 192 of 287 weights; not: embeddings 60, head (4) 24, biases and norms 11\n" in out.stdout
    (facts,) = json.loads(cli("plan", file, "--json", "--set", "load.embeddings=true").stdout)["coverage"]
    assert (facts["prunable"], facts["left_out"]) == (252, {"head (4)": 24, "biases and norms": 11})
    out = cli("plan", file, "--set", "load.embeddings=true", "--set", "load.pruner='channels-random'")
    assert "load.embeddings: needs masks" in out.stderr


def test_embeddings_change_the_key_of_pruning_alone(own: Sweep, run_tiny: Callable[..., Result]) -> None:
    own |= {"data": {"name": "covered:tokens"}, "model": {"name": "covered:words"}}
    keys = []
    for embeddings in (False, True):
        for pruner in ("snip", "synflow"):
            own["load"] |= {"embeddings": embeddings, "pruner": pruner}
            result = run_tiny(own, f"{pruner} {embeddings}")
            record = regimes.open(result.folder)
            size = 192 + 60 * embeddings
            assert record["kept"].values.flatten().tolist() == [pytest.approx(round(0.2 * size) / size)]
            keys.append([stage.key for stage in result.stages if stage.kind in ("train", "prune")])
    assert len({dense for dense, _ in keys}) == 1
    assert len({pruned for _, pruned in keys}) == 4


def test_a_model_that_a_pruner_cannot_run_is_refused_before_any_training(own: Sweep, tmp_path: Path) -> None:
    own |= {"model": {"name": "covered:Casts"}, "load": {"density": [0.2], "pruner": "synflow"}}
    with pytest.raises(UserError, match=r"\[load\] pruner = 'synflow', .* raised RuntimeError"):
        prepare(resolve_sweep(own), tmp_path / "none")
