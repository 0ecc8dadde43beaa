"""The context: what every stage of a sweep works with - data, model, device - made once per process."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from regimes.config.keys import digest
from regimes.config.sweep import Named, Size
from regimes.data import DATASETS
from regimes.data.dataset import Dataset
from regimes.errors import UserError
from regimes.experiment.store import Store
from regimes.landscape.metric import Variable
from regimes.models import GIVEN, MODELS
from regimes.models.build import build
from regimes.models.residual_blocks import without_blocks
from regimes.pruners.channels import fitted
from regimes.pruners.mask import Mask
from regimes.registry import load, source_id, with_defaults
from regimes.training.precision import PRECISIONS


@dataclass(frozen=True)
class Numerics:
    """What the bits of a result depend on beside its key. A run keeps the numerics it began with.

    Attributes:
        dense: the engine that trains dense networks, a name in `ENGINES`.
        engine: the engine that retrains pruned ones.
        dtype: of weights and inputs.
        precision: of training steps, a name in `PRECISIONS`; what is measured is measured in ``dtype``.
        layout: memory format of images and convolutions.
        device: type of device, "cpu" or "cuda".
        processor: instruction set (CPU) or card, on which the order of sums depends.
        torch: version.
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
        """A short name for these numerics; every record bears it."""
        return digest(dataclasses.asdict(self))[:8]

    def __str__(self) -> str:
        engines = self.engine if self.dense == self.engine else f"{self.engine} (dense networks {self.dense})"
        steps = self.dtype if self.precision == self.dtype else f"{self.dtype}, steps in {self.precision}"
        return (
            f"{engines}, {steps}, {self.layout.replace('_', '-')}, {self.device} ({self.processor}), torch {self.torch}"
        )


