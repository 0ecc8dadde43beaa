"""Networks trained elsewhere: a temperature family, checked before any work, not needed once taken in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

import regimes
from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.synthetic import synthetic
from regimes.experiment.run import Result
from regimes.models.build import build
from regimes.training.train import train

Sweep = dict[str, Any]
Run = Callable[..., Result]


def trained_elsewhere(tiny: Sweep, folder: Path) -> list[dict[str, Any]]:
    """Checkpoints as training scripts write them: plain, wrapped, from several devices, in safetensors."""
    from safetensors.torch import save_file

    data = synthetic(**{key: value for key, value in tiny["data"].items() if key != "name"})
    options = {key: value for key, value in tiny["model"].items() if key != "name"}
    recipe = Recipe(epochs=3, batch_size=32, augment="none")
    entries = []
    for number, epochs in enumerate((1, 2, 3, 400)):  # beyond any recipe's horizon: it was trained elsewhere
        model = build("mlp", options, data.input_shape, data.classes, 0)
        list(train(model, data, recipe, ("elsewhere",), [min(epochs, 3)]))
        state = {name: each.clone() for name, each in model.state_dict().items()}
        path = folder / (f"{epochs}.safetensors" if number == 3 else f"{epochs}.pt")
        if number == 3:
            save_file(state, path)
        else:
            several = {f"module.{name}": each for name, each in state.items()}
            torch.save([state, {"state_dict": state, "epoch": 2}, {"model": several}][number], path)
        entries.append({"path": str(path), "epochs": epochs})
    return entries


def test_checkpoints_are_a_temperature_family(tiny: Sweep, run_tiny: Run, count: Counter[str], tmp_path: Path) -> None:
    del tiny["temperature"], tiny["dense_seeds"]
    tiny["dense"] = {"checkpoints": trained_elsewhere(tiny, tmp_path)}
    result = run_tiny(tiny)
    assert count["given"] == 4
    assert count["train"] == 0
    record = regimes.open(result.folder)
    assert record.epochs.values.tolist() == [1, 2, 3, 400]
    assert bool((record.status == 1).all())
    assert record.dense_test_error.notnull().all()
    assert float(record.dense_test_error[2].item()) == float(record.dense_test_error[3].item())  # the same weights
    count.clear()
    (tmp_path / "1.pt").write_bytes((tmp_path / "2.pt").read_bytes())  # another network under the same name
    run_tiny(tiny)
    assert count == {"given": 1, "prune": 2, "retrain": 4, "measure": 8}
    count.clear()
    run_tiny({**tiny, "load": {"density": [0.2, 0.6], "schedule": "iterative", "rounds": 2}})
    assert count["given"] == count["train"] == 0


def test_checkpoints_that_do_not_fit_say_so_before_any_work(tiny: Sweep, run_tiny: Run, tmp_path: Path) -> None:
    del tiny["temperature"], tiny["dense_seeds"]
    entries = trained_elsewhere(tiny, tmp_path)

    def refused(line: str, *changed: dict[str, Any], **more: Any) -> None:
        with pytest.raises(UserError, match=line):
            run_tiny({**tiny, "dense": {"checkpoints": list(changed)}, **more})

    refused("no/such.pt: cannot be read", {"path": "no/such.pt", "epochs": 1})
    (tmp_path / "text.pt").write_text("no weights")
    refused("text.pt: cannot read weights", {"path": str(tmp_path / "text.pt"), "epochs": 1})
    torch.save({"weights": 3}, tmp_path / "number.pt")
    refused("number.pt: no state dict", {"path": str(tmp_path / "number.pt"), "epochs": 1})
    refused("has shape .*check .model. and the number", entries[0], model={**tiny["model"], "widths": [12, 13]})
    refused("does not fit the model: it lacks", entries[0], model={**tiny["model"], "widths": [12, 12, 12]})
    refused("2 checkpoints for dense_seed = 0, epochs = 1", entries[0], entries[0])
    refused("0 checkpoints for dense_seed = 0, epochs = 2", entries[0], {**entries[1], "dense_seed": 1})
    refused("values of the same knobs", entries[0], {"path": entries[1]["path"]})
    refused("epoch: unknown knob 'epoch' .did you mean 'epochs'", {"path": entries[0]["path"], "epoch": 1})
    refused("already given by .dense. checkpoints", entries[0], temperature={"epochs": [1]})
    refused("not available with .dense. checkpoints", entries[0], load={"density": [0.5], "rewind": 1})


def test_checkpoints_are_seen_and_may_go_once_they_are_taken_in(
    tiny: Sweep, run_tiny: Run, cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    del tiny["temperature"], tiny["dense_seeds"]
    tiny["dense"] = {"checkpoints": trained_elsewhere(tiny, tmp_path)[:2]}
    result = run_tiny(tiny)
    said = cli("status", result.folder)
    assert said.returncode == 0, said.stderr
    assert "given    2 ok" in said.stdout
    for file in tmp_path.glob("*.pt"):
        file.unlink()
    assert not run_tiny(tiny).progress.todo
    grown = run_tiny({**tiny, "load": {"density": [0.2, 0.6, 0.4]}})
    assert not grown.progress.todo
    for seeds in ([0, 20240101], [1, 2]):
        entries = [{"path": "x.pt", "epochs": 1, "dense_seed": seed} for seed in seeds]
        with pytest.raises(UserError, match="dense_seed must count 0, 1, 2"):
            resolve_sweep({**tiny, "dense": {"checkpoints": entries}})
    with pytest.raises(UserError, match="a single value in each checkpoint"):
        resolve_sweep({**tiny, "dense": {"checkpoints": [{"path": "x.pt", "epochs": [1]}]}})


def test_patterns_find_values_and_seeds_by_the_numbers_in_names(tiny: Sweep, run_tiny: Run, tmp_path: Path) -> None:
    """Values are those in the names, in any order of the list; seeds are in natural order, 9 before 10."""
    del tiny["temperature"], tiny["dense_seeds"]
    for rate in ("0.1", "0.01", "1.0"):
        (tmp_path / f"lr{rate}").mkdir()
        for seed in (10, 9):
            (tmp_path / f"lr{rate}/seed{seed}.pt").write_text("")
    entry = {"path": "lr*/seed*.pt", "learning_rate": [1.0, 0.01, 0.1]}
    sweep = resolve_sweep({**tiny, "dense": {"checkpoints": [entry]}}, folder=tmp_path)
    assert sweep.dense_seeds == 2
    assert sweep.checkpoint({"learning_rate": 0.01}, 0) == str(tmp_path / "lr0.01/seed9.pt")
    assert sweep.checkpoint({"learning_rate": 1.0}, 1) == str(tmp_path / "lr1.0/seed10.pt")
    single = [{"path": f"lr{rate}/*.pt", "learning_rate": rate} for rate in (0.1, 0.01)]
    apart = resolve_sweep({**tiny, "dense": {"checkpoints": single}}, folder=tmp_path)
    assert apart.checkpoint({"learning_rate": 0.1}, 1) == str(tmp_path / "lr0.1/seed10.pt")

    def refused(line: str, **entry: Any) -> None:
        with pytest.raises(UserError, match=line):
            resolve_sweep({**tiny, "dense": {"checkpoints": [entry]}}, folder=tmp_path)

    refused("no file matches 'x.*'", path="x*", learning_rate=0.1)
    refused(
        r"no \* stands for learning_rate = \[0.1, 0.2\], but for 0.01, 0.1, 1.0; 9, 10",
        **{**entry, "learning_rate": [0.1, 0.2]},
    )
    refused("remove dense_seed", **entry, dense_seed=1)
    (tmp_path / "lr0.1/seed9.pt").unlink()
    refused("2 with learning_rate = 1.0, 2 with learning_rate = 0.01, 1 with learning_rate = 0.1", **entry)


def test_pruned_checkpoints_are_retrained_with_the_optimiser_they_came_from(
    tiny: Sweep, run_tiny: Run, tmp_path: Path
) -> None:
    del tiny["temperature"], tiny["dense_seeds"]
    tiny["dense"] = {"checkpoints": trained_elsewhere(tiny, tmp_path)[:1]}
    tiny["load"]["density"] = [0.6]
    tiny["recipe"] |= {"optimizer": "adamw", "learning_rate": 0.01, "momentum": 0.9}
    assert resolve_sweep(tiny).retrain.optimizer == "adamw"
    errors = {
        name: regimes.open(run_tiny({**tiny, **more}, name).folder).test_error.values.tolist()
        for name, more in {
            "inherited": {},
            "same": {"retrain": {"optimizer": "adamw"}},
            "sgd": {"retrain": {"optimizer": "sgd"}},
        }.items()
    }
    assert errors["inherited"] == errors["same"] != errors["sgd"]


def tied(input_shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """A network with one weight in two layers."""
    model = torch.nn.Sequential(torch.nn.Linear(*input_shape, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, classes))
    model.insert(2, torch.nn.Linear(8, 8))
    model[2].weight = model[1].weight
    return model


def test_tied_weights_are_taken_in_and_a_diverged_network_is_a_result(
    tiny: Sweep, run_tiny: Run, tmp_path: Path
) -> None:
    del tiny["temperature"], tiny["dense_seeds"]
    weights = build("test_pretrained:tied", {}, (8,), 4, 0).state_dict()
    torch.save(weights, tmp_path / "1.pt")
    torch.save({name: each * torch.nan for name, each in weights.items()}, tmp_path / "2.pt")
    tiny["dense"] = {"checkpoints": [{"path": str(tmp_path / f"{number}.pt"), "epochs": number} for number in (1, 2)]}
    tiny["model"] = {"name": "test_pretrained:tied"}
    with pytest.warns(UserWarning, match="2.pt: the network's outputs are not finite; has its training diverged"):
        result = run_tiny(tiny)
    assert not result.progress.failed
    assert regimes.open(result.folder).status.squeeze("dense_seed").values.tolist() == [[1, 1], [2, 2]]
