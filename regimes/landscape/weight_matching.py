"""Weight matching: permute a network's hidden channels to be as close as possible to another network's.

Permuting channels does not change the function of a network, so a barrier between two networks may be due to the order
of their channels alone. Matching the networks first removes such barriers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from regimes.data.inputs import Inputs, TensorGroup, call
from regimes.errors import UserError
from regimes.landscape.inputs import inputs_of
from regimes.landscape.linear_path import LmcOptions, linear_connectivity, matching_parameters, path_values
from regimes.landscape.metric import Metric, MetricValues, Probe, Trained, Variable, image_count, subset
from regimes.losses.functions import logits
from regimes.models.build import copied
from regimes.pruners.removable_channels import TORCH_PRUNING_REQUIREMENT, channel_groups

MAX_ROUNDS = 100  # over all groups; a few suffice for small networks


@dataclass(frozen=True)
class ChannelGroup:
    """Positions of a group's channels in one tensor.

    Attributes:
        name: name of the parameter or buffer.
        axis: axis of the channels.
        positions: (channels, k): the k positions of each channel; more than one after flattening.
    """

    name: str
    axis: int
    positions: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the tensor's entries of each channel (channels, entries), in float64."""
        chosen = tensor.detach().double().movedim(self.axis, 0)[self.positions.to(tensor.device)]
        return chosen.reshape(len(self.positions), -1)

    @torch.no_grad()
    def permute(self, tensor: Tensor, order: Tensor) -> None:
        """Permute the tensor in place: channel i receives the entries of channel ``order[i]``."""
        target, source = (index.reshape(-1).to(tensor.device) for index in (self.positions, self.positions[order]))
        tensor.index_copy_(self.axis, target, tensor.index_select(self.axis, source))


Group = tuple[ChannelGroup, ...]


def match(a: nn.Module, b: nn.Module, inputs: Any, generator: torch.Generator | None = None) -> nn.Module:
    """Return a copy of b with its hidden channels permuted to match a's weights; it computes the same outputs as b.

    Weight matching (git re-basin, Ainsworth et al. 2023, arXiv 2209.04836): for one group of channels, the permutation
    that maximises the inner product of both networks' weights is a linear assignment problem; rounds over all groups,
    in random order, continue until no group improves. The result is a local optimum. Groups are found by torch-pruning;
    a group whose permutation would change the outputs is not permuted.

    Args:
        a, b: networks of the same architecture; they are not changed.
        inputs: one or two inputs, to trace the network: a tensor, or a tuple or dict of tensors.
        generator: CPU generator for the order of the groups; None: seed 0.

    Raises:
        UserError: torch-pruning is not installed or cannot trace the network, the architectures differ, or the network
            has no channels that can be permuted.
    """
    matching_parameters(a, b)
    generator = generator or torch.Generator().manual_seed(0)
    matched = copied(b).eval()
    fixed: dict[str, Tensor] = dict(a.named_parameters())
    moved: dict[str, Tensor] = dict(matched.named_parameters())
    state = moved | dict(matched.named_buffers())
    given = TensorGroup(inputs) if isinstance(inputs, (tuple, list)) else inputs
    found = permutable_groups(matched, inputs_of(given, b)[:8])
    if not found:
        raise UserError(f"{type(b).__name__} has no hidden channels that can be permuted")
    for _ in range(MAX_ROUNDS):
        gained = [_turn(found[each], fixed, moved, state) for each in torch.randperm(len(found), generator=generator)]
        if not any(gained):
            break
    return matched.train(b.training)


