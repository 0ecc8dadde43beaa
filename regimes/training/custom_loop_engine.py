"""The engine of trainings with a loop of one's own (``recipe.train``): one network, one epoch between two yields.

The loop is a generator function. It trains ``model`` in place and yields once an epoch; it takes any of the arguments
`LOOP_ARGUMENTS`, by name:

- ``model``: the network, on its device; ``data``: the `Dataset`, on the same device; ``recipe``: the `Recipe`;
  ``seed``: a number that belongs to this training.
- ``mask``: the live weights (`Mask`), None before pruning. Gradients of masked weights are set to zero, and masked
  weights after each step of a torch optimiser; a loop that changes weights by other means calls ``mask.apply(model)``.
- ``start``, ``state``: the epochs done, and the dict that it yielded after them (None at the beginning); the model's
  weights are then those of that epoch. The state's tensors are on the CPU; ``load_state_dict`` moves an optimiser's to
  its parameters. A loop that does not take ``state`` is run again from the beginning.

It yields None or a dict of what it needs to go on: tensors, numbers, lists and dicts of them, such as
``optimizer.state_dict()``. ``train_loss`` in the dict goes into the history; without it, the loss over the training
split is measured.

The generators of torch, numpy and Python are seeded for every epoch, so what is drawn in one depends on the training
and the epoch only. What a loop that takes ``state`` draws before its first epoch must come from a generator of its own,
made from ``seed``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from regimes.config.keys import seed_of
from regimes.config.recipe import LOOP_ARGUMENTS
from regimes.data.dataset import Dataset
from regimes.landscape.error import error_and_loss, mean_error
from regimes.models.build import load_weights, seeded
from regimes.registry import lookup, options_of
from regimes.training.fleet import Lane, Row, Tensors

STATE = "state"  # name of the loop's state, as bytes, among the buffers of a snapshot


class CustomLoopEngine:
    """Engine that trains one network with the loop of its recipe; see `Engine`.

    Raises:
        ValueError: the precision is not float32: a loop chooses its own.
    """

    capacity: ClassVar[int] = 1

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        (self.lane,) = lanes
        if precision != "float32":
            raise ValueError(f"a custom training loop chooses its own precision; it cannot be set to {precision}")
        self.data, self.model, self.name = data, self.lane.model, self.lane.recipe.train
        function: Callable[..., Iterator[Any]] = lookup({}, self.name, "training loop")
        named, _ = options_of(function, given=())
        taken = [each for each in LOOP_ARGUMENTS if named is None or each in named]
        resume = self.lane.resume if STATE in taken else None
        self.resumable, self.done = STATE in taken, resume.epoch if resume else 0
        if resume is not None:
            load_weights(self.model, resume.weights)
        if self.lane.mask is not None:
            self.lane.mask.apply(self.model)
        given = {
            "model": self.model,
            "data": data,
            "recipe": self.lane.recipe,
            "seed": seed_of(*self.lane.role) % 2**32,
        }
        state = _unpacked(resume.momentum[STATE]) if resume else None
        given |= {"mask": self.lane.mask, "start": self.done, "state": state}
        self.begin: Callable[[], Iterator[Any]] = lambda: function(**{each: given[each] for each in taken})
        self.loop: Iterator[Any] | None = None
        self.state_of_loop: dict[str, Any] = {}

    def epoch(self, number: int) -> list[float]:
        """Train for one epoch, and before it for those that are repeated; return the loss, NaN if weights are not
        finite."""
        while self.done <= number:
            with seeded(seed_of(*self.lane.role, "own", self.done)), self._masked():
                self.model.train()
                yielded = self._advance()
            self.done += 1
        self.state_of_loop = {name: each for name, each in yielded.items() if name != "train_loss"}
        if not all(bool(each.isfinite().all()) for each in self.model.parameters()):
            return [float("nan")]
        if self.lane.mask is not None and not self.lane.mask.holds(self.model):
            raise self._error(number, "a pruned weight is no longer zero; call mask.apply(model) after each step")
        if "train_loss" in yielded:
            return [float(yielded["train_loss"])]
        _, loss = error_and_loss(self.model, self.data.train, self.lane.recipe.loss_fn)
        return [float(loss.value)]

    def _advance(self) -> Mapping[str, Any]:
        try:
            if self.loop is None:
                self.loop = iter(self.begin())
            yielded = next(self.loop)
        except StopIteration:
            raise self._error(self.done, f"ended after {self.done} epochs; it must yield after each of them") from None
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise self._error(self.done, f"{type(error).__name__}: {reason}") from error
        if not isinstance(yielded, Mapping | None):
            raise self._error(self.done, f"yielded {type(yielded).__name__}; allowed: nothing, or a dict")
        return yielded or {}

    def _error(self, number: int, what: str) -> RuntimeError:
        return RuntimeError(f"recipe.train = '{self.name}', epoch {number + 1}: {what}")

    @contextmanager
    def _masked(self) -> Iterator[None]:
        """Context manager in which neither gradients nor steps of torch's optimisers move masked weights."""
        mask = self.lane.mask
        if mask is None:
            yield
            return
        pairs = zip(*mask.factors(self.model), strict=True)
        hooks = [
            each.register_hook(lambda gradient, factor=factor: gradient * factor)
            for each, factor in pairs
            if each.requires_grad  # not of a frozen layer
        ]
        hooks.append(register_optimizer_step_post_hook(lambda *_: mask.apply(self.model)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """Return the number of lanes computed for a number of networks: the same number."""
        return networks

    def errors(self) -> list[Row]:
        """Return the validation and test error."""
        recipe, splits = self.lane.recipe, {"val_error": self.data.val, "test_error": self.data.test}
        return [
            {name: mean_error(self.model, each, recipe.loss_fn, recipe.error_function) for name, each in splits.items()}
        ]

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """Return the state dict, copied to the CPU, and what the loop yielded, as bytes."""
        weights = {name: each.detach().cpu().clone() for name, each in self.model.state_dict().items()}
        if not self.resumable:
            return weights, {}
        try:
            packed = _packed(self.state_of_loop)
            _unpacked(packed)
        except Exception as error:
            raise self._error(
                self.done - 1, "yielded what cannot be kept; allowed: tensors, numbers, lists and dicts"
            ) from error
        return weights, {STATE: packed}


def _packed(state: dict[str, Any]) -> Tensor:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())


def _unpacked(packed: Tensor) -> dict[str, Any]:
    """The state on the CPU, where generators and counters of steps must be."""
    found: dict[str, Any] = torch.load(io.BytesIO(packed.numpy().tobytes()), map_location="cpu", weights_only=True)
    return found
