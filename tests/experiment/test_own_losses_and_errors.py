"""Losses and errors of one's own: checked before any work, in their own unit, with a spread where there is one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from regimes import Dataset, UserError
from regimes.config.discovery_file import resolve_discovery
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.inputs import TensorGroup
from regimes.experiment.context import RunContext
from regimes.experiment.preflight import try_loss
from regimes.experiment.run import Result, prepare
from regimes.experiment.run_discovery import checked_context_of, run_task, tasks
from regimes.experiment.stages.train import last_epochs
from regimes.hpo.objective import ObjectContext
from regimes.hpo.validation import units_of
from regimes.landscape.metric import Variable
from regimes.losses.functions import IGNORED
from regimes.registry import lookup

HERE = "test_own_losses_and_errors"
AUGMENTED = ("shift", "crop-flip")


def classes_after_zeros() -> Dataset:
    """Two classes, the first inputs all of class 0."""
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(60, dtype=torch.int64)
    targets[40:] = 1
    return Dataset.from_arrays((inputs, targets), (inputs, targets), val=(inputs, targets), title="late")


def one_logit(input_shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def per_token() -> Dataset:
    tokens = torch.randint(0, 5, (40, 6), generator=torch.Generator().manual_seed(0))
    return Dataset.from_arrays((tokens, tokens), (tokens, tokens), val=(tokens, tokens), title="tokens")


def labels() -> Dataset:
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    wanted = (inputs[:, :3] > 0).float()
    return Dataset.from_arrays((inputs, wanted), (inputs, wanted), val=(inputs, wanted), title="labels")


def spread(outputs: Tensor, targets: Tensor) -> float:
    """An error that is no share wrong, and needs the whole split."""
    return float(len(outputs)) + float((outputs.argmax(1) != targets).double().mean())


def context_of(make: Callable[[], nn.Module], data: Dataset) -> RunContext:
    return ObjectContext(make, data, "cpu")


# -- before any work --------------------------------------------------------------------------------------------------


def test_one_logit_needs_a_loss_that_takes_it(run_tiny: Callable[..., Result], count: Counter[str]) -> None:
    sweep = {
        **TINY,
        "data": {"name": f"{HERE}:classes_after_zeros"},
        "model": {"name": f"{HERE}:one_logit"},
        "recipe": {"epochs": 4, "batch_size": 16, "augment": "none"},
    }
    with pytest.raises(UserError, match=r"recipe.loss = 'cross-entropy' raised .*'binary-cross-entropy' takes it"):
        run_tiny(sweep)
    assert not count
    sweep["recipe"] = {**sweep["recipe"], "loss": "binary-cross-entropy"}  # type: ignore[dict-item]
    prepare(resolve_sweep(sweep), Path("unused"))


def test_losses_are_tried_on_the_smallest_and_the_largest_class() -> None:
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return outputs.sum()

    recipe: Any = SimpleNamespace(loss="own", training_loss=loss, train=None)
    try_loss(recipe, context_of(lambda: nn.Linear(4, 2), classes_after_zeros()))
    tokens = per_token()
    tokens.train.targets[:3] = IGNORED
    try_loss(recipe, context_of(lambda: nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5)), tokens))
    assert seen[0].tolist() == [0, 1]
    assert (int(seen[1][0].min()), int(seen[1][1].max())) == (0, 4)


def test_a_gradient_is_tried_only_where_a_recipe_trains_by_it() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        found = outputs.sum()
        found.register_hook(lambda gradient: 1 / 0)
        return found

    context = context_of(lambda: nn.Linear(4, 2), classes_after_zeros())
    trained: Any = SimpleNamespace(loss="own", training_loss=loss, train=None)
    with pytest.raises(UserError, match=r"the gradient of recipe\.loss = 'own' raised ZeroDivisionError"):
        try_loss(trained, context)
    try_loss(trained, context, trained=False)
    trained.train = "own:loop"
    try_loss(trained, context)


def test_several_inputs_are_not_augmented_in_silence() -> None:
    from regimes.data import AUGMENTATIONS

    group = TensorGroup([torch.zeros(4, 3, 8, 8), torch.zeros(4, 1)])
    for name in AUGMENTED:
        with pytest.raises(UserError, match=r"recipe.augment needs images .*several tensors; use 'none'"):
            lookup(AUGMENTATIONS, name, "augmentation").apply(group, torch.zeros(4, 3, dtype=torch.int64))
    assert lookup(AUGMENTATIONS, "none", "augmentation").apply(group, torch.zeros(4, 3)) is group


# -- discovery --------------------------------------------------------------------------------------------------------


DISCOVERY: dict[str, Any] = {
    "name": "found",
    "data": {"name": "synthetic", "shape": [3, 8, 8], "train": 100, "test": 40},
    "model": {"name": "preresnet", "depth": 8, "width": 4},
    "recipe": {"epochs": 2, "batch_size": 20, "augment": "none", "error": f"{HERE}:spread"},
    "discover": {"nu": 0.1, "warm": 0.1, "ramp": 0.1, "fall": 0.2, "settle": 0.7},
}


def test_a_discovery_has_the_recipes_error(tmp_path: Path) -> None:
    asked = resolve_discovery(DISCOVERY)
    (task,) = tasks(asked, tmp_path)
    context = checked_context_of(asked, "cpu", tmp_path)
    record = run_task(task, context)
    whole = [len(split.targets) for split in (context.data.val, context.data.test)]
    assert [int(record[name]) for name in ("val_error", "test_error")] == whole
    assert [int(row["val_error"]) for row in record["history"]] == [whole[0]] * 2


def test_a_discovery_with_a_loss_for_other_data_is_refused(tmp_path: Path) -> None:
    asked = resolve_discovery({**DISCOVERY, "recipe": {**DISCOVERY["recipe"], "loss": "mse"}})
    with pytest.raises(UserError, match=r"recipe.loss = 'mse' is for numbers"):
        checked_context_of(asked, "cpu", tmp_path)


# -- units and standard errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "unit"),
    [
        ("cross-entropy", "nat"),
        ("torch.nn.functional:cross_entropy", "nat"),
        ("torch.nn.functional:multi_margin_loss", "loss"),
    ],
)
def test_only_variables_of_the_loss_have_its_unit(loss: str, unit: str) -> None:
    context = context_of(lambda: nn.Linear(4, 2), classes_after_zeros())
    recipe = Recipe(loss=loss, augment="none")
    assert context.with_units(Variable("nat", "training loss"), recipe).units == unit
    assert context.with_units(Variable("nat^2", "squared eigenvalue"), recipe).units == f"{unit}^2"
    assert context.with_units(Variable("nat", "divergence", of_loss=False), recipe).units == "nat"
    assert units_of(context, recipe)["loss"]["unit"] == unit


@pytest.mark.parametrize(
    ("make", "data", "loss", "known"),
    [
        (lambda: nn.Linear(4, 2), classes_after_zeros, "cross-entropy", True),
        (lambda: nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5)), per_token, "cross-entropy", False),
        (lambda: nn.Linear(4, 3), labels, "binary-cross-entropy", False),
    ],
)
def test_a_binomial_standard_error_is_for_one_prediction_per_input(
    make: Callable[[], nn.Module], data: Callable[[], Dataset], loss: str, known: bool
) -> None:
    rows = [{"test_error": 0.2, "val_error": 0.2}]
    found = last_epochs(rows, Recipe(loss=loss, augment="none"), context_of(make, data()), diverged=False)
    expected = math.sqrt(0.2 * 0.8 / len(data().test.targets)) if known else None
    assert found["test_error"]["stderr"] == (expected if expected is None else pytest.approx(expected))
