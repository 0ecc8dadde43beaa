"""Pre-activation residual networks for small images, as in the three-regime study (Zhou et al. 2023), or signals."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from regimes.models.check_options import blocks_per_stage, require_images

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}  # by the number of spatial axes
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


class PreActBlock(nn.Module):
    """Twice BN, ReLU and a convolution of kernel size 3, added to the block's input (or its 1x1 projection)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, axes: int = 2) -> None:
        super().__init__()
        self.bn1 = NORMS[axes](channels_in)
        self.conv1 = _conv(channels_in, channels_out, 3, stride, axes)
        self.bn2 = NORMS[axes](channels_out)
        self.conv2 = _conv(channels_out, channels_out, 3, 1, axes)
        same = stride == 1 and channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity() if same else _conv(channels_in, channels_out, 1, stride, axes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output."""
        branch = self.conv1(F.relu(self.bn1(inputs)))
        branch = self.conv2(F.relu(self.bn2(branch)))
        out: Tensor = branch + self.shortcut(inputs)
        return out


class PreResNet(nn.Module):
    """PreResNet of depth 6n+2: 3x3 stem, three stages of n basic blocks, BN, ReLU, global average pooling, linear head.

    Signals (channels, length) get one-dimensional convolutions and BatchNorm, with the same structure.

    Basic blocks at every depth, 1x1 projection of the block's input where the shape changes, He-normal (fan-out)
    initialisation. With width 16, ten classes and 32x32 colour images, it has 272,282, 855,578 and 1,730,522 parameters
    at depth 20, 56 and 110, as in the code of Zhou et al. 2023 (arXiv 2305.18383).

    Args:
        input_shape: (channels, height, width) of images, or (channels, length) of signals.
        classes: number of outputs.
        depth: 6n+2 with n blocks per stage: 8, 14, 20, 56, 110, ...
        width: number of channels of the first stage; the next two have twice and four times as many.

    Raises:
        UserError: another depth, or inputs that are neither images nor signals.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, depth: int = 20, width: int = 16) -> None:
        super().__init__()
        require_images("preresnet", input_shape, signals=True)
        count = blocks_per_stage("a PreResNet", depth)
        axes = len(input_shape) - 1
        self.pooled = tuple(range(2, 2 + axes))  # dimensions of the features that are averaged
        self.stem = _conv(input_shape[0], width, 3, 1, axes)
        stages = []
        before = width
        for stage in range(3):
            for index in range(count):
                after = width * 2**stage
                stages.append(PreActBlock(before, after, 2 if stage and not index else 1, axes))
                before = after
        self.blocks = nn.Sequential(*stages)
        self.bn = NORMS[axes](before)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, classes) of images (n, c, h, w) or signals (n, c, length)."""
        features = F.relu(self.bn(self.blocks(self.stem(inputs))))
        logits: Tensor = self.head(features.mean(dim=self.pooled))
        return logits


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int, axes: int) -> nn.Module:
    conv = CONVOLUTIONS[axes](channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
