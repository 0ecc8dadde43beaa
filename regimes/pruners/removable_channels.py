"""Channels of a network that can be removed: groups found by torch-pruning, and layers that must keep all of theirs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from regimes.data.inputs import Inputs, TensorGroup, call
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.losses.functions import logits
from regimes.pruners.prune import prunable

TORCH_PRUNING_REQUIREMENT = "torch-pruning>=1.6,<2"


def fixed_layers(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Return {layer: reason} of the layers that must keep all their channels.

    One channel is taken out of every group, together and, if the network does not run then, group by group: a forward
    that counts on a width (attention heads, ``view``, ``chunk``) fails or changes its outputs' shape. Layers that share
    a weight, and those that feed them, keep all channels, too, since surgery would separate the weights.

    Raises:
        UserError: torch-pruning is not installed, cannot trace the network, or no layer can lose a channel.
    """
    shared = set(sharing_layers(model))
    names = {module: name for name, module in model.named_modules()}
    groups = [
        ([names[layer] for layer, how, *_ in group if how.startswith("prune_out") and layer in names], group)
        for group in channel_groups(model, inputs, kept_heads(model))
    ]
    fixed: dict[str, str] = {}
    for makers, group in groups:
        together = [names[layer] for layer, *_ in group if layer in shared]
        if together:
            fixed |= dict.fromkeys(makers, f"{together[0]} shares its weight with another layer")
    left = [number for number, (makers, _) in enumerate(groups) if not fixed.keys() & set(makers)]
    if _reason_against(model, inputs, left):
        for number in left:
            reason = _reason_against(model, inputs, [number])
            if reason:
                fixed |= dict.fromkeys(groups[number][0], reason)
    if groups and all(fixed.keys() & set(makers) for makers, _ in groups):
        layer, reason = next(iter(fixed.items()))
        raise UserError(f"{type(model).__name__} cannot be pruned by channels: {layer} must keep all its own: {reason}")
    return fixed


def _reason_against(model: nn.Module, inputs: Inputs, numbers: Iterable[int]) -> str:
    """Why a network does not run without one channel of each of these groups; "" if it does."""
    small, wanted = copy.deepcopy(model).eval().requires_grad_(True), set(numbers)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning_module().DependencyGraph().build_dependency(small, examples(inputs))
            groups = list(graph.get_all_groups(ignored_layers=kept_heads(small)))
            for number, group in enumerate(groups):
                root, lost = group[0].dep, _one_channel(group)
                if number in wanted and lost:
                    graph.get_pruning_group(root.target.module, root.handler, idxs=lost).prune()
    except Exception as error:  # unsupported operations raise many kinds of errors
        reraise_device_fault(error)
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    return reason_not_running(small, model, inputs)


def _one_channel(group: Any) -> list[int]:
    """One channel of a group, or one of each part of a grouped convolution; none if it has no more."""
    width = len(group[0].idxs)
    parts = max(getattr(item.dep.target.module, "groups", 1) for item in group)
    parts = 1 if parts == width else parts  # depthwise
    return list(range(0, width, width // parts)) if width > parts else []


def reason_not_running(small: nn.Module, whole: nn.Module, inputs: Inputs) -> str:
    """Return why a network with fewer channels does not run, with outputs of the same shape; "" if it does."""
    try:
        with torch.no_grad():
            shapes = [logits(call(copy.deepcopy(each).eval(), inputs)).shape for each in (small, whole)]
    except Exception as error:  # code that depends on a width
        reraise_device_fault(error)
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    return "" if shapes[0] == shapes[1] else "its outputs change shape"


def check_runs(small: nn.Module, whole: nn.Module, inputs: Inputs) -> None:
    """Check that a network with fewer channels runs, with outputs of the whole network's shape.

    Raises:
        UserError: it does not.
    """
    reason = reason_not_running(small, whole, inputs)
    if reason:
        raise UserError(
            f"{type(whole).__name__} cannot be pruned by channels, its forward fails without some: {reason}"
        )


def kept_heads(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers and convolutions that are not prunable, such as the head: their outputs stay."""
    weights, kinds = {id(each) for each in prunable(model).values()}, (nn.Linear, nn.modules.conv._ConvNd)
    return [each for each in model.modules() if isinstance(each, kinds) and id(each.weight) not in weights]


def sharing_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have a parameter which another module has, too."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for each in module.parameters(recurse=False):
            owners.setdefault(id(each), []).append(module)
    return list(dict.fromkeys(module for found in owners.values() if len(found) > 1 for module in found))


def channel_groups(
    model: nn.Module, inputs: Inputs, ignored: Sequence[nn.Module] = ()
) -> list[list[tuple[nn.Module, str, list[int], list[int]]]]:
    """Return the groups of channels that have to be removed together, as found by torch-pruning.

    Args:
        model: any network; it is not changed.
        inputs: one or two inputs, to trace the network.
        ignored: layers whose outputs are in no group.

    Returns:
        One list per group, with an entry per affected layer: (layer, "prune_in_channels" or "prune_out_channels",
        positions in the layer, channel of each position).

    Raises:
        UserError: torch-pruning is not installed, or cannot trace the network.
    """
    pruning = torch_pruning_module()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = copy.deepcopy(model).requires_grad_(True)  # frozen layers cannot be traced
            graph = pruning.DependencyGraph().build_dependency(traced, examples(inputs))
            names = {module: name for name, module in graph.model.named_modules()}
            layers = dict(model.named_modules())
            own = {module: name for name, module in layers.items()}
            return [
                [
                    (layers[names[target]] if target in names else target, item.dep.handler.__name__, *_idxs(item))
                    for item in group
                    for target in [item.dep.target.module]
                ]
                for group in graph.get_all_groups(ignored_layers=[traced.get_submodule(own[each]) for each in ignored])
            ]
        except Exception as error:  # unsupported operations raise many kinds of errors
            reraise_device_fault(error)
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"torch-pruning cannot trace {type(model).__name__}: {reason}") from error


def examples(inputs: Inputs) -> Any:
    """Return inputs as torch-pruning takes them."""
    return inputs.tensors if isinstance(inputs, TensorGroup) else inputs


def _idxs(item: Any) -> tuple[list[int], list[int]]:
    return [int(each) for each in item.idxs], [int(each) for each in item.root_idxs or item.idxs]


def torch_pruning_module() -> Any:
    """Return the package torch-pruning.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError(f"torch-pruning is not installed: pip install '{TORCH_PRUNING_REQUIREMENT}'") from error
    return torch_pruning
