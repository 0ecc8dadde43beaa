"""What was promoted is trained in full, once, whoever works beside, whatever is killed; where it diverges, the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from searches import RAW, clock, engine, planned, spec

import regimes
from regimes import UserError
from regimes.experiment.process_identity import this_worker
from regimes.hpo.fidelity_trainer import FidelityResult, FidelityTrainer
from regimes.hpo.optimize_loop import Limits, run_trials
from regimes.hpo.optuna_study import open_storage
from regimes.hpo.requeue import requeue_dead_trials
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions
from regimes.hpo.trial_runner import RunningTrial, TrialRunner

PROMOTE = {"pattern": "promote", "promoted": 2, "stopper": "none"}
SETTINGS = [{"learning_rate": rate, "weight_decay": 1e-4, "label_smoothing": 0.0} for rate in (0.01, 0.1, 0.3, 1.0)]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)


# -- others at work ---------------------------------------------------------------------------------------------------


def beside(climb: TrialRunner, other: Callable[[optuna.Study], object]) -> None:
    """Another worker does something between this one's look at the study and its asking, once."""
    ask, left = climb.ask, [other]

    def asked(study: optuna.Study, count: int) -> list[RunningTrial]:
        while left:
            left.pop()(study)
        return ask(study, count)

    climb.ask = asked  # type: ignore[method-assign]


def base_of(*promoted: int) -> optuna.Study:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in promoted:
        study.enqueue_trial(SETTINGS[number], user_attrs={"regimes:promoted": number})
    return study


