"""From a user's own script: an objective for any study, batches of it, a ladder for any training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from known_grids import world
from optuna.trial import TrialState
from searches import clock, engine
from torch import nn

import regimes
from regimes import RegimeMap, UserError
from regimes.data.synthetic import synthetic

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE: dict[str, Any] = {"learning_rate": {"low": 1e-3, "high": 1.0, "log": True}, "batch_size": [16, 32]}
RECIPE = {"epochs": 3, "augment": "none"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(inputs))
        return out


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)


def study(**how: Any) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **how)


def test_a_model_and_data_of_ones_own_are_searched_one_by_one_and_in_batches(tmp_path: Path) -> None:
    data = synthetic(shape=[8], train=200, test=60)
    ends = []
    for batch in (1, 6):
        objective = regimes.objective(Net, data, SPACE, recipe=RECIPE, densities=[0.1], out=tmp_path / str(batch))
        mine = study(pruner=optuna.pruners.NopPruner())
        if batch == 1:
            mine.optimize(objective, n_trials=6)
        else:
            regimes.optimize(mine, objective, n_trials=6, batch=batch)
        assert [each.state for each in mine.trials] == [TrialState.COMPLETE] * 6
        assert mine.best_value == min(list(each.intermediate_values.values())[-1] for each in mine.trials)
        ends.append([each.intermediate_values for each in mine.trials])
        assert len(list(tmp_path.glob(f"{batch}/trials/records/*/*.json"))) == 6 * 4  # one rung, and three parts
    assert len(ends[0][0]) == 4
    regimes.optimize(mine, objective, n_trials=6)  # they are all there
    assert len(mine.trials) == 6


def test_a_map_takes_the_place_of_densities() -> None:
    chart = RegimeMap(world())
    objective = regimes.objective("mlp", "digits", SPACE, recipe={"epochs": 2, "learning_rate": 0.1}, map=chart)
    assert [rung.density for rung in objective.plan(4).ladder.rungs] == pytest.approx([0.318, 1.0], rel=0.01)


def test_names_and_options_are_taken_as_in_a_file() -> None:
    model = {"name": "mlp", "widths": [24]}
    objective = regimes.objective(model, {"name": "digits"}, SPACE, recipe=RECIPE, densities=[])
    assert [rung.density for rung in objective.plan(1).ladder.rungs] == [1.0]
    mixed = regimes.objective(model, synthetic(shape=[8], train=200, test=60), SPACE, recipe=RECIPE, densities=[0.2])
    first, again = (mixed.context.new_model(3).state_dict() for _ in range(2))
    assert all(torch.equal(each, again[name]) for name, each in first.items())


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({}, r"pass densities=\[\.\.\.\]"),
        ({"densities": [2.0]}, "ladder.densities.0: .*less than or equal to 1"),
        ({"densities": [0.1], "proxy": "tiny"}, "unknown proxy 'tiny'"),
        ({"densities": [0.1], "space": {"lr": [0.1]}}, "unknown hyperparameter"),
        ({"densities": [0.1], "recipe": {"epoch": 3}}, "unknown key"),
        ({"densities": [0.1], "space": {"beta1": [0.5, 0.9]}}, "space.beta1: not used by optimizer 'sgd'"),
        ({"densities": [0.1], "space": {"warmup": [0.0, 1.0]}}, "space.warmup: .*less than 1"),
        ({"densities": [0.1], "value": "accuracy"}, "study.value"),
        ({"densities": [1e-6]}, "density 1e-06: the nearest density that removing whole channels of MLP reaches"),
    ],
)
def test_what_cannot_be_meant_is_refused(how: dict[str, Any], line: str) -> None:
    given = {"space": SPACE, "recipe": RECIPE, **how}
    with pytest.raises(UserError, match=line):
        regimes.objective("mlp", "digits", **given).plan(1)


# -- a ladder for one's own training loop -----------------------------------------------------------------------------


def test_every_step_has_fresh_weights_of_its_own_and_the_full_network_is_last() -> None:
    ladder = regimes.ladder(Net, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), densities=[0.3, 0.05])
    seen: list[torch.Tensor] = []

    def objective(trial: optuna.Trial) -> float:
        densities = []
        for step in ladder.climb(trial):
            model = step.model()
            again = step.model().state_dict()
            assert all(torch.equal(each, again[name]) for name, each in model.state_dict().items())
            assert not any(torch.equal(model.get_parameter("body.0.weight"), each) for each in seen)
            seen.append(model.get_parameter("body.0.weight").detach().clone())
            densities.append(step.density)
            step.report(1.0)
        assert densities == [0.05, 0.3, 1.0]
        return 1.0

    mine = study(pruner=optuna.pruners.NopPruner())
    mine.optimize(objective, n_trials=3)
    steps = list(mine.trials[0].intermediate_values)
    assert steps[0] == 1
    assert steps == sorted(set(steps))
    assert len(seen) == 9
    state = torch.random.get_rng_state()
    next(iter(ladder.climb(mine.ask()))).model()
    assert torch.equal(state, torch.random.get_rng_state())  # nothing is seeded behind the user's back


def test_a_stopper_ends_a_climb() -> None:
    ladder = regimes.ladder(Net, synthetic(shape=[8], train=200, test=60), densities=[0.1], proxy="channels-saliency")
    mine = study(pruner=optuna.pruners.ThresholdPruner(upper=0.5))
    reached = []

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("value", 0, 1)
        for step in ladder.climb(trial):
            reached.append((trial.number, step.density))
            step.report(value)
        return value

    mine.optimize(objective, n_trials=6)
    for trial in mine.trials:
        low = trial.params["value"] <= 0.5
        assert trial.state == (TrialState.COMPLETE if low else TrialState.PRUNED)
        assert [density for number, density in reached if number == trial.number] == ([0.1, 1.0] if low else [0.1])


def test_a_density_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="densities: 3 is out of range"):
        regimes.ladder(Net, torch.zeros(2, 8), densities=[3.0])


# -- promotion --------------------------------------------------------------------------------------------------------


def test_the_best_of_one_study_are_promoted_into_another_once() -> None:
    storage = optuna.storages.InMemoryStorage()
    proxies, base = (optuna.create_study(storage=storage, study_name=name) for name in ("proxies", "base"))
    with pytest.raises(UserError, match="no finished trial to promote"):
        regimes.promote(proxies, base, 2)
    proxies.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8)
    best = sorted(proxies.trials, key=lambda each: each.value or 0)[:3]
    assert regimes.promote(proxies, base, 3) == [each.number for each in best]
    regimes.promote(proxies, base, 3)
    assert [each.user_attrs["regimes:promoted"] for each in base.trials] == [each.number for each in best]
    base.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert [each.params for each in base.trials] == [each.params for each in best]
