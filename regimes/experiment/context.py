"""Run context: the data, model and device of a run, set up once per process."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regimes.config.recipe import Recipe
from regimes.config.sweep import Named, Size
from regimes.data import DATASETS
from regimes.data.check_data import check_data
from regimes.data.dataset import Dataset, Split, predictions_per_input
from regimes.data.inputs import call
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.experiment.devices import device_of
from regimes.experiment.numerics import Numerics, numerics_of, use_deterministic_kernels
from regimes.experiment.store import Store
from regimes.landscape.error import network_task
from regimes.landscape.metric import Variable, in_nats
from regimes.landscape.trial import copy_inputs, try_network, warn_of
from regimes.losses.tasks import Task
from regimes.models import BUILDER_ARGUMENTS, MODELS
from regimes.models.build import build, in_dtype, load_weights
from regimes.models.residual_blocks import remove_missing_blocks
from regimes.models.state_dict_file import read_checkpoint
from regimes.pruners.channels import fit_to_state
from regimes.pruners.mask import Mask
from regimes.registry import lookup, source_id, with_defaults


@dataclass(frozen=True)
class ContextSpec:
    """Picklable description of a `RunContext`.

    Attributes:
        data, model: names and options.
        device: normalised name of the device, "cpu" or "cuda:1"; see `devices_of`.
        numerics: the numerics of the run.
        folder: the run folder.
        fingerprint: fingerprint of the data, which must be the same in every process; None: not loaded yet.
        devices: normalised names of the devices of all workers; (): ``device`` only.
    """

    data: Named
    model: Named
    device: str
    numerics: Numerics
    folder: str
    fingerprint: str | None = None
    devices: tuple[str, ...] = ()

    @classmethod
    def eager(cls, data: Named, model: Named, device: str, folder: str | Path = "") -> ContextSpec:
        """Return the description of a context whose networks are trained one by one, on a device as typed.

        Raises:
            UserError: see `device_of`.
        """
        device = device_of(device)
        return cls(data, model, device, numerics_of(device, "eager", "eager"), str(folder))


class RunContext:
    """Data, model and device of a run; the data are loaded on first use.

    A CUDA device becomes the process's current one, with deterministic kernels and full float32.
    """

    def __init__(self, spec: ContextSpec) -> None:
        self.spec = spec
        use_deterministic_kernels(spec.numerics.device)
        self.device = torch.device(spec.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.dtype: torch.dtype = getattr(torch, spec.numerics.dtype)
        self.layout: torch.memory_format = getattr(torch, spec.numerics.layout)
        self._tasks: dict[str, Task] = {}
        self._changes_inputs: bool | None = None  # not tried yet

    def sized(self, size: Size) -> RunContext:
        """Return the context of a model of another size, with the same data, device and numerics."""
        if not size:
            return self
        model = Named(name=self.spec.model.name, **{**self.spec.model.options, **size})
        other = RunContext(dataclasses.replace(self.spec, model=model))
        other.loaded, other.data = self.loaded, self.data
        return other

    @cached_property
    def loaded(self) -> Dataset:
        """The data as returned by the data set's function.

        Raises:
            UserError: the function raises, does not return a `Dataset`, or returns different data in another process;
                or the data cannot be learnt or measured, see `check_data`.
        """
        make = lookup(DATASETS, self.spec.data.name, "data set")
        with _as_user_error("data", self.spec.data.name):
            data: Any = make(**self.spec.data.options)
        if not isinstance(data, Dataset):
            raise UserError(
                f"data set '{self.spec.data.name}' returned {type(data).__name__}; expected a regimes.Dataset, "
                "e.g. Dataset.from_arrays(train=(x, y), test=(x, y), title=...)"
            )
        if self.spec.fingerprint is None:
            check_data(data)
        elif self.spec.fingerprint != data.fingerprint:
            raise UserError(
                f"data set '{self.spec.data.name}' is not the same each time it is loaded; use a fixed random seed"
            )
        return data

    @cached_property
    def data(self) -> Dataset:
        """The data on the device."""
        return self.loaded.to(self.device, self.dtype, self.layout)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The part of every content key that describes data and model: fingerprint, name, options, source hash."""
        model = self.spec.model
        options = with_defaults(lookup(MODELS, model.name, "model"), model.options, BUILDER_ARGUMENTS)
        source = source_id(MODELS, model.name, "model")
        return {"data": self.loaded.fingerprint, "model": {"name": model.name, "options": options, "source": source}}

    def task(self, recipe: Recipe) -> Task:
        """Return the task that data, model and loss belong to; see `infer_task`."""
        targets = self.loaded.train.targets
        if recipe.loss == "cross-entropy" and targets.dim() == 1 and not targets.is_floating_point():
            return Task("class")
        if recipe.loss not in self._tasks:
            with one_thread(), warnings.catch_warnings(), _as_user_error("model", self.spec.model.name):
                warnings.simplefilter("ignore")
                self._tasks[recipe.loss] = network_task(self.new_model(seed=0), self.data.train, recipe.loss_fn)
        return self._tasks[recipe.loss]

    def fraction(self, recipe: Recipe) -> bool:
        """Whether the error is a fraction of wrong predictions."""
        return recipe.error is None and self.task(recipe).fraction

    def predictions(self, recipe: Recipe) -> int:
        """Return the number of predictions per input: more than one for a class per token, or several labels."""
        targets = self.loaded.test.targets
        labels = targets.is_floating_point() and self.task(recipe).kind == "binary"
        return targets[0].numel() if labels else predictions_per_input(targets)

    def with_units(self, variable: Variable, recipe: Recipe) -> Variable:
        """Return a variable with the name and units of its values: that of the loss is a nat with cross-entropies only;
        the error is a fraction, the loss itself, or a function of one's own."""
        if variable.of_loss and "nat" in variable.units and not in_nats(recipe.loss):
            return dataclasses.replace(variable, units=variable.units.replace("nat", "loss"))
        if not (variable.error and variable.units == "1"):
            return variable
        function = recipe.error_function
        if function is None:
            return variable if self.task(recipe).fraction else dataclasses.replace(variable, units="loss")
        return dataclasses.replace(variable, units=function.unit, long_name=f"{variable.long_name}: {function.title}")

    def new_model(self, seed: int) -> nn.Module:
        """Return a model with initial weights of a seed, on the device; same seed, same bits."""
        with _as_user_error("model", self.spec.model.name):
            model = self._build(seed)
            if not isinstance(model, nn.Module):
                raise TypeError(f"returned {type(model).__name__}; it must return a torch.nn.Module")
        in_dtype(model, self.device, self.dtype)
        if self._changes_inputs is None:
            self._changes_inputs = try_network(model, self.data.train.inputs[:2]).changes_inputs
        if self._changes_inputs:
            model.register_forward_pre_hook(copy_inputs, with_kwargs=True)
        return in_layout(model, self.layout)

    def _build(self, seed: int) -> Any:
        """Return the model of a seed as its function builds it."""
        data = self.loaded
        return build(self.spec.model.name, self.spec.model.options, data.input_shape, data.classes, seed)

    def check_model(self) -> None:
        """Run a new model on two inputs, to report a model that does not fit the data before any work.

        Raises:
            UserError: the model has no parameters to train, raises, or does not return one row of outputs per input
                (logits of the classes, or a single logit).
        """
        with one_thread(), _as_user_error("model", self.spec.model.name):
            model = self.new_model(seed=0)
            if not any(each.requires_grad for each in model.parameters()):
                raise ValueError("the model has no parameters to train")
            few = Split(*(each[:2] for each in self.data.train))
            warn_of(model, self.data.train.inputs)
            answers = call(model, few.inputs)
            single = few.targets.dim() == 1 and not few.targets.is_floating_point()
            expected = (len(few.inputs), self.loaded.classes)
            if isinstance(answers, Tensor) and single and tuple(answers.shape) in (expected, (2,), (2, 1)):
                return
            if isinstance(answers, Tensor) and (single or not answers.dim() or len(answers) != len(few.inputs)):
                wanted = f"logits of shape {expected} are" if single else "one row per input is"
                raise ValueError(f"for two inputs it returned {tuple(answers.shape)}; {wanted} expected")

    def read_network(self, path: str) -> nn.Module:
        """Return the network of a checkpoint, in eval mode; warn if its outputs are not finite.

        Raises:
            UserError: the file cannot be read or does not fit the model, see `read_checkpoint`.
        """
        network = self.new_model(seed=0)
        load_weights(network, read_checkpoint(path, network))
        with one_thread(), torch.no_grad():
            outputs = tree_leaves(call(network.eval(), self.data.train.inputs[:2]))
        if any(isinstance(each, Tensor) and not bool(each.isfinite().all()) for each in outputs):
            warnings.warn(f"{path}: the network's outputs are not finite; has its training diverged?", stacklevel=2)
        return network

    def model_with(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a model with stored weights, with channels and blocks removed to fit them."""
        model = remove_missing_blocks(self.new_model(seed=0), weights)
        fit_to_state(model, {name: each for name, each in weights.items() if not name.startswith("momentum/")})
        return in_layout(model, self.layout)


def stored_mask(context: RunContext, store: Store, key: str, model: nn.Module) -> Mask | None:
    """Return the mask stored with a pruning stage; None if it stored a smaller network."""
    tensors = store.weights(key)
    if not any(name.startswith("mask/") for name in tensors):
        return None
    return Mask.from_tensors(tensors, model).to(context.device)


def in_layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Convert a model's 4-d tensors to a memory format in place, and return the model."""
    for each in (*model.parameters(), *model.buffers()):
        if each.dim() == 4:
            each.data = each.data.contiguous(memory_format=layout)
    return model


@contextmanager
def _as_user_error(table: str, name: str) -> Iterator[None]:
    """Convert what a data set's or a model's function raises to a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reraise_device_fault(error)
        lines = str(error).splitlines() or [""]
        raise UserError(f"[{table}] name = '{name}' raised {type(error).__name__}: {lines[0]}") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread; with more, steps of small networks take 5 to 400 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
