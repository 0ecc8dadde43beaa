"""Engines: equal to one another in float64, and within one engine a lane's bits depend on nothing but the lane."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, done
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.errors import UserError
from regimes.flow.engine import Choice, choose_engine, keeps_bits
from regimes.flow.memory import PROCESS, SHARE, bytes_per_network, networks_that_fit
from regimes.flow.plan import fleets
from regimes.flow.prepare import prepare
from regimes.flow.run import Result
from regimes.flow.store import Store
from regimes.models import MODELS
from regimes.models.build import build
from regimes.pruners.prune import prune
from regimes.spec.check import resolve
from regimes.spec.recipe import Recipe
from regimes.training import ENGINES
from regimes.training.lane import Lane, Snapshot
from regimes.training.stacked import LEAST, MOST, Stacked, padded
from regimes.training.train import train_fleet

# On images this small MobileNetV2 ends in single pixels, where BatchNorm makes differences of rounding grow a
# thousandfold a step: it has a test of its own. What torchvision has beside is tried by each run.
FAMILIES = [name for name in MODELS if name not in ("mobilenetv2", "torchvision")]
RECIPE = Recipe(epochs=3, batch_size=16, augment="crop-flip", last=2)


def data(dtype: torch.dtype = torch.float64) -> Dataset:
    return synthetic(shape=[1, 8, 8], train=120, test=40, spread=2.0).to(torch.device("cpu"), dtype)


def lane(
    seed: int, model: str, recipe: Recipe = RECIPE, masked: bool = False, dtype: torch.dtype = torch.float64
) -> Lane:
    network = build(model, SMALL[model], (1, 8, 8), 4, seed).to(dtype)
    return Lane(network, recipe, ("test", seed), prune(network, 0.3) if masked else None)


def ends(
    lanes: list[Lane], engine: str, epochs: list[int] | None = None, dtype: torch.dtype = torch.float64
) -> dict[int, Snapshot]:
    found = dict(train_fleet(lanes, data(dtype), epochs or [3], engine))
    return {number: found[number] for number in sorted(found)}


def flat(snapshot: Snapshot) -> Tensor:
    return torch.cat([each.double().flatten() for each in (*snapshot.weights.values(), *snapshot.momentum.values())])


def flat_weights(which: Lane) -> Tensor:
    return torch.cat([each.double().flatten() for each in which.model.state_dict().values()])


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize(
    "change", [{}, {"sam_rho": 0.1}, {"nesterov": True, "label_smoothing": 0.1, "schedule": "cosine"}]
)
@pytest.mark.parametrize("masked", [False, True])
def test_engines_are_equal_in_float64(engine: str, model: str, change: dict[str, Any], masked: bool) -> None:
    recipes = [
        RECIPE.model_copy(update={**change, "learning_rate": 0.02 * (1 + seed), "weight_decay": 0.01 * seed})
        for seed in range(5)
    ]
    one = ends([lane(seed, model, recipe, masked) for seed, recipe in enumerate(recipes)], "eager")
    other = ends([lane(seed, model, recipe, masked) for seed, recipe in enumerate(recipes)], engine)
    assert list(one) == list(other) == list(range(5))
    for number in one:
        assert list(one[number].weights) == list(other[number].weights)
        assert torch.allclose(flat(one[number]), flat(other[number]), rtol=1e-7, atol=1e-9)
        for mine, theirs in zip(one[number].history, other[number].history, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-7)


def test_engines_begin_equally_where_convolutions_are_depthwise() -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "learning_rate": 0.001})
    one, other = (ends([lane(seed, "mobilenetv2", recipe, True) for seed in (0, 1)], name, [1]) for name in ENGINES)
    start = flat_weights(lane(0, "mobilenetv2"))
    for number in one:
        assert torch.allclose(flat(one[number]), flat(other[number]), atol=1e-6)
    assert float((flat(one[0])[: len(start)] - start).abs().max()) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", FAMILIES)
def test_a_lane_does_not_depend_on_its_fleet(engine: str, model: str) -> None:
    alone = ends([lane(0, model, dtype=torch.float32)], engine, dtype=torch.float32)[0]
    for seeds in ([1, 0], [5, 4, 0, 3], [*range(20, 30), 0, 31]):
        members = [lane(seed, model, dtype=torch.float32) for seed in seeds]
        found = ends(members, engine, dtype=torch.float32)[seeds.index(0)]
        assert torch.equal(flat(found), flat(alone))
        assert found.history == alone.history


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_resuming_equals_never_stopping_in_every_engine(engine: str, rho: float) -> None:
    recipe = RECIPE.model_copy(update={"sam_rho": rho})
    snapshots: dict[int, list[Snapshot]] = {}
    for number, snapshot in train_fleet([lane(seed, "mlp", recipe) for seed in (0, 1)], data(), [1, 3], engine):
        snapshots.setdefault(number, []).append(snapshot)
    again = [Lane(lane(9, "mlp").model, recipe, ("test", seed), resume=snapshots[seed][0]) for seed in (0, 1)]
    resumed = ends(again, engine)
    for seed in (0, 1):
        assert torch.equal(flat(resumed[seed]), flat(snapshots[seed][1]))
        assert resumed[seed].history == snapshots[seed][1].history


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lane_that_diverges_takes_nobody_with_it(engine: str, dtype: torch.dtype) -> None:
    wild = RECIPE.model_copy(update={"learning_rate": 1e30})
    calm = ends([lane(seed, "preresnet", dtype=dtype) for seed in range(3)], engine, dtype=dtype)
    recipes = [RECIPE, wild, RECIPE]
    mixed = ends([lane(seed, "preresnet", each, dtype=dtype) for seed, each in enumerate(recipes)], engine, dtype=dtype)
    assert mixed[1].diverged
    assert mixed[1].weights == {}
    for number in (0, 2):
        assert torch.equal(flat(mixed[number]), flat(calm[number]))


@pytest.mark.parametrize("engine", ENGINES)
def test_masks_stay_in_every_engine(engine: str) -> None:
    recipe = RECIPE.model_copy(update={"sam_rho": 0.2, "weight_decay": 0.01})
    lanes = [lane(seed, "preresnet", recipe, masked=True, dtype=torch.float32) for seed in range(3)]
    for number, end in ends(lanes, engine, dtype=torch.float32).items():
        mask = lanes[number].mask
        assert mask is not None
        for name, layer in mask.layers.items():
            assert int((end.weights[name] != 0).sum()) == int(layer.sum())


# -- shapes, precision, memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_networks_of_several_shapes_share_a_fleet(engine: str) -> None:
    def sized(seed: int) -> Lane:
        network = build("mlp", {"widths": [16 if seed % 2 else 32], "batch_norm": True}, (1, 8, 8), 4, seed).double()
        return Lane(network, RECIPE, ("test", seed))

    together = ends([sized(seed) for seed in range(5)], engine)
    for seed in range(5):
        alone = ends([sized(seed)], engine)[0]
        assert torch.equal(flat(together[seed]), flat(alone))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["preresnet", "mlp"])
def test_bfloat16_steps_repeat_themselves_and_learn_alike(engine: str, model: str) -> None:
    def trained(precision: str) -> list[Snapshot]:
        lanes = [lane(seed, model, dtype=torch.float32) for seed in range(4)]
        found = dict(train_fleet(lanes, data(torch.float32), [3], engine, precision=precision))
        return [found[number] for number in sorted(found)]

    full, half, again = trained("float32"), trained("bfloat16"), trained("bfloat16")
    for one, other, same in zip(full, half, again, strict=True):
        assert all(weight.dtype != torch.bfloat16 for weight in other.weights.values())
        assert torch.equal(flat(other), flat(same))
        assert not torch.equal(flat(one), flat(other))
        assert other.history[-1]["train_loss"] == pytest.approx(one.history[-1]["train_loss"], abs=0.15)


def test_a_run_keeps_its_precision(tiny: dict[str, Any], run_tiny: Callable[..., Result], tmp_path: Path) -> None:
    run_tiny(tiny, "half", precision="bfloat16")
    found = prepare(resolve(tiny), tmp_path / "half").spec.numerics
    assert found.precision == "bfloat16"
    assert "steps in bfloat16" in str(found)
    with pytest.raises(UserError, match="this run began with"):
        run_tiny(tiny, "half", precision="float32")
    with pytest.raises(UserError, match="--precision half: allowed: float32, bfloat16"):
        run_tiny(tiny, "none", precision="half")


def test_memory_of_a_network_grows_with_batch_and_width(tiny: dict[str, Any], tmp_path: Path) -> None:
    small = prepared(tiny, tmp_path, {"name": "mlp", "widths": [64]}, engine="eager").lab
    large = prepared(tiny, tmp_path, {"name": "mlp", "widths": [640]}, engine="eager").lab
    batches = [bytes_per_network(small, RECIPE.model_copy(update={"batch_size": size})) for size in (16, 160)]
    assert batches[0] < batches[1] < 10 * batches[0]
    assert bytes_per_network(large, RECIPE) > 5 * bytes_per_network(small, RECIPE)
    weights = sum(each.nbytes for each in small.new_model(0).parameters())
    kept = 16 * (64 + 4) * 4  # of a batch: the hidden units and the logits, at least
    assert batches[0] >= 6 * weights + kept


def test_memory_does_not_depend_on_how_many_images_there_are(tiny: dict[str, Any], tmp_path: Path) -> None:
    sizes = []
    for count in (100, 1000):
        tiny["data"]["train"] = count
        sizes.append(bytes_per_network(prepared(tiny, tmp_path, tiny["model"], engine="eager").lab, RECIPE))
    assert sizes[0] == sizes[1]


def test_a_run_without_its_head_goes_on_as_it_began(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    begun = run_tiny(tiny, "half", precision="bfloat16", engine="stacked")
    (begun.folder / "run.json").unlink()
    found = prepare(resolve(tiny), begun.folder)
    assert (found.spec.numerics.engine, found.spec.numerics.precision) == ("stacked", "bfloat16")
    assert found.lanes["retrain"] >= LEAST


def test_a_fleet_is_as_large_as_fits(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    each = bytes_per_network(found.lab, found.sweep.retrain)
    monkeypatch.setattr("regimes.flow.memory.free_bytes", lambda device: (PROCESS + 9 * each) / SHARE)
    assert networks_that_fit(found.lab, found.sweep.retrain, 1) in (8, 9)
    monkeypatch.setattr("regimes.flow.memory.free_bytes", lambda device: 0)
    assert networks_that_fit(found.lab, found.sweep.retrain, 1) == 1
    assert choose_engine(found.lab, [found.sweep.retrain], 100) == Choice("eager", 1)


def test_a_fleet_that_is_too_large_for_the_memory_is_halved_until_it_fits(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["load"]["density"] = [0.1, 0.2, 0.3, 0.4]
    whole = run_tiny(tiny, "whole", engine="stacked", workers=0)
    sizes: list[int] = []
    begin = Stacked.__init__

    def short(self: Stacked, lanes: list[Lane], *rest: Any) -> None:
        sizes.append(len(lanes))
        if len(lanes) > 3:
            raise torch.OutOfMemoryError("no room")
        begin(self, lanes, *rest)

    monkeypatch.setattr(Stacked, "__init__", short)
    halved = run_tiny(tiny, "halved", engine="stacked", workers=0)
    assert max(sizes) > 3
    assert done(Store(halved.folder)) == done(Store(whole.folder))


# -- the choice -------------------------------------------------------------------------------------------------------


class OddNorm(nn.Module):
    """BatchNorm over a number of channels at which, stacked, a kernel's sums depend on the slot."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(8, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, classes))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.net(inputs)
        return out


