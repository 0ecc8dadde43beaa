"""torchvision's models: any of them by name, and MobileNetV2 with strides for small images."""

from __future__ import annotations

from typing import Any

from torch import nn

from regimes.data.torchvision_import import torchvision
from regimes.errors import UserError
from regimes.models.check_options import images_only
from regimes.registry import nearest

SMALL = 64  # pixels a side, under which MobileNetV2 leaves out its first two halvings


def vision(input_shape: tuple[int, ...], classes: int, arch: str, **options: Any) -> nn.Module:
    """Any classifier of torchvision, with fresh weights, e.g. ``arch = "resnet50"``.

    Args:
        input_shape: (3, height, width): these networks take colour images.
        classes: number of outputs.
        arch: a name that ``torchvision.models.list_models()`` gives.
        options: of that model's own builder.

    Raises:
        UserError: an unknown name, or inputs that are no colour images.
    """
    images_only("torchvision", input_shape)
    if input_shape[0] != 3:
        raise UserError(f"model 'torchvision' needs colour images (3, h, w), the data has {input_shape}")
    models = torchvision().models
    known = models.list_models(module=models)
    if arch not in known:
        raise UserError(f"model.arch = '{arch}': torchvision has no such classifier{nearest(arch, known)}")
    build = models.get_model_builder(arch)
    if arch in ("googlenet", "inception_v3"):  # by default they answer with more than logits, and start up for minutes
        options = {"aux_logits": False, "init_weights": False, **options}
    model: nn.Module = build(weights=None, num_classes=classes, **options)
    return model


def mobilenetv2(input_shape: tuple[int, ...], classes: int, width: float = 1.0, dropout: float = 0.2) -> nn.Module:
    """torchvision's MobileNetV2 (arXiv 1801.04381); on images below 64x64 the first two halvings are left out.

    With 1000 classes it has the published 3.5 million parameters (3,504,872), with ten 2,236,682.

    Args:
        input_shape: (3, height, width).
        classes: number of outputs.
        width: factor on the channels of every layer.
        dropout: before the linear head, while training.
    """
    images_only("mobilenetv2", input_shape)
    model: nn.Module = torchvision().models.mobilenet_v2(num_classes=classes, width_mult=width, dropout=dropout)
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    if input_shape[0] != 3:
        first = convolutions[0]
        block: Any = model.get_submodule("features.0")
        block[0] = nn.Conv2d(input_shape[0], first.out_channels, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(block[0].weight, mode="fan_out")
        convolutions[0] = block[0]
    if min(input_shape[1:]) < SMALL:
        for halving in [each for each in convolutions if each.stride == (2, 2)][:2]:
            halving.stride = (1, 1)
    return model
