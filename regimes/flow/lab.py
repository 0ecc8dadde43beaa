"""The lab: what every stage of a sweep works with - data, model, device - made once per process."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from regimes.data import DATASETS
from regimes.data.dataset import Dataset
from regimes.errors import UserError
from regimes.models import MODELS
from regimes.models.build import build
from regimes.registry import load, source_id
from regimes.spec.keys import digest
from regimes.spec.sweep import Named


@dataclass(frozen=True)
class Numerics:
    """What the bits of a result depend on beside its key. A run keeps the numerics it began with.

    Attributes:
        engine: how networks are trained; "eager": one by one, plain PyTorch.
        dtype: of weights and inputs.
        device: type of device, "cpu" or "cuda".
        processor: instruction set (CPU) or card, on which the order of sums depends.
        torch: version.
    """

    engine: str
    dtype: str
    device: str
    processor: str
    torch: str

    @property
    def id(self) -> str:
        """A short name for these numerics; every record bears it."""
        return digest(dataclasses.asdict(self))[:8]

    def __str__(self) -> str:
        return f"{self.engine}, {self.dtype}, {self.device} ({self.processor}), torch {self.torch}"


def numerics_of(device: str, dtype: str = "float32") -> Numerics:
    """Return the numerics of this machine for a device.

    Raises:
        UserError: the device is not there.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: no CUDA device is at hand; allowed here: cpu")
        processor = torch.cuda.get_device_name(device)
    elif kind == "cpu":
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    else:
        raise UserError(f"--device {device}: allowed: cpu, cuda, cuda:0, cuda:1, ...")
    return Numerics("eager", dtype, kind, processor, torch.__version__.partition("+")[0])


@dataclass(frozen=True)
class LabSpec:
    """What it takes to set up a lab in any process.

    Attributes:
        data, model: names and options.
        device: "cpu", "cuda", "cuda:1", ...
        numerics: what this run's numbers are made with.
        folder: of the run.
    """

    data: Named
    model: Named
    device: str
    numerics: Numerics
    folder: str


class Lab:
    """Data, model and device of one sweep; loads nothing before it is asked for."""

    def __init__(self, spec: LabSpec) -> None:
        self.spec = spec
        self.device = torch.device(spec.device)
        self.dtype: torch.dtype = getattr(torch, spec.numerics.dtype)

    @cached_property
    def loaded(self) -> Dataset:
        """The data as the data set's function returned it."""
        data: Any = load(DATASETS, self.spec.data.name, "data set")(**self.spec.data.options)
        if not isinstance(data, Dataset):
            raise UserError(
                f"data set '{self.spec.data.name}' returned {type(data).__name__}; it must return a regimes.Dataset, "
                "e.g. Dataset.from_arrays(train=(x, y), test=(x, y), title=...)"
            )
        return data

    @cached_property
    def data(self) -> Dataset:
        """The data on the device."""
        return self.loaded.to(self.device, self.dtype)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every key of this sweep rests on: the numbers in the data, the model, a user's own source."""
        model = self.spec.model
        return {
            "data": self.loaded.fingerprint,
            "model": {"name": model.name, "options": model.options, "source": source_id(MODELS, model.name, "model")},
        }

    def new_model(self, seed: int) -> nn.Module:
        """A model with fresh weights on the device; same seed, same bits."""
        data = self.loaded
        model = build(self.spec.model.name, self.spec.model.options, data.input_shape, data.classes, seed)
        return model.to(self.device, self.dtype)

    def model_with(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A model with stored weights."""
        model = self.new_model(seed=0)
        model.load_state_dict(
            {name: each for name, each in weights.items() if not name.startswith(("mask/", "momentum/"))}
        )
        return model


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: with more, steps of small networks take 5 to 400 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
