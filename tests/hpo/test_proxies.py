"""Proxies: smaller networks of one structure, whose weights are always fresh."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from searches import spec
from torch import nn

from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.hpo import PROXIES
from regimes.hpo.build_fidelities import (
    ProxyBuilder,
    ProxyContext,
    facts_of,
    fidelity_from_facts,
    full_fidelity,
    proxy_fidelity,
    proxy_with_step_time,
)
from regimes.hpo.plan import context_of
from regimes.hpo.proxies import magnitude, narrowed, random_channels, saliency, selector_of
from regimes.models.build import build, seeded
from regimes.registry import lookup

DIRECT = [name for name in PROXIES if name != "discovered"]


def images() -> Dataset:
    return synthetic(shape=[3, 8, 8], train=160, test=40)


def fresh(name: str, seed: int) -> nn.Module:
    return build(name, SMALL[name], (3, 8, 8), 4, seed)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "torchvision"])
@pytest.mark.parametrize("kind", DIRECT)
def test_every_kind_makes_every_model_smaller(kind: str, name: str) -> None:
    data = images()
    proxy = lookup(PROXIES, kind, "proxy")(fresh(name, 0), data, 0.4, Recipe(), 0)
    model = proxy.fresh(fresh(name, 1))
    assert {key: tuple(each.shape) for key, each in model.state_dict().items()} == dict(proxy.shapes)
    assert 0.2 < proxy.kept < 0.7
    outputs = model(data.train.inputs[:4])
    assert outputs.shape == (4, 4)
    assert outputs.isfinite().all()
    nn.functional.cross_entropy(outputs, data.train.targets[:4]).backward()  # it can be trained
    assert all(each.grad is not None for each in model.parameters())


def test_each_seed_has_weights_of_its_own_and_the_same_ones_each_time() -> None:
    proxy = narrowed(fresh("preresnet", 0), images(), 0.3, Recipe(), 0)
    first, again, other = (proxy.fresh(fresh("preresnet", seed)).state_dict() for seed in (1, 1, 2))
    weights = [name for name, each in first.items() if each.dim() > 1]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(float((first[name] == other[name]).double().mean()) < 0.01 for name in weights)


def test_what_a_layer_says_is_as_large_as_in_the_full_network() -> None:
    """Closed form: of weights N(0, 1), the outputs of unit inputs have the variance fan_in, before and after."""
    with seeded(0):
        whole = nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3))
    for each in whole:
        if isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(0))
    data = synthetic(shape=[400], train=64, test=20)
    proxy = narrowed(copy.deepcopy(whole), data, 0.25, Recipe(), 0)
    small = proxy.fresh(copy.deepcopy(whole))
    middle, before = small[2].weight.detach(), whole[2].weight.detach()
    assert middle.shape[1] < 0.7 * before.shape[1]
    for layer, full in ((middle, before), (small[0].weight.detach(), whole[0].weight.detach())):
        assert float(layer.square().sum(1).mean()) == pytest.approx(float(full.square().sum(1).mean()), rel=0.05)


def test_the_largest_channels_of_a_trials_own_weights_stay() -> None:
    """Brute force: in a network of two layers the units with the largest squares of their weights, in and out."""
    data = synthetic(shape=[8], train=160, test=40)

    def net(seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))

    proxy = magnitude(net(0), data, 0.5, Recipe(), 0)
    kept = proxy.shapes["0.weight"][0]
    assert 3 <= kept <= 7
    for seed in (1, 2):
        whole = net(seed)
        score = whole[0].weight.square().sum(1) + whole[2].weight.square().sum(0)  # type: ignore[operator, union-attr]
        best = score.argsort(descending=True)[:kept].sort().values
        small = proxy.fresh(copy.deepcopy(whole))
        assert torch.equal(small[0].weight, whole[0].weight[best])  # type: ignore[index, union-attr]
        scaled = whole[2].weight[:, best] * (10 / kept) ** 0.5  # type: ignore[index, operator, union-attr]
        assert torch.allclose(small[2].weight, scaled)  # type: ignore[index, arg-type]


def test_the_most_salient_channels_stay() -> None:
    """A unit without a way to the output has no saliency, however large its weights are."""
    data = synthetic(shape=[8], train=160, test=40)
    with seeded(3):
        whole = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))
    proxy = saliency(copy.deepcopy(whole), data, 0.5, Recipe(), 0)
    dead = [1, 4]
    with torch.no_grad():
        whole[0].weight[dead] *= 50  # type: ignore[index, operator]
        whole[0].bias[dead] = -1e6  # type: ignore[index]
    small = proxy.fresh(copy.deepcopy(whole))
    assert float(small[0].weight.abs().max()) < 5  # type: ignore[index, operator, union-attr]
    by_size = magnitude(copy.deepcopy(whole), data, 0.5, Recipe(), 0).fresh(copy.deepcopy(whole))
    assert float(by_size[0].weight.abs().max()) > 5  # type: ignore[index, operator, union-attr]


def test_random_channels_have_the_widths_of_saliency_and_choose_nothing() -> None:
    data = images()
    one, other = (kind(fresh("vgg", 0), data, 0.3, Recipe(), 0) for kind in (saliency, random_channels))
    assert one.shapes == other.shapes
    assert other.selector is None
    assert one.selector is not None


def test_a_discovered_structure_is_a_proxy() -> None:
    data = synthetic(shape=[3, 8, 8], train=320, test=40)
    recipe = Recipe(epochs=6, batch_size=16, learning_rate=0.05, augment="none")
    proxy = lookup(PROXIES, "discovered", "proxy")(fresh("preresnet", 0), data, 0.5, recipe, 0)
    assert 0.5 / 2.8 < proxy.kept < min(1, 0.5 * 2.8)
    assert proxy.fresh(fresh("preresnet", 1))(data.train.inputs[:2]).shape == (2, 4)


def test_a_network_whose_channels_cannot_be_told_apart_is_refused_in_words() -> None:
    data = images()
    selector = selector_of("channels-magnitude", fresh("vgg", 0), data, Recipe())
    assert selector is not None
    whole = fresh("vgg", 0)
    wrong = {name: tuple(max(1, size - 1) for size in each.shape) for name, each in whole.state_dict().items()}
    with pytest.raises(UserError, match=r"use ladder\.proxy = 'narrowed'"):
        selector(whole, wrong)


# -- rungs ------------------------------------------------------------------------------------------------------------


def test_a_rung_is_the_same_in_another_process(tmp_path: Path) -> None:
    asked = spec()
    context = context_of(asked, "cpu", tmp_path)
    for kind in ("narrowed", "channels-magnitude"):
        rung = proxy_fidelity(ProxyBuilder(context, asked.recipe, kind), 0.2)
        again = fidelity_from_facts(facts_of(rung), context, asked.recipe)
        assert facts_of(again) == facts_of(rung)
        ours, theirs = rung.context.new_model(5).state_dict(), again.context.new_model(5).state_dict()
        assert all(torch.equal(each, theirs[name]) for name, each in ours.items())
        assert rung.context.identity == again.context.identity != context.identity


def test_a_level_is_picked_by_measured_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a step takes as long as the square root of its weights: half the time is a quarter of them."""
    asked = spec()
    context = context_of(asked, "cpu", tmp_path)

    def clock(context: object, choice: object, recipe: object) -> float:
        return context.proxy.kept**0.5 if isinstance(context, ProxyContext) else 1.0

    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    full = full_fidelity(ProxyBuilder(context, asked.recipe, "narrowed"))
    rung = proxy_with_step_time(ProxyBuilder(context, asked.recipe, "narrowed"), 0.5, full)
    assert 0.35 < rung.seconds <= 0.5
    assert 0.12 < rung.kept <= 0.25
    with pytest.raises(UserError, match=r"no proxy is as fast as 0\.01 of"):
        proxy_with_step_time(ProxyBuilder(context, asked.recipe, "narrowed"), 0.01, full)
