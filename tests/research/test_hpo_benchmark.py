"""Replayed searches: recorded results are looked up and seconds add up."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_tables import ALONE, COUNT, EPOCHS, SECONDS, TRIALS, benchmark_setup, loss_of, recorded, table, world

from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.hpo.batch_ask import ask
from regimes.hpo.fidelities import ladder_of
from regimes.hpo.fidelity_trainer import TrialJob
from regimes.hpo.search_space import recipe_with
from regimes.regime_map.results import DensityTrust as Judged
from regimes.research.hpo_benchmark.fidelities import FULL, subset_images
from regimes.research.hpo_benchmark.methods import AS_FAST, BASE, METHODS, SearchMethod
from regimes.research.hpo_benchmark.pool_sampler import PoolSampler
from regimes.research.hpo_benchmark.record import settings
from regimes.research.hpo_benchmark.replay_trainer import ReplayTrainer
from regimes.research.hpo_benchmark.run_method import replay
from regimes.research.hpo_benchmark.table import SEARCHED, SEEDS, open_table, write_table
from regimes.training.vmap_engine import padded_lanes

Cli = Callable[..., subprocess.CompletedProcess[str]]
RUNNABLE = [
    method
    for method in METHODS
    if all(name.removeprefix(AS_FAST) in SECONDS for name in method.fidelities) and not method.uses_map
]


def test_settings_fill_the_space_evenly() -> None:
    space = world()[0].space
    found = settings(space, COUNT)
    assert found == settings(space, COUNT)
    assert [sum(each["batch_size"] == size for each in found) for size in (32, 64)] == [COUNT // 2] * 2
    rates = np.log([each["learning_rate"] for each in found])
    counts, _ = np.histogram(rates, bins=np.linspace(np.log(0.001), 0.0, 9))
    assert set(counts) == {COUNT // 8}
    assert all(isinstance(each["batch_size"], int) for each in found)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    write_table(recorded(), tmp_path / "recording.nc")
    again = open_table(tmp_path / "recording.nc")
    assert again.settings == table().settings
    np.testing.assert_array_equal(again.arrays["loss"], table().arrays["loss"])
    assert again.facts["spec"] == table().facts["spec"]
    with pytest.raises(
        UserError, match=r"no recording; make one with `python -m regimes.research hpo_benchmark record"
    ):
        open_table(tmp_path / "other.nc")
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(UserError, match="not a recording of searches"):
        open_table(tmp_path / "text.nc")


def test_expected_test_errors_leave_out_the_seed_that_was_searched_with() -> None:
    at = next(number for number, each in enumerate(table().settings) if each["learning_rate"] < 0.9)
    errors = table().arrays["test_error"][0, at]
    assert table().expected_test_errors(np.full(COUNT, 1))[at] == pytest.approx(errors[[0, 2, 3]].mean())
    assert table().expected_test_errors(np.arange(COUNT) % 2)[at] == pytest.approx(np.delete(errors, at % 2).mean())
    assert table().unseen_test_errors()[at] == pytest.approx(errors[SEARCHED:].mean())
    diverged = next(number for number, each in enumerate(table().settings) if each["learning_rate"] > 0.9)
    assert table().unseen_test_errors()[diverged] == pytest.approx(0.9)  # chance, of ten classes
    lasting = [each for each in table().settings if each["learning_rate"] <= 0.9]
    found = [[0.1 * loss_of(each, FULL, seed, EPOCHS) for seed in range(SEEDS)] for each in lasting]
    assert table().seed_noise() == pytest.approx(np.mean(np.var(found, axis=1, ddof=1)) ** 0.5, rel=1e-4)


def test_searches_see_trainings_drawn_for_each_setting() -> None:
    seen = [table().seen_seeds(replay) for replay in range(40)]
    assert all((each == table().seen_seeds(replay)).all() for replay, each in enumerate(seen[:3]))
    shares = np.mean(seen, axis=0)
    place = table().positions["narrowed 0.12"]
    assert (shares[place] == 0).all()  # it has one seed
    others = np.delete(shares, place, axis=0)
    assert abs(others.mean() - 0.5) < 0.02
    assert others.min() > 0.1
    assert others.max() < 0.9


def test_fewer_images_are_a_part_of_the_same() -> None:
    data = world()[1].data
    part = subset_images(data, 0.25)
    assert len(part.train.targets) == len(data.train.targets) // 4
    rows = {tuple(each.tolist()) for each in data.train.inputs}
    assert all(tuple(each.tolist()) in rows for each in part.train.inputs)
    assert part.val is data.val


# -- the pool ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 8])
def test_a_pool_asks_for_each_recorded_setting_once(together: int) -> None:
    space = world()[0].space
    base = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=PoolSampler(base, table().settings, space))
    trials = [trial for _ in range(COUNT // 8) for trial in ask(study, 8, space, together)]
    asked = [tuple(trial.params[name] for name in sorted(space)) for trial in trials]
    assert sorted(asked) == sorted(table().number_of)
    with pytest.raises(RuntimeError, match="used up"):
        ask(study, 1, space, together)


def test_a_pool_moves_a_point_to_the_nearest_setting() -> None:
    space = world()[0].space
    wanted = table().settings[17]
    study = optuna.create_study(sampler=PoolSampler(optuna.samplers.RandomSampler(seed=0), table().settings, space))
    near = {**wanted, "learning_rate": wanted["learning_rate"] * 1.001}
    pool = study.sampler
    pool.base = optuna.samplers.PartialFixedSampler(near, optuna.samplers.RandomSampler(seed=0))  # type: ignore[attr-defined]
    (trial,) = ask(study, 1, space, 1)
    assert trial.params == wanted


# -- replayed trainings -----------------------------------------------------------------------------------------------


def test_no_search_sees_a_setting_twice() -> None:
    """Hyperband shows a sampler its own bracket alone."""
    method = next(each for each in METHODS if each.name == "TPE + hyperband")
    asked: list[int] = []

    class Watched(ReplayTrainer):
        def number(self, recipe: Recipe) -> int:
            asked.append(super().number(recipe))
            return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regimes.research.hpo_benchmark.run_method.ReplayTrainer", Watched)
        replay(method, benchmark_setup(), seed=0)
    assert len(set(asked)) == TRIALS


def _replayed(fidelity: str = "narrowed 0.06", seed: int = 0) -> ReplayTrainer:
    rungs = benchmark_setup().fidelities
    return ReplayTrainer(table(), ladder_of([rungs[fidelity], rungs[FULL]], (0.5,)), [fidelity, FULL], seed)


def _entry(number: int) -> TrialJob:
    return TrialJob(recipe_with(benchmark_setup().spec.recipe, table().settings[number]), number)


@given(number=st.integers(0, COUNT - 1), seed=st.sampled_from([0, 1]))
def test_what_is_looked_up_is_what_was_recorded(number: int, seed: int) -> None:
    setting = table().settings[number]
    trainer = _replayed(seed=seed)
    told = ("narrowed 0.06", 20), (FULL, 10), (FULL, 20)
    for stretch, (fidelity, epoch) in zip(trainer.ladder.stretches, told, strict=True):
        (value,) = trainer.run([_entry(number)], stretch)
        if setting["learning_rate"] > 0.9:
            assert value.why == "diverged"
        else:
            seen = int(table().seen_seeds(seed)[table().positions[fidelity], number])
            assert value.loss == pytest.approx(loss_of(setting, fidelity, seen, epoch), rel=1e-6)


def test_seconds_of_fleets_and_of_single_networks() -> None:
    trainer = _replayed()
    cheap, half, whole = trainer.ladder.stretches
    small = [n for n, each in enumerate(table().settings) if each["batch_size"] == 32][:8]
    least = padded_lanes(1, trainer.ladder.rungs[0].context.new_model(0))
    assert least == padded_lanes(8, trainer.ladder.rungs[0].context.new_model(0))  # a fleet of so few has idle lanes
    lanes = sum(value.seconds for value in trainer.run([_entry(n) for n in small], cheap))
    assert lanes == pytest.approx(least * SECONDS["narrowed 0.06"] + 8 * 0.01)
    (one,) = trainer.run([_entry(small[0])], cheap)  # alone: not in a fleet of idle lanes
    assert one.seconds == pytest.approx(ALONE * SECONDS["narrowed 0.06"] + 0.01)
    five = trainer.run([_entry(n) for n in small[:5]], cheap)
    assert sum(value.seconds for value in five) == pytest.approx(least * SECONDS["narrowed 0.06"] + 5 * 0.01)
    (first,), (second,) = (trainer.run([_entry(small[0])], each) for each in (half, whole))
    assert first.seconds + second.seconds == pytest.approx(SECONDS[FULL] + 2 * 0.01)
    spent = lanes + one.seconds + sum(value.seconds for value in five) + first.seconds + second.seconds
    assert trainer.spent == pytest.approx(spent)


@pytest.mark.parametrize("method", RUNNABLE, ids=lambda method: method.name)
def test_every_arm_comes_to_an_end_and_repeats_itself(method: SearchMethod) -> None:
    found = replay(method, benchmark_setup(), seed=3)
    assert found == replay(method, benchmark_setup(), seed=3)
    assert found.marks
    assert [mark[0] for mark in found.marks] == sorted(mark[0] for mark in found.marks)
    assert found.overhead < found.marks[0][0] <= found.marks[-1][0] <= found.seconds + 1e-9
    for _, number, loss in found.marks:
        seen = int(table().seen_seeds(3)[0, number])
        assert loss == pytest.approx(loss_of(table().settings[number], FULL, seen, EPOCHS), rel=1e-6)
    if method.promoted:
        assert len(found.marks) <= method.promoted


def test_arms_cost_what_their_words_say() -> None:
    by_name = {method.name: replay(method, benchmark_setup(), seed=0) for method in RUNNABLE}
    diverged = TRIALS - len(by_name[BASE].marks)
    assert by_name[BASE].seconds == pytest.approx(TRIALS * (SECONDS[FULL] + 0.01))
    assert diverged < TRIALS / 2
    method = next(method for method in METHODS if method.name == "ours, short")
    short = replay(dataclasses.replace(method, stopper="none", proxy_reports=()), benchmark_setup(), seed=0)
    # two batch sizes, twelve networks each in sixteen lanes
    assert short.seconds == pytest.approx(3.5 + 2 * 16 * 0.5 + TRIALS * 0.01 + 5 * 10.01)
    subset = by_name["a quarter of the images"]
    assert subset.seconds == pytest.approx(1.0 + TRIALS * (2.5 + 0.01) + 5 * 10.01)
    few = by_name["few epochs, keep the best"]
    assert few.seconds == pytest.approx(TRIALS * (1.0 + 0.01) + 5 * (9.0 + 0.01))
    alone = by_name["narrowed"]
    assert alone.seconds == pytest.approx(1.5 + TRIALS * (4.0 + 0.01) + 5 * 10.01)
    stacked = by_name["ours at 0.06"]
    assert 3.5 + TRIALS * 0.11 + 5 * 10.01 < stacked.seconds < by_name["ours, not halved"].seconds
    assert by_name["ours, not halved"].seconds == pytest.approx(3.5 + 2 * 16 * 1.0 + TRIALS * 0.01 + 5 * 10.01)
    assert TRIALS // 3 - 1 <= len(by_name["ours, no proxy"].marks) <= TRIALS // 3  # some diverge
    assert (
        benchmark_setup().fidelity_names(next(method for method in METHODS if method.name == "narrowed, as fast"))[0]
        == "narrowed 0.12"
    )


class Map:
    """Trusts a density, or none, and starts every trial where it is told."""

    seconds = 100.0

    def __init__(self, trusted: float, start: int = 0) -> None:
        self.trusted, self.first = trusted, start

    def densities(self) -> list[Judged]:
        told = {"tau": None, "low": None, "high": None, "ceiling": None, "prior": 0.5, "trust": 0.5, "reason": ""}
        return [Judged(density=each, trusted=each >= self.trusted, **told) for each in (0.06, 0.12)]

    def start(self, ladder: object, recipe: object) -> tuple[int, str]:
        return self.first, ""


def test_the_map_chooses_the_proxy_and_where_trials_start_and_its_cost_counts() -> None:
    mapped = next(each for each in METHODS if each.uses_map)
    many = dataclasses.replace(mapped, promoted=7)  # so many in full that halving alone takes less
    for trusted, fidelity in ((0.06, "narrowed 0.06"), (0.1, "narrowed 0.12")):
        told = dataclasses.replace(benchmark_setup(), guide=Map(trusted))  # type: ignore[arg-type]
        assert told.fidelity_names(mapped) == [fidelity, FULL]
        assert told.fidelity_names(many) == [FULL]
        found, plain = (
            replay(dataclasses.replace(mapped, uses_map=each, fidelities=(fidelity,)), told, 0) for each in (1, 0)
        )
        assert (found.overhead, plain.overhead) == pytest.approx((103.5, 3.5))
        assert [mark[1:] for mark in found.marks] == [mark[1:] for mark in plain.marks]
    none = dataclasses.replace(benchmark_setup(), guide=Map(2.0))  # type: ignore[arg-type]
    assert none.fidelity_names(mapped) == [FULL]
    assert replay(mapped, none, 0).overhead == 100.0
    later = dataclasses.replace(benchmark_setup(), guide=Map(0.06, 1))  # type: ignore[arg-type]
    assert len(replay(dataclasses.replace(mapped, promoted=0), later, 0).marks) > 0


# -- as a user types it -----------------------------------------------------------------------------------------------


def test_no_recording_is_a_line(research: Cli, tmp_path: Path) -> None:
    out = research("bench", "hpo", "--recording", tmp_path / "none.nc")
    assert out.returncode == 2
    assert "none.nc: no recording; make one with `python -m regimes.research hpo_benchmark record" in out.stderr
    out = research("bench", "pair", "--live")
    assert out.returncode == 2
    assert "are options of `bench hpo` only" in out.stderr
