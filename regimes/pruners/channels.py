"""Structured pruning: whole channels and units leave, and what remains is a smaller network, not a mask."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regimes.errors import UserError
from regimes.models.build import load_weights, seeded
from regimes.pruners.prune import prunable

ATTEMPTS = 12  # at a share of channels that gives the density
FAR = 1.5  # times too many or too few weights: another density than the one that was asked for
CLOSE = 0.01  # relative error of the density that is good enough
INSTALL = "torch-pruning>=1.6,<2"
IMPORTANCE = {
    "channels-magnitude": "GroupMagnitudeImportance",
    "channels-saliency": "GroupTaylorImportance",
    "channels-random": "RandomImportance",
}


def shrink(
    model: nn.Module,
    density: float,
    inputs: Tensor,
    pruner: str,
    allocation: str,
    seed: int,
    floor: float = 0.0,
    judge: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, float]:
    """Return a physically smaller copy of a network, and the fraction of prunable weights that it keeps.

    Channels that have to leave together (a residual stream, a convolution and its BatchNorm) are found by
    torch-pruning; the head keeps its outputs. Whole channels cannot give every density: a share of about the square
    root of it comes as near as it can, and what was reached is returned.

    Args:
        model: a trained network.
        density: fraction of the prunable weights to keep.
        inputs: one or two inputs, to trace the network with.
        pruner: "channels-magnitude" (the L2 norm of all weights that leave together), "channels-saliency" (what the
            loss would change by to first order, by the gradients that ``judge`` leaves) or "channels-random".
        allocation: "uniform" (the same share of channels in every group) or "global".
        seed: of the random choice.
        floor: share of a group's channels that stays in any case.
        judge: called with the copy that is pruned, before it is.

    Raises:
        UserError: torch-pruning is not installed, cannot follow the network, or leaves one that does not work; the
            density is out of reach.
    """
    if density >= 1:
        return copy.deepcopy(model), 1.0
    if allocation not in ("uniform", "global"):
        raise UserError(f"load.allocation = '{allocation}': channels are pruned by 'uniform' or 'global'")
    size = sum(weight.numel() for weight in prunable(model).values())
    low, high, share = 0.0, 1.0, 1 - density**0.5  # of channels that leave
    most = 1.0  # weights kept at `low`
    best, reached = None, 2.0
    for _ in range(ATTEMPTS):
        everywhere = allocation == "global"
        small = _without(model, share, inputs, IMPORTANCE[pruner], everywhere, seed, floor, judge)
        kept = sum(weight.numel() for weight in prunable(small).values()) / size
        if abs(kept - density) < abs(reached - density):
            best, reached = small, kept
        if abs(kept / density - 1) <= CLOSE:
            break
        if kept > most:  # a group that would have lost all its channels was left whole: too far
            high = share
        elif kept > density:
            low, most = share, kept
        else:
            high = share
        guess = 1 - (1 - share) * (density / kept) ** 0.5
        share = guess if low < guess < high else (low + high) / 2
    assert best is not None
    if not 1 / FAR <= reached / density <= FAR:
        raise UserError(
            f"density {density:g}: whole channels of {type(model).__name__} come no nearer than {reached:.3g} "
            f"('{allocation}'); ask for more, or take a wider network"
        )
    with torch.no_grad():
        answers = best.eval()(inputs)
    if answers.shape != model(inputs).shape:
        raise UserError(f"{type(model).__name__} does not work with fewer channels: its outputs change shape")
    return best.train(model.training), reached


def fitted(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a model's layers the shapes of a state dict with fewer channels, and load it; returns the model itself."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for key, each in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            wanted = state.get(prefix + key)
            if wanted is not None and wanted.shape != each.shape:
                each.data = torch.zeros(wanted.shape, dtype=each.dtype, device=each.device)
        sizes_as_tensors(module)
    load_weights(model, state)
    return model


def sizes_as_tensors(module: Any) -> None:
    """Let a layer's attributes say what its tensors are."""
    if isinstance(module, nn.modules.conv._ConvNd):
        alone = module.groups > 1 and module.groups == module.in_channels  # depthwise
        module.out_channels = module.weight.shape[0]
        if alone:
            module.groups = module.out_channels // module.weight.shape[1]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        known = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if known is None else len(known)


def _without(
    model: nn.Module,
    share: float,
    inputs: Tensor,
    how: str,
    everywhere: bool,
    seed: int,
    floor: float,
    judge: Callable[[nn.Module], None] | None,
) -> nn.Module:
    """A copy without a share of its channels."""
    pruning = _torch_pruning()
    small = copy.deepcopy(model).eval()
    if judge is not None:
        judge(small)
    weights = {id(each) for each in prunable(small).values()}
    kept = [each for each in small.modules() if isinstance(each, nn.Linear) and id(each.weight) not in weights]
    # One channel of each layer stays: a group that is to lose all is not pruned at all.
    layers = [each for each in small.modules() if isinstance(each, (nn.Linear, nn.Conv2d)) and each not in kept]
    shares = {each: min(share, 1 - 1.001 / len(each.weight)) for each in layers if len(each.weight) > 1}
    with seeded(seed), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            worker = pruning.pruner.BasePruner(
                small,
                inputs,
                importance=getattr(pruning.importance, how)(),
                pruning_ratio=share,
                pruning_ratio_dict={} if everywhere else shares,
                max_pruning_ratio=1.0 - floor,
                global_pruning=everywhere,
                ignored_layers=kept,
            )
            worker.step()
        except Exception as error:  # it meets operations that it does not know in many ways
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"torch-pruning cannot follow {type(model).__name__}: {reason}") from error
    for each in small.parameters():
        each.grad = None
    return small


def dependencies(model: nn.Module, inputs: Tensor) -> list[list[tuple[nn.Module, str, list[int], list[int]]]]:
    """Groups of channels that belong together, as torch-pruning sees them: (layer, "prune_in_channels" or
    "prune_out_channels", positions there, the channel of each position).

    Raises:
        UserError: torch-pruning is not installed, or cannot follow the network.
    """
    pruning = _torch_pruning()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = copy.deepcopy(model).requires_grad_(True)  # frozen layers leave no trace
            graph = pruning.DependencyGraph().build_dependency(traced, inputs)
            names = {module: name for name, module in graph.model.named_modules()}
            layers = dict(model.named_modules())
            return [
                [
                    (layers[names[target]] if target in names else target, item.dep.handler.__name__, *_idxs(item))
                    for item in group
                    for target in [item.dep.target.module]
                ]
                for group in graph.get_all_groups()
            ]
        except Exception as error:  # it meets operations that it does not know in many ways
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"torch-pruning cannot follow {type(model).__name__}: {reason}") from error


def _idxs(item: Any) -> tuple[list[int], list[int]]:
    return [int(each) for each in item.idxs], [int(each) for each in item.root_idxs or item.idxs]


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        what = "torch-pruning, which finds the channels that belong together,"
        raise UserError(f"{what} is missing: pip install '{INSTALL}'") from error
    return torch_pruning
