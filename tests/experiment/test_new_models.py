"""Models that mislead are found by a trial before any work: refused, or warned of in one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import prepared
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.errors import UserError
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.preflight import try_new_model
from regimes.models.mlp import MLP

Sweep = dict[str, Any]
KEPT: list[nn.Module] = []


class Odd(nn.Module):
    """A multilayer perceptron with something else done to its output, or to its weights."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        output: Callable[[nn.Module, Tensor], Tensor] = lambda inner, x: inner(x),
        weights: Callable[[Tensor], Any] = lambda weight: None,
    ) -> None:
        super().__init__()
        self.inner, self.output = MLP(input_shape, classes, [12]), output
        with torch.no_grad():
            weights(self.inner.body[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.inner, x)


def unseeded(weight: Tensor) -> None:
    weight.copy_(torch.from_numpy(np.random.default_rng().standard_normal(weight.shape)))


def from_the_system(weight: Tensor) -> None:
    weight.copy_(torch.tensor(list(os.urandom(weight.numel()))).view(weight.shape) / 255)


def one_module(weight: Tensor | None = None, **given: Any) -> nn.Module:
    KEPT[:] = KEPT or [Odd(**given)]
    return KEPT[0]


def one_weight(**given: Any) -> nn.Module:
    model = Odd(**given)
    model.inner.body[1].weight = one_module(**given).inner.body[1].weight  # type: ignore[union-attr, operator, index]
    return model


def seeded_in_code(**given: Any) -> nn.Module:
    torch.manual_seed(3)
    return Odd(**given)


def zero_head(**given: Any) -> nn.Module:
    model = Odd(**given)
    nn.init.zeros_(model.inner.head.weight)  # type: ignore[arg-type]
    return model


OTHER_WEIGHTS = r"'inner.body.1.weight' starts with other weights each time; draw them from the global generators"
SAME_WEIGHTS = "returns the same weights in every call; it must return a new model"
NOT_FINITE = "outputs of a new model are NaN or infinite; check its initial weights"
MODELS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "unseeded": (lambda **given: Odd(**given, weights=unseeded), OTHER_WEIGHTS),
    "os.urandom": (lambda **given: Odd(**given, weights=from_the_system), OTHER_WEIGHTS),
    "one module": (one_module, SAME_WEIGHTS),
    "one weight": (one_weight, SAME_WEIGHTS),
    "NaN weights": (lambda **given: Odd(**given, weights=lambda weight: weight.fill_(torch.nan)), NOT_FINITE),
    "NaN outputs": (lambda **given: Odd(**given, output=lambda inner, x: inner(x) / 0 * 0), NOT_FINITE),
    "seeded in code": (seeded_in_code, "initial weights are the same for every seed"),
    "softmax": (lambda **given: Odd(**given, output=lambda inner, x: inner(x).softmax(1)), "returns probabilities"),
    "blind": (lambda **given: Odd(**given, output=lambda inner, x: inner(x * 0)), "do not depend on the inputs"),
    "plain": (Odd, ""),
    "head that starts at zero": (zero_head, ""),
    "log-softmax": (lambda **given: Odd(**given, output=lambda inner, x: inner(x).log_softmax(1)), ""),
    "masked logits": (
        lambda **given: Odd(**given, output=lambda inner, x: inner(x) + torch.tensor([0, 0, 0, -torch.inf])),
        "",
    ),
}


def made(kind: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return MODELS[kind][0](input_shape=input_shape, classes=classes)


def context(tiny: Sweep, kind: str) -> RunContext:
    sweep = resolve_sweep({**tiny, "model": {"name": "test_new_models:made", "kind": kind}})
    return RunContext(ContextSpec.eager(sweep.data, sweep.model, "cpu"))


@pytest.mark.parametrize("kind", MODELS)
def test_initial_weights_and_outputs_of_new_models(tiny: Sweep, kind: str) -> None:
    KEPT.clear()
    line, found = MODELS[kind][1], ""
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            try_new_model(Recipe(), context(tiny, kind))
        except UserError as error:
            found = str(error)
    assert torch.equal(torch.get_rng_state(), before)
    refused = line in (OTHER_WEIGHTS, SAME_WEIGHTS, NOT_FINITE)
    said = [found] if found else [str(each.message) for each in warned]
    assert bool(found) == refused, said
    assert len(said) == bool(line), said
    assert all(each.startswith("[model] name = 'test_new_models:made'") and line in each for each in said), said


def no_gradient(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Odd(input_shape, classes, lambda inner, x: x[:, :classes].clone().requires_grad_())


def test_sweeps_try_new_models_unless_they_have_checkpoints(tiny: Sweep, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=OTHER_WEIGHTS):
        prepared(tiny, tmp_path, {"name": "test_new_models:made", "kind": "unseeded"})
    with pytest.raises(UserError, match=r"the gradient of recipe.loss = 'cross-entropy' reaches no parameter"):
        prepared(tiny, tmp_path, {"name": "test_new_models:no_gradient"})
    del tiny["temperature"], tiny["dense_seeds"]
    torch.save(made("unseeded", (8,), 4).state_dict(), tmp_path / "a.pt")
    tiny["dense"] = {"checkpoints": [{"path": str(tmp_path / "a.pt"), "epochs": 1}]}
    assert prepared(tiny, tmp_path, {"name": "test_new_models:made", "kind": "unseeded"}, engine="eager").stages
