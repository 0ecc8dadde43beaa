"""Models of torchvision: any classifier by name, and MobileNetV2 with strides for small images."""

from __future__ import annotations

from typing import Any

from torch import nn

from regimes.errors import UserError
from regimes.models.check_options import require_images
from regimes.registry import nearest
from regimes.torchvision_import import torchvision

FULL_STRIDE_SIDE = 64  # image side in pixels below which MobileNetV2's first two strides are 1


def vision(input_shape: tuple[int, ...], classes: int, arch: str, **options: Any) -> nn.Module:
    """Return a classifier of torchvision with fresh weights, e.g. ``arch = "resnet50"``.

    Args:
        input_shape: (3, height, width); these networks need colour images.
        classes: number of outputs.
        arch: a classifier's name in ``torchvision.models.list_models()``.
        options: options of torchvision's own builder.

    Raises:
        UserError: an unknown name, or inputs that are not colour images.
    """
    require_images("torchvision", input_shape)
    if input_shape[0] != 3:
        raise UserError(
            f"model 'torchvision' needs colour images (3, h, w), the data has inputs of shape {input_shape}"
        )
    models = torchvision().models
    known = models.list_models(module=models)
    if arch not in known:
        raise UserError(f"model.arch = '{arch}': torchvision has no such classifier{nearest(arch, known)}")
    build = models.get_model_builder(arch)
    if arch in ("googlenet", "inception_v3"):  # by default they return more than logits and take minutes to initialise
        options = {"aux_logits": False, "init_weights": False, **options}
    model: nn.Module = build(weights=None, num_classes=classes, **options)
    return model


def mobilenetv2(input_shape: tuple[int, ...], classes: int, width: float = 1.0, dropout: float = 0.2) -> nn.Module:
    """Return torchvision's MobileNetV2 (arXiv 1801.04381); on images below 64x64 pixels the first two strides are 1.

    With 1000 classes it has the published 3.5 million parameters (3,504,872), with ten classes 2,236,682.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        width: multiplier of the number of channels of every layer.
        dropout: dropout probability before the linear head.

    Raises:
        UserError: inputs that are not images.
    """
    require_images("mobilenetv2", input_shape)
    model: nn.Module = torchvision().models.mobilenet_v2(num_classes=classes, width_mult=width, dropout=dropout)
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    if input_shape[0] != 3:
        first = convolutions[0]
        block: Any = model.get_submodule("features.0")
        block[0] = nn.Conv2d(input_shape[0], first.out_channels, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(block[0].weight, mode="fan_out")
        convolutions[0] = block[0]
    if min(input_shape[1:]) < FULL_STRIDE_SIDE:
        for halving in [each for each in convolutions if each.stride == (2, 2)][:2]:
            halving.stride = (1, 1)
    return model
