"""Images stored as bytes and standardised on access: a quarter of the memory of float32, shared if memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

FREE_MEMORY_FACTOR = 4  # images are kept on a device with this many times their bytes free; networks need memory too
CONSTANT = 1.0  # deviation of a constant channel, which is not scaled; others have at most 0.5
CHUNK_BYTES = 2**26  # bytes per chunk when computing statistics or hashes


@dataclass(frozen=True)
class Uint8Images:
    """Images (n, c, h, w) stored as bytes, which behave like a standardised float tensor when indexed or split.

    ``images[index]`` is ``(bytes / 255 - mean) / deviation`` of the selected images, on ``device``, with ``dtype`` and
    ``layout``. The bytes are on that device if they fit, else in memory or in a memory-mapped file; batches are then
    gathered and transferred when needed.

    Attributes:
        bytes: uint8 (m, c, h, w); splits of one file share its bytes.
        rows: indices (n,) of these images in ``bytes``, on the same device.
        mean, deviation: mean and standard deviation of each channel, (c,) float32, on the scale 0 to 1.
        device, dtype, layout: device, dtype and memory format of the returned tensors.
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
        """Shape (n, c, h, w) of the images."""
        return torch.Size((len(self.rows), *self.bytes.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Number of bytes of these images."""
        return self.bytes[:1].nbytes * len(self.rows)

    @property
    def constant(self) -> Tensor:
        """Whether each channel is constant, (c,)."""
        return self.deviation == CONSTANT

    def dim(self) -> int:
        """Return the number of dimensions, 4."""
        return self.bytes.dim()

    def __getitem__(self, index: Any) -> Tensor:
        rows = self.rows[index.to(self.rows.device) if isinstance(index, Tensor) else index]
        # Much faster than an index in brackets, which takes one number at a time.
        images = self.bytes.index_select(0, rows) if rows.dim() == 1 else self.bytes[rows]
        mean, deviation = (each.to(self.device, self.dtype)[:, None, None] for each in (self.mean, self.deviation))
        images = images.to(self.device, self.dtype).div_(255).sub_(mean).div_(deviation)
        return images.contiguous(memory_format=self.layout) if images.dim() == 4 else images

    def first(self, count: int) -> Uint8Images:
        """Return the first ``count`` images, still as bytes."""
        return replace(self, rows=self.rows[:count])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield consecutive batches of ``size`` images."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
    ) -> Uint8Images:
        """Return the images for a device; their bytes are moved to it if they fit."""
        layout = torch.contiguous_format if layout == torch.preserve_format else layout
        held, rows = self.bytes, self.rows
        if device.type == "cuda" and FREE_MEMORY_FACTOR * self.nbytes <= torch.cuda.mem_get_info(device)[0]:
            held, rows = held[rows].to(device), torch.arange(len(rows), device=device)
        scale = {"mean": self.mean.to(device), "deviation": self.deviation.to(device)}
        return replace(self, bytes=held, rows=rows, device=device, dtype=dtype, layout=layout, **scale)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield the bytes in chunks, for hashing."""
        size = max(1, CHUNK_BYTES // self.bytes[:1].nbytes)
        return (np.ascontiguousarray(self.bytes[part].cpu().numpy()) for part in self.rows.split(size))


def channel_statistics(images: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, on the scale 0 to 1; 1 is the deviation of a constant one.

    Args:
        images: bytes (m, c, h, w).
        rows: indices of the images used.
    """
    values = np.arange(256) / 255
    counts = np.zeros((images.shape[1], 256))
    size = max(1, CHUNK_BYTES // images[:1].nbytes)
    for start in range(0, len(rows), size):
        part = images[rows[start : start + size]]
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    deviation[(counts > 0).sum(axis=1) == 1] = CONSTANT
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
