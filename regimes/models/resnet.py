"""Post-activation residual networks for small images: ResNets of depth 6n+2, and ResNet-18 with a small stem."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from regimes.models.check_options import blocks_per_stage, require_images


class Padded(nn.Module):
    """Parameter-free shortcut: every second pixel, with half of the new channels zero-padded on either side."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        missing = channels_out - channels_in
        self.before, self.behind = missing // 2, missing - missing // 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the shortcut."""
        return F.pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


class BasicBlock(nn.Module):
    """3x3 convolution, BN, ReLU, 3x3 convolution and BN, added to the block's input, followed by ReLU.

    Where the shape changes, the shortcut is `Padded`, or with ``projection`` a 1x1 convolution and BN.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, channels_out, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv(channels_out, channels_out, 3, 1)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = Padded(channels_in, channels_out)
            if projection:
                self.shortcut = nn.Sequential(_conv(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output."""
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(inputs)))))
        return F.relu(branch + self.shortcut(inputs))


class _Residual(nn.Module):
    """3x3 stem, stages that double the channels and halve the image, global average pooling and linear head."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, width: int, counts: list[int], projection: bool):
        super().__init__()
        self.stem = _conv(input_shape[0], width, 3, 1)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        before = width
        for stage, count in enumerate(counts):
            for index in range(count):
                after = width * 2**stage
                blocks.append(BasicBlock(before, after, 2 if stage and not index else 1, projection))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, classes) of images (n, c, h, w)."""
        features = self.blocks(F.relu(self.bn(self.stem(inputs))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class ResNet(_Residual):
    """ResNet of depth 6n+2 for small images, with parameter-free shortcuts (He et al. 2015, arXiv 1512.03385).

    With ten classes and 32x32 colour images it has 269,722, 853,018 and 1,727,962 parameters at depth 20, 56 and 110.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        depth: 6n+2 with n blocks in each of three stages: 8, 14, 20, 56, 110, ...
        width: number of channels of the first stage; the next two have twice and four times as many.

    Raises:
        UserError: another depth, or inputs that are not images.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, depth: int = 20, width: int = 16) -> None:
        require_images("resnet", input_shape)
        count = blocks_per_stage("a ResNet for small images", depth)
        super().__init__(input_shape, classes, width, [count] * 3, projection=False)


class ResNet18(_Residual):
    """ResNet-18 with a stem for small images: a 3x3 convolution of stride 1, without pooling.

    With ten classes and colour images it has 11,173,962 parameters.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        width: number of channels of the first of four stages; 64 in the paper.

    Raises:
        UserError: inputs that are not images.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, width: int = 64) -> None:
        require_images("resnet18", input_shape)
        super().__init__(input_shape, classes, width, [2] * 4, projection=True)


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
