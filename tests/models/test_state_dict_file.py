"""Checkpoints of training scripts and frameworks are recognised; ambiguous and foreign ones are refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.experiment.stages.pretrained import content_hash
from regimes.models.build import build
from regimes.models.state_dict_file import read_checkpoint

Weights = dict[str, Tensor]


def network(seed: int = 1) -> nn.Module:
    return build("mlp", {"widths": [5], "batch_norm": True}, (6,), 3, seed)


def in_front(text: str) -> Callable[[Weights], Weights]:
    return lambda weights: {text + name: each for name, each in weights.items()}


class Lit(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner


SAVED: dict[str, Callable[[Weights], Any]] = {
    "plain": dict,
    "DataParallel": in_front("module."),
    "torch.compile": in_front("_orig_mod."),
    "compiled, then DDP": in_front("module._orig_mod."),
    "DDP, then compiled": in_front("_orig_mod.module."),
    "Lightning": lambda weights: {"state_dict": in_front("model.")(weights), "epoch": 3, "global_step": 40},
    "Lightning, compiled": lambda weights: {"state_dict": in_front("model._orig_mod.")(weights), "loops": {"a": 1}},
    "Lightning, another attribute": lambda weights: {"state_dict": in_front("backbone.")(weights)},
    "a compiled part": lambda w: {n.replace("body.", "body._orig_mod.", 1): each for n, each in w.items()},
    "AveragedModel": lambda weights: {"n_averaged": torch.tensor(3), **in_front("module.")(weights)},
    "an entry of another name": lambda weights: {"net": weights, "epoch": 3, "optimizer": {"state": {}}},
    "half precision": lambda weights: {n: e.half() if e.is_floating_point() else e for n, e in weights.items()},
}


@pytest.mark.parametrize("kind", SAVED)
def test_saved_weights_are_read(kind: str, tmp_path: Path) -> None:
    model, other = network(1), network(2)
    torch.save(SAVED[kind](model.state_dict()), tmp_path / "a.pt")
    read = read_checkpoint(str(tmp_path / "a.pt"), other)
    assert list(read) == list(other.state_dict())
    for name, each in model.state_dict().items():
        assert torch.allclose(read[name].to(each.dtype), each, atol=1e-3), name


def test_a_model_whose_own_names_look_wrapped_keeps_them(tmp_path: Path) -> None:
    model = Lit(nn.DataParallel(network()))
    for number, saved in enumerate(
        (model.state_dict(), in_front("module.")(model.state_dict()), network().state_dict())
    ):
        torch.save(saved, tmp_path / f"{number}.pt")
    for number in (0, 1):
        assert list(read_checkpoint(str(tmp_path / f"{number}.pt"), model)) == list(model.state_dict())
    with pytest.raises(UserError, match="does not fit the model"):
        read_checkpoint(str(tmp_path / "2.pt"), model)


def first(weights: Weights) -> str:
    return next(iter(weights))


def stored(weights: Weights, change: Callable[[Tensor], Tensor]) -> Weights:
    return {**weights, "body.1.weight": change(weights["body.1.weight"])}


REFUSED: dict[str, Callable[[Weights], Any]] = {
    "has both .* and module.body.*; keep the one": lambda w: {**w, **in_front("module.")(w)},
    "has both .* and module.body.1.bias": lambda w: {**w, "module.body.1.bias": w["body.1.bias"]},
    "has model.body.*, which the model does not": lambda w: {**w, **in_front("model.")(w)},
    "and has model.body.1.weight.*, which the model does not": lambda w: {
        **in_front("model.")(w),
        **in_front("ema.")(w),
    },
    "body.1.weight is stored as int8, the model's is float32": lambda w: {
        **w,
        "body.1.weight": w["body.1.weight"].char(),
    },
    "body.1.weight is stored as bool, the model's is float32": lambda w: {**w, "body.1.weight": w["body.1.weight"] > 0},
    "body.1.weight is stored as complex64, the model's is float32": lambda w: stored(w, Tensor.cfloat),
    "body.1.weight is stored as float8_e4m3fn, the model's is float32": lambda w: stored(
        w, lambda each: each.to(torch.float8_e4m3fn)
    ),
    "body.1.weight is stored as qint8, the model's is float32": lambda w: stored(
        w, lambda each: torch.quantize_per_tensor(each, 0.1, 0, torch.qint8)
    ),
    "body.2.num_batches_tracked is stored as float32, the model's is int64": lambda w: {
        **w,
        "body.2.num_batches_tracked": torch.tensor(2.5),
    },
    "body.1.weight is a sparse tensor; save it as a dense one": lambda w: stored(w, Tensor.to_sparse),
    "body.1.weight is a nested tensor": lambda w: stored(w, lambda each: torch.nested.nested_tensor([each[0]])),
    "body.1.weight has no values: it was saved on the meta device": lambda w: stored(w, lambda each: each.to("meta")),
    "has several state dicts, state_dict, model; save the one": lambda w: {"state_dict": w, "model": dict(w)},
    "no state dict .* in this file; it has state, param_groups": lambda w: {"state": {0: w}, "param_groups": [1]},
    "no state dict .* in this file; it has 0, 1, 2, ... .9.": lambda w: dict(enumerate(w.values())),
    "it holds test_state_dict_file.Lit, not only tensors; save the state dict alone": lambda w: {"a": Lit(network())},
    "lacks body.1.weight, body.1.bias, body.2.weight, ... .9. and has a.nb.x1b, which": lambda w: {
        "a\nb\x1b": w["body.1.weight"]
    },
    "lacks body.1.weight": lambda w: {n: each for n, each in w.items() if n != "body.1.weight"},
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_ambiguous_or_no_weight_is_refused(line: str, tmp_path: Path) -> None:
    model = network()
    torch.save(REFUSED[line](model.state_dict()), tmp_path / "a.pt")
    with pytest.raises(UserError, match=line) as raised:
        read_checkpoint(str(tmp_path / "a.pt"), model)
    assert len(raised.value.lines) == 1
    assert "\n" not in str(raised.value)


def header(weights: Weights, change: Callable[[dict[str, Any]], Any], length: int | None = None) -> bytes:
    """A file of safetensors with another header."""
    content = save(weights)
    size = int.from_bytes(content[:8], "little")
    fields = json.loads(content[8 : 8 + size])
    text = json.dumps(change(fields) or fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content[8 + size :]


def packed(weights: Weights, bomb: bool = False, checksums: bool = True) -> bytes:
    """A file of ``torch.save`` with one bit of a weight flipped, or with a compressed record of zeros instead."""
    file = io.BytesIO()
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(weights, file)
    finally:
        torch.serialization.set_crc32_options(True)
    if not bomb:
        content = bytearray(file.getvalue())
        content[content.index(weights["body.1.weight"].numpy().tobytes()) + 1] ^= 1
        return bytes(content)
    out = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as copy:
        for each in source.infolist():
            copy.writestr(each.filename, bytes(10**7) if each.filename.endswith("data/0") else source.read(each))
    return out.getvalue()


FOREIGN = "cannot read weights: neither torch.save nor safetensors wrote this file; save the state dict alone"
DAMAGED: dict[str, tuple[Callable[[Weights], bytes], str]] = {
    "flipped bit": (packed, "Bad CRC-32 for file 'archive/data/0'"),
    "zip bomb": (lambda w: packed(w, bomb=True), "unpacked it is over 100 times as large"),
    "truncated archive": (lambda w: packed(w)[:900], "cannot read weights: File is not a zip file"),
    "empty": (lambda w: b"", FOREIGN),
    "text": (lambda w: b"hello there\n" * 9, FOREIGN),
    "plain pickle": (lambda w: pickle.dumps({"a": 1}), "cannot read weights: Weights only load failed"),
    "pickle that runs code": (lambda w: b"\x80\x02cos\nsystem\nU\x04exit\x85R.", "cannot read weights"),
    "truncated safetensors": (lambda w: save(w)[:-3], "file not fully covered"),
    "too long": (lambda w: save(w) + b"xx", "file not fully covered"),
    "header of 2^60 bytes": (lambda w: header(w, dict, 2**60), "header too large"),
    "nested header": (lambda w: struct.pack("<Q", 10**5) + b'{"a":' + b"[" * 10**5, "recursion limit"),
    "unknown dtype": (lambda w: header(w, lambda h: h["body.1.bias"].update(dtype="F99")), "unknown variant `F99`"),
    "shape beyond the file": (lambda w: header(w, lambda h: h["body.1.bias"].update(shape=[2**40])), "cannot read"),
    "one place twice": (
        lambda w: header(w, lambda h: h["body.1.bias"].update(data_offsets=h["body.2.bias"]["data_offsets"])),
        "offset",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_damaged_files_are_refused_in_one_line(kind: str, name: str, tmp_path: Path) -> None:
    make, line = DAMAGED[kind]
    model = network()
    (tmp_path / name).write_bytes(make(dict(model.state_dict())))
    with pytest.raises(UserError, match=line) as raised:
        read_checkpoint(str(tmp_path / name), model)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / name))


def test_formats_are_told_by_content_and_archives_without_checksums_are_read(tmp_path: Path) -> None:
    model = network()
    archive = packed(model.state_dict(), checksums=False)
    for name, content in {"a.pt": save(model.state_dict()), "a": archive, "a.safetensors": archive}.items():
        (tmp_path / name).write_bytes(content)
        assert torch.equal(
            read_checkpoint(str(tmp_path / name), model)["head.weight"], model.state_dict()["head.weight"]
        )


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "nothing", "null character"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made: dict[str, Callable[[], Any]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    made.get(kind, lambda: None)()
    given = f"{path}\0" if kind == "null character" else str(path)
    for read in (lambda: read_checkpoint(given, network()), lambda: content_hash(given)):
        with pytest.raises(UserError, match="cannot be read: ") as raised:
            read()
        assert "\n" not in str(raised.value)


def test_other_weights_in_a_file_are_named(tmp_path: Path) -> None:
    model = network()
    ema = {name: each + 1 for name, each in model.state_dict().items()}
    torch.save(
        {"model": model.state_dict(), "model_ema": ema, "args": {"class_weights": torch.ones(3)}}, tmp_path / "a.pt"
    )
    with pytest.warns(UserWarning, match="a.pt: 'model' is read; it also has weights in model_ema$"):
        read = read_checkpoint(str(tmp_path / "a.pt"), model)
    assert torch.equal(read["head.weight"], model.state_dict()["head.weight"])


def test_commands_name_files_that_mislead(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    options = ("--model", "mlp", "--data", "digits", "--set", "model.widths=[4]", "--metrics", "error")
    weights = build("mlp", {"widths": [4]}, (1, 8, 8), 10, 9).state_dict()
    for name in ("a.pt", "b.pt"):
        torch.save(weights, tmp_path / name)
    torch.save({name: each * torch.nan for name, each in weights.items()}, tmp_path / "c.pt")
    os.mkfifo(tmp_path / "d.pt")
    done = cli("measure", "a.pt", "b.pt", "c.pt", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "warning: c.pt: the network's outputs are not finite; has its training diverged?",
        "warning: a.pt and b.pt hold the same weights",
    ]
    refused = cli("measure", "a.pt", "d.pt", *options)
    line = "regimes: d.pt: cannot be read: not a regular file; give the file of a state dict\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", line)


def test_commands_read_the_same_files_and_patterns(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    options = ("--model", "mlp", "--data", "digits", "--set", "model.widths=[4]")
    for seed in (9, 10):
        weights = build("mlp", {"widths": [4]}, (1, 8, 8), 10, seed).state_dict()
        torch.save({"state_dict": in_front("model._orig_mod.")(weights)}, tmp_path / f"seed{seed}.ckpt")
    done = cli("measure", "seed*.ckpt", *options, "--metrics", "error")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed9.ckpt: no pruned weights\nseed10.ckpt")
    none = cli("diagnose", "none*.ckpt", *options)
    assert (none.returncode, none.stderr) == (2, "regimes: no file matches 'none*.ckpt'\n")
