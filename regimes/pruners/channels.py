"""Structured pruning: remove whole channels and units, giving a smaller network instead of a mask."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from regimes.data.inputs import Inputs
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.models.build import load_weights, seeded
from regimes.pruners.prune import prunable
from regimes.pruners.removable_channels import check_runs, examples, fixed_layers, kept_heads, torch_pruning_module

MAX_ATTEMPTS = 12  # attempts to find the share of channels that gives the density
MAX_DENSITY_FACTOR = 1.5  # largest ratio between requested and reached density, either way
DENSITY_TOLERANCE = 0.01  # relative error of the density at which the search stops
IMPORTANCE = {
    "channels-magnitude": "GroupMagnitudeImportance",
    "channels-saliency": "GroupTaylorImportance",
    "channels-random": "RandomImportance",
}


def shrink(
    model: nn.Module,
    density: float,
    inputs: Inputs,
    pruner: str,
    allocation: str,
    seed: int,
    floor: float = 0.0,
    prepare: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, float]:
    """Return a physically smaller copy of a network, and the density it reaches.

    Channels that have to be removed together (a residual stream, a convolution and its BatchNorm) are found by
    torch-pruning; the head keeps its outputs, and so do layers whose width the forward counts on, such as projections
    to attention heads (see `fixed_layers`). Whole channels cannot give every density. The share of channels kept, at
    first the square root of the density, is adjusted to come as close as possible.

    Args:
        model: a trained network; it is not changed.
        density: fraction of the prunable weights to keep.
        inputs: one or two inputs, to trace the network.
        pruner: "channels-magnitude" (L2 norm of all weights removed together), "channels-saliency" (first-order change
            of the loss, from the gradients that ``prepare`` computes) or "channels-random".
        allocation: "uniform" (the same share of channels in every group) or "global".
        seed: seed of the random choice.
        floor: smallest share of a group's channels that is kept.
        prepare: called with the copy before it is pruned, e.g. to compute gradients.

    Returns:
        The smaller network, and the fraction of the prunable weights that it keeps.

    Raises:
        UserError: torch-pruning is not installed, cannot trace the network, or returns a network that does not run or
            has outputs of another shape; an unsupported allocation; the density cannot be reached within a factor of
            1.5.
    """
    if density >= 1:
        return copy.deepcopy(model), 1.0
    fixed = fixed_layers(model, inputs)
    if allocation not in ("uniform", "global"):
        raise UserError(f"load.allocation = '{allocation}': allowed for channel pruners: uniform, global")
    size = sum(weight.numel() for weight in prunable(model).values())
    low, high, share = 0.0, 1.0, 1 - density**0.5  # share of channels removed, and its bounds
    most = 1.0  # share of weights kept at `low`
    best, reached = None, 2.0
    for _ in range(MAX_ATTEMPTS):
        everywhere = allocation == "global"
        small = _without(model, share, inputs, IMPORTANCE[pruner], everywhere, seed, floor, prepare, fixed)
        kept = sum(weight.numel() for weight in prunable(small).values()) / size
        if abs(kept - density) < abs(reached - density):
            best, reached = small, kept
        if abs(kept / density - 1) <= DENSITY_TOLERANCE:
            break
        if kept > most:  # a group that would lose all its channels was not pruned: share too large
            high = share
        elif kept > density:
            low, most = share, kept
        else:
            high = share
        guess = 1 - (1 - share) * (density / kept) ** 0.5
        share = guess if low < guess < high else (low + high) / 2
    assert best is not None
    if not 1 / MAX_DENSITY_FACTOR <= reached / density <= MAX_DENSITY_FACTOR:
        raise UserError(
            f"density {density:g}: the nearest density that removing whole channels of {type(model).__name__} reaches "
            f"is {reached:.3g} (allocation '{allocation}'); {_kept_whole(fixed)}use a higher density or a wider network"
        )
    check_runs(best, model, inputs)
    return best, reached


def _kept_whole(fixed: Mapping[str, str]) -> str:
    few = [*list(fixed)[:3], *(["..."] if len(fixed) > 3 else [])]
    return f"{', '.join(few)} keep all channels ({next(iter(fixed.values()))}); " if fixed else ""


def fit_to_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Resize a model's layers to the shapes of a state dict with fewer channels, and load it; return the model."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for key, each in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            wanted = state.get(prefix + key)
            if wanted is not None and wanted.shape != each.shape:
                each.data = torch.zeros(wanted.shape, dtype=each.dtype, device=each.device)
        sync_layer_sizes(module)
    load_weights(model, state)
    return model


def sync_layer_sizes(module: Any) -> None:
    """Set a layer's size attributes from the shapes of its tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        alone = module.groups > 1 and module.groups == module.in_channels  # depthwise
        module.out_channels = module.weight.shape[0]
        if alone:
            module.groups = module.out_channels // module.weight.shape[1]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        if module.weight is not None and len(module.normalized_shape) == 1:
            module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.num_channels if module.weight is None else len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, _NormBase):
        known = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if known is None else len(known)


def _without(
    model: nn.Module,
    share: float,
    inputs: Inputs,
    how: str,
    everywhere: bool,
    seed: int,
    floor: float,
    prepare: Callable[[nn.Module], None] | None,
    fixed: Iterable[str],
) -> nn.Module:
    """Return a copy of the model without a share of its channels."""
    pruning = torch_pruning_module()
    small = copy.deepcopy(model).eval()
    if prepare is not None:
        prepare(small)
    kept = [*kept_heads(small), *(small.get_submodule(name) for name in fixed)]
    # Keep at least one channel per layer: torch-pruning does not prune a group that would lose all.
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [each for each in small.modules() if isinstance(each, kinds) and each not in kept]
    shares = {each: min(share, 1 - 1.001 / len(each.weight)) for each in layers if len(each.weight) > 1}
    with seeded(seed), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            worker = pruning.pruner.BasePruner(
                small,
                examples(inputs),
                importance=getattr(pruning.importance, how)(),
                pruning_ratio=share,
                pruning_ratio_dict={} if everywhere else shares,
                max_pruning_ratio=1.0 - floor,
                global_pruning=everywhere,
                ignored_layers=kept,
            )
            worker.step()
        except Exception as error:  # unsupported operations raise many kinds of errors
            reraise_device_fault(error)
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"torch-pruning cannot trace {type(model).__name__}: {reason}") from error
    for each in small.parameters():
        each.grad = None
    return small.train(model.training)
