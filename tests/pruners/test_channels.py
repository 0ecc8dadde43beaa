"""Whole channels: near the density or refused, equal to the masked original, loaded again, swept."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning
from conftest import SMALL
from small_networks import aged
from torch import Tensor, nn

import regimes
from regimes import UserError
from regimes.experiment.run import Result
from regimes.experiment.store import Store
from regimes.models.build import build
from regimes.pruners.channels import fit_to_state, shrink
from regimes.pruners.prune import prunable

Sweep = dict[str, Any]
Run = Callable[..., Result]


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
    return aged(build(name, WIDER[name], (3, 32, 32), 5, seed))


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
    again = fit_to_state(build(name, WIDER[name], (3, 32, 32), 5, 7), small.state_dict()).eval()
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
    with pytest.raises(UserError, match="torch-pruning cannot trace ShuffleNetV2"):
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
        stage.coords["density"]: sum(each.numel() for each in store.weights(stage.key).values())
        for stage in results[0].stages
        if stage.kind == "retrain"
    }
    assert sizes[0.2] < 0.5 * sizes[0.6]


def test_densities_out_of_reach_are_refused_before_any_work(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    reached = 0
    for name in ("resnet", "densenet", "preresnet", "vgg"):
        model = network(name)
        for allocation in ("uniform", "global"):
            for density in (0.005, 0.02, 0.1, 0.6):
                with contextlib.suppress(UserError):  # said, not silently another density
                    _, kept = shrink(model, density, images(2), "channels-magnitude", allocation, seed=0)
                    assert 1 / 1.5 <= kept / density <= 1.5
                    reached += density >= 0.1
    assert reached == 4 * 2 * 2
    tiny["load"] = {"density": [0.0001], "pruner": "channels-magnitude"}
    with pytest.raises(UserError, match="the nearest density that removing whole channels"):
        run_tiny(tiny)
    assert not count


def test_a_convolution_as_head_keeps_its_outputs() -> None:
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Conv2d(16, 5, 1))
    small, kept = shrink(model, 0.3, torch.randn(2, 3, 8, 8), "channels-random", "uniform", seed=0)
    assert kept == pytest.approx(0.3, rel=0.3)
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 5, 4, 4)
