"""Engines: equal to one another in float64, and within one engine a lane's bits depend on nothing but the lane."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, done, prepared
from token_data import TOKENS, token_data
from torch import Tensor

from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.errors import UserError
from regimes.experiment.engine_selection import EngineChoice, equals_eager, keeps_bits, select_engine
from regimes.experiment.memory import MAX_MEMORY_SHARE, PROCESS_BYTES, bytes_per_network, networks_that_fit, peak_bytes
from regimes.experiment.run import Result, prepare
from regimes.experiment.store import Store
from regimes.models import MODELS
from regimes.models.build import build
from regimes.models.transformer import Transformer
from regimes.pruners.prune import prune
from regimes.training import ENGINES
from regimes.training.fleet import Lane, Snapshot
from regimes.training.train import train_fleet
from regimes.training.vmap_engine import VmapEngine

# On images this small MobileNetV2 ends in single pixels, where BatchNorm makes differences of rounding grow a
# thousandfold a step: it has a test of its own. What torchvision has beside is tried by each run.
FAMILIES = [name for name in MODELS if name not in ("mobilenetv2", "torchvision")]
RECIPE = Recipe(epochs=3, batch_size=16, augment="crop-flip", last=2)


def data(dtype: torch.dtype = torch.float64, tokens: bool = False) -> Dataset:
    made = token_data(120, 40) if tokens else synthetic(shape=[1, 8, 8], train=120, test=40, spread=2.0)
    return made.to(torch.device("cpu"), dtype)


def lane(
    seed: int, model: str, recipe: Recipe = RECIPE, masked: bool = False, dtype: torch.dtype = torch.float64
) -> Lane:
    if model in TOKENS:
        network = build(model, TOKENS[model], (8,), 5, seed).to(dtype)
        recipe = recipe.model_copy(update={"augment": "none", "label_smoothing": 0.0})
    else:
        network = build(model, SMALL[model], (1, 8, 8), 4, seed).to(dtype)
    return Lane(network, recipe, ("test", seed), prune(network, 0.3) if masked else None)


def ends(
    lanes: list[Lane], engine: str, epochs: list[int] | None = None, dtype: torch.dtype = torch.float64
) -> dict[int, Snapshot]:
    tokens = isinstance(lanes[0].model, Transformer)
    found = dict(train_fleet(lanes, data(dtype, tokens), epochs or [3], engine))
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
    smooth = change.get("label_smoothing", 0.0)  # each lane its own, one of them none
    recipes = [
        RECIPE.model_copy(update={**change, "learning_rate": 0.02 * (1 + seed), "weight_decay": 0.01 * seed})
        for seed in range(5)
    ]
    recipes = [each.model_copy(update={"label_smoothing": smooth * seed}) for seed, each in enumerate(recipes)]
    one = ends([lane(seed, model, recipe, masked) for seed, recipe in enumerate(recipes)], "eager")
    other = ends([lane(seed, model, recipe, masked) for seed, recipe in enumerate(recipes)], engine)
    assert list(one) == list(other) == list(range(5))
    for number in one:
        assert list(one[number].weights) == list(other[number].weights)
        assert torch.allclose(flat(one[number]), flat(other[number]), rtol=1e-7, atol=1e-9)
        for mine, theirs in zip(one[number].history, other[number].history, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-7)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
@pytest.mark.parametrize("model", ["mlp", "preresnet"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_engines_agree_on_optimizers_with_warm_up_and_clipping(
    engine: str, model: str, optimizer: str, rho: float, masked: bool
) -> None:
    """With a large eps: of a gradient of zero but for rounding, Adam makes steps of the size of all others."""

    def lanes() -> list[Lane]:
        found = []
        for seed in range(5):
            of_lane = {"learning_rate": 0.003 * (1 + seed), "weight_decay": 0.1 * seed, "warmup": 0.2 * seed}
            of_lane |= {"clip_norm": 0.2 * seed, "sam_rho": rho * (1 + seed)}
            of_lane |= (
                {} if optimizer == "sgd" else {"beta1": 0.9 - 0.1 * seed, "beta2": 0.99 - 0.1 * seed, "eps": 1e-4}
            )
            recipe = RECIPE.model_copy(update={"optimizer": optimizer, "schedule": "linear", **of_lane})
            found.append(lane(seed, model, recipe, masked))
        return found

    one, other = ends(lanes(), "eager"), ends(lanes(), engine)
    for number in one:
        assert list(one[number].momentum) == list(other[number].momentum)
        assert torch.allclose(flat(one[number]), flat(other[number]), rtol=1e-10, atol=1e-12)
        for mine, theirs in zip(one[number].history, other[number].history, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
def test_muon_is_for_one_network_at_a_time(engine: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    muon = RECIPE.model_copy(update={"optimizer": "muon", "augment": "none"})
    with pytest.raises(ValueError, match="Muon cannot be"):
        ends([lane(0, "mlp", muon)], engine)
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    assert select_engine(found.context, [muon], 100) == EngineChoice("eager", 1)


def test_adamw_passes_the_trials_of_a_sweep(tiny: dict[str, Any], tmp_path: Path) -> None:
    given = {"optimizer": "adamw", "learning_rate": 0.01, "clip_norm": 1.0, "warmup": 0.5, "augment": "none"}
    adamw = RECIPE.model_copy(update=given)
    context = prepared(tiny, tmp_path, {"name": "mlp", "widths": [16], "batch_norm": True}, engine="eager").context
    assert equals_eager(context, "stacked", adamw)
    assert keeps_bits(context, EngineChoice("stacked", 16), adamw)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["mlp", "preresnet"])
def test_a_lane_of_adamw_does_not_depend_on_its_fleet(engine: str, model: str) -> None:
    given = {"optimizer": "adamw", "learning_rate": 0.01, "clip_norm": 1.0, "warmup": 0.3}
    mine, other = (RECIPE.model_copy(update=each) for each in (given, {**given, "beta1": 0.5, "clip_norm": 0.0}))
    alone = ends([lane(0, model, mine, dtype=torch.float32)], engine, dtype=torch.float32)[0]
    for seeds in ([1, 0], [*range(20, 30), 0, 31]):
        members = [lane(seed, model, other if seed else mine, dtype=torch.float32) for seed in seeds]
        found = ends(members, engine, dtype=torch.float32)[seeds.index(0)]
        assert torch.equal(flat(found), flat(alone))


def test_engines_begin_equally_where_convolutions_are_depthwise() -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "learning_rate": 0.001})
    one, *others = (ends([lane(seed, "mobilenetv2", recipe, True) for seed in (0, 1)], name, [1]) for name in ENGINES)
    start = flat_weights(lane(0, "mobilenetv2"))
    for number in one:
        assert all(torch.allclose(flat(one[number]), flat(other[number]), atol=1e-6) for other in others)
    assert float((flat(one[0])[: len(start)] - start).abs().max()) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", FAMILIES)
def test_a_lane_does_not_depend_on_its_fleet(engine: str, model: str) -> None:
    alone = ends([lane(0, model, dtype=torch.float32)], engine, dtype=torch.float32)[0]
    for seeds in ([1, 0], [5, 4, 0, 3], [*range(20, 30), 0, 31]):
        hot = RECIPE.model_copy(update={"learning_rate": 0.3, "label_smoothing": 0.2})
        members = [lane(seed, model, hot if seed else RECIPE, dtype=torch.float32) for seed in seeds]
        found = ends(members, engine, dtype=torch.float32)[seeds.index(0)]
        assert torch.equal(flat(found), flat(alone))
        assert found.history == alone.history


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "change", [{}, {"sam_rho": 0.1}, {"optimizer": "adam"}, {"optimizer": "adamw", "warmup": 0.5, "clip_norm": 0.1}]
)
def test_resuming_equals_never_stopping_in_every_engine(engine: str, change: dict[str, Any]) -> None:
    recipe = RECIPE.model_copy(update=change)
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


@pytest.mark.parametrize("engine", ["eager", "graphed"])
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
    found = prepare(resolve_sweep(tiny), tmp_path / "half").spec.numerics
    assert found.precision == "bfloat16"
    assert "steps in bfloat16" in str(found)
    with pytest.raises(UserError, match="this run started with"):
        run_tiny(tiny, "half", precision="float32")
    with pytest.raises(UserError, match="--precision half: allowed: float32, bfloat16"):
        run_tiny(tiny, "none", precision="half")


def test_memory_of_a_network_grows_with_batch_and_width(tiny: dict[str, Any], tmp_path: Path) -> None:
    small = prepared(tiny, tmp_path, {"name": "mlp", "widths": [64]}, engine="eager").context
    large = prepared(tiny, tmp_path, {"name": "mlp", "widths": [640]}, engine="eager").context
    batches = [bytes_per_network(small, RECIPE.model_copy(update={"batch_size": size})) for size in (16, 160)]
    assert batches[0] < batches[1] < 10 * batches[0]
    assert bytes_per_network(large, RECIPE) > 5 * bytes_per_network(small, RECIPE)
    weights = sum(each.nbytes for each in small.new_model(0).parameters())
    kept = 16 * (64 + 4) * 4  # of a batch: the hidden units and the logits, at least
    assert batches[0] >= 6 * weights + kept


def test_a_process_is_not_charged_with_the_memory_of_the_one_that_started_it() -> None:
    ballast = bytearray(b"x") * 800_000_000
    script = "from regimes.experiment.memory import peak_bytes; print(peak_bytes())"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert 50_000_000 < int(told.stdout) < len(ballast) < peak_bytes()


def test_memory_does_not_depend_on_how_many_images_there_are(tiny: dict[str, Any], tmp_path: Path) -> None:
    sizes = []
    for count in (100, 1000):
        tiny["data"]["train"] = count
        sizes.append(bytes_per_network(prepared(tiny, tmp_path, tiny["model"], engine="eager").context, RECIPE))
    assert sizes[0] == sizes[1]


def test_a_run_without_its_head_goes_on_as_it_began(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    begun = run_tiny(tiny, "half", precision="bfloat16", engine="graphed")
    (begun.folder / "run.json").unlink()
    found = prepare(resolve_sweep(tiny), begun.folder)
    assert (found.spec.numerics.engine, found.spec.numerics.precision) == ("graphed", "bfloat16")
    assert found.lanes["retrain"] > 1


def test_a_fleet_is_as_large_as_fits(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(tiny, tmp_path, tiny["model"], engine="eager")
    each = bytes_per_network(found.context, found.sweep.retrain)
    monkeypatch.setattr(
        "regimes.experiment.memory.free_bytes", lambda device: (PROCESS_BYTES + 9 * each) / MAX_MEMORY_SHARE
    )
    assert networks_that_fit(found.context, found.sweep.retrain, 1) in (8, 9)
    monkeypatch.setattr("regimes.experiment.memory.free_bytes", lambda device: 0)
    assert networks_that_fit(found.context, found.sweep.retrain, 1) == 1
    assert select_engine(found.context, [found.sweep.retrain], 100) == EngineChoice("eager", 1)


def test_a_fleet_that_is_too_large_for_the_memory_is_halved_until_it_fits(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["load"]["density"] = [0.1, 0.2, 0.3, 0.4]
    whole = run_tiny(tiny, "whole", engine="stacked", workers=0)
    sizes: list[int] = []
    begin = VmapEngine.__init__

    def short(self: VmapEngine, lanes: list[Lane], *rest: Any) -> None:
        sizes.append(len(lanes))
        if len(lanes) > 3:
            raise torch.OutOfMemoryError("no room")
        begin(self, lanes, *rest)

    monkeypatch.setattr(VmapEngine, "__init__", short)
    halved = run_tiny(tiny, "halved", engine="stacked", workers=0)
    assert max(sizes) > 3
    assert done(Store(halved.folder)) == done(Store(whole.folder))
