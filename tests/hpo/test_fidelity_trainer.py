"""Trials share nothing: no weights, no test split, no trouble; what came of them is kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from searches import done, plan_on, planned, spec

from regimes.config.recipe import Recipe
from regimes.data.dataset import Split
from regimes.experiment.engine_selection import EngineChoice
from regimes.hpo.batch_ask import group_size
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.fidelity_trainer import FidelityResult, FidelityTrainer, TrialJob
from regimes.hpo.optimize_loop import Limits, evaluate_winner, run_trials, trial_runner_of, winner_of
from regimes.hpo.plan import context_of
from regimes.training.fleet import Lane

# -- what is trained --------------------------------------------------------------------------------------------------


def test_every_rung_of_every_trial_starts_from_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a trial starts from another's weights, trained or fresh, or a rung from the rung below."""
    starts: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    lane_of, judged = FidelityTrainer._lane, FidelityTrainer._judged

    def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([each.flatten() for name, each in weights.items() if each.dim() > 1])

    def note_start(self: FidelityTrainer, entry: TrialJob, stretch: Any, rung: Fidelity) -> Lane:
        lane = lane_of(self, entry, stretch, rung)
        if stretch.start == 0:
            assert lane.resume is None
            starts.append(flat(lane.model.state_dict()))
        else:
            assert lane.resume is not None
            assert any(torch.equal(flat(lane.resume.weights), each) for each in ends)  # it goes on with its own
        return lane

    def note_end(self: FidelityTrainer, rung: Fidelity, entry: TrialJob, stretch: Any, snapshot: Any) -> FidelityResult:
        ends.append(flat(snapshot.weights))
        return judged(self, rung, entry, stretch, snapshot)

    monkeypatch.setattr(FidelityTrainer, "_lane", note_start)
    monkeypatch.setattr(FidelityTrainer, "_judged", note_end)
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
        context = context_of(asked, "cpu", tmp_path)
        if broken:
            test = context.data.test
            context.data = dataclasses.replace(context.data, test=Split(test.inputs * math.nan, (test.targets + 1) % 4))
        found = plan_on(context, asked)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        climb = trial_runner_of(found, context, None)
        run_trials(study, climb, 4, Limits(4))
        assert (
            climb.trainer.data_of(climb.trainer.ladder.rungs[0]).test.inputs.data_ptr()
            == context.data.val.inputs.data_ptr()
        )
        told = evaluate_winner(found, context, winner_of(study))
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
    lanes = dataclasses.replace(rung.choice, lanes=8)
    rungs = (dataclasses.replace(rung, choice=lanes, alone=10 * rung.seconds),)
    climb.trainer.ladder = dataclasses.replace(climb.trainer.ladder, rungs=rungs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked_for = [each.trial.params for each in climb.ask(study, 16)]
    assert len({each["batch_size"] for each in asked_for[:8]}) == 1
    assert len({each["batch_size"] for each in asked_for[8:]}) == 1
    assert [group_size(study, count, asked.space, 8) for count in (64, 6)] == [8, 8]  # lanes
    assert [group_size(study, count, asked.space, 32) for count in (64, 12)] == [22, 8]  # all three values can occur
    assert group_size(study, 64, {name: each for name, each in asked.space.items() if name != "batch_size"}, 32) == 1
    assert len({each["learning_rate"] for each in asked_for}) == 16
    assert isinstance(study.sampler, optuna.samplers.RandomSampler)


def test_weights_are_kept_while_a_trial_is_under_way(tmp_path: Path) -> None:
    asked = spec(trials=4, batch=2)
    study = done(asked, optuna.pruners.NopPruner(), tmp_path / "done")
    assert all(each.state == TrialState.COMPLETE for each in study.trials)
    assert list(tmp_path.glob("done/trials/records/*/*.json"))
    assert not list(tmp_path.glob("done/**/*.safetensors"))
    entry, folder = TrialJob(asked.recipe, 0), tmp_path / "cut"
    _, climb = planned(asked, folder)
    begun = next(each for each in climb.stretches if each.stop < climb.trainer.ladder.rungs[each.rung].epochs)
    (first,) = climb.trainer.run([entry], begun)
    climb.trainer.forget(entry, over=False)
    assert len(list(folder.glob("**/*.safetensors"))) == 1
    _, again = planned(asked, folder)  # another process goes on with them
    (known,) = again.trainer.run([entry], begun)
    assert (known.loss, known.paid) == (first.loss, False)
    (rest,) = again.trainer.run([entry], again.stretches[again.stretches.index(begun) + 1])
    assert rest.paid
    again.trainer.forget(entry)
    assert not list(folder.glob("**/*.safetensors"))


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
    from regimes.hpo import fidelity_trainer as module

    real, sizes = module.train_fleet, []

    def small(lanes: Any, *given: Any) -> Any:
        sizes.append(len(lanes))
        if len(lanes) > 2 or any(lane.recipe.learning_rate == 0.7 for lane in lanes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB\nmore")
        return real(lanes, *given)

    monkeypatch.setattr(module, "train_fleet", small)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", lambda *given: module.EngineChoice("stacked", 8))
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
        entry = climb.prepare(optuna.create_study().ask(fixed_distributions=trial.distributions)).job
        recipe = Recipe.model_validate({**asked.recipe.model_dump(), **trial.params})
        climb.trainer.store.drop(climb.trainer.key(TrialJob(recipe, trial.number), climb.stretches[-1]))
        assert entry.recipe != recipe
    again = done(asked, optuna.pruners.NopPruner(), tmp_path)
    for one, other in zip(whole.trials, again.trials, strict=True):
        assert one.intermediate_values == other.intermediate_values
        assert [row["paid"] for row in other.user_attrs["regimes:climb"]] == [False, False, True]


def test_an_error_while_judging_leaves_no_half_trained_network(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, raised = FidelityTrainer._judged, []

    def once(self: FidelityTrainer, rung: Fidelity, *given: Any) -> FidelityResult:
        if rung.density == 1 and not raised:
            raised.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return judged(self, rung, *given)

    calm = done(spec(trials=3, batch=3), optuna.pruners.NopPruner())
    monkeypatch.setattr(FidelityTrainer, "_judged", once)
    monkeypatch.setattr("searches.engine", lambda *given: EngineChoice("stacked", 8))
    shaken = done(spec(trials=3, batch=3), optuna.pruners.NopPruner())
    assert raised
    for one, other in zip(calm.trials, shaken.trials, strict=True):
        assert other.state == TrialState.COMPLETE
        assert [*one.intermediate_values.values()] == pytest.approx([*other.intermediate_values.values()], rel=2e-3)
