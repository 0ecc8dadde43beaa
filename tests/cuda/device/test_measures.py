"""Measures and pruners on a GPU: equal to the CPU's, for every kind of network, on floats and on byte images."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from network_kinds import KINDS, LOSS_NAMES, data
from test_engines import CUDNN, images, network, without_dropout

import regimes
from regimes.config.recipe import Recipe
from regimes.experiment.numerics import use_deterministic_kernels
from regimes.landscape import METRICS
from regimes.landscape.estimate import Estimate
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners.prune import prune

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "curve": {"curve": {"epochs": 1, "images": 0, "batch_size": 16}},
    "spectrum": {"spectrum": {"probes": 2, "steps": 6}},
}


@pytest.fixture(autouse=True)
def _deterministic() -> Any:
    use_deterministic_kernels("cuda")
    yield
    torch.use_deterministic_algorithms(False)


def values(models: list[torch.nn.Module], held: Any, metric: str, loss: Any) -> dict[str, list[float]]:
    found = regimes.measure(models, held, [metric], OPTIONS.get(metric), loss_fn=loss)
    return {
        f"{each.variable} {each.networks}": [each.value.value]
        if isinstance(each.value, Estimate)
        else list(each.value.values)
        for each in found
    }


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", sorted(KINDS.keys() - CUDNN))
def test_measures(name: str, metric: str) -> None:
    kind = KINDS[name]
    loss = Recipe(loss=LOSS_NAMES.get(kind.loss, "cross-entropy")).loss_fn

    def on(device: torch.device) -> Any:
        models = [without_dropout(kind.network(seed)).to(device) for seed in (0, 1)]
        held = data(name, repeats=1).to(device, torch.float64)
        try:
            return values(models, held, metric, loss)
        except regimes.UserError as error:
            return str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = on(CPU), on(GPU)
    if isinstance(expected, str):
        assert found == expected
        return
    assert found.keys() == expected.keys()
    for key, each in expected.items():
        assert found[key] == pytest.approx(each, rel=1e-6, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("metric", METRICS)
def test_byte_images(metric: str) -> None:
    def on(device: torch.device) -> Any:
        models = [network(seed).double().to(device) for seed in (0, 1)]
        return values(models, images(device, torch.float64), metric, torch.nn.functional.cross_entropy)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = on(CPU), on(GPU)
    for key, each in expected.items():
        assert found[key] == pytest.approx(each, rel=1e-6, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_pruners(pruner: str, allocation: str) -> None:
    def on(device: torch.device) -> Any:
        model = network(0).double().to(device)
        return prune(model, 0.3, pruner, allocation, data=images(device, torch.float64)).layers

    expected, found = on(CPU), on(GPU)
    for name, layer in expected.items():
        assert torch.equal(found[name].cpu(), layer), name
