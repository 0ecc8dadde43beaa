"""Studies that end by themselves, change their choices, or are opened by several commands at once."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler, RandomSampler
from optuna.trial import TrialState
from searches import spec
from torch import nn

import regimes
from regimes import UserError
from regimes.data.synthetic import synthetic
from regimes.hpo.exhaustion import settings_left
from regimes.hpo.optuna_study import open_storage
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions

optuna.logging.set_verbosity(optuna.logging.WARNING)
CHOICES: dict[str, Any] = {"learning_rate": [0.01, 0.1], "batch_size": [16, 32]}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def objective(space: dict[str, Any] = CHOICES) -> Any:
    data = synthetic(shape=[8], train=200, test=60)
    return regimes.objective(net, data, space, recipe={"epochs": 1, "augment": "none"}, densities=[])


@pytest.mark.parametrize("make", [lambda: GridSampler(CHOICES), BruteForceSampler])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_setting_is_tried_once_and_then_the_study_ends(make: Callable[[], BaseSampler], batch: int) -> None:
    study = optuna.create_study(sampler=make())
    regimes.optimize(study, objective(), n_trials=3, batch=batch)
    assert len(study.trials) == 3
    assert settings_left(study, objective().spec.space) == 1
    for _ in range(2):  # the second time nothing is left
        regimes.optimize(study, objective(), n_trials=10, batch=batch)
        assert [each.state for each in study.trials] == [TrialState.COMPLETE] * 4
        tried = {(each.params["learning_rate"], each.params["batch_size"]) for each in study.trials}
        assert tried == set(itertools.product([0.01, 0.1], [16, 32]))
    with pytest.raises(RuntimeError, match="inside an objective"):
        study.stop()  # Optuna's own again


@pytest.mark.parametrize("batch", [1, 4])
def test_choices_that_changed_are_refused_by_name_and_no_trial_is_left_running(batch: int) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    regimes.optimize(study, objective(), n_trials=2, batch=2)
    other = objective({**CHOICES, "learning_rate": [0.01, 0.2]})
    line = r"space.learning_rate: study '.*' was started with \[0.01, 0.1\], now it is \[0.01, 0.2\]"
    with pytest.raises(UserError, match=line):
        regimes.optimize(study, other, n_trials=4, batch=batch)
    assert [each.state for each in study.trials] == [TrialState.COMPLETE] * 2
    with pytest.raises(UserError, match=line):
        study.optimize(other, n_trials=1)
    assert not [each for each in study.trials if each.state == TrialState.RUNNING]
    ranged = objective({**CHOICES, "learning_rate": {"low": 0.01, "high": 0.1}})
    with pytest.raises(UserError, match=r"space.learning_rate.*FloatDistribution"):
        regimes.optimize(study, ranged, n_trials=4)


def test_a_sampler_that_refuses_the_space_leaves_no_trial_running() -> None:
    study = optuna.create_study(sampler=GridSampler({"batch_size": [16, 32]}))
    with pytest.raises(UserError, match=r"study\.sampler"):
        regimes.optimize(study, objective(), n_trials=2, batch=2)
    assert not [each for each in study.trials if each.state == TrialState.RUNNING]


def test_where_all_settings_are_tried_the_rest_is_promoted(tmp_path: Path) -> None:
    study = {"pattern": "promote", "promoted": 3, "stopper": "none", "sampler": "optuna.samplers:BruteForceSampler"}
    space = {"learning_rate": [0.01, 0.1, 0.3], "batch_size": [16, 32]}
    asked = spec(space=space, study=study, trials=20, batch=4, ladder={"densities": None, "images": [0.5]})
    asked = asked.model_copy(update={"space": {name: asked.space[name] for name in space}})
    result = search(asked, SearchOptions(tmp_path))
    assert [rung["trials"] for rung in result["savings"]["rungs"]] == [6, 3]


def _open(url: str, start: Any, said: Any) -> None:
    start.wait()
    try:
        optuna.create_study(storage=open_storage(url), study_name="one", load_if_exists=True)
        said.put("")
    except BaseException as error:  # reported by the test
        said.put(f"{type(error).__name__}: {error}")


def test_a_new_database_is_opened_by_several_commands_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for number in range(3):
        start, said = fork.Barrier(4), fork.Queue()
        url = f"sqlite:///{tmp_path}/{number}.db"
        processes = [fork.Process(target=_open, args=(url, start, said)) for _ in range(4)]
        for each in processes:
            each.start()
        found = [said.get(timeout=60) for _ in processes]
        for each in processes:
            each.join()
        assert found == [""] * 4
        assert len(optuna.get_all_study_summaries(url)) == 1