def test_what_was_promoted_is_kept_though_another_drew_a_trial() -> None:
    _, climb = planned(spec())
    study = base_of(0)
    drawn = create_trial(state=TrialState.RUNNING, user_attrs={"regimes:worker": this_worker()})
    beside(climb, lambda study: study.add_trial(drawn))
    run_trials(study, climb, 1, Limits(1, draws=False))
    assert [each.state for each in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_nothing_is_drawn_where_what_waited_is_taken() -> None:
    _, climb = planned(spec())
    study = base_of(0)
    beside(climb, lambda study: study.ask())
    run_trials(study, climb, 1, Limits(1, draws=False))
    assert [each.state for each in study.trials] == [TrialState.RUNNING, TrialState.FAIL]
    assert study.trials[1].user_attrs["regimes:spare"]


def test_what_two_commands_promote_is_trained_once() -> None:
    _, climb = planned(spec())
    study = base_of(0, 1, 0, 1, 2)
    run_trials(study, climb, 1, Limits(3, draws=False))
    done = [each.user_attrs["regimes:promoted"] for each in study.trials if each.state == TrialState.COMPLETE]
    assert done == [0, 1, 2]


def test_a_trial_that_another_has_told_is_over() -> None:
    """Some storages let two workers take the same waiting trial."""
    _, climb = planned(spec())
    study = base_of(0)
    run = climb.trainer.run

    def told(*given: Any) -> list[FidelityResult]:
        study.tell(0, 0.5, skip_if_finished=True)
        return run(*given)

    climb.trainer.run = told  # type: ignore[method-assign]
    run_trials(study, climb, 1, Limits(1, draws=False))
    assert [(each.state, each.value) for each in study.trials] == [(TrialState.COMPLETE, 0.5)]


def test_a_trial_that_was_killed_before_its_values_were_drawn_is_asked_for_again() -> None:
    study = base_of(3)
    trial = study.ask()
    trial.set_user_attr("regimes:worker", this_worker() + "0")  # a process that never was
    assert requeue_dead_trials(study) == [0]
    assert [each.state for each in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.ask(climb_space()).params == SETTINGS[3]


def climb_space() -> dict[str, Any]:
    from regimes.hpo.search_space import distributions

    return distributions(planned(spec())[1].space)


def test_the_best_are_promoted_when_trials_that_others_hold_are_done(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.log")
    asked = spec(study=PROMOTE, trials=6)
    cut = search(asked, SearchOptions(tmp_path, storage=storage))
    assert cut["savings"]["n"] == 6
    proxies = optuna.load_study(study_name="tiny-proxy", storage=open_storage(storage))
    trial = proxies.ask(climb_space())
    trial.set_user_attr("regimes:worker", "elsewhere/1/1")
    trial.set_user_attr("regimes:climb", proxies.trials[0].user_attrs["regimes:climb"])
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("waiting for 1 trials held by elsewhere"):
            proxies.tell(trial, 0.0)  # the best of all

    more = search(spec(study=PROMOTE, trials=7), SearchOptions(tmp_path, storage=storage), say)
    assert sum(each.startswith("waiting for") for each in said) == 1
    base = optuna.load_study(study_name="tiny", storage=open_storage(storage))
    assert [each.user_attrs["regimes:promoted"] for each in base.trials][-1] == trial.number
    assert more["savings"]["n"] == 7


# -- what is promoted -------------------------------------------------------------------------------------------------


def diverging(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """The first trainings of the full network diverge."""
    run, left = FidelityTrainer.run, [most]

    def diverge(self: FidelityTrainer, entries: Sequence[Any], stretch: Any) -> list[FidelityResult]:
        values = run(self, entries, stretch)
        if self.ladder.rungs[0].density == 1 and left[0]:
            left[0] -= 1
            return [dataclasses.replace(each, why="diverged") for each in values]
        return values

    monkeypatch.setattr(FidelityTrainer, "run", diverge)


def test_where_all_promoted_diverge_the_next_best_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, 2)
    search(spec(study=PROMOTE, trials=6), SearchOptions(tmp_path))
    storage = open_storage(str(tmp_path / "study.log"))
    proxies, base = (optuna.load_study(study_name=name, storage=storage) for name in ("tiny-proxy", "tiny"))
    ranked = [each.number for each in sorted(proxies.trials, key=lambda each: each.value or 0)]
    assert [each.user_attrs["regimes:promoted"] for each in base.trials] == ranked[:4]
    states = [each.state for each in base.trials]
    assert states == [TrialState.PRUNED] * 2 + [TrialState.COMPLETE] * 2


def test_where_every_full_training_diverges_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, 100)
    with pytest.raises(UserError, match="no trial reached the full network"):
        search(spec(study=PROMOTE, trials=5), SearchOptions(tmp_path))
    base = optuna.load_study(study_name="tiny", storage=open_storage(str(tmp_path / "study.log")))
    assert len(base.trials) == 5


def test_equal_values_are_promoted_once() -> None:
    proxies, base = optuna.create_study(), optuna.create_study()
    flat = {"x": optuna.distributions.IntDistribution(0, 9)}
    for x, value in ((1, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)):
        proxies.add_trial(create_trial(params={"x": x}, distributions=flat, value=value))
    assert regimes.promote(proxies, base, 2) == [0, 2]
    proxies.add_trial(create_trial(params={"x": 2}, distributions=flat, value=0.0))
    assert regimes.promote(proxies, base, 2) == [2, 0]  # what stands for these values was promoted before
    assert len(base.trials) == 2


@pytest.mark.parametrize("stopper", ["median", "percentile"])
def test_stoppers_that_wait_for_finished_trials_act_among_proxies_that_stack(stopper: str, tmp_path: Path) -> None:
    asked = spec(study={**PROMOTE, "stopper": stopper}, ladder={"proxy_reports": [0.5]}, batch=12)
    result = search(asked, SearchOptions(tmp_path))
    assert sum(result["stopped"]["tiny-proxy"].values()) >= 2  # beyond the first fleet of eight


def test_threads_of_one_study_give_the_same_numbers() -> None:
    found = []
    for jobs in (1, 2):
        objective = regimes.objective(RAW["model"], RAW["data"], RAW["space"], recipe=RAW["recipe"], densities=[0.1])
        study = optuna.create_study()
        for each in SETTINGS:
            study.enqueue_trial(each)
        study.optimize(objective, n_trials=len(SETTINGS), n_jobs=jobs)
        found.append({each.number: (each.params, each.value) for each in study.trials})
    assert found[0] == found[1]
