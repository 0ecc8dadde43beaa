"""The engine "stacked": several networks of one shape trained as one, in lock-step, by ``torch.func.vmap``.

A training step of a small network is limited by the number of calls, not by arithmetic. With stacked weights, one call
serves all networks; convolutions become grouped convolutions over images with adjacent channels.

The number of lanes is a power of two; a smaller fleet is padded with copies of its last lane. There is a minimum, at
which the channels of every BatchNorm fill whole vectors: from there on, a lane's bits depend neither on the number of
lanes nor on its slot or neighbours. `regimes.experiment.engine_selection` checks this on the actual model before it
chooses this engine.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from regimes.data.dataset import Dataset, Split
from regimes.data.inputs import Inputs, TensorGroup, arguments
from regimes.landscape.error import inputs_per_pass, joined_outputs
from regimes.losses.functions import in_dtype, loss_value
from regimes.losses.tasks import Task, infer_task
from regimes.models.build import dtype_of, load_weights, seeded
from regimes.training.fleet import Lane, Row, Tensors
from regimes.training.update_rules import MEAN, SQUARE

Arguments = tuple[tuple[Tensor, ...], dict[str, Tensor]]
MIN_LANES, MAX_LANES = 4, 64  # lanes
MIN_SIGNAL_LANES = 8  # with one-dimensional convolutions: the bits of the first one differ in fewer lanes
BATCHNORM_VECTOR = 32  # channels per vector in BatchNorm's sums; an incomplete vector is summed in another order


def padded_lanes(lanes: int, model: nn.Module) -> int:
    """Return the number of lanes that a number of networks are trained in: a power of two, padding included."""
    channels = [each.num_features for each in model.modules() if isinstance(each, _BatchNorm)]
    least = MIN_SIGNAL_LANES if _has_signals(model) else MIN_LANES
    return max(least, BATCHNORM_VECTOR // math.gcd(BATCHNORM_VECTOR, *channels), 1 << (lanes - 1).bit_length())


class VmapEngine:
    """Engine that trains up to `MAX_LANES` networks in lock-step; see `Engine`.

    Raises:
        ValueError: the models have tied weights or extra state, or the optimiser is Muon, which cannot be stacked; or
            the precision is not float32: within ``vmap``, autocast leaves convolutions in float32 on a CPU.
    """

    capacity = MAX_LANES

    def __init__(self, lanes: Sequence[Lane], data: Dataset, precision: str = "float32") -> None:
        if precision != "float32":
            raise ValueError(f"{precision} steps cannot be stacked; use the engine eager")
        self.count = padded_lanes(len(lanes), lanes[0].model)
        self.lanes = [*lanes, *[lanes[-1]] * (self.count - len(lanes))]
        self.data = data
        self.recipe = lanes[0].recipe
        self.dtype = dtype_of(lanes[0].model)
        self.streams = [lane.stream(data) for lane in self.lanes]
        self.base = copy.deepcopy(lanes[0].model)
        self._load()
        self.rho = self._per_lane([lane.recipe.sam_rho for lane in self.lanes])
        self.decay = self._per_lane([lane.recipe.weight_decay for lane in self.lanes])
        self.smooth = self._per_lane([lane.recipe.label_smoothing for lane in self.lanes])
        self.clip = self._per_lane([lane.recipe.clip_norm or math.inf for lane in self.lanes])
        self.betas = list(zip(*((lane.recipe.beta1, lane.recipe.beta2) for lane in self.lanes), strict=True))
        self.kept = [self._per_lane(each) for each in self.betas]
        self.fresh = [self._per_lane([1 - beta for beta in each]) for each in self.betas]
        self.train_forward = vmap(self._one, in_dims=(0, 0, 1), out_dims=0)
        self.eval_forward = vmap(self._one, in_dims=(0, 0, None), out_dims=0)
        if _has_signals(self.base):  # a third of the time
            self.eval_forward = self._one_by_one

    def _load(self) -> None:
        if self.recipe.optimizer == "muon":
            raise ValueError("Muon cannot be stacked; use the engine eager")
        for lane in self.lanes:
            if lane.resume is not None:
                load_weights(lane.model, lane.resume.weights)
            if lane.mask is not None:
                lane.mask.apply(lane.model)
        parameters, self.buffers = stack_module_state([lane.model for lane in self.lanes])
        if set(self.base.state_dict()) != {*parameters, *self.buffers}:
            raise ValueError("models with tied weights or extra state cannot be stacked")
        trained = {name for name, each in self.base.named_parameters() if each.requires_grad}
        parameters = {name: each.detach().contiguous() for name, each in parameters.items()}
        self.parameters = {name: each.requires_grad_() for name, each in parameters.items() if name in trained}
        # Frozen parameters are treated as buffers: no step changes them.
        frozen = {name: each for name, each in parameters.items() if name not in trained}
        self.buffers = {name: each.detach().clone() for name, each in {**frozen, **self.buffers}.items()}
        self.leaves = list(self.parameters.values())
        if self.recipe.optimizer != "sgd" and any(each.is_complex() for each in self.leaves):
            raise ValueError("Adam of complex weights cannot be stacked; use the engine eager")
        slots = ("",) if self.recipe.optimizer == "sgd" else (MEAN, SQUARE)
        self.momentum = {f"{s}{name}": torch.zeros_like(each) for s in slots for name, each in self.parameters.items()}
        for slot, lane in enumerate(self.lanes):
            for name, buffer in (lane.resume.momentum if lane.resume else {}).items():
                self.momentum[name][slot] = buffer
        self.factors = {
            name: torch.stack([_factor(lane, name, each[0]) for lane in self.lanes])
            for name, each in self.parameters.items()
            if any(lane.mask is not None and name in lane.mask.layers for lane in self.lanes)
        }

    def _one(self, parameters: Tensors, buffers: Tensors, given: Arguments) -> Any:
        return functional_call(self.base, (parameters, buffers), *given)

    def _one_by_one(self, parameters: Tensors, buffers: Tensors, given: Arguments) -> Any:
        stacked = {**parameters, **buffers}
        state = [{name: each[lane] for name, each in stacked.items()} for lane in range(self.count)]
        return tree_map(lambda *each: torch.stack(each), *[self._one(each, {}, given) for each in state])

    slots = staticmethod(padded_lanes)

    # -- one step -------------------------------------------------------------------------------------------------

    def epoch(self, number: int) -> list[float]:
        """Train every lane for one scheduled epoch; return each lane's mean batch loss."""
        schedule = self.streams[0].schedule
        steps = schedule.steps_per_epoch
        total = torch.zeros(self.count, dtype=torch.float64, device=self.data.train.targets.device)
        self.base.train()
        with seeded(0):
            return self._walk(number, steps, total)

    def _walk(self, number: int, steps: int, total: Tensor) -> list[float]:
        span = range(number * steps, (number + 1) * steps)
        walks = [stream.batches(span.start, span.stop) for stream in self.streams]
        rates = self._per_lane([[each.schedule.learning_rate(step) for each in self.streams] for step in span])
        for step, rate, batches in zip(span, rates, zip(*walks, strict=True), strict=True):
            inputs = _side_by_side([inputs for _, inputs, _ in batches])
            targets = torch.stack([targets for _, _, targets in batches])  # (lanes, batch)
            total += self._step(inputs, targets, rate, step)
        return [float(each) / steps for each in total]

    def _step(self, inputs: Inputs, targets: Tensor, rates: Tensor, step: int) -> Tensor:
        losses, gradients = self._gradients(inputs, targets, self.buffers)
        if self.recipe.sam_rho:
            gradients = self._sharpness_aware(inputs, targets, gradients)
        if any(lane.recipe.clip_norm for lane in self.lanes):  # a lane without changes no bit of it
            norms = torch.stack(_squares(gradients), dim=1).sum(dim=1).sqrt()  # over dim 0 it would depend on the lanes
            shrunk = (self.clip / (norms + 1e-6)).clamp(max=1)
            gradients = {name: each * _view(shrunk, each) for name, each in gradients.items()}
        with torch.no_grad():
            if self.recipe.optimizer == "sgd":
                self._sgd(gradients, rates)
            else:
                self._adam(gradients, rates, step)
        return losses

    def _sgd(self, gradients: Tensors, rates: Tensor) -> None:
        for name, parameter in self.parameters.items():
            gradient, buffer = gradients[name], self.momentum[name]
            gradient = gradient + _view(self.decay, parameter) * parameter
            buffer.mul_(self.recipe.momentum).add_(gradient)
            direction = gradient + self.recipe.momentum * buffer if self.recipe.nesterov else buffer
            parameter.sub_(_view(rates, parameter) * direction)

    def _adam(self, gradients: Tensors, rates: Tensor, step: int) -> None:
        """Adam and AdamW of each lane; see `regimes.training.update_rules.Adam`."""
        corrections = [self._per_lane([1 - beta ** (step + 1) for beta in each]) for each in self.betas]
        steps, roots = rates / corrections[0], corrections[1].sqrt()
        for name, parameter in self.parameters.items():
            gradient, mean, square = gradients[name], self.momentum[f"{MEAN}{name}"], self.momentum[f"{SQUARE}{name}"]
            if self.recipe.optimizer == "adamw":
                parameter.mul_(1 - _view(rates * self.decay, parameter))
            else:
                gradient = gradient + _view(self.decay, parameter) * parameter
            mean.mul_(_view(self.kept[0], parameter)).add_(_view(self.fresh[0], parameter) * gradient)
            square.mul_(_view(self.kept[1], parameter)).add_(_view(self.fresh[1], parameter) * gradient.square())
            scale = square.sqrt() / _view(roots, parameter) + self.recipe.eps
            parameter.sub_(_view(steps, parameter) * mean / scale)

    def _gradients(self, inputs: Inputs, targets: Tensor, buffers: Tensors) -> tuple[Tensor, Tensors]:
        outputs = in_dtype(self.train_forward(self.parameters, buffers, arguments(inputs)), self.dtype)
        losses = vmap(lambda one, wanted: loss_value(self.recipe.loss_fn, one, wanted))(outputs, targets)  # (lanes,)
        if any(lane.recipe.label_smoothing for lane in self.lanes):  # a lane's 0 changes no bit of it
            if not isinstance(outputs, Tensor) or outputs.dim() != 3:  # (lanes, batch, classes)
                raise ValueError("label smoothing of several targets per input cannot be stacked")
            even = -outputs.log_softmax(2).mean((1, 2))
            losses = (1 - self.smooth) * losses + self.smooth * even
        found = torch.autograd.grad(losses.sum(), self.leaves, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(self.parameters, found, strict=True))
        return losses.detach(), {
            name: each * self.factors[name] if name in self.factors else each for name, each in gradients.items()
        }

    def _sharpness_aware(self, inputs: Inputs, targets: Tensor, gradients: Tensors) -> Tensors:
        """The gradients at ``w + rho g/|g|`` of each lane, on a temporary copy of the buffers."""
        squares = torch.stack(_squares(gradients)).sum(dim=0)
        scale = self.rho / (squares.sqrt() + 1e-12)
        here = {name: each.detach().clone() for name, each in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.add_(_view(scale, parameter) * gradients[name])
        thrown_away = {name: each.clone() for name, each in self.buffers.items()}
        _, worst = self._gradients(inputs, targets, thrown_away)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(here[name])
        return worst

    def _per_lane(self, values: Sequence[float] | list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.data.train.targets.device)

    # -- results --------------------------------------------------------------------------------------------------

    def errors(self) -> list[Row]:
        """Return the validation and test error of every lane."""
        val, test = self._errors(self.data.val), self._errors(self.data.test)
        return [{"val_error": v, "test_error": t} for v, t in zip(val, test, strict=True)]

    @torch.no_grad()
    def _errors(self, split: Split) -> list[float]:
        self.base.eval()
        recipe = self.recipe
        wrong, count = torch.zeros(2, self.count, dtype=torch.float64, device=split.targets.device)
        task: Task | None = None
        whole: list[list[Any]] = [[] for _ in self.lanes]  # outputs, for an error function of one's own
        size = inputs_per_pass(split.inputs, lanes=8)  # of every lane; the same for any number of lanes
        for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
            answers = self.eval_forward(self.parameters, self.buffers, arguments(inputs))
            for lane in range(self.count):
                one = tree_map(operator.itemgetter(lane), answers)
                if recipe.error_function is not None:
                    whole[lane].append(one)
                    continue
                task = task or infer_task(one, targets, recipe.loss_fn)
                judged = task.errors(one, targets, recipe.loss_fn)
                wrong[lane] += judged.total.sum()
                count[lane] += judged.predictions.sum()
        if recipe.error_function is not None:
            return [recipe.error_function(joined_outputs(each), split.targets) for each in whole]
        return [float(each) for each in wrong / count]

    def state(self, lane: int) -> tuple[Tensors, Tensors]:
        """Return a lane's state dict, in the model's own order, and its momentum buffers, copied to the CPU."""
        stacked = {**self.parameters, **self.buffers}
        weights = {name: stacked[name][lane].detach().cpu().clone() for name in self.base.state_dict()}
        return weights, {name: each[lane].cpu().clone() for name, each in self.momentum.items()}


def _factor(lane: Lane, name: str, like: Tensor) -> Tensor:
    live = lane.mask.layers.get(name) if lane.mask is not None else None
    return torch.ones_like(like) if live is None else live.to(like)


def _side_by_side(batches: list[Any]) -> Any:
    """Stack lanes along dimension 1; images with the channels of all lanes adjacent in memory."""
    first = batches[0]
    if isinstance(first, TensorGroup):
        names = first.named()
        parts = {name: torch.stack([each[name] for each in batches], dim=1) for name in names}
        return TensorGroup(parts if isinstance(first.tensors, dict) else list(parts.values()))
    stacked = torch.stack(batches, dim=1)  # (batch, lanes, ...)
    if stacked.dim() != 5:
        return stacked
    whole = stacked.flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return whole.view(stacked.shape)


def _squares(gradients: Tensors) -> list[Tensor]:
    """Squared norm of each parameter's gradient, in every lane."""
    return [(each.abs() if each.is_complex() else each).flatten(1).square().sum(dim=1) for each in gradients.values()]


def _view(per_lane: Tensor, like: Tensor) -> Tensor:
    return per_lane.view(-1, *[1] * (like.dim() - 1))


def _has_signals(model: nn.Module) -> bool:
    return any(isinstance(each, nn.Conv1d) for each in model.modules())


def has_private_randomness(model: nn.Module) -> bool:
    """Return whether a model has dropout, whose random numbers stacked lanes would share.

    Attention and recurrent layers have it as an attribute.
    """

    def drops(module: nn.Module) -> bool:
        share = getattr(module, "dropout", 0.0)
        return isinstance(module, nn.modules.dropout._DropoutNd) or (isinstance(share, float) and share > 0)

    return any(drops(module) for module in model.modules())
