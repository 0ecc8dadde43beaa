"""Trials climb: steps are costs, stock stoppers act, a study keeps to what it was begun with."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from searches import done, planned, spec

from regimes import UserError
from regimes.config.recipe import Recipe
from regimes.hpo import STOPPERS
from regimes.hpo.fidelities import Fidelity, ladder_of
from regimes.hpo.fidelity_trainer import FidelityResult, TrialJob
from regimes.hpo.optimize_loop import Limits, run_trials, trial_runner_of
from regimes.hpo.plan import context_of
from regimes.hpo.savings import stopped_at
from regimes.hpo.stoppers import fair_order
from regimes.hpo.trial_runner import RunningTrial
from regimes.registry import lookup


class Recording(optuna.pruners.BasePruner):
    """Lets everything climb and notes what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        assert trial.last_step is not None
        self.asked.append((trial.number, trial.last_step))
        return False


# -- steps ------------------------------------------------------------------------------------------------------------


def test_steps_are_the_cost_so_far_in_units_of_the_cheapest_rung() -> None:
    """Closed form: rungs of 1/20 and 1/4 of the cost, the full one reported at half: .05, .3, .8, 1.3."""
    made: Any = None
    rungs = [
        Fidelity(d, d, made, epochs, made, s, s) for d, epochs, s in ((0.1, 10, 0.1), (0.4, 20, 0.25), (1, 20, 1.0))
    ]
    ladder = ladder_of(rungs, [0.5])
    assert ladder.costs == pytest.approx([0.05, 0.25, 1.0])
    assert [(each.rung, each.start, each.stop, each.step) for each in ladder.stretches] == [
        (0, 0, 10, 1),
        (1, 0, 20, 6),
        (2, 0, 10, 16),
        (2, 10, 20, 26),
    ]
    assert [each.cost for each in ladder.stretches] == pytest.approx([0.05, 0.3, 0.8, 1.3])


def test_steps_rise_even_where_rungs_cost_nearly_nothing() -> None:
    made: Any = None
    rungs = [Fidelity(d, d, made, 4, made, s, s) for d, s in ((0.1, 1.0), (0.2, 1e-6), (1, 1e-6))]
    assert [each.step for each in ladder_of(rungs, []).stretches] == [1, 2, 3]


# -- stoppers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_batch_is_halved_as_if_the_stopper_had_seen_all_of_it(factor: int) -> None:
    """24 trials: Optuna's successive halving lets the best ones through, about as many as it should, none else."""
    stopper = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    study = optuna.create_study(pruner=stopper)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(factor)).tolist()
    climbers = []
    for place in order:
        trial = study.ask()
        trial.report(float(place), 1)
        climbers.append(RunningTrial(trial, TrialJob(Recipe(), 0), 0, FidelityResult(float(place), 0.0, 0.0)))
    asked = fair_order(climbers, lambda each: each.value.loss)
    through = sorted(int(each.value.loss) for each in asked if not each.trial.should_prune())
    assert through == list(range(len(through)))
    assert 24 // factor * 0.6 <= len(through) <= 24 // factor


def test_a_batch_is_halved_twice_at_once_as_if_the_stopper_had_seen_all_of_it() -> None:
    """A step ten times as dear as the one before: two decisions in one, in the order of a batch both are fair."""
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3))
    order = torch.randperm(81, generator=torch.Generator().manual_seed(0)).tolist()
    climbers = [
        RunningTrial(study.ask(), TrialJob(Recipe(), 0), 0, FidelityResult(float(place), 0.0, 0.0)) for place in order
    ]
    for step, left in ((1, 27), (10, 3)):
        for each in climbers:
            each.trial.report(each.value.loss, step)
        asked = fair_order(climbers, lambda each: each.value.loss)
        climbers = [each for each in asked if not each.trial.should_prune()]
        assert sorted(each.value.loss for each in climbers) == list(range(left))


