"""VGG for small images: the convolutions of VGG-11 to VGG-19, one linear layer behind them."""

from __future__ import annotations

from torch import Tensor, nn

from regimes.errors import UserError
from regimes.models.check_options import images_only

# Convolutions of each of the five stages; a stage halves the image at its end.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG with the fully connected layers left out, as it is used on small images (arXiv 1409.1556).

    Five stages of 3x3 convolutions, each closed by a 2x2 maximum, then the mean over what is left of the image and a
    linear head. Where an image is too small to be halved once more (32x32 is large enough), the last maxima are left
    out.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        depth: 11, 13, 16 or 19.
        batch_norm: whether a BatchNorm stands behind every convolution.
        width: channels of the first stage; 64 in the original.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, depth: int = 19, batch_norm: bool = True, width: int = 64
    ) -> None:
        super().__init__()
        images_only("vgg", input_shape)
        if depth not in STAGES:
            raise UserError(f"model.depth = {depth}: a VGG has depth {', '.join(map(str, STAGES))}")
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
        """Logits (n, classes) of images (n, c, h, w)."""
        logits: Tensor = self.head(self.body(inputs).mean(dim=(2, 3)))
        return logits


def _layer(channels_in: int, channels_out: int, batch_norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return [conv, *([nn.BatchNorm2d(channels_out)] if batch_norm else []), nn.ReLU()]
