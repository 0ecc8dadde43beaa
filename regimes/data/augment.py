"""Augmentation as tensor operations on the device of the data: drawn for a whole pass, applied per batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regimes.data.inputs import Inputs
from regimes.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding, and horizontal flip.

    Attributes:
        pad: zero padding on each side, as a fraction of the image side (1/8 for 4 of 32 pixels) and at least one pixel;
            0: no crop.
        flip: whether images are flipped horizontally with probability 1/2.
    """

    pad: float
    flip: bool

    def draw(self, count: int, shape: Any, generator: torch.Generator) -> Tensor:
        """Draw the augmentation of one pass: integers (count, 3) with row offset, column offset and flip.

        Args:
            count: number of inputs.
            shape: shape of one input.
            generator: CPU generator.
        """
        highest = [2 * self.pixels(side) + 1 for side in shape[-2:]] if _image(shape) else [1, 1]
        draws = [torch.randint(0, each, (count,), generator=generator) for each in (*highest, 1 + self.flip)]
        return torch.stack(draws, dim=1)

    def apply(self, images: Inputs, draws: Tensor) -> Inputs:
        """Return augmented images (n, c, h, w); ``draws`` (n, 3) comes from `draw`, on the images' device.

        Raises:
            UserError: the inputs are several tensors.
        """
        if self.pad == 0 and not self.flip:
            return images
        if not isinstance(images, Tensor):
            raise UserError("recipe.augment needs images (c, h, w), the inputs are several tensors; use 'none'")
        count, channels, height, width = images.shape
        high, wide = self.pixels(height), self.pixels(width)
        padded = F.pad(images, (wide, wide, high, high))
        rows = draws[:, 0, None] + torch.arange(height, device=images.device)  # (n, h)
        across = torch.arange(width, device=images.device)
        across = torch.where(draws[:, 2, None] == 1, width - 1 - across, across)  # (n, w)
        columns = draws[:, 1, None] + across
        which = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[None, :, None, None]
        return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def pixels(self, side: int) -> int:
        """Return the padding in pixels for an image side."""
        return max(1, round(self.pad * side)) if self.pad else 0

    def check(self, input_shape: Any, name: str) -> None:
        """Raise `UserError` if the augmentation needs images (c, h, w) and the inputs have another shape."""
        if (self.pad or self.flip) and not _image(input_shape):
            raise UserError(
                f"recipe.augment = '{name}' needs images (c, h, w), the data has shape {input_shape}; use 'none'"
            )


def _image(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 3 and all(isinstance(each, int) for each in shape)


NONE = Augmentation(pad=0.0, flip=False)
SHIFT = Augmentation(pad=1 / 8, flip=False)
CROP_FLIP = Augmentation(pad=1 / 8, flip=True)