def numerics_of(device: str, dense: str, engine: str, precision: str = "float32") -> Numerics:
    """Return the numerics of this machine for a device.

    Images and convolutions are kept channels-last: no slower for any shape that was tried, up to 1.3 times as fast.

    Raises:
        UserError: the device is not there, or the precision is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: allowed: {', '.join(PRECISIONS)}")
    kind = device.partition(":")[0]
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: no CUDA device is at hand; allowed here: cpu")
        try:
            processor = torch.cuda.get_device_name(device)
        except (AssertionError, RuntimeError, ValueError) as error:
            count = torch.cuda.device_count()
            raise UserError(
                f"--device {device}: no such device; this machine has {count}, cuda:0 is the first"
            ) from error
    elif device == "cpu":
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    else:
        raise UserError(f"--device {device}: allowed: cpu, cuda, cuda:0, cuda:1, ...")
    version = torch.__version__.partition("+")[0]
    return Numerics(dense, engine, "float32", kind, processor, version, precision, "channels_last")


@dataclass(frozen=True)
class ContextSpec:
    """What it takes to set up a context in any process.

    Attributes:
        data, model: names and options.
        device: "cpu", "cuda", "cuda:1", ...
        numerics: what this run's numbers are made with.
        folder: of the run.
        fingerprint: of the data, once they have been loaded; every process has to load the same.
    """

    data: Named
    model: Named
    device: str
    numerics: Numerics
    folder: str
    fingerprint: str | None = None


class RunContext:
    """Data, model and device of one sweep; loads nothing before it is asked for.

    On a CUDA device torch is held to deterministic kernels and full float32, since a key promises bits.
    """

    def __init__(self, spec: ContextSpec) -> None:
        self.spec = spec
        use_deterministic_kernels(spec.numerics.device)
        self.device = device_of(spec.device)
        self.dtype: torch.dtype = getattr(torch, spec.numerics.dtype)
        self.layout: torch.memory_format = getattr(torch, spec.numerics.layout)

    def sized(self, size: Size) -> RunContext:
        """The context of a model of another size: the same data, device and numerics."""
        if not size:
            return self
        model = Named(name=self.spec.model.name, **{**self.spec.model.options, **size})
        other = RunContext(dataclasses.replace(self.spec, model=model))
        other.loaded, other.data = self.loaded, self.data
        return other

    @cached_property
    def loaded(self) -> Dataset:
        """The data as the data set's function returned it."""
        make = load(DATASETS, self.spec.data.name, "data set")
        with _speaking("data", self.spec.data.name):
            data: Any = make(**self.spec.data.options)
        if not isinstance(data, Dataset):
            raise UserError(
                f"data set '{self.spec.data.name}' returned {type(data).__name__}; it must return a regimes.Dataset, "
                "e.g. Dataset.from_arrays(train=(x, y), test=(x, y), title=...)"
            )
        if self.spec.fingerprint not in (None, data.fingerprint):
            raise UserError(
                f"data set '{self.spec.data.name}' is not the same each time it is loaded; draw its numbers from a seed"
            )
        return data

    @cached_property
    def data(self) -> Dataset:
        """The data on the device."""
        return self.loaded.to(self.device, self.dtype, self.layout)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every key of this sweep rests on: the numbers in the data, the model, a user's own source."""
        model = self.spec.model
        options = with_defaults(load(MODELS, model.name, "model"), model.options, GIVEN)
        source = source_id(MODELS, model.name, "model")
        return {"data": self.loaded.fingerprint, "model": {"name": model.name, "options": options, "source": source}}

    def unit(self, variable: Variable, loss: str) -> Variable:
        """A variable in the units that its numbers have: nats are those of cross-entropy, an error of numbers is the
        loss itself."""
        own = variable.units == "nat" and loss != "cross-entropy"
        error = self.loaded.regression and variable.units == "1" and variable.error
        return dataclasses.replace(variable, units="loss") if own or error else variable

    def new_model(self, seed: int) -> nn.Module:
        """A model with fresh weights on the device; same seed, same bits."""
        data = self.loaded
        with _speaking("model", self.spec.model.name):
            model = build(self.spec.model.name, self.spec.model.options, data.input_shape, data.classes, seed)
            if not isinstance(model, nn.Module):
                raise TypeError(f"returned {type(model).__name__}; it must return a torch.nn.Module")
        model.to(self.device, self.dtype)
        return in_layout(model, self.layout)

    def check_model(self) -> None:
        """Run a fresh model on a few inputs, so that one that does not fit the data says so before any work.

        Raises:
            UserError: the model has nothing to train, raises, or does not return one number per class and input.
        """
        with one_thread(), _speaking("model", self.spec.model.name):
            model = self.new_model(seed=0)
            if not any(each.requires_grad for each in model.parameters()):
                raise ValueError("it has no parameters to train")
            inputs = self.data.train.inputs[:2]
            answers = model(inputs)
            wanted = (len(inputs), self.loaded.classes)
            if not isinstance(answers, Tensor) or tuple(answers.shape) != wanted:
                got = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
                raise ValueError(f"for two inputs it returned {got}; logits of shape {wanted} are expected")

    def model_with(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A model with stored weights; one with fewer channels and blocks where they have fewer."""
        model = without_blocks(self.new_model(seed=0), weights)
        fitted(model, {name: each for name, each in weights.items() if not name.startswith("momentum/")})
        return in_layout(model, self.layout)


def stored_mask(context: RunContext, store: Store, key: str, model: nn.Module) -> Mask | None:
    """The mask that a stage has kept for a model; None where it kept a smaller network instead."""
    tensors = store.weights(key)
    if not any(name.startswith("mask/") for name in tensors):
        return None
    return Mask.from_tensors(tensors, model).to(context.device)


def device_of(name: str) -> torch.device:
    """The device of a name; "cuda" is that of index 0, as tensors on it say: "cuda" and "cuda:0" are not equal."""
    device = torch.device(name)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def use_deterministic_kernels(device: str) -> None:
    """On a CUDA device: deterministic kernels and full float32 from now on, in this process."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Every empty tensor would be filled with NaN, a kernel each, to show what reads it before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False


def in_layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The model itself, the weights of its 2-d convolutions in a memory format; their values stay."""
    for each in (*model.parameters(), *model.buffers()):
        if each.dim() == 4:
            each.data = each.data.contiguous(memory_format=layout)
    return model


@contextmanager
def _speaking(table: str, name: str) -> Iterator[None]:
    """Say in one line what a data set's or a model's function raises: mostly it is an option that does not fit."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).splitlines() or [""]
        raise UserError(f"[{table}] name = '{name}' raised {type(error).__name__}: {lines[0]}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: with more, steps of small networks take 5 to 400 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
