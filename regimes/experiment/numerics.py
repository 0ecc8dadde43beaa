"""Numerics: engine, dtype, device and library version, on which the bits of a result depend beside its key."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch

from regimes.config.keys import digest
from regimes.errors import UserError
from regimes.experiment.devices import processor_of
from regimes.training.precision import PRECISIONS


@dataclass(frozen=True)
class Numerics:
    """Everything besides the content key that determines the bits of a result. A run keeps its first numerics.

    Attributes:
        dense: the engine that trains dense networks, a name in `ENGINES`.
        engine: the engine that retrains pruned ones.
        dtype: data type of weights and inputs.
        device: device type, "cpu" or "cuda".
        processor: instruction set of the CPU, or name of the GPU; the order of sums depends on it.
        torch: version of torch.
        precision: precision of training steps, a name in `PRECISIONS`; measurements use ``dtype``.
        layout: memory format of images and convolutions.
    """

    dense: str
    engine: str
    dtype: str
    device: str
    processor: str
    torch: str
    precision: str = "float32"
    layout: str = "contiguous_format"

    @property
    def id(self) -> str:
        """The numerics id, a short hash that is stored in every record."""
        return digest(dataclasses.asdict(self))[:8]

    def __str__(self) -> str:
        engines = self.engine if self.dense == self.engine else f"{self.engine} (dense networks {self.dense})"
        steps = self.dtype if self.precision == self.dtype else f"{self.dtype}, steps in {self.precision}"
        return (
            f"{engines}, {steps}, {self.layout.replace('_', '-')}, {self.device} ({self.processor}), torch {self.torch}"
        )


def numerics_of(device: str, dense: str, engine: str, precision: str = "float32") -> Numerics:
    """Return the numerics of a device, given in its normalised form (see `devices_of`).

    The memory format is that of `memory_layout`.

    Raises:
        UserError: the precision is not in `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: allowed: {', '.join(PRECISIONS)}")
    kind, version = device.partition(":")[0], torch.__version__.partition("+")[0]
    return Numerics(dense, engine, "float32", kind, processor_of(device), version, precision, memory_layout(kind))


def memory_layout(kind: str) -> str:
    """Return the memory format of images and convolutions for a type of device.

    Channels-last is up to 1.3 times as fast, but not safe on CPUs with AVX2 and no AVX512: there oneDNN's weight
    gradient of a strided 1x1 convolution with 2 to 6 input channels writes beyond its memory in this format (torch
    2.13.0), which corrupts the heap and ends the process.
    """
    avx2 = kind == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return "contiguous_format" if avx2 else "channels_last"


def use_deterministic_kernels(device: str) -> None:
    """Enable deterministic kernels and full float32 in this process, if the device is a CUDA device."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # By default every empty tensor is filled with NaN, at the cost of one kernel each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