class Deciding(nn.Module):
    """Takes a decision on its data, which cannot be stacked."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        out: Tensor = self.head(hidden if float(hidden.mean()) > 0 else -hidden)
        return out


def prepared(tiny: dict[str, Any], tmp_path: Path, model: dict[str, Any], **how: Any) -> Any:
    return prepare(resolve({**tiny, "model": model}), tmp_path / "none", **how)


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
    recipe = RECIPE.model_copy(update={"augment": "none", "weight_decay": 0.1})
    found = []
    for engine in ENGINES:
        network = build("test_engines:Frozen", {}, (8,), 4, 0).double()
        before = network.body.weight.clone()  # type: ignore[union-attr,operator]
        (end,) = dict(train_fleet([Lane(network, recipe, ("x",))], d, [3], engine)).values()
        assert torch.equal(end.weights["body.weight"], before)
        found.append(end)
    assert torch.allclose(found[0].weights["head.weight"], found[1].weights["head.weight"])


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "dropout": 0.5},
        *({"name": f"test_engines:{each}"} for each in ("Deciding", "Drifting", "Unused")),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(
    tiny: dict[str, Any], tmp_path: Path, model: dict[str, Any]
) -> None:
    assert prepared(tiny, tmp_path, model).spec.numerics.engine == "eager"


def test_an_engine_that_does_not_keep_bits_is_not_chosen(tiny: dict[str, Any], tmp_path: Path) -> None:
    found = prepared(tiny, tmp_path, {"name": "test_engines:OddNorm"}, engine="eager")
    kept = all(keeps_bits(found.lab, Choice("stacked", 8), found.sweep.recipe) for _ in range(2))
    assert not kept
    assert choose_engine(found.lab, [found.sweep.recipe], 100) == Choice("eager", 1)


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
    stages = prepare(resolve(tiny), tmp_path / "none").stages
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
    assert [padded(lanes, plain) for lanes in (1, 2, 4, 5, 8, 9, 33, MOST)] == [LEAST, LEAST, 4, 8, 8, 16, 64, MOST]
    assert [padded(lanes, narrow) for lanes in (1, 8, 9)] == [8, 8, 16]
