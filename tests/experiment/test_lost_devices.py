"""A device fault ends the worker that meets it, not the run: a new one does the stage again, or it fails in words."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import done, prepared, write_toml
from searches import planned, spec
from torch import nn

from regimes.experiment.engine_selection import select_engine
from regimes.experiment.run import Result
from regimes.experiment.store import Store
from regimes.hpo.fidelity_trainer import TrialJob
from regimes.models.mlp import MLP

Sweep = dict[str, Any]
Cli = Callable[..., subprocess.CompletedProcess[str]]
ILLEGAL = "CUDA error: an illegal memory access was encountered"
OWN = f"""
import torch
from regimes import Dataset
from regimes.models.mlp import MLP


def data():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Dataset.from_arrays(train=(x[:150], y[:150]), test=(x[150:], y[150:]), title="own")


def net(input_shape, classes, limit=0):
    model = MLP(input_shape, classes, [12])

    def hook(module, inputs):
        thin = module.training and float((module.body[1].weight == 0).double().mean()) > 0.5
        if thin or 0 < limit < len(inputs[0]):
            raise torch.AcceleratorError("{ILLEGAL}\\nCompile with `TORCH_USE_CUDA_DSA`")

    model.register_forward_pre_hook(hook)
    return model
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A sweep whose copies of low density meet a fault."""
    (tmp_path / "own.py").write_text(textwrap.dedent(OWN))
    sweep = {
        "name": "own",
        "dense_seeds": 1,
        "retrain_seeds": 1,
        "data": {"name": "own:data"},
        "model": {"name": "own:net"},
        "recipe": {"epochs": 2, "batch_size": 32, "augment": "none"},
        "temperature": {"epochs": [2]},
        "load": {"density": [0.2, 0.6]},
        "measure": {"metrics": ["error"]},
    }
    return write_toml(tmp_path / "own.toml", sweep)


def test_the_cell_of_a_fault_fails_with_its_cause_and_the_others_finish(cli: Cli, toml: Path, tmp_path: Path) -> None:
    out = cli("run", toml, "--workers", 2, "--engine", "eager")
    assert out.returncode == 1
    assert "Traceback" not in out.stderr
    assert out.stderr.count(f"cpu failed in a worker, which is replaced: {ILLEGAL}") == 1
    store = Store(tmp_path / "runs/own")
    (failure,) = (store.failure(path.stem) for path in (store.folder / "failures").iterdir())
    assert failure is not None
    assert failure["error"] == f"the worker process died 3 times on this stage: {ILLEGAL}"
    assert failure["at"]["density"] == 0.2
    assert f"on this stage: {ILLEGAL}" in cli("status", "runs/own").stdout
    kinds = [record[0] for record in done(store).values()]
    assert kinds == ["ok"] * 5  # the dense network, two masks, a copy and its measurement


@pytest.mark.parametrize(
    "words",
    [
        ["run", "own.toml", "--workers", "0", "--engine", "eager"],
        ["measure", "a.pt", "--model", "own:net", "--data", "own:data", "--set", "model.limit=20"],
    ],
)
def test_in_one_process_a_fault_is_one_line(cli: Cli, toml: Path, tmp_path: Path, words: list[str]) -> None:
    torch.save(MLP((8,), 2, [12]).state_dict(), tmp_path / "a.pt")
    out = cli(*words)
    assert out.returncode == 1
    lines = [line for line in out.stderr.splitlines() if line.startswith("regimes: ")]
    assert lines == [f"regimes: {ILLEGAL}; what is finished is kept: run the same command again"]
    assert "Traceback" not in out.stderr


def once_lost(input_shape: tuple[int, ...], classes: int, flag: str = "") -> MLP:
    """A network whose thirteenth step of training meets a fault, the first time that there is one."""
    model, steps = MLP(input_shape, classes, [12]), [0]

    def hook(module: nn.Module, inputs: Any) -> None:
        steps[0] += module.training
        if flag and steps[0] == 13 and not Path(flag).exists():
            Path(flag).touch()
            raise RuntimeError(ILLEGAL)

    model.register_forward_pre_hook(hook)
    return model


def test_what_a_fault_interrupts_is_done_again_with_the_same_bits(
    tiny: Sweep, run_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    flag = tmp_path / "met"
    tiny["model"] = {"name": "test_lost_devices:once_lost", "flag": str(flag)}
    with pytest.warns(UserWarning, match="cpu failed in a worker, which is replaced: CUDA error"):
        result = run_tiny(tiny, workers=1, engine="eager")
    assert flag.exists()
    assert not result.progress.todo
    assert not result.progress.failed
    assert done(Store(result.folder)) == done(Store(run_tiny(tiny, "again", engine="eager").folder))


class Lost(nn.Module):
    """A network that meets a fault in training."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(8, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError(ILLEGAL)
        out: torch.Tensor = self.head(inputs)
        return out


def test_a_fault_in_a_trial_of_engines_is_no_reason_for_eager(tiny: Sweep, tmp_path: Path) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    found.context.new_model = lambda seed: Lost((8,), 4)
    with pytest.raises(RuntimeError, match=ILLEGAL):
        select_engine(found.context, [found.sweep.recipe], 100)


def test_a_fault_is_no_failed_trial_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spec(trials=2, batch=2)
    _, runner = planned(asked)

    def lost(*_: object) -> Any:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr("regimes.hpo.fidelity_trainer.train_fleet", lost)
    with pytest.raises(RuntimeError, match=ILLEGAL):
        runner.trainer.run([TrialJob(asked.recipe, 0), TrialJob(asked.recipe, 1)], runner.stretches[0])
