"""VGG for small images: the convolutions of VGG-11 to VGG-19, followed by one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from regimes.errors import UserError
from regimes.models.check_options import require_images

# Number of convolutions in each of the five stages; each stage ends with pooling that halves the image.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG (arXiv 1409.1556) without the hidden fully connected layers, as usual on small images.

    Five stages of 3x3 convolutions, each followed by 2x2 max pooling, then global average pooling and a linear head. On
    images below 32x32 pixels, pooling is omitted once the image cannot be halved further.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        depth: 11, 13, 16 or 19.
        batch_norm: whether to add BatchNorm after every convolution.
        width: number of channels of the first stage; 64 in the paper.

    Raises:
        UserError: another depth, or inputs that are not images.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, depth: int = 19, batch_norm: bool = True, width: int = 64
    ) -> None:
        super().__init__()
        require_images("vgg", input_shape)
        if depth not in STAGES:
            raise UserError(f"model.depth = {depth}: allowed for VGG: {', '.join(map(str, STAGES))}")
        layers: list[nn.Module] = []
        before, side = input_shape[0], min(input_shape[1:])
        for count, channels in zip(STAGES[depth], CHANNELS, strict=True):
            after = max(1, channels * width // 64)
            for _ in range(count):
                layers += _layer(before, after, batch_norm)
                before = after
            if side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, classes) of images (n, c, h, w)."""
        logits: Tensor = self.head(self.body(inputs).mean(dim=(2, 3)))
        return logits


def _layer(channels_in: int, channels_out: int, batch_norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return [conv, *([nn.BatchNorm2d(channels_out)] if batch_norm else []), nn.ReLU()]
