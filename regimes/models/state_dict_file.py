"""Reader of trained weights: state dicts in files, as training scripts and frameworks save them."""

from __future__ import annotations

import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regimes.errors import UserError

ENTRIES = ("state_dict", "model_state_dict", "model")  # usual names of the state dict in a larger checkpoint
WRAPPERS = ("_orig_mod", "module")  # parts of names added by torch.compile, DataParallel and AveragedModel
COUNTER = "n_averaged"  # of AveragedModel: not a weight
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # others are quantised: they need a scale
MOST_UNPACKED = 100  # times the size of the file; torch.save does not compress
AGAIN = "save the state dict alone, with torch.save or safetensors"
SHOWN, SHOWN_LENGTH = 3, 80  # names in a message, and characters of each


def read_checkpoint(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: a state dict saved by ``torch.save`` or in safetensors.

    The format is told by the content, not by the name. The state dict may be an entry of the file
    (``{"state_dict": ...}``), and its names may have what wrappers add: ``module.``, ``_orig_mod.``, and one attribute
    in front of all names, such as Lightning's ``model.``. Only weights are loaded: nothing in the file is executed.

    Raises:
        UserError: the file is no regular file, is damaged or compressed beyond reason, has no state dict or several, or
            the state dict does not fit the model: other names or shapes, sparse, quantised, integer or complex weights.
    """
    held = _state_dict(path)
    named = _by_model_name(path, held, model.state_dict())
    for name, each in model.state_dict().items():
        _check_tensor(f"{path}: {name}", held[named[name]], each)
    return {name: held[named[name]] for name in model.state_dict()}


def check_file(path: str) -> None:
    """Refuse a checkpoint that is no regular file, or cannot be opened.

    Raises:
        UserError: it is a folder, a pipe or a device, is missing, or may not be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: cannot be read: not a regular file; give the file of a state dict")
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _check_tensor(where: str, given: Tensor, wanted: Tensor) -> None:
    """Refuse a tensor that is not dense, of another shape, or with values that the model's tensor cannot hold."""
    dtype, stored = (str(each.dtype).removeprefix("torch.") for each in (wanted, given))
    unusual = "nested" if given.is_nested else "sparse" if given.layout != torch.strided else ""
    if unusual:
        raise UserError(f"{where} is a {unusual} tensor; save it as a dense one")
    if given.is_meta and not wanted.is_meta:
        raise UserError(f"{where} has no values: it was saved on the meta device; save the weights themselves")
    if given.shape != wanted.shape:
        raise UserError(
            f"{where} has shape {tuple(given.shape)}, the model's {tuple(wanted.shape)}; check [model] and the number "
            "of classes"
        )
    if wanted.is_floating_point() or wanted.is_complex():
        fits = given.is_complex() if wanted.is_complex() else given.dtype in FLOATS
    else:
        fits = not given.is_quantized and torch.equal(given.to(wanted.dtype).to(given.dtype), given)
    if not fits:
        raise UserError(f"{where} is stored as {stored}, the model's is {dtype}; save it as {dtype}")


def _state_dict(path: str) -> dict[str, Tensor]:
    held = _content(path)
    if isinstance(held, Mapping) and not _is_state_dict(held):
        several = [name for name, each in held.items() if _is_state_dict(each)]
        usual = [name for name in several if name in ENTRIES]
        if len(usual or several) > 1:
            raise UserError(f"{path}: has several state dicts, {_shown(usual or several)}; save the one to be used")
        if several:
            (chosen,) = usual or several
            held, others = held[chosen], {name: held[name] for name in several if name != chosen}
            unread = [name for name, each in others.items() if each.keys() == held.keys()]
            if unread:
                warnings.warn(f"{path}: '{chosen}' is read; it also has weights in {_shown(unread)}", stacklevel=4)
        elif held:
            raise UserError(
                f"{path}: no state dict (a mapping of names to tensors) in this file; it has {_shown(held)}"
            )
    if not _is_state_dict(held):
        raise UserError(f"{path}: no state dict (a mapping of names to tensors) in this file")
    return dict(held)


def _is_state_dict(held: Any) -> bool:
    return (
        isinstance(held, Mapping)
        and len(held) > 0
        and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in held.items())
    )


def _content(path: str) -> Any:
    """Load a file of safetensors or ``torch.save``."""
    check_file(path)
    try:
        with open(path, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about formats
            start = stream.read(9)
            stream.seek(0)
            if start[8:] == b"{":
                from safetensors.torch import load_file

                return load_file(path)
            if start.startswith(b"PK\x03\x04"):
                _check_archive(path)
            elif not start.startswith(b"\x80"):  # pickle, as torch.save wrote before version 1.6
                raise UserError(
                    f"{path}: cannot read weights: neither torch.save nor safetensors wrote this file; {AGAIN}"
                )
            return torch.load(stream, map_location="cpu", weights_only=True)  # of a path, torch looks at the name
    except UserError:
        raise
    except Exception as error:  # invalid files raise anything
        raise UserError(f"{path}: cannot read weights: {_reason(error)}; {AGAIN}") from error


def _check_archive(path: str) -> None:
    """Compare the checksums of an archive of ``torch.save``, which ``torch.load`` does not."""
    with zipfile.ZipFile(path) as archive:
        if sum(each.file_size for each in archive.infolist()) > MOST_UNPACKED * os.path.getsize(path):
            raise UserError(f"{path}: cannot read weights: unpacked it is over {MOST_UNPACKED} times as large")
        for each in archive.infolist():
            if each.CRC:  # 0: saved without, see torch.serialization.set_crc32_options
                with archive.open(each) as stream:
                    while stream.read(2**20):
                        pass


def _reason(error: Exception) -> str:
    """The first sentence of an error, without torch's advice to load the file unsafely."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return f"it holds {foreign[1]}, not only tensors"
    sentence = (str(error).splitlines() or [""])[0].partition(". ")[0]
    return sentence if " " in sentence else f"{type(error).__name__} {sentence}".strip()


def _by_model_name(path: str, held: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {name in the model: name in the file}."""
    if held.keys() == wanted.keys():
        return {name: name for name in wanted}
    given: dict[str, str] = {}
    for name in held:
        short = _unwrapped(name)
        if short in given:
            raise UserError(f"{path}: has both {_shown([given[short]])} and {_shown([name])}; keep the one to be used")
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
        problems = [f"lacks {_shown(missing)}"] if missing else []
        problems += [f"has {_shown(more)}, which the model does not"] if more else []
        problems = problems or ["names of the model differ by 'module.' only"]
        raise UserError(f"{path}: does not fit the model: it {' and '.join(problems)}")
    return {own[short]: name for short, name in given.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _shown(names: Iterable[str]) -> str:
    """The first few names, printable, and how many there are if more."""
    found = [repr(str(name)[:SHOWN_LENGTH])[1:-1] for name in names]
    return ", ".join(found[:SHOWN]) + (f", ... ({len(found)})" if len(found) > SHOWN else "")
