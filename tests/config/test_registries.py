"""Conformance: what every entry of every registry has to hold. Add a line to a registry, be tested."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL
from PIL import Image
from token_data import TOKENS, token_data

from regimes.config.recipe import RECIPES, Recipe
from regimes.data import AUGMENTATIONS, DATASETS
from regimes.data.dataset import Dataset
from regimes.errors import UserError
from regimes.knobs import KNOBS
from regimes.landscape import METRICS
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Curve, Probe, Trained
from regimes.losses.functions import cross_entropy
from regimes.models import MODELS
from regimes.models.build import build
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prunable, prune
from regimes.registry import lookup

IMAGE = (3, 8, 8)
SIGNALS = "preresnet on signals"
NETWORKS = (*MODELS, SIGNALS)


def shape_of(name: str) -> tuple[int, ...]:
    if name in TOKENS:
        return (8,)
    return (3, 16) if name == SIGNALS else IMAGE


def small(name: str, seed: int = 0) -> torch.nn.Module:
    known = name.partition(" ")[0]
    return build(known, {**SMALL, **TOKENS}[known], shape_of(name), 5, seed)


# -- knobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOBS)
def test_knob_changes_only_fields_of_a_recipe(name: str) -> None:
    knob = lookup(KNOBS, name, "knob")
    assert knob.name == name
    value = knob.kind(knob.low + 1)
    assert knob.accepts(value)
    changes = knob.changes(Recipe(), value)
    assert changes
    assert set(changes) <= set(Recipe.model_fields)
    assert Recipe().model_copy(update=changes) != Recipe()


@pytest.mark.parametrize("name", KNOBS)
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, True, "8", None, [1]])
def test_knob_refuses_what_is_no_value(name: str, bad: object) -> None:
    assert not lookup(KNOBS, name, "knob").accepts(bad)


def test_whole_number_knobs_refuse_fractions() -> None:
    assert not lookup(KNOBS, "epochs", "knob").accepts(1.5)
    assert lookup(KNOBS, "epochs", "knob").accepts(2.0)


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders, as the data set "imagefolder" reads them."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 130), ("test", 30)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03d}.png")
    return root


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_has_three_disjoint_splits_and_is_the_same_every_time(name: str, folder: Path, archives: Path) -> None:
    root = folder if name == "imagefolder" else archives
    options = {} if name in ("digits", "mnist1d", "stdlib-text", "synthetic") else {"root": str(root)}
    data: Dataset = lookup(DATASETS, name, "data set")(**options)
    again: Dataset = lookup(DATASETS, name, "data set")(**options)
    assert data.fingerprint == again.fingerprint
    rows = [{tuple(row.tolist()) for row in split.inputs[:].flatten(1)} for split in (data.train, data.val, data.test)]
    assert all(len(split.targets) > 20 for split in (data.train, data.val, data.test))
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    for split in (data.train, data.val, data.test):
        found = set(split.targets.flatten().tolist())
        assert found <= set(range(data.classes)) if name == "stdlib-text" else found == set(range(data.classes))
        assert torch.isfinite(split.inputs[:]).all()


def test_imagefolder_takes_as_many_of_each_class(folder: Path) -> None:
    data = lookup(DATASETS, "imagefolder", "data set")(root=str(folder), images=100, test_images=20)
    assert data.title == f"{folder.name}, 90 training images, 20 test images"
    assert data.input_shape == (3, 4, 4)
    assert [torch.bincount(split.targets).tolist() for split in (data.train, data.val, data.test)] == [
        [45, 45],
        [5, 5],
        [10, 10],
    ]
    assert data.train.inputs[:].mean(dim=(0, 2, 3)).abs().max() < 1e-5


def test_imagefolder_says_what_it_expects(folder: Path, tmp_path: Path) -> None:
    make = lookup(DATASETS, "imagefolder", "data set")
    with pytest.raises(UserError, match=r"no folder train/ in it; expected .*/train/CLASS/IMAGE.jpg"):
        make(root=str(tmp_path / "none"))
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "test" / "dog").rename(tmp_path / "other" / "test" / "fox")
    with pytest.raises(UserError, match="the same class folders"):
        make(root=str(tmp_path / "other"))
    shutil.copytree(folder, tmp_path / "large")
    for file in (tmp_path / "large" / "test").rglob("*.png"):
        Image.open(file).resize((8, 8)).save(file)
    with pytest.raises(UserError, match="different size in its splits"):
        make(root=str(tmp_path / "large"))
    shutil.copytree(folder, tmp_path / "sizes")
    Image.new("RGB", (5, 4)).save(tmp_path / "sizes" / "train" / "cat" / "999.png")
    with pytest.raises(UserError, match="train': images of different size"):
        make(root=str(tmp_path / "sizes"))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_shapes_and_repeats_itself(name: str) -> None:
    augmentation = lookup(AUGMENTATIONS, name, "augmentation")
    images = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    draws = [augmentation.draw(6, (2, 8, 8), torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert augmentation.apply(images, draws[0]).shape == images.shape
    still = torch.tensor([[augmentation.pixels(8), augmentation.pixels(8), 0]]).expand(6, 3)
    assert torch.equal(augmentation.apply(images, still), images)


# -- models and pruners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_model_is_drawn_from_its_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = small(name, 3), small(name, 3), small(name, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    tokens = name in TOKENS
    inputs = torch.zeros(2, *shape_of(name), dtype=torch.int64 if tokens else torch.float32)
    assert one(inputs).shape == ((2, *shape_of(name), 5) if tokens else (2, 5))


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("density", [0.03, 0.1, 0.5, 1.0])
def test_density_is_exact_and_the_mask_is_reproducible(
    model: str, pruner: str, allocation: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(model)
    weights = {name: each.detach().clone() for name, each in network.named_parameters()}
    monkeypatch.setattr("regimes.pruners.synflow.ROUNDS", 3)
    data = probe(model).data

    def mask() -> Mask:
        return prune(network, density, pruner, allocation, data, torch.Generator().manual_seed(0), cross_entropy)

    masks = [mask(), mask()]
    total = sum(each.numel() for each in prunable(network).values())
    assert masks[0].size == total
    assert masks[0].kept == round(density * total)
    assert all(torch.equal(masks[0].layers[name], masks[1].layers[name]) for name in masks[0].layers)
    assert all(torch.equal(weights[name], each) for name, each in network.named_parameters())


# -- metrics ----------------------------------------------------------------------------------------------------------


def probe(model: str) -> Probe:
    if model in TOKENS:
        return Probe(token_data(), cross_entropy, torch.Generator().manual_seed(0))
    make = lookup(DATASETS, "synthetic", "data set")
    data = make(shape=shape_of(model), classes=5, train=120, test=60)
    return Probe(data, F.cross_entropy, torch.Generator().manual_seed(0))


CHEAP: dict[str, dict[str, int]] = {"spectrum": {"probes": 2, "steps": 4}, "curve": {"epochs": 2}}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("model", NETWORKS)
def test_metric_gives_what_it_promises_and_leaves_networks_alone(name: str, model: str) -> None:
    metric = lookup(METRICS, name, "metric")
    assert metric.name == name
    networks = [small(model, seed) for seed in range(2 if metric.subject == "pair" else 1)]
    for network in networks:
        network.train()
    mask = prune(networks[0], 0.3)
    for network in networks:
        mask.apply(network)
    state = [{key: each.clone() for key, each in network.state_dict().items()} for network in networks]
    options = metric.options() if model == "mlp" else metric.options(**CHEAP.get(name, {}))
    if (name, model) == ("lmc_matched", "torchvision"):  # ShuffleNet's shuffled channels are beyond torch-pruning
        with pytest.raises(UserError, match="torch-pruning cannot trace"):
            metric.measure([Trained(each, mask) for each in networks], probe(model), options)
        return
    measured = [metric.measure([Trained(each, mask) for each in networks], probe(model), options) for _ in range(2)]
    assert set(measured[0]) == set(metric.variables)
    for variable, value in measured[0].items():
        assert isinstance(value, (Estimate, Curve))
        if isinstance(value, Estimate):
            assert math.isfinite(value.value)
            assert value.value == measured[1][variable].value
    for network, before in zip(networks, state, strict=True):
        assert all(torch.equal(before[key], each) for key, each in network.state_dict().items())
        assert all(each.grad is None for each in network.parameters())
        assert all(module.training for module in network.modules())
    assert metric.work(options, 1000) > 0
    assert dataclasses.is_dataclass(metric.options)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("registry", "what"), [(KNOBS, "knob"), (MODELS, "model"), (METRICS, "metric")])
def test_unknown_name_says_what_is_allowed(registry: dict[str, str], what: str) -> None:
    name = next(iter(registry))
    with pytest.raises(UserError, match=f"did you mean '{name}'") as error:
        lookup(registry, name + "x", what)
    assert all(each in str(error.value) for each in registry)


def test_import_path_works_where_a_name_does() -> None:
    assert lookup(PRUNERS, "regimes.pruners.magnitude:magnitude", "pruner") is lookup(PRUNERS, "magnitude", "pruner")
    with pytest.raises(UserError, match=r"has no 'magnitud'.*did you mean 'magnitude'"):
        lookup(PRUNERS, "regimes.pruners.magnitude:magnitud", "pruner")
    with pytest.raises(UserError, match=r"cannot import pruner 'nowhere.at_all:f'"):
        lookup(PRUNERS, "nowhere.at_all:f", "pruner")


def test_recipes_name_known_augmentations() -> None:
    assert all(recipe.augment in AUGMENTATIONS for recipe in RECIPES.values())
