"""Eval mode with gradients: modes are restored, and recurrent layers run without cuDNN, which has none there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_kinds import KINDS
from torch import nn

import regimes
from regimes import Dataset
from regimes.experiment.memory import bytes_in_measuring
from regimes.hpo.channel_selection import saliencies
from regimes.models.eval_mode import eval_gradients, eval_mode


def test_modes_are_restored() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.GRU(2, 2))
    model[1].eval()
    for context, gradients in ((eval_mode, False), (eval_gradients, True)):
        for outside in (True, False):
            with torch.set_grad_enabled(outside):
                with context(model):
                    assert not any(each.training for each in model.modules())
                    assert torch.is_grad_enabled() == gradients
                    assert torch.backends.cudnn.enabled == (not gradients)
                assert torch.is_grad_enabled() == outside
                assert torch.backends.cudnn.enabled
            assert [each.training for each in model] == [True, False, True]
    with eval_gradients(nn.Linear(2, 2)):
        assert torch.backends.cudnn.enabled


@pytest.fixture
def passes() -> Iterator[list[bool]]:
    """Whether cuDNN was on, in every pass of a recurrent layer in eval mode with gradients."""
    found: list[bool] = []

    def note(module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.RNNBase) and not module.training and torch.is_grad_enabled():
            found.append(torch.backends.cudnn.enabled)

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    yield found
    hook.remove()


def _data() -> Dataset:
    pair = KINDS["lstm"].inputs, KINDS["lstm"].targets
    return Dataset.from_arrays(train=pair, val=pair, test=pair, title="sequences")


def _pair() -> tuple[Any, Any]:
    return KINDS["lstm"].inputs, KINDS["lstm"].targets


USES: dict[str, Callable[[nn.Module], object]] = {
    "snip": lambda model: regimes.prune(model, 0.5, "snip", data=_data()),
    "synflow": lambda model: regimes.prune(model, 0.5, "synflow", data=_data()),
    "saliencies": lambda model: saliencies(_data(), F.cross_entropy, 8)(model),
    "trace": lambda model: regimes.hessian_trace(model, F.cross_entropy, _pair(), probes=2),
    "PyHessian": lambda model: regimes.hessian_trace(model, F.cross_entropy, _pair(), probes=2, backend="pyhessian"),
    "sharpness": lambda model: regimes.sharpness(model, F.cross_entropy, _pair()),
    "memory": lambda model: bytes_in_measuring(model, *_pair(), 8, 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("use", USES)
def test_recurrent_layers_run_without_cudnn(use: str, kind: str, passes: list[bool]) -> None:
    model = KINDS[kind].network().train()
    USES[use](model)
    assert passes
    assert not any(passes)
    assert model.training
    assert torch.backends.cudnn.enabled
