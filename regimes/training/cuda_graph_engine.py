"""The engine "graphed": the training step of each network is captured once as a CUDA graph and replayed.

A small network's step is some two hundred kernels of a few microseconds, and eager PyTorch takes longer to launch them
than the card to run them. A graph launches them all at once, and the graphs of several networks run side by side on
streams of their own. Nothing in a step returns to the host: the order of the images, the draws of the augmentation and
the learning rates stand on the device, and counters there select those of the step.

Networks share no memory, so a network's bits depend neither on the others nor on their number. On a CPU, which has no
graphs, the same step is run as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.data.uint8_images import Uint8Images
from regimes.landscape.error import mean_error
from regimes.models.build import load_weights, seeded
from regimes.training.fleet import Lane, Row, Tensors
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.precision import arithmetic

STREAMS = 8  # of one device: graphs on different streams run side by side
WARM_UP = 3  # steps before a capture, in which libraries set themselves up; they are undone


class CudaGraphEngine:
    """Trains up to ``capacity`` networks side by side, a captured step each."""

    capacity = 64

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        self.data = data
        self.device = data.train.targets.device
        cuda = self.device.type == "cuda"
        streams = [torch.cuda.Stream(self.device) for _ in range(min(len(lanes), STREAMS))] if cuda else [None]
        self.members = [
            _Member(lane, data, precision, streams[number % len(streams)]) for number, lane in enumerate(lanes)
        ]

    @staticmethod
    def slots(networks: int, model: nn.Module) -> int:
        """The number of lanes computed for so many networks: as many."""
        return networks

    def epoch(self, number: int) -> list[float]:
        """Train one scheduled epoch of every lane."""
        steps = self.members[0].batches.timeline.steps_per_epoch
        with seeded(0):
            for member in self.members:
                member.begin()
            self._synchronize()
            for step in range(number * steps, (number + 1) * steps):
                for member in self.members:
                    member.advance(step)
            self._synchronize()
        return [float(member.total) / steps for member in self.members]

    def errors(self) -> list[Row]:
        """Validation and test error of every lane."""
        splits = {"val_error": self.data.val, "test_error": self.data.test}
        return [
            {name: mean_error(member.model, split, member.lane.recipe.loss_fn) for name, split in splits.items()}
            for member in self.members
        ]

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """A lane's state dict and momentum buffers, copied to the CPU."""
        member = self.members[lane]
        weights, momentum = member.model.state_dict(), member.stepper.momentum()
        return tuple({name: each.detach().cpu().clone() for name, each in part.items()} for part in (weights, momentum))  # type: ignore[return-value]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Member:
    """One network, everything that its step reads on the device, and the step's graph."""

    def __init__(self, lane: Lane, data: Dataset, precision: str, stream: torch.cuda.Stream | None) -> None:
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
        device, timeline = targets.device, self.batches.timeline
        if lane.recipe.momentum:  # buffers have to be there before the capture; 0 is what the first step assumes
            zeros = {name: torch.zeros_like(each) for name, each in self.stepper.named.items()}
            self.stepper.set_momentum({**zeros, **(lane.resume.momentum if lane.resume else {})})
        rates = [timeline.learning_rate(step) for step in range(timeline.horizon)]
        self.rates = torch.tensor(rates, dtype=inputs.dtype, device=device)
        self.within = torch.arange(lane.recipe.batch_size, device=device)  # places in a batch
        self.step, self.place = (torch.zeros(1, dtype=torch.int64, device=device) for _ in "12")
        self.total = torch.zeros((), dtype=torch.float64, device=device)  # of the epoch's losses
        self.batches.turn_to(0)
        self.order, self.draws = self.batches.order.clone(), self.batches.draws.clone()  # of the pass
        self.turned = -1  # the pass whose order this is
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self) -> None:
        """Make ready for an epoch; captures the step before the first one."""
        self.model.train()
        self.total.zero_()
        if self.stream is not None and self.graph is None:
            self._capture(self.stream)

    def advance(self, step: int) -> None:
        """Take a step of the schedule."""
        number, place = divmod(step, self.batches.timeline.steps_per_pass)
        with torch.cuda.stream(self.stream):  # no stream: nothing is changed
            if number != self.turned:
                self.batches.turn_to(number)
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
        split, timeline = self.batches.split, self.batches.timeline
        here = self.place * timeline.recipe.batch_size + self.within
        which = self.order.index_select(0, here)
        inputs = self.batches.augmentation.apply(split.inputs[which], self.draws.index_select(0, here))
        targets = split.targets.index_select(0, which)

        def loss() -> Tensor:
            with arithmetic(self.precision, targets.device):
                answers = self.model(inputs)
            value: Tensor = self.lane.recipe.training_loss(answers.to(inputs.dtype), targets)
            return value

        self.total += self.stepper(loss, self.rates.index_select(0, self.step).squeeze(0))
        self.step += 1
        self.place += 1

    def _capture(self, stream: torch.cuda.Stream) -> None:
        """Record the step after a few that warm up, all traces of which are removed.

        Raises:
            ValueError: the model draws random numbers while it trains: a replayed step would not draw them anew.
        """
        counters = (self.step, self.place, self.total)
        stands = [*self.model.state_dict().values(), *self.stepper.momentum().values(), *counters]
        kept = [each.clone() for each in stands]
        seen = _generators(stream.device)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step()
            for each, before in zip(stands, kept, strict=True):
                each.detach().copy_(before)
        torch.cuda.synchronize(stream.device)
        if any(not torch.equal(one, other) for one, other in zip(seen, _generators(stream.device), strict=True)):
            raise ValueError("the model draws random numbers while it trains")
        for each in self.stepper.parameters:
            each.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._step()
        self.graph = graph


def _generators(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device)
