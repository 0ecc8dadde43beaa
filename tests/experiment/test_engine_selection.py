"""The choice of an engine: what is stacked, what is not, and how fleets are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import done, prepared
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.synthetic import synthetic
from regimes.experiment import engine_selection as choosing
from regimes.experiment.engine_selection import EngineChoice, equals_eager, keeps_bits, select_engine
from regimes.experiment.run import Result, prepare
from regimes.experiment.schedule import fleets
from regimes.experiment.store import Store
from regimes.models.build import build
from regimes.training import ENGINES
from regimes.training.fleet import Lane, Tensors
from regimes.training.train import train_fleet
from regimes.training.vmap_engine import MAX_LANES, MIN_LANES, VmapEngine, padded_lanes


class Deciding(nn.Module):
    """Takes a decision on its data, which cannot be stacked."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        out: Tensor = self.head(hidden if float(hidden.mean()) > 0 else -hidden)
        return out


def test_small_networks_are_stacked(tiny: dict[str, Any], tmp_path: Path) -> None:
    assert prepared(tiny, tmp_path, tiny["model"]).spec.numerics.engine == "stacked"


class Drifting(nn.Module):
    """Sets a buffer anew at every step, which a functional call does not see."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, classes)
        self.mean = nn.Buffer(torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(dim=0)
        out: Tensor = self.head(hidden - self.mean)
        return out


class Unused(nn.Module):
    """Has a parameter that the loss does not reach."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(8, 8), nn.Linear(8, classes), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(inputs).relu())
        return out


class Frozen(Unused):
    """Has a layer that is not trained."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__(input_shape, classes)
        del self.spare
        self.body.weight.requires_grad_(False)


def test_a_frozen_layer_stays_where_it_was_in_every_engine() -> None:
    d = synthetic(shape=[8], train=120, test=40).to(torch.device("cpu"), torch.float64)
    recipe = Recipe(epochs=3, batch_size=16, augment="none", last=2, weight_decay=0.1)
    found = []
    for engine in ENGINES:
        network = build("test_engine_selection:Frozen", {}, (8,), 4, 0).double()
        before = network.body.weight.clone()  # type: ignore[union-attr,operator]
        (end,) = dict(train_fleet([Lane(network, recipe, ("x",))], d, [3], engine)).values()
        assert torch.equal(end.weights["body.weight"], before)
        found.append(end)
    assert torch.allclose(found[0].weights["head.weight"], found[1].weights["head.weight"])


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "dropout": 0.5},
        *({"name": f"test_engine_selection:{each}"} for each in ("Deciding", "Drifting", "Unused")),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(
    tiny: dict[str, Any], tmp_path: Path, model: dict[str, Any]
) -> None:
    assert prepared(tiny, tmp_path, model).spec.numerics.engine == "eager"


class SlotDependent(VmapEngine):
    """Adds to a lane's weights a little that depends on its slot."""

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        weights, momentum = super().state(lane)
        return {
            name: each + 1e-9 * lane if each.is_floating_point() else each for name, each in weights.items()
        }, momentum


def test_an_engine_that_does_not_keep_bits_is_not_chosen(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    monkeypatch.setitem(ENGINES, "stacked", "test_engine_selection:SlotDependent")
    assert equals_eager(found.context, "stacked", found.sweep.recipe)
    assert not keeps_bits(found.context, EngineChoice("stacked", 8), found.sweep.recipe)
    assert select_engine(found.context, [found.sweep.recipe], 100) == EngineChoice("eager", 1)


@pytest.mark.parametrize(("most", "chosen"), [(32, 32), (16, 16), (8, 8), (4, 1)])
def test_fewer_lanes_are_chosen_where_many_do_not_keep_bits(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, chosen: int
) -> None:
    """The more lanes the faster, as far as a clock that is ours says; but above some number bits rest on it."""
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    monkeypatch.setattr(choosing, "seconds_per_image", lambda context, choice, recipe: 1e-4 / choice.lanes)
    monkeypatch.setattr(choosing, "keeps_bits", lambda context, choice, recipe: choice.lanes <= most)
    expected = EngineChoice("stacked", chosen) if chosen > 1 else EngineChoice("eager", 1)
    assert select_engine(found.context, [found.sweep.recipe], 32) == expected


def test_a_handful_of_networks_is_not_stacked(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["temperature"], tiny["load"]["density"] = {"epochs": [4]}, [0.2]
    assert prepared(tiny, tmp_path, tiny["model"]).spec.numerics.engine == "eager"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_keeps_its_engine_and_its_bits(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], engine: str
) -> None:
    one = run_tiny(tiny, "one", engine=engine)
    two = run_tiny(tiny, "two", engine=engine, workers=2)
    assert done(Store(one.folder)) == done(Store(two.folder))
    first = {**tiny, "load": {"density": [0.6]}}
    run_tiny(first, "grown", engine=engine)
    grown = run_tiny(tiny, "grown")  # other fleets, other slots
    assert done(Store(grown.folder)) == done(Store(one.folder))


def test_fleets_are_full_even_and_alike(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny |= {"retrain_seeds": 3, "dense_seeds": 2, "temperature": {"learning_rate": [0.1, 0.2], "batch_size": [16, 32]}}
    stages = prepare(resolve_sweep(tiny), tmp_path / "none").stages
    for capacity, workers in ((1, 2), (8, 1), (8, 2), (8, 3), (100, 2)):
        cut = fleets(stages, {"train": capacity, "retrain": capacity}, workers)
        assert sorted(stage.key for fleet in cut for stage in fleet.stages) == sorted(stage.key for stage in stages)
        retrains = [len(fleet.stages) for fleet in cut if fleet.kind == "retrain"]
        assert sum(retrains) == 8 * 2 * 3
        assert max(retrains) <= capacity
        assert max(retrains) - min(retrains) <= 1
        if capacity > 1:
            assert len(retrains) % workers == 0
        for fleet in cut:
            if fleet.kind == "train":
                assert len({stage.recipe.batch_size for stage in fleet.stages}) == 1  # type: ignore[attr-defined]


def test_a_fleet_is_padded_to_a_power_of_two() -> None:
    plain, narrow = nn.Linear(3, 3), nn.BatchNorm2d(4)
    assert [padded_lanes(lanes, plain) for lanes in (1, 2, 4, 5, 8, 9, 33, MAX_LANES)] == [
        MIN_LANES,
        MIN_LANES,
        4,
        8,
        8,
        16,
        64,
        MAX_LANES,
    ]
    assert [padded_lanes(lanes, narrow) for lanes in (1, 8, 9)] == [8, 8, 16]
