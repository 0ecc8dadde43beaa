"""The choice of an engine: what is stacked, what is not, and how fleets are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import done, prepared, write_toml
from torch import Tensor, nn

from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.dataset import Dataset
from regimes.data.images import from_bytes
from regimes.data.synthetic import synthetic
from regimes.data.uint8_images import Uint8Images
from regimes.experiment import engine_selection as choosing
from regimes.experiment.engine_selection import EngineChoice, equals_eager, keeps_bits, select_engine
from regimes.experiment.run import Result, prepare
from regimes.experiment.run_metadata import start_run
from regimes.experiment.schedule import fleets
from regimes.experiment.store import Store
from regimes.models.build import build
from regimes.training import ENGINES
from regimes.training.fleet import Lane, Tensors
from regimes.training.train import train_fleet
from regimes.training.vmap_engine import MAX_LANES, MIN_LANES, VmapEngine, padded_lanes

HERE = "test_engine_selection"


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


class Broken(Unused):
    """Cannot be trained in batches of more than a few inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > 8:
            raise ValueError("not like this\nat all")
        return super().forward(inputs)


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
    ("model", "reason"),
    [
        ({"name": "mlp", "dropout": 0.5}, "networks with dropout draw random numbers in training"),
        ({"name": f"{HERE}:Deciding"}, "stacked raised RuntimeError: vmap: It looks like you're calling .item()"),
        ({"name": f"{HERE}:Drifting"}, "stacked trains other weights"),
        ({"name": f"{HERE}:Unused"}, "stacked trains other weights"),
        ({"name": f"{HERE}:Broken"}, "eager raised ValueError: not like this"),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_the_reason_is_known(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(choosing, "LANE_COUNTS", {"stacked": (8,)})
    monkeypatch.setattr(choosing, "MAX_TIME_SHARE", 1e6)  # however busy the machine is
    found = prepared(tiny, tmp_path, model)
    assert found.spec.numerics.engine == "eager"
    assert found.engines["retrain"].reason.startswith(reason)


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
    monkeypatch.setattr(choosing, "seconds_per_image", lambda context, choice, recipe: 1e-4 / choice.lanes)
    chosen = select_engine(found.context, [found.sweep.recipe], 8)
    assert (chosen, chosen.reason) == (EngineChoice("eager", 1), "stacked bits depend on the fleet of 8 lanes")


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
    found = prepared(tiny, tmp_path, tiny["model"])
    assert found.spec.numerics.engine == "eager"
    assert [each.reason for each in found.engines.values()] == ["1 network only", "2 networks only"]


def test_an_engine_that_saves_no_time_is_not_chosen(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    monkeypatch.setattr(choosing, "seconds_per_image", lambda context, choice, recipe: 1e-4 * choice.lanes**0.5)
    assert (
        select_engine(found.context, [found.sweep.recipe], 32).reason
        == "stacked: 8 lanes train in 2.83 of eager's time"
    )
    monkeypatch.setattr(choosing, "seconds_per_image", lambda context, choice, recipe: 1.0)
    assert select_engine(found.context, [found.sweep.recipe], 32).reason.startswith("a step takes 32 s")
    monkeypatch.setattr(choosing, "networks_that_fit", lambda context, recipe, sharing: 3)
    assert select_engine(found.context, [found.sweep.recipe], 32).reason == (
        "only 3 networks at once fit into the free memory"
    )
    assert select_engine(found.context, [found.sweep.recipe], 0).reason == "nothing to train"


class Looking(VmapEngine):
    """Notes the inputs that it is given."""

    seen: ClassVar[list[type]] = []

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        self.seen += [type(each.inputs) for each in (data.train, data.val, data.test)]
        super().__init__(lanes, data, precision)


def test_images_stay_bytes_in_every_trial(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 256, (count, 1, 2, 4), dtype=np.uint8), np.arange(count) % 4) for count in (200, 80)]
    found.context.data = from_bytes(pairs[0], pairs[1], None, 4, "bytes").to(torch.device("cpu"), torch.float32)
    found.context.new_model = lambda seed: build("mlp", {"widths": [4]}, (1, 2, 4), 4, seed)
    monkeypatch.setitem(ENGINES, "stacked", f"{HERE}:Looking")
    monkeypatch.setattr(choosing, "MAX_TIME_SHARE", 1e6)
    assert select_engine(found.context, [found.sweep.recipe], 8) == EngineChoice("stacked", 8)
    assert set(Looking.seen) == {Uint8Images}


def test_reasons_are_kept_and_shown(tiny: dict[str, Any], cli: Callable[..., Any], tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "tiny.toml", tiny)
    line = "train and retrain stacked, 16 networks at once (chosen with --engine)"
    ran = cli("run", toml, "--workers", 0, "--engine", "stacked", "--lanes", 16)
    assert f"engines: {line}" in " ".join(ran.stderr.split())
    info = Store(tmp_path / "runs/tiny").run_info
    assert info is not None
    chosen = {"engine": "stacked", "reason": "chosen with --engine"}
    assert info["engines"] == {"train": chosen, "retrain": chosen}
    assert f"  engines: {line}\n" in cli("plan", toml).stdout  # the run's own, not tried again
    assert json.loads(cli("plan", toml, "--json").stdout)["engines"] == info["engines"]
    assert f"  engines: {line}\n" in cli("status", "runs/tiny").stdout
    assert json.loads(cli("status", "runs/tiny", "--json").stdout)["engines"] == info["engines"]
    assert cli("map", "runs/tiny").returncode == 0
    assert f"- Engines: {line}." in (tmp_path / "runs/tiny/map/README.md").read_text()


# -- lanes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "lanes"), [(1, 4), (4, 4), (7, 4), (8, 8), (64, 64)])
def test_lanes_are_rounded_to_what_the_engine_can_fill(
    tiny: dict[str, Any], tmp_path: Path, asked: int, lanes: int
) -> None:
    plain = {"name": "mlp", "widths": [12]}
    found = prepared(tiny, tmp_path, plain, engine="stacked", lanes=asked)
    assert found.lanes == {"train": lanes, "retrain": lanes}
    assert prepared(tiny, tmp_path, plain, engine="graphed", lanes=asked).lanes == {"train": asked, "retrain": asked}


def test_the_number_of_lanes_changes_no_bit_and_is_kept(tiny: dict[str, Any], run_tiny: Callable[..., Result]) -> None:
    few, many = (run_tiny(tiny, str(lanes), engine="stacked", lanes=lanes) for lanes in (8, 32))
    info = Store(many.folder).run_info
    assert info is not None
    assert info["lanes"] == {"train": 32, "retrain": 32}
    assert done(Store(few.folder)) == done(Store(many.folder))
    grown = {**tiny, "load": {"density": [0.2, 0.4, 0.6]}}
    assert prepare(resolve_sweep(grown), many.folder).lanes == {"train": 32, "retrain": 32}
    assert prepare(resolve_sweep(grown), many.folder, lanes=16).lanes == {"train": 16, "retrain": 16}


def test_selection_tries_the_lanes_that_are_asked_for(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    monkeypatch.setattr(choosing, "seconds_per_image", lambda context, choice, recipe: 1e-4 / choice.lanes)
    assert select_engine(found.context, [found.sweep.recipe], 64, lanes=8) == EngineChoice("stacked", 8)
    assert select_engine(found.context, [found.sweep.recipe], 10, lanes=64) == EngineChoice("stacked", 16)
    monkeypatch.setattr(choosing, "seconds_per_image", lambda context, choice, recipe: 1.0)  # slow, and no faster
    assert select_engine(found.context, [found.sweep.recipe], 64, lanes=8) == EngineChoice("stacked", 8)


def test_fewer_lanes_than_asked_for_are_said(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "networks_that_fit", lambda context, recipe, sharing: 9)
    with pytest.warns(UserWarning, match="8 instead of 32 networks are trained at once: more do not fit"):
        found = prepared(tiny, tmp_path, tiny["model"], engine="stacked", lanes=32)
    assert found.lanes == {"train": 8, "retrain": 8}


@pytest.mark.parametrize(
    ("change", "how", "line"),
    [
        ({}, {"engine": "eager"}, r"trained one by one, by the engine eager \(chosen with --engine\)"),
        ({"dropout": 0.1}, {}, r"one by one, by the engine eager \(1 network only; networks with dropout"),
        ({}, {"lanes": 0}, "--lanes 0: allowed: 1 to 64"),
        ({}, {"lanes": 65}, "--lanes 65: allowed: 1 to 64"),
    ],
)
def test_lanes_that_no_engine_has_are_refused(
    tiny: dict[str, Any], tmp_path: Path, change: dict[str, Any], how: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        prepared(tiny, tmp_path, {**tiny["model"], **change}, **{"lanes": 8, **how})


def test_an_engine_with_a_flaw_at_the_lanes_asked_for_is_refused(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--lanes 8: stacked raised RuntimeError: vmap"):
        prepared(tiny, tmp_path, {"name": f"{HERE}:Deciding"}, engine="stacked", lanes=8)
    monkeypatch.setitem(ENGINES, "stacked", f"{HERE}:SlotDependent")
    with pytest.raises(UserError, match="--lanes 8: stacked bits depend on the fleet of 8 lanes; leave --lanes out"):
        prepared(tiny, tmp_path, tiny["model"], engine="stacked", lanes=8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipe": {"optimizer": "muon"}}, "graphed raised ValueError: Muon cannot be captured in a CUDA graph"),
        ({"model": {"dropout": 0.2}}, "graphed raised ValueError: the model draws random numbers during training"),
    ],
)
def test_an_engine_chosen_by_hand_is_tried_before_a_new_run_only(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], reason: str
) -> None:
    sweep = {**tiny, **{table: {**tiny[table], **keys} for table, keys in change.items()}}
    with pytest.raises(UserError, match=f"--engine graphed: {reason}; .*leave --engine out"):
        prepare(resolve_sweep(sweep), tmp_path / "none", engine="graphed")
    begun = prepare(resolve_sweep(sweep), tmp_path / "begun", engine="eager")
    start_run(begun, adopt=False, mixed=False)
    monkeypatch.setattr(choosing, "flaw_of", lambda *_: pytest.fail("tried again"))
    assert prepare(resolve_sweep(sweep), tmp_path / "begun").spec.numerics.engine == "eager"
    prepare(resolve_sweep(sweep), tmp_path / "begun", engine="graphed", mixed=True)


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
