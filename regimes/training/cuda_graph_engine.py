"""The engine "graphed": the training step of each network is captured once as a CUDA graph and replayed.

A small network's step is some two hundred kernels of a few microseconds each, and eager PyTorch takes longer to launch
them than the GPU takes to run them. A graph launches them all at once, and the graphs of several networks run
concurrently on separate streams. No step synchronises with the host: image order, augmentation draws and learning rates
are stored on the device and selected by counters there.

Networks share no memory, so the bits of a network depend neither on the others nor on their number. On a CPU, which has
no graphs, the same step is run directly.

Models that draw from global random generators in training (dropout) are refused: a replayed graph goes on drawing from
the device's generator, whereas the draws must be a function of the lane and the step, the same in both passes of SAM.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.data.inputs import call
from regimes.data.uint8_images import Uint8Images
from regimes.landscape.error import mean_error
from regimes.losses.functions import in_dtype, loss_value
from regimes.models.build import dtype_of, load_weights, seeded
from regimes.training.fleet import Lane, Row, Tensors
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.precision import precision_context

MAX_STREAMS = 8  # per device; graphs on different streams run concurrently
WARM_UP_STEPS = 3  # steps before the capture that let libraries initialise; each is undone


class CudaGraphEngine:
    """Engine that trains up to ``capacity`` networks concurrently, each with its own captured step; see `Engine`.

    Raises:
        ValueError: the optimiser is Muon, the images do not fit on the device, or, in the first epoch, a model draws
            random numbers or, on a GPU, replaces a buffer in training.
    """

    capacity = 64

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        self.data = data
        self.device = data.train.targets.device
        cuda = self.device.type == "cuda"
        streams = [torch.cuda.Stream(self.device) for _ in range(min(len(lanes), MAX_STREAMS))] if cuda else [None]
        self.members = [
            _Member(lane, data, precision, streams[number % len(streams)]) for number, lane in enumerate(lanes)
        ]

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """Return the number of lanes computed for a number of networks: the same number."""
        return networks

    def epoch(self, number: int) -> list[float]:
        """Train every lane for one scheduled epoch; return each lane's mean batch loss."""
        steps = self.members[0].batches.schedule.steps_per_epoch
        begins = self.members[0].turned < 0
        with seeded(0):
            before = self._generators() if begins else []
            for member in self.members:
                member.begin()
            self._synchronize()
            try:
                for step in range(number * steps, (number + 1) * steps):
                    for member in self.members:
                        member.advance(step)
                    if begins and step == number * steps and self._generators() != before:
                        raise ValueError("the model draws random numbers during training; use the engine eager")
            finally:
                self._synchronize()  # also before the memory of a failed epoch is reused
        return [float(member.total) / steps for member in self.members]

    def errors(self) -> list[Row]:
        """Return the validation and test error of every lane."""
        splits = {"val_error": self.data.val, "test_error": self.data.test}
        recipe = self.members[0].lane.recipe
        return [
            {
                name: mean_error(member.model, split, recipe.loss_fn, recipe.error_function)
                for name, split in splits.items()
            }
            for member in self.members
        ]

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """Return a lane's state dict and momentum buffers, copied to the CPU."""
        member = self.members[lane]
        weights, momentum = member.model.state_dict(), member.stepper.momentum()
        return tuple({name: each.detach().cpu().clone() for name, each in part.items()} for part in (weights, momentum))  # type: ignore[return-value]

    def _generators(self) -> list[Any]:
        """States of the global generators that a model may draw from."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        numpy_state: Any = np.random.get_state()
        return [random.getstate(), numpy_state[1].tobytes(), numpy_state[2], *(bytes(each.numpy()) for each in states)]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Member:
    """One network with its step's inputs on the device and the step's graph."""

    def __init__(self, lane: Lane, data: Dataset, precision: str, stream: torch.cuda.Stream | None) -> None:
        if lane.recipe.optimizer == "muon":
            raise ValueError("Muon cannot be captured in a CUDA graph; use the engine eager")
        self.lane, self.precision, self.stream = lane, precision, stream
        self.model = lane.model
        self.batches = lane.stream(data)
        self.stepper = OptimizerStep(self.model, lane.recipe, lane.mask)
        if lane.resume is not None:
            load_weights(self.model, lane.resume.weights)
        if lane.mask is not None:
            lane.mask.apply(self.model)
        inputs, targets = data.train
        if isinstance(inputs, Uint8Images) and inputs.bytes.device != targets.device:
            raise ValueError("the images do not fit on the device")
        device, schedule = targets.device, self.batches.schedule
        if lane.recipe.optimizer == "sgd" and lane.recipe.momentum:  # buffers must exist before the capture
            self.stepper.set_momentum({name: torch.zeros_like(each) for name, each in self.stepper.named.items()})
        if lane.resume is not None:
            self.stepper.set_momentum(lane.resume.momentum)
        self.dtype = dtype_of(self.model)
        rates = [schedule.learning_rate(step) for step in range(schedule.horizon)]
        self.rates = torch.tensor(rates, dtype=self.dtype, device=device)
        self.within = torch.arange(lane.recipe.batch_size, device=device)  # places in a batch
        self.step, self.place = (torch.zeros(1, dtype=torch.int64, device=device) for _ in "12")
        self.total = torch.zeros((), dtype=torch.float64, device=device)  # sum of the epoch's losses
        self.batches.start_pass(0)
        self.order, self.draws = self.batches.order.clone(), self.batches.draws.clone()  # read by the graph
        self.turned = -1  # the pass whose order this is
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self) -> None:
        """Prepare for an epoch; capture the step before the first one."""
        self.model.train()
        self.total.zero_()
        if self.stream is not None and self.graph is None:
            self._capture(self.stream)

    def advance(self, step: int) -> None:
        """Run one step of the schedule."""
        number, place = divmod(step, self.batches.schedule.steps_per_pass)
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            if number != self.turned:
                self.batches.start_pass(number)
                self.order.copy_(self.batches.order)
                self.draws.copy_(self.batches.draws)
                self.step.fill_(step)
                self.place.fill_(place)
                self.turned = number
            if self.graph is not None:
                self.graph.replay()
            else:
                self._step()

    def _step(self) -> None:
        split, schedule = self.batches.split, self.batches.schedule
        here = self.place * schedule.recipe.batch_size + self.within
        which = self.order.index_select(0, here)
        inputs = self.batches.augmentation.apply(split.inputs[which], self.draws.index_select(0, here))
        targets = split.targets.index_select(0, which)

        def loss() -> Tensor:
            with precision_context(self.precision, targets.device):
                answers = call(self.model, inputs)
            return loss_value(self.lane.recipe.training_loss, in_dtype(answers, self.dtype), targets)

        self.total += self.stepper(loss, self.rates.index_select(0, self.step).squeeze(0), self.step.squeeze(0))
        self.step += 1
        self.place += 1

    def _capture(self, stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):  # which a capture that fails may not leave by itself
            self._warm_up()
            torch.cuda.synchronize(stream.device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._step()
        self.graph = graph

    def _warm_up(self) -> None:
        """Take some steps, each from the same state, and leave that state and no gradients."""
        held = [*self.model.parameters(), *self.model.buffers()]
        state = [*held, *self.stepper.momentum().values(), self.step, self.place, self.total]
        kept = [each.detach().clone() for each in state]
        for _ in range(WARM_UP_STEPS):  # further on there might be no batch
            self._step()
            for each, before in zip(state, kept, strict=True):
                if not torch.equal(each, before):
                    each.detach().copy_(before)
        if list(map(id, held)) != list(map(id, [*self.model.parameters(), *self.model.buffers()])):
            raise ValueError("the model replaces a buffer during training, which a CUDA graph would not see")
        for each in self.stepper.parameters:
            each.grad = None