@pytest.mark.parametrize("name", [name for name in STOPPERS if name != "none"])
def test_every_stock_stopper_stops_and_already_in_the_first_batch(name: str) -> None:
    asked = spec(batch=12, study={"sampler": "random", "stopper": name})
    found, _ = planned(asked)
    steps = [each.step for each in found.ladder.stretches]
    study = done(asked, lookup(STOPPERS, name, "stopper")(steps))
    states = Counter(each.state for each in study.trials)
    assert states[TrialState.PRUNED] >= 4
    assert states[TrialState.COMPLETE] >= 1
    stopped = stopped_at(study)
    assert min(stopped) < steps[-1]
    best = min(study.trials, key=lambda each: each.intermediate_values[steps[0]])
    assert best.state == TrialState.COMPLETE  # the most promising one climbs first, and nothing stops it


def test_a_stopper_is_asked_after_every_report_but_the_last_and_before_every_climb() -> None:
    asked = spec()
    stopper = Recording()
    study = done(asked, stopper)
    steps = sorted({step for trial in study.trials for step in trial.intermediate_values})
    assert len(steps) == 3
    asked_twice = Counter(stopper.asked)
    assert set(asked_twice) == {(number, step) for number in range(12) for step in steps[:-1]}
    assert set(asked_twice.values()) == {2}


def test_one_by_one_the_stopper_is_asked_too() -> None:
    asked = spec(trials=4)
    _, climb = planned(asked)
    stopper = Recording()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=stopper)
    study.optimize(climb.run_trial, n_trials=4)
    assert [each.state for each in study.trials] == [TrialState.COMPLETE] * 4
    assert len(stopper.asked) == 4 * 2
    stopped = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.0))
    stopped.optimize(climb.run_trial, n_trials=2)
    assert [each.state for each in stopped.trials] == [TrialState.PRUNED] * 2


# -- one's own study --------------------------------------------------------------------------------------------------


def test_a_study_keeps_its_steps_whatever_the_clock_says_later() -> None:
    asked = spec(trials=2, batch=2)
    _, climb = planned(asked)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    run_trials(study, climb, 2, Limits(2))
    slower = [dataclasses.replace(each, step=each.step + 5 * number) for number, each in enumerate(climb.stretches)]
    climb.stretches = tuple(slower)
    run_trials(study, climb, 2, Limits(4))
    assert len({tuple(each.intermediate_values) for each in study.trials}) == 1
    climb.stretches = climb.stretches[:2]
    with pytest.raises(UserError, match="started with another ladder: 3 reports per trial, now 2"):
        run_trials(study, climb, 2, Limits(6))


def test_a_study_that_maximises_is_refused() -> None:
    _, climb = planned(spec())
    with pytest.raises(UserError, match="does not minimise one value"):
        run_trials(optuna.create_study(direction="maximize"), climb, 2, Limits(2))
    with pytest.raises(UserError, match="does not minimise one value"):
        optuna.create_study(directions=["minimize", "minimize"]).optimize(climb.run_trial, n_trials=1)


def test_trials_beyond_what_is_wanted_are_handed_back() -> None:
    """Another worker asks between a look at the count and the asking."""
    asked = spec(trials=6, batch=6)
    _, climb = planned(asked)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    ask = climb.ask

    def both(study: optuna.Study, count: int) -> list[RunningTrial]:
        if not study.trials:
            study.add_trials([optuna.trial.create_trial(value=1.0) for _ in range(4)])
        return ask(study, count)

    climb.ask = both  # type: ignore[method-assign]
    run_trials(study, climb, 6, Limits(6))
    lasting = [each for each in study.trials if each.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(lasting) == 6
    assert not [each for each in study.trials if "regimes:unfinished" in each.user_attrs]


def test_one_that_skips_a_rung_is_not_held_against_proxies() -> None:
    """Successive halving would file its first report with theirs."""
    asked = spec(trials=8, batch=8)
    found, _ = planned(asked)
    context = context_of(asked, "cpu", Path())
    climb = trial_runner_of(found, context, None)
    climb.start = lambda recipe: (1, "as the map says") if recipe.learning_rate < 0.01 else (0, "")
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=lookup(STOPPERS, "halving", "stopper")([1])
    )
    run_trials(study, climb, 8, Limits(8))
    cold = [each for each in study.trials if each.params["learning_rate"] < 0.01]
    assert 1 <= len(cold) < 8
    assert all(each.state == TrialState.COMPLETE and len(each.intermediate_values) == 2 for each in cold)
    assert not any("completed_rung_0" in each.system_attrs for each in cold)
