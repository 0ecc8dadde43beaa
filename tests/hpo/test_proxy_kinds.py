"""Ladders, channel pruning and discovery on every kind of network: right, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_kinds import KINDS, LOSS_NAMES, NOT_DISCOVERED, NOT_NARROWED, NOT_SHRUNK, data
from torch import nn

import regimes
from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.data.inputs import call
from regimes.landscape.error import mean_error
from regimes.pruners.channels import shrink
from regimes.pruners.prune import prunable

pytest.importorskip("torch_pruning")


def outputs(model: nn.Module, kind: str) -> torch.Tensor:
    with torch.no_grad():
        found: Any = call(model.eval(), KINDS[kind].inputs)
    return found if isinstance(found, torch.Tensor) else found["logits"]


def expect(works: bool, run: Callable[[], Any]) -> Any:
    """The result, or None after a refusal of one line where one is expected."""
    if works:
        return run()
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_narrowed_proxies(kind: str) -> None:
    """Random narrowing for a ladder: a smaller network with the same outputs' shape; by hand it always works."""
    found = KINDS[kind]
    narrow = expect(
        kind not in NOT_NARROWED, lambda: regimes.ladder(lambda: found.network(1), found.inputs[:4], densities=[0.4])
    )
    if narrow is not None:
        small = narrow._model(narrow.rungs[0][1], 0)
        assert sum(each.numel() for each in small.parameters()) < sum(
            each.numel() for each in found.network().parameters()
        )
        assert outputs(small, kind).shape == outputs(found.network(), kind).shape
    own = regimes.ladder(lambda: found.network(1), found.inputs[:4], proxies=[lambda: found.network(2)])
    assert len(own.rungs) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_channels(kind: str) -> None:
    found = KINDS[kind]
    model = found.network()
    done = expect(
        kind not in NOT_SHRUNK, lambda: shrink(model, 0.5, found.inputs[:2], "channels-magnitude", "uniform", 0)
    )
    if done is not None:
        small, reached = done
        kept = sum(each.numel() for each in prunable(small).values()) / sum(
            each.numel() for each in prunable(model).values()
        )
        assert reached == pytest.approx(kept)
        assert outputs(small, kind).shape == outputs(model, kind).shape


@pytest.mark.parametrize("kind", KINDS)
def test_discovery(kind: str) -> None:
    found = KINDS[kind]
    model = found.network()
    recipe = Recipe(
        epochs=3, batch_size=16, augment="none", learning_rate=0.02, loss=LOSS_NAMES.get(found.loss, "cross-entropy")
    )
    before = {name: each.clone() for name, each in model.state_dict().items()}
    done = expect(kind not in NOT_DISCOVERED, lambda: regimes.discover(model, data(kind), nu=0.5, recipe=recipe))
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    if done is not None:
        assert done.full_params == sum(each.numel() for each in model.parameters())
        assert done.params == sum(each.numel() for each in done.model.parameters())
        assert outputs(done.model, kind).shape == outputs(model, kind).shape
        error = mean_error(done.model, data(kind).to(torch.device("cpu"), torch.float64).val, recipe.loss_fn)
        assert done.history[-1]["val_error"] == pytest.approx(error)


class InPlace(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.1
        out: torch.Tensor = self.body(x)
        return out


def test_discovery_leaves_the_data_as_they_were() -> None:
    held = data("mlp").to(torch.device("cpu"), torch.float32)
    kept = [split.inputs.clone() for split in (held.train, held.val, held.test)]
    recipe = Recipe(epochs=2, batch_size=16, augment="none", learning_rate=0.02)
    found = regimes.discover(InPlace(), held, nu=0.1, recipe=recipe)
    assert all(torch.equal(a.inputs, b) for a, b in zip((held.train, held.val, held.test), kept, strict=True))
    assert not any("hook" in name for name in found.model.state_dict())