def _turn(group: Group, fixed: dict[str, Tensor], moved: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Put a group's channels in the best order given all others; return whether that improved the match."""
    from scipy.optimize import linear_sum_assignment  # imported here, or every command and worker would load it

    both = [each for each in group if each.name in moved]  # BatchNorm statistics are permuted, but not matched
    names = {each.name for each in both}
    gains = sum(each.rows(fixed[each.name]) @ each.rows(moved[each.name]).T for each in both)
    assert isinstance(gains, Tensor)
    order = torch.from_numpy(linear_sum_assignment(gains.cpu().numpy(), maximize=True)[1])

    def together() -> float:
        return sum(float((fixed[name].detach().double() * moved[name].detach().double()).sum()) for name in names)

    before = together()
    for place in group:
        place.permute(state[place.name], order)
    if together() > before + 1e-9 * float(gains.abs().sum()):
        return True
    for place in group:  # a tensor that has the group on both axes is not linear in it
        place.permute(state[place.name], order.argsort())
    return False


def permutable_groups(model: nn.Module, inputs: Inputs) -> list[Group]:
    """Return the groups of channels that can be permuted without changing a network's outputs.

    Each group is tested on a copy with random weights, in which no unit is dead: the result depends on the architecture
    alone.

    Raises:
        UserError: torch-pruning is not installed or cannot trace the network.
    """
    found = []
    random = torch.Generator().manual_seed(0)
    lively = copied(model).eval()
    with torch.no_grad():
        for weight in lively.parameters():
            scale = max(1, weight[0].numel()) ** -0.5 if weight.dim() > 1 else 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=random, dtype=torch.float64))
        for name, buffer in lively.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=random, dtype=torch.float64))
        tried = inputs
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            tried = torch.randn((8, *inputs.shape[1:]), generator=random, dtype=torch.float64).to(inputs)
        answers = logits(call(lively, tried))
        traced: Any = inputs.tensors if isinstance(inputs, TensorGroup) else inputs
        for group in channel_groups(model, traced):
            places = _places(model, group)
            if places is None or len(places[0].positions) < 2:
                continue
            turned = copied(lively)
            state = dict(turned.named_parameters()) | dict(turned.named_buffers())
            order = torch.arange(len(places[0].positions)).roll(1)
            for place in places:
                place.permute(state[place.name], order)
            if torch.allclose(logits(call(turned, tried)), answers, rtol=1e-3, atol=1e-4 * float(answers.abs().max())):
                found.append(places)
    return found


def _places(model: nn.Module, group: Sequence[tuple[nn.Module, str, list[int], list[int]]]) -> Group | None:
    """Positions of a group's channels; None if it contains a layer of an unsupported type."""
    names = {module: name for name, module in model.named_modules()}
    first = {id(each): name for name, each in (*model.named_parameters(), *model.named_buffers())}  # of tied weights
    places: dict[tuple[str, int], ChannelGroup] = {}
    for module, way, idxs, roots in group:
        if module not in names:  # an operation between layers
            continue
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if not tensors:
            continue
        axes = _axes(module, way)
        if axes is None:
            return None
        order = torch.tensor(sorted(range(len(idxs)), key=lambda i: (roots[i], idxs[i])))
        positions = torch.tensor(idxs)[order].view(len(set(roots)), -1)
        for name, tensor in tensors:
            if name in axes and tensor.dim() > axes[name]:
                place = ChannelGroup(first[id(tensor)], axes[name], positions)
                places[place.name, place.axis] = place
    return tuple(places.values()) or None


def _axes(module: nn.Module, way: str) -> dict[str, int] | None:
    """Axis of the channels in each tensor of a layer; None for an unsupported type."""
    if isinstance(module, _BatchNorm):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    if isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels:
        return {"weight": 0, "bias": 0}  # depthwise: input and output channels coincide
    if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1 and not module.transposed):
        return {"weight": 1} if way == "prune_in_channels" else {"weight": 0, "bias": 0}
    return None


def _measure(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> MetricValues:
    a, b = subjects
    split = subset(probe.data.train, options.images)
    matched = match(a.model, b.model, split.inputs[:2], probe.generator)
    line = linear_connectivity(
        a.model, matched, split, options.points, probe.loss_fn, statistics=options.statistics, error=probe.error
    )
    return path_values("lmc_matched", line)


LMC_MATCHED = Metric(
    name="lmc_matched",
    subject="pair",
    options=LmcOptions,
    table="lmc",
    variables={
        "lmc_matched": Variable("1", "linear mode connectivity after weight matching (training error)", error=True),
        "lmc_matched_error": Variable("1", "training error along the line after weight matching", error=True),
        "lmc_matched_loss": Variable("nat", "training loss along the line after weight matching"),
    },
    measure=_measure,
    work=lambda options, images: 2 * options.points * image_count(options.images, images),
    needs=("torch_pruning", TORCH_PRUNING_REQUIREMENT),
)
