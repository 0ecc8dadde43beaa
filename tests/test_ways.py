"""Ways to a density: rounds, rewinding, whole channels; regression; a record for other tools."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
import torch
import torch_pruning
import xarray as xr
from conftest import SMALL, done
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regimes
from regimes import UserError
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.flow.lab import Lab, masked
from regimes.flow.retrain import Retrain
from regimes.flow.run import Result
from regimes.flow.store import Store
from regimes.models.build import build
from regimes.pruners.channels import fitted, shrink
from regimes.pruners.prune import prunable
from regimes.record.export import table
from regimes.spec.check import resolve
from regimes.spec.recipe import Recipe
from regimes.spec.sweep import Load
from regimes.training.train import train

Sweep = dict[str, Any]
Run = Callable[..., Result]


# -- rounds -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(density=st.floats(0.01, 0.9), rounds=st.integers(2, 20))
def test_the_way_goes_down_to_the_density(density: float, rounds: int) -> None:
    for schedule in ("iterative", "gradual"):
        way = Load(density=(density,), schedule=schedule, rounds=rounds).path(density)  # type: ignore[arg-type]
        assert len(way) == rounds
        assert way[-1] == density
        assert all(a > b for a, b in zip((1.0, *way), way, strict=False))
        steps = [a - b for a, b in zip((1.0, *way), way, strict=False)]
        ratios = [b / a for a, b in zip((1.0, *way), way, strict=False)]
        if schedule == "iterative":
            assert ratios == pytest.approx([density ** (1 / rounds)] * rounds)
        else:  # smaller and smaller, down to almost nothing
            assert all(a > b for a, b in itertools.pairwise(steps))
            assert steps[0] == pytest.approx((1 - density) * (1 - (1 - 1 / rounds) ** 3))


@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
@pytest.mark.parametrize("pruner", ["magnitude", "random", "snip", "channels-magnitude"])
def test_rounds_go_on_from_one_another(
    tiny: Sweep, run_tiny: Run, count: Counter[str], schedule: str, pruner: str
) -> None:
    tiny["load"] |= {"schedule": schedule, "rounds": 3, "pruner": pruner}
    tiny["model"]["widths"] = [24, 24]
    result = run_tiny(tiny)
    assert not result.progress.todo
    # For each of two temperatures and two densities: three masks, two rounds between, two copies.
    assert count == {"train": 2, "prune": 12, "retrain": 8 + 8, "measure": 16}
    record = regimes.open(result.folder)
    assert bool((record.status == 1).all())
    assert record.test_error.sizes["retrain_seed"] == 2
    wanted = xr.zeros_like(record.kept) + record.density
    assert float(abs(record.kept / wanted - 1).max()) < (0.3 if "channels" in pruner else 0.02)


def test_later_masks_lie_within_earlier_ones(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"] |= {"schedule": "iterative", "rounds": 3, "pruner": "random", "allocation": "lamp"}
    result = run_tiny(tiny)
    lab, store = Lab(_spec(result, tiny)), Store(result.folder)
    for stage in result.stages:
        if isinstance(stage, Retrain) and stage.pruned.after is not None:
            model = lab.new_model(0)
            inner = masked(lab, store, stage.pruned.key, model)
            outer = masked(lab, store, stage.pruned.after.pruned.key, model)
            assert inner is not None
            assert outer is not None
            assert inner.kept < outer.kept
            assert not any((inner.layers[n] & ~outer.layers[n]).any() for n in inner.layers)
            assert inner.holds(store.weights(stage.key))


def _spec(result: Result, sweep: Sweep) -> Any:
    from regimes.flow.prepare import prepare

    return prepare(resolve(sweep), result.folder).spec


def test_rounds_give_the_same_bits_with_any_number_of_workers(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"] |= {"schedule": "gradual", "rounds": 2, "rewind": 1}
    results = [done(Store(run_tiny(tiny, f"w{workers}", workers=workers).folder)) for workers in (0, 2)]
    assert results[0] == results[1]


@pytest.mark.parametrize("rewind", [0, 2])
def test_survivors_go_back_to_earlier_weights(
    tiny: Sweep, run_tiny: Run, rewind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[dict[str, Tensor]] = []
    tiny |= {"temperature": {"epochs": [4]}, "load": {"density": [0.5], "rewind": rewind}, "retrain_seeds": 2}
    from regimes.flow import retrain as retraining

    lane_of = retraining._lane

    def spy(*arguments: Any) -> Any:
        lane = lane_of(*arguments)
        began.append({name: each.clone() for name, each in lane.model.state_dict().items()})
        return lane

    monkeypatch.setattr(retraining, "_lane", spy)
    result = run_tiny(tiny)
    lab, store = Lab(_spec(result, tiny)), Store(result.folder)
    (dense,) = (stage for stage in result.stages if stage.kind == "train" and not stage.aside)
    if rewind:
        (aside,) = (stage for stage in result.stages if stage.kind == "train" and stage.aside)
        assert aside.key == f"{dense.key.partition('-')[0]}-e2"
        wanted = {name: each for name, each in store.weights(aside.key).items() if "momentum/" not in name}
    else:
        from regimes.spec.keys import seed_of

        wanted = dict(lab.new_model(seed_of("init", 0)).state_dict())
    assert all(torch.equal(began[0][name], each) for name, each in wanted.items())
    record = regimes.open(result.folder)
    assert record.dense_test_error.sizes == {"epochs": 1, "dense_seed": 1}


def test_a_snapshot_that_is_on_the_map_may_be_gone_back_to(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"]["rewind"] = 2  # itself one of the epochs
    record = regimes.open(run_tiny(tiny).folder)
    assert record.dense_test_error.notnull().all()
    assert bool((record.status == 1).all())


@pytest.mark.parametrize(
    ("load", "line"),
    [
        ({"rewind": 3}, "load.rewind: 3 lies beyond the shortest dense training, 2 epochs"),
        ({"rounds": 3}, "load.rounds: one-shot pruning has one round"),
        ({"schedule": "iterative", "rounds": 1}, "load.rounds: .*greater than or equal to 2"),
        ({"schedule": "slow"}, "load.schedule: .*'one-shot', 'iterative' or 'gradual'"),
        ({"pruner": "channels-magnitude", "rewind": 1}, "load.rewind: needs masks"),
        ({"pruner": "channels-magnitude", "allocation": "erk"}, "pruned by 'uniform' or 'global'"),
        ({"pruner": "channels"}, "load.pruner: unknown pruner 'channels' .did you mean 'channels-"),
    ],
)
def test_ways_that_cannot_be_meant_are_refused(tiny: Sweep, load: Sweep, line: str) -> None:
    tiny["load"] |= load
    with pytest.raises(UserError, match=line):
        resolve(tiny)


# -- whole channels ---------------------------------------------------------------------------------------------------

WIDER: dict[str, dict[str, Any]] = {
    **SMALL,
    "mlp": {"widths": [40, 40], "batch_norm": True},
    "preresnet": {"depth": 8, "width": 8},
    "resnet": {"depth": 8, "width": 8},
    "resnet18": {"width": 8},
    "vgg": {"depth": 11, "width": 8},
    "densenet": {"depth": 10, "growth": 8},
    "mobilenetv2": {"width": 0.25, "dropout": 0.0},
    "torchvision": {"arch": "mnasnet0_5"},
}


def network(name: str, seed: int = 0) -> nn.Module:
    """With BatchNorm statistics and affine parameters that are not those of a fresh network."""
    model = build(name, WIDER[name], (3, 32, 32), 5, seed)
    random = torch.Generator().manual_seed(1)
    for each in model.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.weight.data = 0.5 + torch.rand(each.weight.shape, generator=random)
            each.bias.data = 0.3 * torch.randn(each.bias.shape, generator=random)
            assert each.running_mean is not None
            each.running_mean.data = 0.3 * torch.randn(each.running_mean.shape, generator=random)
    return model.eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", WIDER)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_fewer_channels_come_near_the_density_and_can_be_loaded_again(name: str, allocation: str) -> None:
    model = network(name)
    before = copy.deepcopy(model.state_dict())
    whole = sum(each.numel() for each in prunable(model).values())
    small, kept = shrink(model, 0.25, images(2), "channels-magnitude", allocation, seed=0)
    assert kept == sum(each.numel() for each in prunable(small).values()) / whole
    assert abs(kept / 0.25 - 1) < 0.25
    again = fitted(build(name, WIDER[name], (3, 32, 32), 5, 7), small.state_dict()).eval()
    assert torch.equal(again(images()), small(images()))
    for module in again.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert all(torch.equal(before[key], each) for key, each in model.state_dict().items())


@pytest.mark.parametrize("name", WIDER)
def test_a_smaller_network_answers_as_its_masked_original(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    histories: list[Any] = []
    step = torch_pruning.pruner.BasePruner.step

    def noted(self: Any) -> None:
        step(self)
        histories.append(self.DG.pruning_history())

    monkeypatch.setattr(torch_pruning.pruner.BasePruner, "step", noted)
    model = network(name)
    small, _ = shrink(model, 0.3, images(2), "channels-magnitude", "uniform", seed=0)
    kept = channels_kept(model, small, histories)
    original = copy.deepcopy(model)
    assert any(len(left) < len(each) for left, each in zip(kept.values(), original.parameters(), strict=True))
    for (key, each), left in zip(original.named_parameters(), kept.values(), strict=True):
        gone = torch.ones(len(each), dtype=torch.bool)
        gone[left] = False
        assert not gone.any() or "head" not in key
        each.data[gone] = 0.0  # a channel that has left: no weights, no bias, no affine part of BatchNorm
    assert torch.allclose(original(images()), small(images()), atol=1e-4)


def channels_kept(model: nn.Module, small: nn.Module, histories: list[Any]) -> dict[str, Tensor]:
    """Which output channels of each parameter are left, by removing them from a copy that bears their numbers."""
    shapes = [each.shape for each in small.parameters()]
    for history in histories:
        numbered = copy.deepcopy(model).double()
        graph = torch_pruning.DependencyGraph().build_dependency(numbered, images(2).double())
        for each in numbered.parameters():
            each.data = torch.arange(len(each)).double().view(-1, *[1] * (each.dim() - 1)).expand(each.shape).clone()
        graph.load_pruning_history(history)
        if [each.shape for each in numbered.parameters()] == shapes:
            return {
                key: each.data.flatten(1)[:, 0].long() if each.dim() > 1 else each.data.long()
                for key, each in numbered.named_parameters()
            }
    raise AssertionError("none of the attempts is the network that came back")


def test_a_network_that_cannot_be_followed_says_so() -> None:
    shuffled = build("torchvision", {"arch": "shufflenet_v2_x0_5"}, (3, 32, 32), 5, 0)
    with pytest.raises(UserError, match="torch-pruning cannot follow ShuffleNetV2"):
        shrink(shuffled, 0.3, images(2), "channels-magnitude", "uniform", seed=0)


def test_random_channels_are_drawn_from_the_seed() -> None:
    model = network("preresnet")

    def weights(seed: int) -> Tensor:
        small, _ = shrink(model, 0.3, images(2), "channels-random", "uniform", seed)
        return torch.cat([each.flatten() for each in small.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_smaller_networks_are_swept_in_fleets(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"]["pruner"] = "channels-magnitude"
    tiny["model"] = {"name": "preresnet", "depth": 8, "width": 8}
    tiny["data"] = {"name": "synthetic", "shape": [3, 8, 8], "train": 200, "test": 80}
    tiny["recipe"]["augment"] = "none"
    tiny["measure"]["metrics"] = ["error", "lmc", "cka", "hessian_trace"]
    results = [run_tiny(tiny, f"e-{engine}", engine=engine) for engine in ("eager", "stacked")]
    records = [regimes.open(result.folder) for result in results]
    assert all(bool((record.status == 1).all()) for record in records)
    assert float(abs(records[0].test_error - records[1].test_error).max()) < 0.2
    store = Store(results[0].folder)
    sizes = {
        stage.at["density"]: sum(each.numel() for each in store.weights(stage.key).values())
        for stage in results[0].stages
        if stage.kind == "retrain"
    }
    assert sizes[0.2] < 0.5 * sizes[0.6]


# -- numbers as targets, one's own loss -------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match="only 'cross-entropy' smooths labels"):
        resolve(tiny)
    tiny["recipe"] = {"epochs": 4, "batch_size": 32, "loss": "mean-error"}
    with pytest.raises(UserError, match=r"recipe.loss: unknown loss 'mean-error'.*allowed: cross-entropy, mse"):
        resolve(tiny)


def test_targets_of_two_kinds_are_refused() -> None:
    x = torch.zeros(20, 2)
    with pytest.raises(UserError, match="targets of different kinds"):
        Dataset.from_arrays(
            train=(x, torch.rand(20)), test=(x, torch.rand(20, 2)), title="mixed", val=(x, torch.rand(20))
        )
    with pytest.raises(UserError, match="finite number"):
        Dataset.from_arrays(train=(x, torch.full((20,), torch.nan)), test=(x, torch.rand(20)), title="holes")
    assert not synthetic().regression


# -- export -----------------------------------------------------------------------------------------------------------


def test_a_record_is_exported_whole(
    tiny: Sweep, run_tiny: Run, cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    result = run_tiny(tiny)
    record = regimes.open(result.folder)
    for form in ("nc", "csv"):
        said = cli("export", result.folder, "--to", form, "--out", f"all.{form}")
        assert said.returncode == 0, said.stderr
    with xr.open_dataset(tmp_path / "all.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back.load(), record)
    rows = pd.read_csv(tmp_path / "all.csv")
    pd.testing.assert_frame_equal(rows, table(record), check_dtype=False)
    for name in ("lmc", "test_error", "dense_test_error", "lmc_error"):
        assert len(rows[rows.variable == name]) == record[name].notnull().sum()
    one = rows[(rows.variable == "lmc") & (rows.epochs == 4) & (rows.density == 0.2)]
    assert one["value"].item() == pytest.approx(float(record.lmc.sel(epochs=4, density=0.2).item()))
    assert one["stderr"].item() == pytest.approx(float(record.lmc_stderr.sel(epochs=4, density=0.2).item()))
    assert set(rows.status.dropna()) == {"ok"}
    assert cli("export", result.folder, "--to", "xlsx").returncode == 2


# -- checkpoints ------------------------------------------------------------------------------------------------------


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
    refused("text.pt: holds no weights that can be read", {"path": str(tmp_path / "text.pt"), "epochs": 1})
    torch.save({"weights": 3}, tmp_path / "number.pt")
    refused("number.pt: no state dict", {"path": str(tmp_path / "number.pt"), "epochs": 1})
    refused("has shape .*do .model. and the number", entries[0], model={**tiny["model"], "widths": [12, 13]})
    refused("is of another model: it lacks", entries[0], model={**tiny["model"], "widths": [12, 12, 12]})
    refused("2 networks for dense_seed = 0, epochs = 1", entries[0], entries[0])
    refused("0 networks for dense_seed = 0, epochs = 2", entries[0], {**entries[1], "dense_seed": 1})
    refused("the same knobs", entries[0], {"path": entries[1]["path"]})
    refused("epoch: unknown knob 'epoch' .did you mean 'epochs'", {"path": entries[0]["path"], "epoch": 1})
    refused("is told by .dense. checkpoints", entries[0], temperature={"epochs": [1]})
    refused("checkpoints have none", entries[0], load={"density": [0.5], "rewind": 1})


# -- what a reviewer broke --------------------------------------------------------------------------------------------


def test_a_round_on_the_way_is_never_a_copy_on_the_map(tiny: Sweep, run_tiny: Run) -> None:
    alone = {**tiny, "load": {"density": [0.5]}}
    rounds = {**tiny, "load": {"density": [0.25], "schedule": "iterative", "rounds": 2}}  # by way of 0.5
    keys = [{stage.key for stage in run_tiny(each, name).stages} for each, name in ((alone, "a"), (rounds, "b"))]
    shared = [stage for stage in run_tiny(alone, "a").stages if stage.key in keys[1]]
    assert {stage.kind for stage in shared} == {"train", "prune"}  # the same masks, and no retrained network
    run_tiny(rounds, "c")
    run_tiny(alone, "c")
    xr.testing.assert_identical(*(regimes.open(run_tiny(alone, name).folder) for name in "ac"))


@pytest.mark.parametrize("order", [[1e9, 0.1], [0.1, 1e9]])
def test_a_diverged_cell_leaves_the_record_readable(
    tiny: Sweep, run_tiny: Run, order: list[float], cli: Callable[..., CompletedProcess[str]]
) -> None:
    result = run_tiny({**tiny, "temperature": {"learning_rate": order}, "recipe": {"epochs": 3, "batch_size": 32}})
    record = regimes.open(result.folder)
    assert record.status.sel(learning_rate=1e9).values.ravel().tolist() == [2, 2]
    assert record.lmc_error.sel(learning_rate=0.1).notnull().all()
    assert record.lmc_error.sel(learning_rate=1e9).isnull().all()
    assert set(table(record).learning_rate) == {0.1}
    assert cli("export", result.folder, "--to", "csv").returncode == 0


def test_export_neither_overwrites_nor_cuts_names(
    tiny: Sweep, run_tiny: Run, cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = run_tiny({**tiny, "measure": {"metrics": ["error"]}}, "lr-0.1").folder
    assert cli("export", folder).returncode == 0
    file = tmp_path / "lr-0.1.nc"
    assert file.exists()
    again = cli("export", file)
    assert again.returncode == 2
    assert "would be written over" in again.stderr
    said = cli("export", file, "--to", "csv", "--out", "x.csv")
    assert said.returncode == 0, said.stderr


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
        with pytest.raises(UserError, match="dense_seed counts 0, 1, 2"):
            resolve({**tiny, "dense": {"checkpoints": entries}})
    with pytest.raises(UserError, match="one value in each checkpoint"):
        resolve({**tiny, "dense": {"checkpoints": [{"path": "x.pt", "epochs": [1]}]}})


def test_densities_out_of_reach_are_refused_before_any_work(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    for name in ("resnet", "densenet", "preresnet", "vgg"):
        model = network(name)
        for allocation in ("uniform", "global"):
            for density in (0.005, 0.02, 0.1, 0.6):
                with contextlib.suppress(UserError):  # said, not silently another density
                    _, kept = shrink(model, density, images(2), "channels-magnitude", allocation, seed=0)
                    assert 1 / 1.5 <= kept / density <= 1.5
    tiny["load"] = {"density": [0.0001], "pruner": "channels-magnitude"}
    with pytest.raises(UserError, match="come no nearer than"):
        run_tiny(tiny)
    assert not count


def test_losses_are_tried_before_any_work(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    for loss, line in (
        ("torch.nn:CrossEntropyLoss", "raised RuntimeError"),
        ("torch.nn.functional:mse_loss", "raised RuntimeError"),
        ("torch.nn.functional:softmax", "raised"),
        ("math:sqrt", "raised TypeError"),
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


def test_a_rewind_beyond_the_end_is_seen_however_epochs_are_written(tiny: Sweep) -> None:
    tiny |= {"temperature": {"epochs": [2.0, 4.0]}, "load": {"density": [0.5], "rewind": 3}}
    with pytest.raises(UserError, match="3 lies beyond the shortest dense training, 2 epochs"):
        resolve(tiny)
