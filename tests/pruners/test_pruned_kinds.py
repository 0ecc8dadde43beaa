"""Every pruner and allocation on every kind of network: the density is exact, or one line says why not."""

from __future__ import annotations

import pytest
import torch
from network_kinds import KINDS, NO_GRADIENT_PRUNERS, data
from torch import nn

from regimes import UserError, prune
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners.prune import prunable


def pruned(name: str, pruner: str, allocation: str) -> tuple[nn.Module, float]:
    kind = KINDS[name]
    model, embeddings = kind.network(), name == "embedding-bag"
    before = {key: each.detach().clone() for key, each in model.named_parameters()}
    mask = prune(
        model, 0.5, pruner, allocation, data(name), torch.Generator().manual_seed(0), kind.loss, embeddings=embeddings
    )
    mask.apply(model)
    weights = prunable(model, embeddings)
    assert set(mask.layers) == set(weights)
    for key, each in model.named_parameters():  # what is kept is kept as it was, what is not prunable is untouched
        kept = mask.layers.get(key, torch.ones(each.shape, dtype=torch.bool))
        assert torch.equal(each[kept], before[key][kept])
        assert not each[~kept].any()
    size = sum(each.numel() for each in weights.values())
    return model, sum(int(each.sum()) for each in mask.layers.values()) / size


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("name", KINDS)
def test_pruner(name: str, pruner: str) -> None:
    if pruner in ("snip", "synflow") and name in NO_GRADIENT_PRUNERS:
        with pytest.raises(UserError, match=NO_GRADIENT_PRUNERS[name]):
            pruned(name, pruner, "uniform")
        return
    _, density = pruned(name, pruner, "uniform")
    size = sum(each.numel() for each in prunable(KINDS[name].network(), name == "embedding-bag").values())
    assert density == round(0.5 * size) / size


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_allocation(name: str, allocation: str) -> None:
    _, density = pruned(name, "magnitude", allocation)
    size = sum(each.numel() for each in prunable(KINDS[name].network(), name == "embedding-bag").values())
    assert density == round(0.5 * size) / size
