"""Trials climb: stock stoppers act, nothing is carried from one trial to another, the test split stays unseen."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from searches import done, plan_on, planned, spec

from regimes.data.dataset import Split
from regimes.hpo import STOPPERS
from regimes.hpo.climb import Climber, fair_order
from regimes.hpo.drive import Limits, climb_of, final, winner_of, work
from regimes.hpo.ladder import Rung, ladder_of
from regimes.hpo.plan import lab_of
from regimes.hpo.savings import savings, stopped_at
from regimes.hpo.trainer import Entry, Trainer, Value
from regimes.registry import load
from regimes.spec.recipe import Recipe
from regimes.training.lane import Lane


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
    rungs = [Rung(d, d, made, epochs, made, s, s) for d, epochs, s in ((0.1, 10, 0.1), (0.4, 20, 0.25), (1, 20, 1.0))]
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
    rungs = [Rung(d, d, made, 4, made, s, s) for d, s in ((0.1, 1.0), (0.2, 1e-6), (1, 1e-6))]
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
        climbers.append(Climber(trial, Entry(Recipe(), 0), 0, Value(float(place), 0.0, 0.0)))
    through = sorted(int(each.value.loss) for each in fair_order(climbers) if not each.trial.should_prune())
    assert through == list(range(len(through)))
    assert 24 // factor * 0.6 <= len(through) <= 24 // factor


@pytest.mark.parametrize("name", [name for name in STOPPERS if name != "none"])
def test_every_stock_stopper_stops_and_already_in_the_first_batch(name: str) -> None:
    asked = spec(batch=12, study={"sampler": "random", "stopper": name})
    found, _ = planned(asked)
    steps = [each.step for each in found.ladder.stretches]
    study = done(asked, load(STOPPERS, name, "stopper")(steps))
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
    study.optimize(climb.alone, n_trials=4)
    assert [each.state for each in study.trials] == [TrialState.COMPLETE] * 4
    assert len(stopper.asked) == 4 * 2
    stopped = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.0))
    stopped.optimize(climb.alone, n_trials=2)
    assert [each.state for each in stopped.trials] == [TrialState.PRUNED] * 2


# -- what is trained --------------------------------------------------------------------------------------------------


def test_every_rung_of_every_trial_starts_from_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a trial starts from another's weights, trained or fresh, or a rung from the rung below."""
    starts: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    lane_of, judged = Trainer._lane, Trainer._judged

    def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([each.flatten() for name, each in weights.items() if each.dim() > 1])

    def note_start(self: Trainer, entry: Entry, stretch: Any, rung: Rung) -> Lane:
        lane = lane_of(self, entry, stretch, rung)
        if stretch.start == 0:
            assert lane.resume is None
            starts.append(flat(lane.model.state_dict()))
        else:
            assert lane.resume is not None
            assert any(torch.equal(flat(lane.resume.weights), each) for each in ends)  # it goes on with its own
        return lane

    def note_end(self: Trainer, rung: Rung, entry: Entry, stretch: Any, snapshot: Any) -> Value:
        ends.append(flat(snapshot.weights))
        return judged(self, rung, entry, stretch, snapshot)

    monkeypatch.setattr(Trainer, "_lane", note_start)
    monkeypatch.setattr(Trainer, "_judged", note_end)
    done(spec(trials=5, batch=5), optuna.pruners.NopPruner())
    assert len(starts) == 10
    for number, each in enumerate(starts):
        for other in [*starts[:number], *ends]:
            same = len(other) == len(each) and float((each == other).double().mean())
            assert not same or same < 0.01


def test_the_search_never_sees_the_test_split(tmp_path: Path) -> None:
    """With every number of the test split replaced, every value is the same; the winner's test error is another."""
    asked = spec(trials=4, batch=4)
    values = []
    for broken in (False, True):
        lab = lab_of(asked, "cpu", tmp_path)
        if broken:
            test = lab.data.test
            lab.data = dataclasses.replace(lab.data, test=Split(test.inputs * math.nan, (test.targets + 1) % 4))
        found = plan_on(lab, asked)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        climb = climb_of(found, lab, None)
        work(study, climb, 4, Limits(4))
        assert climb.trainer.data.test.inputs.data_ptr() == lab.data.val.inputs.data_ptr()
        told = final(found, lab, winner_of(study))
        values.append(([each.intermediate_values for each in study.trials], told["test_error"], told["runs"]))
    assert values[0][0] == values[1][0]
    assert values[0][1] != values[1][1]
    assert [row["val_error"] for row in values[0][2]] == [row["val_error"] for row in values[1][2]]


def test_a_trials_value_does_not_depend_on_its_batch() -> None:
    together, alone = (done(spec(trials=6, batch=size), optuna.pruners.NopPruner()) for size in (6, 1))
    for one, other in zip(together.trials, alone.trials, strict=True):
        assert one.params == other.params
        assert [*one.intermediate_values.values()] == pytest.approx([*other.intermediate_values.values()], rel=2e-3)


