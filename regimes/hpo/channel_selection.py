"""Selection of the channels that a proxy keeps of a fresh network, by weight magnitude or saliency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes.data.dataset import Dataset
from regimes.data.inputs import call
from regimes.errors import UserError
from regimes.losses.functions import loss_value
from regimes.models.eval_mode import eval_gradients
from regimes.pruners.removable_channels import channel_groups

Scores = Callable[[nn.Module], Mapping[str, Tensor]]  # model -> {name in the state dict: score of each weight}


@dataclass(frozen=True)
class Member:
    """The channels of a group in one layer.

    Attributes:
        layer: name of the layer.
        axis: 0 if they are output channels of the layer, 1 if they are input channels.
        positions, channels: positions along that axis, and the group's channel at each position.
    """

    layer: str
    axis: int
    positions: Tensor
    channels: Tensor


@dataclass(frozen=True)
class ChannelSelector:
    """Cuts a fresh network to given tensor shapes, keeping in each channel group the channels with the largest scores.

    Attributes:
        groups: groups of channels that have to be removed together.
        scores: function that scores every weight of a network.
    """

    groups: tuple[tuple[Member, ...], ...]
    scores: Scores

    @classmethod
    def of(cls, model: nn.Module, data: Dataset, scores: Scores) -> ChannelSelector:
        """Find the channel groups of a network by tracing it."""
        names = {module: name for name, module in model.named_modules()}
        groups = []
        for group in channel_groups(model, data.train.inputs[:2]):
            members = []
            for target, handler, positions, channels in group:
                if target in names:
                    weight = getattr(target, "weight", None)
                    inward = handler == "prune_in_channels" and isinstance(weight, Tensor) and weight.dim() > 1
                    if inward and isinstance(weight, Tensor) and weight.shape[1] == 1:
                        inward = False  # depthwise: one input channel per output
                    where = torch.tensor(positions), torch.tensor(channels)
                    members.append(Member(names[target], int(inward), *where))
            groups.append(tuple(members))
        return cls(tuple(groups), scores)

    def __call__(self, whole: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the state dict cut to ``shapes``.

        Raises:
            UserError: the channel groups do not lead to these shapes.
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
                    f"cannot determine which channels of {type(whole).__name__} belong together ({name}); "
                    "use ladder.proxy = 'narrowed' or 'channels-random'"
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
        """Return a (channels,) mask of a group's best channels; None if no layer sets the number."""
        count, keep = (
            1 + max((int(member.channels.max()) for member in group if len(member.channels)), default=-1),
            None,
        )
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
    """Return the squared weights of every layer."""
    return {name: each.detach().square() for name, each in layer_weights(model).items()}


def saliencies(data: Dataset, loss_fn: Callable[..., Tensor], images: int) -> Scores:
    """Return a score function: (weight times gradient) squared over the first ``images`` training inputs.

    The first-order change of the loss if the weight is removed.
    """

    def scores(model: nn.Module) -> dict[str, Tensor]:
        weights = layer_weights(model)
        with eval_gradients(model):  # BatchNorm statistics stay
            loss = loss_value(loss_fn, call(model, data.train.inputs[:images]), data.train.targets[:images])
            slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        pairs = zip(weights.items(), slopes, strict=True)
        return {name: (each.detach() * slope).square() for (name, each), slope in pairs}

    return scores


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of convolutions and linear layers by their names in the state dict."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    return {f"{name}.weight" if name else "weight": module.weight for name, module in layers}
