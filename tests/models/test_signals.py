"""PreResNet for signals: the network for images of one row, and everything that works on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import shut, some
from torch import nn

import regimes
from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.data.synthetic import synthetic
from regimes.discovery.gates import Gates
from regimes.discovery.removal import remove
from regimes.discovery.trace_graph import trace_graph
from regimes.experiment.run import Result
from regimes.hpo import PROXIES
from regimes.models.build import build
from regimes.pruners.channels import fit_to_state, shrink
from regimes.pruners.prune import prunable, prune
from regimes.registry import lookup
from regimes.training import ENGINES
from regimes.training.fleet import Lane
from regimes.training.train import train_fleet

OPTIONS = {"depth": 8, "width": 8}
SHAPE = (1, 20)
SWEEP: dict[str, Any] = {
    "name": "signals",
    "data": {"name": "synthetic", "shape": list(SHAPE), "train": 160, "test": 60, "spread": 2.0},
    "model": {"name": "preresnet", "depth": 8, "width": 4},
    "recipe": {"augment": "none", "epochs": 2, "batch_size": 16},
    "temperature": {"batch_size": [8, 32]},
    "load": {"density": [0.4]},
}


def network(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    return build("preresnet", OPTIONS, shape, 4, seed)


def signals(count: int = 3) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2))


def test_signals_are_images_of_one_row() -> None:
    """Of a 3x3 kernel only the middle row meets an image of one row; the rest meets padding."""
    ours, images = network(), network(shape=(1, 1, 20))
    assert list(ours.state_dict()) == list(images.state_dict())
    state = {
        name: each[:, :, each.shape[2] // 2] if each.dim() == 4 else each for name, each in images.state_dict().items()
    }
    ours.load_state_dict(state)
    assert torch.allclose(ours(signals()), images(signals()[:, :, None]), atol=1e-5)
    assert torch.allclose(ours.eval()(signals()), images.eval()(signals()[:, :, None]), atol=1e-5)


def test_size_and_initial_scale() -> None:
    model = build("preresnet", OPTIONS, (1, 40), 10, 0)
    assert sum(each.numel() for each in model.parameters()) == 7378
    weight = model.get_submodule("blocks.2.conv2").weight
    assert isinstance(weight, nn.Parameter)
    assert float(weight.detach().std()) == pytest.approx((2 / (32 * 3)) ** 0.5, rel=0.1)  # He-normal, fan-out
    assert len(prunable(model)) == 1 + 6 + 2
    with pytest.raises(UserError, match=r"needs images .c, h, w. or signals .c, length.*try 'mlp'"):
        build("preresnet", OPTIONS, (12,), 10, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lane_does_not_depend_on_its_fleet(engine: str) -> None:
    def lane(seed: int) -> Lane:
        model = network(seed)
        return Lane(model, Recipe(epochs=2, batch_size=16, augment="none"), ("test", seed), prune(model, 0.3))

    data = synthetic(shape=SHAPE, train=120, test=40, spread=2.0)
    ends = [
        dict(train_fleet([lane(seed) for seed in seeds], data, [2], engine))[seeds.index(1)].weights
        for seeds in ([1], [0, 1, 2], [*range(2, 12), 1], [1, *range(2, 18)])
    ]
    for end in ends[1:]:
        assert all(torch.equal(ends[0][name], end[name]) for name in end)


@pytest.mark.parametrize("pruner", ["channels-magnitude", "channels-random"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("density", [0.05, 0.3])
def test_channels_are_removed(pruner: str, allocation: str, density: float) -> None:
    small, kept = shrink(network(), density, signals(2), pruner, allocation, seed=0)
    assert 0.7 < kept / density < 1.4
    again = fit_to_state(network(7), small.state_dict()).eval()
    assert torch.equal(again(signals()), small.eval()(signals()))


def test_gates_shut_are_units_removed() -> None:
    model = network().double().eval()
    inputs = signals().double()
    graph = trace_graph(model, inputs[:2])
    units, blocks = some(graph, 3)
    gates = Gates(model, graph)
    with torch.no_grad(), gates.at(shut(graph, units, blocks)):
        gated = model(inputs)
    gates.remove()
    with torch.no_grad():
        remove(model, graph, units, blocks, {})
        assert torch.allclose(model(inputs), gated, rtol=1e-7)


@pytest.mark.parametrize("kind", PROXIES)
def test_proxies_are_smaller(kind: str) -> None:
    data = synthetic(shape=SHAPE, train=160, test=40)
    recipe = Recipe(epochs=4, batch_size=32, augment="none")
    proxy = lookup(PROXIES, kind, "proxy")(network(), data, 0.3, recipe, 0)
    assert 0.1 < proxy.kept < 0.6
    assert proxy.fresh(network(1))(data.train.inputs[:4]).shape == (4, 4)


@pytest.mark.parametrize("pruner", ["magnitude", "channels-magnitude", "discovered"])
def test_a_sweep_of_signals(pruner: str, run_tiny: Callable[..., Result]) -> None:
    load = {"nu": [0.1], "pruner": pruner} if pruner == "discovered" else {"density": [0.4], "pruner": pruner}
    metrics = ["error", "lmc", "cka", "hessian_trace", "hessian_top"]
    done = run_tiny({**SWEEP, "load": load, "measure": {"metrics": metrics, "hessian": {"images": 64}}})
    record = regimes.open(done.folder)
    for name in ("test_error", "lmc", "cka", "hessian_trace", "hessian_top"):
        assert bool(record[name].notnull().all()), name