def test_batch_sizes_are_shared_by_a_fleet() -> None:
    asked = spec(trials=16, batch=16, space={"batch_size": [16, 32, 64]})
    _, climb = planned(asked)
    rung = climb.trainer.ladder.rungs[0]
    rungs = (dataclasses.replace(rung, choice=dataclasses.replace(rung.choice, lanes=8), alone=10 * rung.seconds),)
    climb.trainer.ladder = dataclasses.replace(climb.trainer.ladder, rungs=rungs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked_for = [each.trial.params for each in climb.ask(study, 16)]
    assert len({each["batch_size"] for each in asked_for[:8]}) == 1
    assert len({each["batch_size"] for each in asked_for[8:]}) == 1
    assert len({each["learning_rate"] for each in asked_for}) == 16
    assert isinstance(study.sampler, optuna.samplers.RandomSampler)


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_diverged_trial_is_a_bad_one_and_the_rest_goes_on() -> None:
    asked = spec(space={"learning_rate": [0.05, 1e9]}, trials=8, batch=8)
    study = done(asked, optuna.pruners.NopPruner())
    for trial in study.trials:
        wild = trial.params["learning_rate"] == 1e9
        assert trial.state == (TrialState.PRUNED if wild else TrialState.COMPLETE)
        if wild:
            assert trial.user_attrs["regimes:why"] == "diverged"
            assert trial.intermediate_values == {1: math.inf}
            assert trial.user_attrs["regimes:climb"][0]["loss"] is None  # plain JSON
    assert len({each.state for each in study.trials}) == 2


def test_a_trial_that_is_too_large_for_the_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from regimes.hpo import trainer as module

    real, sizes = module.train_fleet, []

    def small(lanes: Any, *given: Any) -> Any:
        sizes.append(len(lanes))
        if len(lanes) > 2 or any(lane.recipe.learning_rate == 0.7 for lane in lanes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB\nmore")
        return real(lanes, *given)

    monkeypatch.setattr(module, "train_fleet", small)
    monkeypatch.setattr("regimes.hpo.ladder.choose_engine", lambda *given: module.Choice("stacked", 8))
    study = done(spec(space={"learning_rate": [0.05, 0.7]}, trials=8, batch=8), optuna.pruners.NopPruner())
    for trial in study.trials:
        large = trial.params["learning_rate"] == 0.7
        assert trial.state == (TrialState.FAIL if large else TrialState.COMPLETE)
        assert trial.user_attrs.get("regimes:why") == ("out of memory" if large else None)
    assert {each.state for each in study.trials} == {TrialState.FAIL, TrialState.COMPLETE}
    assert max(sizes) == 8


def test_what_came_of_a_stretch_is_never_paid_twice(tmp_path: Path) -> None:
    asked = spec(trials=4, batch=4)
    first = done(asked, optuna.pruners.NopPruner(), tmp_path)
    second = done(asked, optuna.pruners.NopPruner(), tmp_path)
    for one, other in zip(first.trials, second.trials, strict=True):
        assert one.intermediate_values == other.intermediate_values
        assert [row["paid"] for row in one.user_attrs["regimes:climb"]] == [True] * 3
        assert [row["paid"] for row in other.user_attrs["regimes:climb"]] == [False] * 3


def test_half_of_a_climb_that_is_kept_is_gone_on_with(tmp_path: Path) -> None:
    """The first report of the full network is kept, the rest of it is not: the same numbers, bit for bit."""
    asked = spec(trials=3, batch=3)
    whole = done(asked, optuna.pruners.NopPruner(), tmp_path)
    _, climb = planned(asked, tmp_path)
    assert climb.trainer.store is not None
    for trial in whole.trials:
        entry = climb.climber(optuna.create_study().ask(fixed_distributions=trial.distributions)).entry
        recipe = Recipe.model_validate({**asked.recipe.model_dump(), **trial.params})
        climb.trainer.store.drop(climb.trainer.key(Entry(recipe, trial.number), climb.stretches[-1]))
        assert entry.recipe != recipe
    again = done(asked, optuna.pruners.NopPruner(), tmp_path)
    for one, other in zip(whole.trials, again.trials, strict=True):
        assert one.intermediate_values == other.intermediate_values
        assert [row["paid"] for row in other.user_attrs["regimes:climb"]] == [False, False, True]


# -- what it saved ----------------------------------------------------------------------------------------------------


def test_savings_are_counted_in_seconds() -> None:
    """Closed form: six trials; a proxy takes 1 s, a full training 8 s; two climb, one of them to the end."""
    asked = spec(trials=6, batch=6)
    found, _ = planned(asked)
    ladder = dataclasses.replace(found.ladder, seconds=2.0)
    found = dataclasses.replace(found, ladder=ladder)
    study = optuna.create_study()
    for number in range(6):
        trial = study.ask()
        rows = [{"density": 0.1, "epoch": 4, "loss": 1.0 + number, "seconds": 1.0, "at": number}]
        if number < 2:
            rows.append({"density": 1.0, "epoch": 2, "loss": 1.0, "seconds": 4.0, "at": 10 + number})
        if number == 0:
            rows.append({"density": 1.0, "epoch": 4, "loss": 0.5, "seconds": 4.0, "at": 20})
        trial.set_user_attr("regimes:climb", rows)
        study.tell(trial, 0.5 if number == 0 else None, TrialState.COMPLETE if number == 0 else TrialState.PRUNED)
    facts = savings([study], found)
    assert facts["full_seconds"] == 8.0
    assert facts["k"] == pytest.approx(1.5)
    assert [rung["c"] for rung in facts["rungs"]] == pytest.approx([1 / 8, 1.0])
    assert facts["saving"] == pytest.approx(1 - (2 / 8 + 6 / 8 + 1.5) / 6)
    assert facts["curve"] == [{"seconds": 20.0, "value": 0.5}, {"seconds": 20.0, "value": 0.5}]
