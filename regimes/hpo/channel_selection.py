"""Which channels of a fresh network stay, once a proxy's widths are settled: the best of each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.errors import UserError
from regimes.pruners.channels import dependencies

Scores = Callable[[nn.Module], Mapping[str, Tensor]]  # of each weight of each layer, {name in the state dict: values}


@dataclass(frozen=True)
class Member:
    """What a group of channels is in one layer.

    Attributes:
        layer: its name.
        axis: 0: they are outputs of the layer, 1: inputs.
        positions, channels: along that axis, and the group's channel at each.
    """

    layer: str
    axis: int
    positions: Tensor
    channels: Tensor


@dataclass(frozen=True)
class ChannelSelector:
    """Cuts a fresh network down to given shapes, group by group keeping the channels with the largest scores."""

    groups: tuple[tuple[Member, ...], ...]
    scores: Scores

    @classmethod
    def of(cls, model: nn.Module, data: Dataset, scores: Scores) -> ChannelSelector:
        """Find the groups by tracing a network."""
        names = {module: name for name, module in model.named_modules()}
        groups = []
        for group in dependencies(model, data.train.inputs[:2]):
            members = []
            for target, handler, positions, channels in group:
                if target in names:
                    weight = getattr(target, "weight", None)
                    inward = handler == "prune_in_channels" and isinstance(weight, Tensor) and weight.dim() > 1
                    if inward and isinstance(weight, Tensor) and weight.shape[1] == 1:
                        inward = False  # depthwise: one input channel for each output
                    where = torch.tensor(positions), torch.tensor(channels)
                    members.append(Member(names[target], int(inward), *where))
            groups.append(tuple(members))
        return cls(tuple(groups), scores)

    def __call__(self, whole: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The cut state dict.

        Raises:
            UserError: the groups of this network do not explain the shapes.
        """
        state, scores = dict(whole.state_dict()), self.scores(whole)
        stay: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            best = self._best(group, state, shapes, scores)
            for member in group if best is not None else ():
                key = member.layer, member.axis
                size = state[f"{member.layer}.weight"].shape[member.axis]
                mask = stay.setdefault(key, torch.ones(size, dtype=torch.bool))
                assert best is not None
                mask[member.positions] = best[member.channels]
        cut = {}
        for name, shape in shapes.items():
            tensor, layer = state[name], name.rpartition(".")[0]
            for axis in range(min(2, tensor.dim())):
                if (layer, axis) in stay:
                    where = stay[layer, axis].nonzero().flatten().to(tensor.device)
                    tensor = tensor.index_select(axis, where)
            if tuple(tensor.shape) != tuple(shape):
                raise UserError(
                    f"cannot tell which channels of {type(whole).__name__} belong together ({name}); "
                    "take ladder.proxy = 'narrowed' or 'channels-random'"
                )
            cut[name] = tensor.clone()
        return cut

    @staticmethod
    def _best(
        group: tuple[Member, ...],
        state: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        scores: Mapping[str, Tensor],
    ) -> Tensor | None:
        """(channels,) bool: those of a group that stay; None where the group has no layer to tell how many."""
        count, keep = 1 + max((int(each.channels.max()) for each in group if len(each.channels)), default=-1), None
        total = torch.zeros(count, dtype=torch.float64)
        for member in group:
            name = f"{member.layer}.weight"
            if name in shapes and len(member.positions) == count == state[name].shape[member.axis]:
                keep = shapes[name][member.axis]
            if name in scores:
                values = scores[name].double().cpu().transpose(0, member.axis).flatten(1).sum(1)
                total.index_add_(0, member.channels, values[member.positions])
        if keep is None or not count:
            return None
        best = torch.zeros(count, dtype=torch.bool)
        best[total.argsort(descending=True, stable=True)[:keep]] = True
        return best


def magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """Squares of the weights."""
    return {name: each.detach().square() for name, each in layer_weights(model).items()}


def saliencies(data: Dataset, loss_fn: Callable[..., Tensor], images: int) -> Scores:
    """Squares of weight times gradient, on so many images: what the loss would change by, to first order."""

    def scores(model: nn.Module) -> dict[str, Tensor]:
        weights = layer_weights(model)
        training = model.training
        loss = loss_fn(model.eval()(data.train.inputs[:images]), data.train.targets[:images])  # no statistics change
        slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        model.train(training)
        pairs = zip(weights.items(), slopes, strict=True)
        return {name: (each.detach() * slope).square() for (name, each), slope in pairs}

    return scores


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers, by their names in the state dict."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    return {f"{name}.weight" if name else "weight": module.weight for name, module in layers}
