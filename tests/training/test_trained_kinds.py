"""Every engine on every kind of network: the same as "eager" in float64, or a refusal that lets "eager" be chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_kinds import KINDS, LOSS_NAMES, NOT_STACKED, data

from regimes.config.recipe import Recipe
from regimes.pruners.prune import prune
from regimes.training.fleet import Lane
from regimes.training.train import train_fleet

RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.05},
    "sam": {"learning_rate": 0.05, "sam_rho": 0.05, "clip_norm": 1.0},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "eps": 1e-4, "warmup": 0.2, "clip_norm": 1.0},
}


def trained(name: str, engine: str, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    found = data(name).to(torch.device("cpu"), torch.float64)
    lanes = []
    for seed in range(2):
        model = KINDS[name].network(seed)
        for module in model.modules():  # stacked lanes would share the random numbers
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0  # type: ignore[assignment]
        mask = prune(model, 0.5, embeddings=name == "embedding-bag")
        lanes.append(Lane(model, recipe, ("x", seed), mask))
    return [
        snapshot.weights for _, snapshot in sorted(train_fleet(lanes, found, [2], engine), key=lambda each: each[0])
    ]


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("engine", ["stacked", "graphed"])
@pytest.mark.parametrize("name", KINDS)
def test_engine(name: str, engine: str, optimizer: str) -> None:
    loss = LOSS_NAMES.get(KINDS[name].loss, "cross-entropy")
    recipe = Recipe(epochs=2, batch_size=16, augment="none", last=1, loss=loss, **RECIPES[optimizer])
    expected = trained(name, "eager", recipe)
    if engine == "stacked" and (name in NOT_STACKED or (name, optimizer) == ("complex", "adamw")):
        with pytest.raises((ValueError, RuntimeError)):  # any error lets the selection take "eager"
            trained(name, engine, recipe)
        return
    found = trained(name, engine, recipe)
    for one, other in zip(expected, found, strict=True):
        for key, each in one.items():
            assert torch.allclose(other[key], each, rtol=1e-7, atol=1e-9), key
