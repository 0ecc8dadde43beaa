"""Discovered networks as files that do not need this package: weights, construction plan, exported program."""

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

from regimes.data.inputs import Inputs, arguments
from regimes.discovery.prunable_graph import PrunableGraph
from regimes.errors import UserError
from regimes.models.residual_blocks import keep_skip

WEIGHTS, PLAN, PROGRAM = "network.safetensors", "network.json", "network.pt2"
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_LINEAR = ("in_features", "out_features")


def plan_of(model: nn.Module, graph: PrunableGraph) -> dict[str, Any]:
    """Return the changes that turn a network of the original class into the discovered one, as plain data.

    ``{"blocks": {name: {"keep": [children on the skip path], "relu": whether one follows}}, "layers": {name: [class in
    torch.nn, constructor arguments]}}``: first each removed block is replaced by what it keeps, then each layer by one
    of its present size; then the state dict fits.
    """
    gone = [block for number, block in enumerate(graph.blocks) if number not in graph.remaining_blocks]
    blocks = {
        block.name: {"keep": [name.rpartition(".")[2] for name in block.skip], "relu": block.relu} for block in gone
    }
    parts = {name: model.get_submodule(name) for name in graph.layers}
    layers = {name: _constructor(module) for name, module in parts.items() if is_plain(module)}  # others are unchanged
    return {"blocks": blocks, "layers": layers}


def rebuild(model: nn.Module, plan: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Turn a network of the original class into the one that a plan describes, in place, and load its weights.

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
        raise UserError(f"{type(model).__name__} is not the class of this network: {error}") from error
    return model


def save(model: nn.Module, graph: PrunableGraph, inputs: Inputs, folder: Path) -> list[Path]:
    """Write a network to a folder and return the files.

    ``network.safetensors``: weights; ``network.json``: the plan of `plan_of`; ``network.pt2``: a program exported with
    ``torch.export`` for any batch size, omitted if the model cannot be exported.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: each.detach().cpu().contiguous().clone() for name, each in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / PLAN).write_text(json.dumps(plan_of(model, graph), indent=1) + "\n")
    files = [folder / WEIGHTS, folder / PLAN]
    program = exported(model, inputs)
    if program is not None:
        torch.export.save(program, folder / PROGRAM)
        files.append(folder / PROGRAM)
    return files


def exported(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram | None:
    """Return the network in eval mode as an exported program for any batch size; None if torch cannot export it."""
    plain = copy.deepcopy(model).cpu().eval()
    for each in (*plain.parameters(), *plain.buffers()):
        each.data = each.data.contiguous()  # torch.export.save warns about channels-last weights
    twice = torch.zeros(2, dtype=torch.int64)  # with one example the batch size would be fixed at 1
    args, kwargs = arguments(inputs[:1].to(torch.device("cpu")).index_select(0, twice))
    batch = {0: torch.export.Dim("batch")}
    shapes: Any = dict.fromkeys(kwargs, batch) or tuple(batch for _ in args)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(plain, args, kwargs, dynamic_shapes=shapes)
    except Exception:  # weights and plan do not depend on the export
        return None


def is_plain(module: nn.Module) -> bool:
    """Return whether a layer is fully described by its constructor arguments: no subclass, no parametrization."""
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
