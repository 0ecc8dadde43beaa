"""Images as the bytes they are, standardised as they are taken: a quarter of the memory, shared where it is a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPARE = 4  # a device keeps images if so many times their bytes are free: the networks need room as well
GROUP = 2**26  # bytes standardised at once where sums are taken


@dataclass(frozen=True)
class Uint8Images:
    """Images (n, c, h, w) of bytes that behave, where they are indexed or split, like the standardised float tensor.

    ``pixels[which]`` is ``(bytes / 255 - mean) / deviation`` of those images, on ``device``, in ``dtype``, ``layout``.
    The bytes stand on the device if there is room for them, else in memory or in a file that is mapped into it: then
    batches are gathered and sent as they are needed, and what does not fit into memory is read from the file again.

    Attributes:
        bytes: uint8 (m, c, h, w).
        rows: which of them these images are, (n,), where the bytes are: splits of one file share its bytes.
        mean, deviation: of each channel, (c,) float32, on the scale 0 to 1.
        device, dtype, layout: of what is handed out.
    """

    bytes: Tensor
    rows: Tensor
    mean: Tensor
    deviation: Tensor
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(n, c, h, w)."""
        return torch.Size((len(self.rows), *self.bytes.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Of these images."""
        return self.bytes[:1].nbytes * len(self.rows)

    def dim(self) -> int:
        """4."""
        return self.bytes.dim()

    def __getitem__(self, which: Any) -> Tensor:
        rows = self.rows[which.to(self.rows.device) if isinstance(which, Tensor) else which]
        images = self.bytes[rows].to(self.device, self.dtype)
        mean, deviation = (each.to(self.device, self.dtype)[:, None, None] for each in (self.mean, self.deviation))
        images = (images / 255 - mean) / deviation
        return images.contiguous(memory_format=self.layout) if images.dim() == 4 else images

    def split(self, size: int) -> Iterator[Tensor]:
        """Groups of ``size`` images, one after the other."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
    ) -> Uint8Images:
        """The same images for a device; their bytes go along if they fit."""
        layout = torch.contiguous_format if layout == torch.preserve_format else layout
        held, rows = self.bytes, self.rows
        if device.type == "cuda" and SPARE * self.nbytes <= torch.cuda.mem_get_info(device)[0]:
            held, rows = held[rows].to(device), torch.arange(len(rows), device=device)
        scale = {"mean": self.mean.to(device), "deviation": self.deviation.to(device)}
        return replace(self, bytes=held, rows=rows, device=device, dtype=dtype, layout=layout, **scale)

    def pieces(self) -> Iterator[np.ndarray]:
        """The bytes, piece by piece, as a hash wants them."""
        size = max(1, GROUP // self.bytes[:1].nbytes)
        return (np.ascontiguousarray(self.bytes[part].cpu().numpy()) for part in self.rows.split(size))


def statistics(images: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of some images of bytes (m, c, h, w), on the scale 0 to 1; never 0."""
    values = np.arange(256) / 255
    counts = np.zeros((images.shape[1], 256))
    size = max(1, GROUP // images[:1].nbytes)
    for start in range(0, len(rows), size):
        part = images[rows[start : start + size]]
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt(np.maximum(shares @ values**2 - mean**2, 1e-12))  # a channel may be constant
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
