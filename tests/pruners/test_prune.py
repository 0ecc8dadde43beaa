"""Allocation and masks: exact, where they should be, and there to stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regimes import Mask, UserError, prune
from regimes.config.recipe import Recipe
from regimes.data.synthetic import synthetic
from regimes.models.build import build
from regimes.pruners.allocation import global_allocation, uniform
from regimes.pruners.prune import prunable
from regimes.training.train import train


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8), data=st.data())
def test_uniform_is_exact_and_fair(sizes: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, sum(sizes)))
    counts = uniform({f"layer{i}": torch.zeros(size) for i, size in enumerate(sizes)}, keep)
    assert sum(counts.values()) == keep
    for size, count in zip(sizes, counts.values(), strict=True):
        assert 0 <= count <= size
        lifted = len(sizes)  # weights that were moved so that no layer is empty
        assert abs(count - keep * size / sum(sizes)) <= 1 + lifted
    if keep >= 2 * len(sizes):
        assert min(counts.values()) >= 1


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 99), data=st.data())
def test_global_keeps_the_best_of_all(sizes: list[int], seed: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, sum(sizes)))
    random = torch.Generator().manual_seed(seed)
    scores = {f"layer{i}": torch.rand(size, generator=random) for i, size in enumerate(sizes)}
    counts = global_allocation(scores, keep)
    threshold = torch.cat(list(scores.values())).sort(descending=True).values[keep - 1]
    assert counts == {name: int((score >= threshold).sum()) for name, score in scores.items()}


def test_magnitude_keeps_the_largest_of_every_layer() -> None:
    model = build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 3, 0)
    mask = prune(model, 0.25)
    for name, weight in prunable(model).items():
        kept, pruned = weight.abs()[mask.layers[name]], weight.abs()[~mask.layers[name]]
        assert kept.min() >= pruned.max()


def test_random_masks_are_nested_along_density() -> None:
    model = build("mlp", {"widths": [20, 20]}, (10,), 3, 0)

    def mask(density: float) -> Mask:
        return prune(model, density, "random", generator=torch.Generator().manual_seed(5))

    thin, thick = mask(0.2), mask(0.6)
    assert all(not (thin.layers[name] & ~thick.layers[name]).any() for name in thin.layers)


def test_stem_and_shortcuts_are_pruned_the_head_and_batch_norm_are_not() -> None:
    names = set(prunable(build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 3, 0)))
    assert {"stem.weight", "blocks.1.shortcut.weight", "blocks.2.shortcut.weight"} <= names
    assert not {name for name in names if "bn" in name or "head" in name}
    assert len(names) == 1 + 3 * 2 + 2
    with pytest.raises(UserError, match="no prunable layer"):
        prune(torch.nn.Linear(3, 2), 0.5)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(UserError, match="above 0 and up to 1"):
        prune(build("mlp", {}, (4,), 2, 0), density)


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("nesterov", [False, True])
def test_mask_stays_through_momentum_weight_decay_and_sam(rho: float, nesterov: bool) -> None:
    data = synthetic(shape=[1, 8, 8], train=120, test=40)
    model = build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), data.classes, 0)
    mask = prune(model, 0.2)
    recipe = Recipe(epochs=3, batch_size=32, sam_rho=rho, nesterov=nesterov, weight_decay=0.01, augment="none")
    (end,) = train(model, data, recipe, ("test",), [3], mask=mask)
    assert mask.holds(model)
    for name, layer in mask.layers.items():
        assert int((end.weights[name] != 0).sum()) == int(layer.sum())
        assert not end.momentum[name][~layer].any()


def test_mask_that_is_broken_is_noticed() -> None:
    model = build("mlp", {"widths": [6]}, (4,), 2, 0)
    mask = prune(model, 0.5)
    assert not mask.holds(model)
    mask.apply(model)
    assert mask.holds(model)


@settings(max_examples=20)
@given(width=st.integers(1, 9), density=st.floats(0.05, 1.0))
def test_mask_survives_storing(width: int, density: float) -> None:
    model = build("mlp", {"widths": [width, width]}, (5,), 2, 0)
    mask = prune(model, density)
    back = Mask.from_tensors(mask.tensors(), model)
    assert set(back.layers) == set(mask.layers)
    assert all(torch.equal(back.layers[name], mask.layers[name]) for name in mask.layers)


def test_scores_that_are_no_numbers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^pruner 'magnitude' returns NaN for '1.weight'"):
        prune(model, 0.5)


def test_an_earlier_mask_of_other_weights_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"^within has no mask of '0.weight'; .*the same embeddings="):
        prune(model, 0.3, within=prune(model, 0.5), embeddings=True)
    wide = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    with pytest.raises(
        UserError, match=r"^within has a mask of shape \(6, 4\) for '1.weight', whose shape is \(4, 4\)"
    ):
        prune(model, 0.3, within=prune(wide, 0.5))
