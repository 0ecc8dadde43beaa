"""Checkpoints of training scripts and frameworks are recognised; ambiguous and foreign ones are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes.errors import UserError
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
