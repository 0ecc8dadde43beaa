"""DenseNet for small images, in which every layer reads the outputs of all earlier layers of its block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.models.check_options import require_images


class DenseLayer(nn.Module):
    """BN, ReLU and a 3x3 convolution to ``growth`` channels, concatenated to the input channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = _conv(channels, growth, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the input with the new channels appended."""
        return torch.cat([inputs, self.conv(F.relu(self.bn(inputs)))], dim=1)


class Transition(nn.Module):
    """BN, ReLU, 1x1 convolution and 2x2 average pooling, which halves the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = _conv(channels, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return images of half the size."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(inputs))), 2)


class DenseNet(nn.Module):
    """DenseNet of depth 3n+4, without bottlenecks or compression (Huang et al. 2017, arXiv 1608.06993).

    With ten classes and 32x32 colour images, depth 40 and growth 12 give 1,019,722 parameters.

    Args:
        input_shape: (channels, height, width), at least 4x4 pixels.
        classes: number of outputs.
        depth: 3n+4 with n layers in each of three dense blocks: 10, 22, 40, 100, ...
        growth: number of channels that each layer adds.

    Raises:
        UserError: another depth, or inputs that are not images of at least 4x4 pixels.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, depth: int = 40, growth: int = 12) -> None:
        super().__init__()
        require_images("densenet", input_shape, least=4)
        if depth < 7 or (depth - 4) % 3:
            raise UserError(f"model.depth = {depth}: a DenseNet has depth 3n+4; allowed: 7, 10, 13, 22, 40, 100")
        channels = 16
        self.stem = _conv(input_shape[0], channels, 3)
        parts: list[nn.Module] = []
        for block in range(3):
            for _ in range((depth - 4) // 3):
                parts.append(DenseLayer(channels, growth))
                channels += growth
            if block < 2:
                parts.append(Transition(channels))
        self.blocks = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, classes) of images (n, c, h, w)."""
        features = F.relu(self.bn(self.blocks(self.stem(inputs))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _conv(channels_in: int, channels_out: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
