"""Reader of trained weights: state dicts in files, as training scripts and frameworks save them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regimes.errors import UserError

ENTRIES = ("state_dict", "model_state_dict", "model")  # of checkpoints in which the state dict is one entry
WRAPPERS = ("_orig_mod", "module")  # parts of names added by torch.compile, DataParallel and AveragedModel
COUNTER = "n_averaged"  # of AveragedModel: not a weight


def read_checkpoint(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: a state dict saved by ``torch.save`` or in safetensors.

    It may be an entry of the file (``{"state_dict": ...}``), and its names may have what wrappers add: ``module.``,
    ``_orig_mod.``, and one attribute in front of all names, such as Lightning's ``model.``. Only weights are loaded:
    nothing in the file is executed.

    Raises:
        UserError: the file has no state dict, or it does not fit the model.
    """
    held = _state_dict(path)
    named = _by_model_name(path, held, model.state_dict())
    for name, each in model.state_dict().items():
        given = held[named[name]]
        if given.shape != each.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(given.shape)}, the model's {tuple(each.shape)}; check [model] and "
                "the number of classes"
            )
        if each.is_floating_point() and not given.is_floating_point():
            kinds = [str(dtype).removeprefix("torch.") for dtype in (given.dtype, each.dtype)]
            raise UserError(f"{path}: {name} is stored as {kinds[0]}, the model's is {kinds[1]}; save it as {kinds[1]}")
    return {name: held[named[name]] for name in model.state_dict()}


def _state_dict(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # invalid files raise anything
        reason = (str(error).splitlines() or [""])[0].partition(". ")[0]  # torch adds advice to load it unsafely
        more = "; save its state dict alone, without other objects" if "Weights only" in reason else ""
        raise UserError(f"{path}: cannot read weights: {reason}{more}") from error
    for name in ENTRIES:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not all(isinstance(each, Tensor) for each in held.values()):
        raise UserError(f"{path}: no state dict (a mapping of names to tensors) in this file")
    return {str(name): each for name, each in held.items()}


def _by_model_name(path: str, held: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {name in the model: name in the file}."""
    if held.keys() == wanted.keys():
        return {name: name for name in wanted}
    given: dict[str, str] = {}
    for name in held:
        short = _unwrapped(name)
        if short in given:
            raise UserError(f"{path}: has both {given[short]} and {name}; keep the one to be used")
        if short != COUNTER or COUNTER in wanted:
            given[short] = name
    own = {_unwrapped(name): name for name in wanted}
    inner = {name.partition(".")[2]: each for name, each in given.items()}
    one_attribute = len({name.partition(".")[0] for name in given}) == 1 and len(inner) == len(given)
    if one_attribute and len(inner.keys() & own.keys()) > len(given.keys() & own.keys()):
        given = inner
    missing = [name for short, name in own.items() if short not in given]
    more = [name for short, name in given.items() if short not in own]
    if missing or more or len(own) < len(wanted):
        problems = [f"lacks {', '.join(missing[:3])}"] if missing else []
        problems += [f"has {', '.join(more[:3])}, which the model does not"] if more else []
        problems = problems or ["names of the model differ by 'module.' only"]
        raise UserError(f"{path}: does not fit the model: it {' and '.join(problems)}")
    return {own[short]: name for short, name in given.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
