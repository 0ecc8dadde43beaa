"""Numbers as targets, and losses of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import xarray as xr

import regimes
from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.experiment.run import Result
from regimes.models.build import build
from regimes.training.train import train

Sweep = dict[str, Any]
Run = Callable[..., Result]


def curve(size: int = 300) -> Dataset:
    x = torch.linspace(-2, 2, size)[:, None]
    y = torch.sin(2 * x[:, 0])
    return Dataset.from_arrays(train=(x, y), test=(x[::3], y[::3]), title="sine")


def test_numbers_are_learnt(tmp_path: Path) -> None:
    data = curve()
    assert data.regression
    assert data.classes == 1
    assert data.train.targets.shape == (270, 1)
    model = build("mlp", {"widths": [32, 32]}, (1,), 1, 0)
    recipe = Recipe(epochs=60, batch_size=32, learning_rate=0.05, loss="mse", augment="none", schedule="cosine")
    (end,) = train(model, data, recipe, ("test",), [60])
    assert end.history[-1]["test_error"] < 0.05 < end.history[0]["test_error"]


MINE = """
import torch
from regimes import Dataset

def data():
    x = torch.linspace(-2, 2, 300)[:, None]
    return Dataset.from_arrays(train=(x, torch.sin(2 * x[:, 0])), test=(x[::3], torch.sin(2 * x[::3, 0])), title="sine")

def huber(outputs, targets):
    return torch.nn.functional.huber_loss(outputs, targets)
"""


MINE_TOML = """
retrain_seeds = 2
[data]
name = "mine:data"
[model]
name = "mlp"
widths = [16, 16]
[recipe]
epochs = 5
batch_size = 32
loss = "{loss}"
augment = "none"
[temperature]
learning_rate = [0.01, 0.05]
[load]
density = [0.2, 0.6]
[measure]
metrics = ["error", "lmc", "cka", "hessian_trace"]
{cka}
"""


def test_regression_is_swept_and_mapped(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    file = tmp_path / "sine.toml"
    file.write_text(MINE_TOML.format(loss="cross-entropy", cka=""))
    said = cli("plan", file)
    assert said.returncode == 2
    assert "'sine' has numbers as targets; try 'mse'" in said.stderr
    file.write_text(MINE_TOML.format(loss="mine:huber", cka=""))
    said = cli("plan", file)
    assert said.returncode == 2
    assert "set cka = { on = 'logits' }" in said.stderr
    file.write_text(MINE_TOML.format(loss="mine:huber", cka="cka = { on = 'logits' }"))
    assert cli("run", file, "--workers", 0).returncode == 0
    record = regimes.open(tmp_path / "runs" / "sine")
    assert bool((record.status == 1).all())
    assert {record[name].units for name in ("test_error", "lmc", "train_loss", "hessian_trace")} == {"loss"}
    drawn = cli("map", "runs/sine", "--out", "map")
    assert drawn.returncode == 0, drawn.stderr
    (tmp_path / "mine.py").write_text(MINE.replace("huber_loss", "mse_loss"))  # an edited loss makes new cells
    plan = cli("plan", file)
    assert "8 retrained copies  done      0   to do      8" in plan.stdout


def test_smoothing_is_for_cross_entropy(tiny: Sweep) -> None:
    tiny["recipe"] |= {"loss": "mse", "label_smoothing": 0.1}
    with pytest.raises(UserError, match="label_smoothing: needs loss = 'cross-entropy'"):
        resolve_sweep(tiny)
    tiny["recipe"] = {"epochs": 4, "batch_size": 32, "loss": "mean-error"}
    with pytest.raises(
        UserError, match=r"recipe.loss: unknown loss 'mean-error'.*allowed: binary-cross-entropy, cross-entropy, mse"
    ):
        resolve_sweep(tiny)


def test_targets_of_two_kinds_are_refused() -> None:
    x = torch.zeros(20, 2)
    with pytest.raises(UserError, match="targets of different kinds"):
        Dataset.from_arrays(
            train=(x, torch.rand(20)), test=(x, torch.rand(20, 2)), title="mixed", val=(x, torch.rand(20))
        )
    with pytest.raises(UserError, match="must be finite"):
        Dataset.from_arrays(train=(x, torch.full((20,), torch.nan)), test=(x, torch.rand(20)), title="holes")
    assert not synthetic().regression


def test_losses_are_tried_before_any_work(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    for loss, line in (
        ("torch.nn:CrossEntropyLoss", "raised RuntimeError"),
        ("torch.nn.functional:mse_loss", "raised RuntimeError"),
        ("torch.nn.functional:softmax", "raised"),
        ("torch:is_tensor", "raised TypeError"),
    ):
        with pytest.raises(UserError, match=f"retrain.loss = '{loss}' {line}"):
            run_tiny({**tiny, "retrain": {"loss": loss}})
    assert not count


def test_regimes_do_not_depend_on_the_unit_of_the_targets() -> None:
    coords = {"learning_rate": [0.1, 0.2, 0.4], "density": [0.1, 0.2, 0.4, 0.8]}
    random = torch.Generator().manual_seed(0)

    def grid(scale: float) -> xr.Dataset:
        random.manual_seed(0)
        noise = 0.002 * torch.randn(3, 4, 5, generator=random).numpy()
        lmc = noise + xr.DataArray([[-0.5, -0.4, 0, 0]] * 3).values[..., None]
        dims = ("learning_rate", "density", "pair")
        data = xr.Dataset(
            {
                "lmc": (dims, scale * lmc, {"units": "loss"}),
                "cka": (dims, 0.99 + 0 * lmc),
                "test_error": (dims, scale * (0.3 + noise), {"units": "loss"}),
            },
            coords,
        )
        return regimes.classify(data)

    small, large = grid(0.01), grid(100.0)
    assert (small.regime == large.regime).all()
    assert set(small.regime.values.ravel()) == {0, 2}
