"""What a search refuses before any work, and networks and values of one's own that must not end it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import torch
from optuna.trial import TrialState
from searches import clock, done, engine, planned, spec
from torch import Tensor, nn

import regimes
from regimes import Dataset, UserError
from regimes.config.hpo import Dimension, Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.config.recipe import Recipe
from regimes.hpo.map_guidance import MapGuidance
from regimes.hpo.objective import ObjectContext
from regimes.hpo.optimize_loop import enqueue_priors
from regimes.hpo.plan import context_of

HERE = "test_search_checks"
X, Y = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
BASE: dict[str, Any] = {
    "name": "own",
    "space": {"learning_rate": [0.01, 0.1]},
    "ladder": {"densities": []},
    "study": {"sampler": "random", "stopper": "none", "pattern": "ladder", "value": "error"},
    "trials": 2,
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)


def own_data() -> Dataset:
    return Dataset.from_arrays((X.clone(), Y), (X.clone(), Y), val=(X.clone(), Y), title="own")


class InPlace(nn.Module):
    """A network that changes its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        out: Tensor = self.head(self.second(self.first(x).relu()).relu())
        return out


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs()


def undefined(outputs: Tensor, targets: Tensor) -> float:
    """A score that is never a number."""
    return math.nan


# -- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "recipe", "line"),
    [
        ("own_numbers", {"augment": "none"}, "recipe.loss = 'cross-entropy' is for classes.*try 'mse'"),
        ("own_numbers", {"augment": "none", "loss": "torch.nn.functional:nll_loss"}, "recipe.loss = .*raised"),
        ("own_tokens", {}, "recipe.augment = 'crop-flip' needs images.*use 'none'"),
    ],
)
def test_a_recipe_for_other_data_is_refused_before_any_work(data: str, recipe: dict[str, Any], line: str) -> None:
    tables = {"data": {"name": f"{data}:data"}, "model": {"name": f"{data}:net"}}
    asked: Hpo = resolve_hpo({**BASE, **tables, "recipe": {"epochs": 1, "batch_size": 16, **recipe}})
    with pytest.raises(UserError, match=line):
        context_of(asked, "cpu", Path())


def test_data_given_as_an_object_are_checked_too() -> None:
    numbers = Dataset.from_arrays((X, X[:, 0]), (X, X[:, 0]), title="numbers")
    recipe = {"epochs": 1, "batch_size": 16, "augment": "none"}
    with pytest.raises(UserError, match="is for classes, 'numbers' has numbers as targets; try 'mse'"):
        regimes.objective(lambda: nn.Linear(6, 1), numbers, BASE["space"], recipe=recipe, densities=[])


def test_the_recipes_own_batch_size_does_not_matter_where_it_is_searched() -> None:
    asked = spec(space={"learning_rate": [0.1], "batch_size": [16, 32]}, recipe={"epochs": 1, "batch_size": 10_000})
    context_of(asked, "cpu", Path())


# -- networks of one's own --------------------------------------------------------------------------------------------


def test_a_search_leaves_the_data_of_a_network_that_changes_its_inputs() -> None:
    data, recipe = own_data(), {"epochs": 1, "batch_size": 32, "augment": "none"}
    objective = regimes.objective(InPlace, data, BASE["space"], recipe=recipe, densities=[])
    regimes.optimize(optuna.create_study(), objective, 2, batch=2)
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.inputs, X)


def test_a_ladder_leaves_the_inputs_of_a_network_that_changes_them() -> None:
    inputs, data = X.clone(), own_data()
    regimes.ladder(InPlace, inputs, densities=[0.3])
    regimes.ladder(InPlace, data, densities=[0.3])
    assert torch.equal(inputs, X)
    assert torch.equal(data.train.inputs, X)


def test_complex_weights_stay_complex() -> None:
    assert ObjectContext(Complex, own_data(), "cpu").new_model(0).weight.dtype == torch.complex64


def test_a_function_that_returns_no_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[model\] name = 'own' raised TypeError: returned int"):
        ObjectContext(cast(Any, lambda: 3), own_data(), "cpu").new_model(0)


# -- values -----------------------------------------------------------------------------------------------------------


def test_a_trial_whose_error_is_no_number_has_diverged(tmp_path: Path) -> None:
    """In batches, one by one, and read from the folder."""
    recipe = {"epochs": 4, "batch_size": 32, "error": f"{HERE}:undefined"}
    asked = spec(trials=3, batch=3, recipe=recipe, study={"value": "error"})
    for _ in range(2):
        study = done(asked, optuna.pruners.NopPruner(), tmp_path)
        assert [each.state for each in study.trials] == [TrialState.PRUNED] * 3
        assert {each.user_attrs["regimes:why"] for each in study.trials} == {"diverged"}
        assert study.trials[0].intermediate_values == {1: math.inf}
    _, runner = planned(asked)
    alone = optuna.create_study(pruner=optuna.pruners.NopPruner())
    alone.optimize(runner.run_trial, n_trials=1)
    assert alone.trials[0].state == TrialState.PRUNED


def test_a_score_that_is_not_searched_for_may_be_undefined() -> None:
    recipe = {"epochs": 4, "batch_size": 32, "error": f"{HERE}:undefined"}
    study = done(spec(trials=2, batch=2, recipe=recipe, study={"value": "loss"}), optuna.pruners.NopPruner())
    assert [each.state for each in study.trials] == [TrialState.COMPLETE] * 2


# -- later fields at their defaults -----------------------------------------------------------------------------------


def test_fields_at_their_defaults_are_knobs_of_a_map_and_rest_of_a_prior() -> None:
    guide = object.__new__(MapGuidance)
    object.__setattr__(guide, "chart", SimpleNamespace(knobs=["beta1", "warmup"]))
    object.__setattr__(guide, "name", "map")
    assert guide.map_coordinates(Recipe(optimizer="adamw")) == {"beta1": 0.9, "warmup": 0.0}
    object.__setattr__(guide, "chart", SimpleNamespace(knobs=["height"]))
    with pytest.raises(UserError, match="its knob 'height' is not in a recipe"):
        guide.map_coordinates(Recipe())
    study = optuna.create_study()
    space = {"sam_rho": Dimension(low=0.01, high=1.0), "warmup": Dimension(low=0.0, high=0.3)}
    plan: Any = SimpleNamespace(priors=[{"sam_rho": 0.1}], spec=SimpleNamespace(recipe=Recipe()), space=space)
    enqueue_priors(study, plan)
    assert study.trials[0].system_attrs["fixed_params"] == {"warmup": 0.0, "sam_rho": 0.1}
