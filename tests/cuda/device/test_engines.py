"""Training on a GPU with every engine: equal to "eager" on the CPU, without host syncs in a captured step."""

from __future__ import annotations

from typing import Any

import pretended_cuda as pretended
import pytest
import torch
from network_kinds import KINDS, LOSS_NAMES, NOT_STACKED, data

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.data.uint8_images import Uint8Images
from regimes.experiment.numerics import use_deterministic_kernels
from regimes.models.build import build
from regimes.pruners.prune import prune
from regimes.training.cuda_graph_engine import CudaGraphEngine
from regimes.training.fleet import Lane
from regimes.training.train import train_fleet

CUDNN = {"lstm", "gru"}  # recurrent layers are cuDNN's on a GPU, which is not emulated
NOT_CAPTURED = {"bert"}  # its attention mask is read by the host
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.05},
    "sam": {"learning_rate": 0.05, "sam_rho": 0.05},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "eps": 1e-4, "warmup": 0.2, "clip_norm": 1.0},
}


@pytest.fixture(autouse=True)
def _deterministic() -> Any:
    use_deterministic_kernels("cuda")
    yield
    torch.use_deterministic_algorithms(False)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    return model


def trained(name: str, engine: str, recipe: Recipe, device: torch.device) -> list[dict[str, torch.Tensor]]:
    found = data(name).to(device, torch.float64)
    lanes = []
    for seed in range(2):
        model = without_dropout(KINDS[name].network(seed))
        mask = prune(model, 0.5, embeddings=name == "embedding-bag")
        lanes.append(Lane(model.to(device), recipe, ("x", seed), mask.to(device)))
    ends = dict(train_fleet(lanes, found, [2], engine))
    return [ends[seed].weights for seed in range(2)]


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("name", sorted(KINDS.keys() - CUDNN))
def test_engines_equal_the_cpu(name: str, optimizer: str) -> None:
    loss = LOSS_NAMES.get(KINDS[name].loss, "cross-entropy")
    recipe = Recipe(epochs=2, batch_size=16, augment="none", last=1, loss=loss, **RECIPES[optimizer])
    expected = trained(name, "eager", recipe, CPU)
    for engine in ("eager", "graphed", "stacked"):
        if engine == "stacked" and (name in NOT_STACKED or (name, optimizer) == ("complex", "adamw")):
            continue
        if engine == "graphed" and name in NOT_CAPTURED:
            with pytest.raises(RuntimeError, match="capturing"):
                trained(name, engine, recipe, GPU)
            continue
        for one, other in zip(expected, trained(name, engine, recipe, GPU), strict=True):
            for key, each in one.items():
                assert torch.allclose(other[key], each, rtol=1e-7, atol=1e-9), (engine, key)


def images(device: torch.device, dtype: torch.dtype) -> Dataset:
    """Byte images with crop and flip."""
    draw = torch.Generator().manual_seed(0)
    held = torch.randint(0, 256, (96, 3, 8, 8), generator=draw, dtype=torch.uint8)
    targets = torch.randint(0, 4, (96,), generator=draw)
    rows = torch.arange(96)
    scale = torch.full((3,), 0.5), torch.full((3,), 0.25)
    parts = (Split(Uint8Images(held, each, *scale), targets[each]) for each in (rows[:64], rows[64:80], rows[80:]))
    return Dataset(*parts, 4, "bytes").to(device, dtype, torch.channels_last)


def network(seed: int) -> torch.nn.Module:
    return build("preresnet", {"depth": 8, "width": 4}, (3, 8, 8), 4, seed)


@pytest.mark.parametrize("batch_size", [16, 64])
@pytest.mark.parametrize("engine", ["eager", "graphed", "stacked"])
def test_byte_images(engine: str, batch_size: int) -> None:
    """Also with one step in a pass, fewer than the warm-up of a capture."""
    recipe = Recipe(epochs=2, batch_size=batch_size, learning_rate=0.05, augment="crop-flip", last=1)

    def ends(engine: str, device: torch.device) -> Any:
        lanes = [Lane(network(seed).double().to(device), recipe, ("x", seed)) for seed in (0, 1)]
        return dict(train_fleet(lanes, images(device, torch.float64), [2], engine))

    expected, found = ends("eager", CPU), ends(engine, GPU)
    for seed in (0, 1):
        for key, each in expected[seed].weights.items():
            assert torch.allclose(found[seed].weights[key], each, rtol=1e-7, atol=1e-9), key
        assert found[seed].history[-1]["test_error"] == expected[seed].history[-1]["test_error"]


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captured_step_never_waits(optimizer: str, precision: str) -> None:
    """The steps of a pass are replays only; its beginning transfers the image order and the augmentation."""
    recipe = Recipe(epochs=3, batch_size=16, augment="crop-flip", last=1, **RECIPES[optimizer])
    found = images(GPU, torch.float32)
    models = [network(seed).to(GPU) for seed in (0, 1)]
    lanes = [Lane(m, recipe, ("x", s), prune(m, 0.5).to(GPU)) for s, m in enumerate(models)]
    engine = CudaGraphEngine(lanes, found, precision)
    engine.epoch(0)
    with pretended.Operations() as seen:
        for member in engine.members:
            member.advance(4)  # begins a pass
    assert set(seen.syncs) == {each for each in seen.syncs if "batches.py" in each}
    assert sum(seen.syncs.values()) == 2 * len(lanes)
    with pretended.Operations() as seen:
        for step in range(5, 8):
            for member in engine.members:
                member.advance(step)
    assert not seen.syncs
    assert not seen.launches  # replays only
    assert all(member.graph.recorded for member in engine.members)
