"""A network that was found, as files that need nothing of this package: weights, how to build it, and a program."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from regimes.discovery.prunable_graph import PrunableGraph
from regimes.errors import UserError
from regimes.models.residual_blocks import keep_skip

WEIGHTS, PLAN, PROGRAM = "network.safetensors", "network.json", "network.pt2"
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_LINEAR = ("in_features", "out_features")


def plan_of(model: nn.Module, anatomy: PrunableGraph) -> dict[str, Any]:
    """What makes a network of the original class into the one that was found, as plain data.

    ``{"blocks": {name: {"keep": [children on the skip path], "relu": whether one follows}}, "layers": {name: [class in
    torch.nn, constructor arguments]}}``: first each removed block is replaced by what it keeps, then each layer by one
    of the size it has now; then the state dict fits.
    """
    gone = [block for number, block in enumerate(anatomy.blocks) if number not in anatomy.standing]
    blocks = {
        block.name: {"keep": [name.rpartition(".")[2] for name in block.skip], "relu": block.relu} for block in gone
    }
    parts = {name: model.get_submodule(name) for name in anatomy.layers}
    layers = {name: _constructor(module) for name, module in parts.items() if is_plain(module)}  # no other has changed
    return {"blocks": blocks, "layers": layers}


def rebuild(model: nn.Module, plan: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Make a network of the original class into the one a plan describes, in place, and load its weights.

    Raises:
        UserError: the model is not of the class that the plan was made from.
    """
    try:
        for name, rest in plan["blocks"].items():
            keep_skip(model, name, rest["keep"], rest["relu"])
        first = next(model.parameters())
        for name, (kind, arguments) in plan["layers"].items():
            layer = getattr(nn, kind)(**arguments).to(first.device, first.dtype)
            model.set_submodule(name, layer.train(model.get_submodule(name).training))
        model.load_state_dict(dict(state))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{type(model).__name__} is not what this network was found in: {error}") from error
    return model


def save(model: nn.Module, anatomy: PrunableGraph, inputs: Tensor, folder: Path) -> list[Path]:
    """Write a network: weights (safetensors), plan (JSON) and an exported program (``torch.export``, any batch size).

    Where a model cannot be exported, the program is left out.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: each.detach().cpu().contiguous().clone() for name, each in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / PLAN).write_text(json.dumps(plan_of(model, anatomy), indent=1) + "\n")
    files = [folder / WEIGHTS, folder / PLAN]
    program = exported(model, inputs)
    if program is not None:
        torch.export.save(program, folder / PROGRAM)
        files.append(folder / PROGRAM)
    return files


def exported(model: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram | None:
    """The network in eval mode as an exported program for any number of inputs; None where torch cannot export it."""
    plain = copy.deepcopy(model).cpu().eval()
    for each in (*plain.parameters(), *plain.buffers()):
        each.data = each.data.contiguous()  # of weights kept channels-last an archive warns
    examples = inputs[:1].cpu().contiguous().repeat(2, *[1] * (inputs.dim() - 1))  # of one, it would fix the batch
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(plain, (examples,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception:  # models meet its limits in many ways; weights and plan stand all the same
        return None


def is_plain(module: nn.Module) -> bool:
    """Whether a layer is just what torch.nn makes of its constructor's arguments: no subclass, no parametrization."""
    known = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, _ConvTransposeNd)
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return known and own <= {"weight", "bias"} and ("weight" in own or isinstance(module, _BatchNorm))


def _constructor(module: nn.Module) -> list[Any]:
    kind: Any = module
    if isinstance(module, _BatchNorm):
        names: tuple[str, ...] = _NORM
        more: dict[str, Any] = {}
    else:
        names = _LINEAR if isinstance(module, nn.Linear) else _CONV
        more = {"bias": kind.bias is not None}
    return [type(module).__name__, {**{name: getattr(kind, name) for name in names}, **more}]
