"""Models: the published numbers of parameters, torchvision's own networks, and what is said where they do not fit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from regimes import UserError
from regimes.models.build import build, seeded
from regimes.pruners.prune import prunable
from regimes.torchvision_import import torchvision


def parameters(name: str, options: dict[str, Any], classes: int = 10, side: int = 32) -> int:
    return sum(each.numel() for each in build(name, options, (3, side, side), classes, 0).parameters())


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("preresnet", {"depth": 20}, 272_282),
        ("preresnet", {"depth": 56}, 855_578),
        ("preresnet", {"depth": 110}, 1_730_522),
        ("resnet", {"depth": 20}, 269_722),
        ("resnet", {"depth": 56}, 853_018),
        ("resnet", {"depth": 110}, 1_727_962),
        ("resnet18", {}, 11_173_962),
        ("densenet", {"depth": 40, "growth": 12}, 1_019_722),
        ("mobilenetv2", {}, 2_236_682),
        ("torchvision", {"arch": "resnet18"}, 11_181_642),
    ],
)
def test_parameters_are_as_published(name: str, options: dict[str, Any], count: int) -> None:
    assert parameters(name, options) == count


def test_a_thousand_classes_as_torchvision_publishes_them() -> None:
    models = torchvision().models
    for arch, published in (("resnet18", models.ResNet18_Weights), ("densenet121", models.DenseNet121_Weights)):
        assert parameters("torchvision", {"arch": arch}, 1000, 64) == published.DEFAULT.meta["num_params"]
    assert parameters("mobilenetv2", {}, 1000, 64) == models.MobileNet_V2_Weights.DEFAULT.meta["num_params"]


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_has_the_published_convolutions(depth: int, batch_norm: bool) -> None:
    models = torchvision().models
    weights = getattr(models, f"VGG{depth}{'_BN' if batch_norm else ''}_Weights").DEFAULT
    heads = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000  # the fully connected layers left out here
    ours = parameters("vgg", {"depth": depth, "batch_norm": batch_norm}) - (512 * 10 + 10)
    assert ours == weights.meta["num_params"] - heads


def test_resnet18_is_torchvisions_but_for_the_stem() -> None:
    ours = build("resnet18", {}, (3, 32, 32), 10, 0).eval()
    theirs = torchvision().models.resnet18(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert [each.shape for each in ours.state_dict().values()] == [each.shape for each in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_small_images_are_halved_less_often() -> None:
    sides: dict[str, int] = {}
    for side in (32, 64):
        model = build("mobilenetv2", {"width": 0.25}, (3, side, side), 10, 0)
        features = model.get_submodule("features")
        sides[str(side)] = features(torch.zeros(2, 3, side, side)).shape[-1]
    assert sides == {"32": 4, "64": 2}
    assert build("vgg", {"depth": 11, "width": 4}, (1, 8, 8), 10, 0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "shape", "line"),
    [
        ("preresnet", {"depth": 21}, (3, 8, 8), "depth 6n\\+2; allowed: 8, 14"),
        ("resnet", {"depth": 18}, (3, 8, 8), "depth 6n\\+2; allowed: 8, 14"),
        ("vgg", {"depth": 12}, (3, 8, 8), "allowed for VGG: 11, 13, 16, 19"),
        ("densenet", {"depth": 12}, (3, 8, 8), "depth 3n\\+4"),
        ("densenet", {"depth": 10}, (3, 2, 2), "4x4 pixels or more"),
        ("resnet18", {}, (12,), "needs images"),
        ("mobilenetv2", {}, (12,), "needs images"),
        ("torchvision", {"arch": "resnet18"}, (1, 32, 32), "colour images"),
        ("torchvision", {"arch": "resnet81"}, (3, 32, 32), "no such classifier .did you mean 'resnet"),
    ],
)
def test_what_does_not_fit_is_said(name: str, options: dict[str, Any], shape: tuple[int, ...], line: str) -> None:
    with pytest.raises(UserError, match=line):
        build(name, options, shape, 10, 0)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("resnet", {"depth": 20}, 1 + 18),
        ("resnet18", {}, 1 + 16 + 3),
        ("vgg", {"depth": 19}, 16),
        ("densenet", {"depth": 40}, 1 + 36 + 2),
        ("mobilenetv2", {}, 52),
    ],
)
def test_every_convolution_is_prunable_and_the_head_is_not(name: str, options: dict[str, Any], layers: int) -> None:
    model = build(name, options, (3, 32, 32), 10, 0)
    names = prunable(model)
    assert len(names) == layers
    convolutions = [name for name, each in model.named_modules() if isinstance(each, nn.Conv2d)]
    assert set(names) == {f"{name}.weight" for name in convolutions}


def test_threads_draw_from_their_own_seeds() -> None:
    def drawn(seed: int) -> list[float]:
        with seeded(seed):
            first = torch.rand(1).item()
            time.sleep(0.001)
            return [first, torch.rand(1).item()]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, range(12))) == [drawn(seed) for seed in range(12)]
