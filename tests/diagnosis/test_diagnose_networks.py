"""`regimes.diagnose` and `regimes diagnose`: networks of one's own, and cells of a record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import regimes
from regimes.diagnosis.diagnose_cell import diagnose_cell
from regimes.diagnosis.network_diagnosis import diagnose_values
from regimes.models.build import build

ROOT = Path(__file__).parents[2]
INPUTS = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(120) % 3


def network(seed: int) -> torch.nn.Module:
    return build("mlp", {"widths": [8]}, (6,), 3, seed)


def command(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "from regimes.cli import main; main()"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, "diagnose", *words], capture_output=True, text=True, cwd=folder, env=env
    )


def test_two_networks_with_a_loader_and_unchanged() -> None:
    a, b = network(0), network(1)
    before = [weight.detach().clone() for weight in (*a.parameters(), *b.parameters())]
    loader = [(INPUTS[:60], TARGETS[:60]), (INPUTS[60:], TARGETS[60:])]
    result = regimes.diagnose([a, b], loader)
    assert all(torch.equal(x, y) for x, y in zip(before, (*a.parameters(), *b.parameters()), strict=True))
    assert {each.measure for each in result.evidence} == {"train_error", "train_loss", "lmc", "cka", "hessian_trace"}
    assert result.direction == ("hotter" if result.p_hotter >= 0.5 else "colder")
    assert all(0 <= value <= 1 for value in (result.p_hotter, result.p_wider, result.p_data, result.familiar))
    again = regimes.diagnose([a, b], (INPUTS, TARGETS))
    assert again.facts() == result.facts()
    assert "120 training images cannot show errors below 0.0083" in str(result)
    (lmc,) = (each for each in result.evidence if each.measure == "lmc")
    assert "not used" in str(lmc)


def test_one_network_and_a_curve() -> None:
    alone = regimes.diagnose([network(0)], (INPUTS, TARGETS))
    assert "one network alone" in str(alone)
    assert {each.measure for each in alone.evidence} == {"train_error", "train_loss", "hessian_trace"}
    pair = regimes.diagnose([network(0), network(1)], (INPUTS, TARGETS), curve=True)
    assert {"curve", "curve_peak"} <= {each.measure for each in pair.evidence}


def test_the_training_error_is_that_of_the_networks() -> None:
    a, b = network(0), network(1)
    result = regimes.diagnose([a, b], (INPUTS, TARGETS))
    (error,) = (each for each in result.evidence if each.measure == "train_error")
    with torch.no_grad():
        wrong = [(each(INPUTS).argmax(1) != TARGETS).double().mean().item() for each in (a, b)]
    assert error.value == pytest.approx(np.mean(wrong))
    assert error.stderr > 0


def test_few_images_make_a_training_error_of_zero_uncertain() -> None:
    default = regimes.Diagnosis.default()
    sure = diagnose_values(default, {"train_error": 0.0, "curve": 0.1}, {"train_error": 0.0})
    unsure = diagnose_values(default, {"train_error": 0.0, "curve": 0.1}, {"train_error": 0.01})
    assert sure.p_hotter > unsure.p_hotter > 0.2


def test_values_alone_agree_with_predict() -> None:
    default = regimes.Diagnosis.default()
    values = {"train_error": 0.05, "curve": 0.03, "hessian_trace": 400.0}
    one = diagnose_values(default, values)
    row = default.predict(xr.Dataset({name: ("row", [value]) for name, value in values.items()})).iloc[0]
    assert [one.p_hotter, one.p_wider, one.p_data, one.familiar] == pytest.approx(row.tolist())
    assert one.direction == "colder"


@pytest.mark.parametrize(
    ("models", "data", "message"),
    [
        ([], (INPUTS, TARGETS), "at least one network"),
        ([network(0)], (INPUTS, INPUTS[:, :1]), "a diagnosis is learnt from classifiers"),
        ([network(0)], (INPUTS * np.nan, TARGETS), "is not finite"),
    ],
)
def test_refusals(models: list[torch.nn.Module], data: tuple[torch.Tensor, torch.Tensor], message: str) -> None:
    with pytest.raises(regimes.UserError, match=message):
        regimes.diagnose(models, data)


def test_checkpoints_as_typed(tmp_path: Path) -> None:
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        torch.save(build("mlp", {"widths": [8]}, (1, 8, 8), 10, seed).state_dict(), tmp_path / name)
    words = ["a.pt", "b.pt", "--model", "mlp", "--data", "digits", "--set", "model.widths=[8]"]
    done = command(*words, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {"p_hotter", "p_wider", "p_data", "familiar", "direction", "evidence"} <= set(facts)
    assert facts["direction"] in ("hotter", "colder")
    shown = command(*words, folder=tmp_path)
    assert shown.stdout.startswith(facts["direction"])
    assert all(each["text"] in shown.stdout for each in facts["evidence"])


def test_a_cell_of_a_grid_as_typed() -> None:
    grid = str(ROOT / "reports/digits/grid.nc")
    done = command(grid, "--at", "batch_size=64", "--density", "0.05", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    measured = {each["measure"]: each["value"] for each in facts["evidence"]}
    assert "cka" not in measured
    data = xr.open_dataset(grid)
    cell = data["train_loss"].sel(batch_size=64, density=0.05, method="nearest").mean()
    assert measured["train_loss"] == pytest.approx(float(cell))
    assert "pruned" in " ".join(facts["notes"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--at", "batch_size=64"], 2, "--density"),
        (["--density", "0.05"], 2, "missing value for batch_size"),
        (["--density", "0.05", "--at", "batch_size=65"], 2, "was not measured"),
        (["--density", "0.05", "--at", "batch_size=6500"], 3, "was not measured"),
        (["--density", "0.05", "--at", "epochs=1"], 2, "no axis of this record"),
        (["--density", "0.05", "--model", "mlp"], 2, "checkpoints take --model"),
    ],
)
def test_questions_that_have_no_answer(words: list[str], code: int, message: str) -> None:
    done = command(str(ROOT / "reports/digits/grid.nc"), *words)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_checkpoints_need_a_model_and_a_cell_needs_a_learnt_measure() -> None:
    done = command("a.pt", "--data", "digits")
    assert (done.returncode, "--model is needed" in done.stderr) == (2, True)
    data = xr.Dataset({"lmc": (("batch_size", "density"), [[-0.1]])}, {"batch_size": [16], "density": [1.0]})
    with pytest.raises(regimes.UserError, match="has not learnt"):
        diagnose_cell(data, 1.0, {})
