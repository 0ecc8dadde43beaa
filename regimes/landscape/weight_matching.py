"""Weight matching: a network's hidden channels put in the order that is nearest to another network's.

Channels may be renamed without changing what a network computes, so a barrier on the straight line between two networks
may be nothing but another order of channels. Matched networks answer that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from regimes.errors import UserError
from regimes.landscape.linear_path import LmcOptions, ends, linear_connectivity, measured
from regimes.landscape.metric import Metric, MetricValues, Probe, Trained, Variable, subset, used
from regimes.pruners.channels import INSTALL, dependencies

SWEEPS = 100  # over all groups; a handful are enough where networks are small


@dataclass(frozen=True)
class ChannelGroup:
    """Where the channels of a group stand in one tensor.

    Attributes:
        name: of the parameter or buffer.
        axis: along which they stand.
        positions: (channels, k): the k positions of each, several where a layer has been flattened.
    """

    name: str
    axis: int
    positions: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """What the tensor holds of each channel (channels, numbers), float64."""
        chosen = tensor.detach().double().movedim(self.axis, 0)[self.positions.to(tensor.device)]
        return chosen.reshape(len(self.positions), -1)

    @torch.no_grad()
    def permute(self, tensor: Tensor, order: Tensor) -> None:
        """Put what channel ``order[i]`` holds in the place of channel i."""
        here, there = (each.reshape(-1).to(tensor.device) for each in (self.positions, self.positions[order]))
        tensor.index_copy_(self.axis, here, tensor.index_select(self.axis, there))


Group = tuple[ChannelGroup, ...]


def match(a: nn.Module, b: nn.Module, inputs: Tensor, generator: torch.Generator | None = None) -> nn.Module:
    """Return a copy of b with its hidden channels permuted to lie as near to a's as can be found; its outputs are b's.

    Weight matching (Ainsworth et al. 2023, arXiv 2209.04836): group by group, the permutation that maximises the inner
    product of both networks' weights is a linear assignment, and rounds over all groups, in random order, go on until
    none gains. A local optimum is found, not always the best one. Which channels have to move together is found by
    torch-pruning; a group that would change the outputs is left as it is.

    Args:
        a, b: networks of one architecture; they are left as they were.
        inputs: one or two inputs, to trace the network with.
        generator: of the groups' order, on the CPU; None: seed 0.

    Raises:
        UserError: torch-pruning is not installed or cannot follow the network, or the architectures differ.
    """
    ends(a, b)
    generator = generator or torch.Generator().manual_seed(0)
    matched = copy.deepcopy(b).eval()
    fixed: dict[str, Tensor] = dict(a.named_parameters())
    moved: dict[str, Tensor] = dict(matched.named_parameters())
    state = moved | dict(matched.named_buffers())
    found = groups(matched, inputs)
    if not found:
        raise UserError(f"no channels of {type(b).__name__} were found that may change places")
    for _ in range(SWEEPS):
        gained = [_turn(found[each], fixed, moved, state) for each in torch.randperm(len(found), generator=generator)]
        if not any(gained):
            break
    return matched.train(b.training)


def _turn(group: Group, fixed: dict[str, Tensor], moved: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Put a group's channels in the best order, all others as they are; whether that has gained anything."""
    from scipy.optimize import linear_sum_assignment  # every command and worker would load it at its start

    both = [each for each in group if each.name in moved]  # statistics follow, they have no say
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


def groups(model: nn.Module, inputs: Tensor) -> list[Group]:
    """The groups of channels that may be permuted without changing a network's outputs.

    Each is tried on a copy with random weights, where no unit is dead: what may change places depends on the
    architecture alone.
    """
    found = []
    random = torch.Generator().manual_seed(0)
    lively = copy.deepcopy(model).eval()
    with torch.no_grad():
        for weight in lively.parameters():
            scale = max(1, weight[0].numel()) ** -0.5 if weight.dim() > 1 else 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=random, dtype=torch.float64))
        for name, buffer in lively.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=random, dtype=torch.float64))
        noise = torch.randn((8, *inputs.shape[1:]), generator=random, dtype=torch.float64).to(inputs)
        answers = lively(noise)
        for group in dependencies(model, inputs):
            places = _places(model, group)
            if places is None or len(places[0].positions) < 2:
                continue
            turned = copy.deepcopy(lively)
            state = dict(turned.named_parameters()) | dict(turned.named_buffers())
            order = torch.arange(len(places[0].positions)).roll(1)
            for place in places:
                place.permute(state[place.name], order)
            if torch.allclose(turned(noise), answers, rtol=1e-3, atol=1e-4 * float(answers.abs().max())):
                found.append(places)
    return found


def _places(model: nn.Module, group: Sequence[tuple[nn.Module, str, list[int], list[int]]]) -> Group | None:
    """Where a group's channels stand; None where a layer of it is of a kind that is not known here."""
    names = {module: name for name, module in model.named_modules()}
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
        prefix = f"{names[module]}." if names[module] else ""
        for name, tensor in tensors:
            if name in axes and tensor.dim() > axes[name]:
                place = ChannelGroup(prefix + name, axes[name], positions)
                places[place.name, place.axis] = place
    return tuple(places.values()) or None


def _axes(module: nn.Module, way: str) -> dict[str, int] | None:
    """Along which axis of each tensor a layer's channels stand."""
    if isinstance(module, _BatchNorm):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    if isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels:
        return {"weight": 0, "bias": 0}  # depthwise: in and out are one
    if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1 and not module.transposed):
        return {"weight": 1} if way == "prune_in_channels" else {"weight": 0, "bias": 0}
    return None


def _measure(subjects: Sequence[Trained], probe: Probe, options: LmcOptions) -> MetricValues:
    a, b = subjects
    split = subset(probe.data.train, options.images)
    matched = match(a.model, b.model, split.inputs[:2], probe.generator)
    line = linear_connectivity(a.model, matched, split, options.points, probe.loss_fn, statistics=options.statistics)
    return measured("lmc_matched", line)


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
    work=lambda options, images: 2 * options.points * used(options.images, images),
    needs=("torch_pruning", INSTALL),
)
