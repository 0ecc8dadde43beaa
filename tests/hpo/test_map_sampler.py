"""The sampler over a map's surfaces: its parts against brute force, and searches of known functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from regimes.hpo.pruned.cell_direction import p_hotter
from regimes.hpo.pruned.map_sampler import (
    TILT_STEP,
    MapSampler,
    Surface,
    choose,
    expected_improvement,
    fitted,
    is_trusted,
)
from regimes.hpo.pruned.observed_cells import Observed, UnitSpace, observed

DISTRIBUTIONS: dict[str, Any] = {
    "rate": FloatDistribution(1e-3, 1.0, log=True),
    "rho": FloatDistribution(0.0, 0.2),
    "batch_size": CategoricalDistribution([64, 16, 32]),
    "epochs": IntDistribution(2, 8),
    "density": CategoricalDistribution([0.4, 0.1, 0.2]),
}


def random_params(random: np.random.Generator) -> dict[str, Any]:
    return {
        "rate": 10 ** random.uniform(-3, 0),
        "rho": random.uniform(0, 0.2),
        "batch_size": int(random.choice([16, 32, 64])),
        "epochs": int(random.integers(2, 9)),
        "density": float(random.choice([0.1, 0.2, 0.4])),
    }


def test_settings_go_to_the_unit_cube_and_back() -> None:
    space = UnitSpace.of(DISTRIBUTIONS)
    assert space is not None
    assert space.densities == (0.1, 0.2, 0.4)
    random = np.random.default_rng(0)
    for _ in range(50):
        params = random_params(random)
        setting = space.setting(params)
        assert ((setting >= 0) & (setting <= 1)).all()
        back = space.at_density(space.params(setting), space.densities.index(params["density"]))
        assert back == {name: pytest.approx(value, rel=1e-9) for name, value in params.items()}
    assert UnitSpace.of({"kind": CategoricalDistribution(["a", "b"])}) is None
    ends = space.snapped(np.array([[0.0] * 4, [1.0] * 4]))
    assert [space.params(each) for each in ends] == [
        {"batch_size": 16, "epochs": 2, "rate": pytest.approx(1e-3), "rho": 0.0},
        {"batch_size": 64, "epochs": 8, "rate": pytest.approx(1.0), "rho": pytest.approx(0.2)},
    ]


def test_expected_improvement_is_the_mean_over_draws() -> None:
    random = np.random.default_rng(1)
    mean, spread = random.normal(size=5), random.uniform(0.2, 2, size=5)
    draws = mean + spread * random.standard_normal((400_000, 5))
    improved = np.clip(0.3 - draws, 0, None)
    found = expected_improvement(0.3, mean, spread)
    assert np.abs(found - improved.mean(0)).max() < 5 * (improved.std(0) / math.sqrt(len(draws))).max()


def area(best: np.ndarray[Any, Any], widths: np.ndarray[Any, Any]) -> float:
    """Area under the front of best value against density: each value holds up to the next density."""
    return float((np.minimum.accumulate(best) * widths).sum())


def test_the_gain_on_a_front_is_the_area_that_a_cell_removes() -> None:
    space = UnitSpace.of(DISTRIBUTIONS)
    assert space is not None
    random = np.random.default_rng(2)
    mean, spread = random.normal(size=(4, 3)), random.uniform(0.3, 1, size=(4, 3))
    best = np.array([0.5, 0.1, -0.2])
    found = Surface(mean, spread).gains(best, space)
    before = area(best, space.widths)
    for setting in range(4):
        for place in range(3):
            values = mean[setting, place] + spread[setting, place] * random.standard_normal(40_000)
            removed = []
            for value in values[:4000]:
                with_it = best.copy()
                with_it[place] = min(with_it[place], value)
                removed.append(before - area(with_it, space.widths))
            stderr = np.std(removed) / math.sqrt(len(removed))
            assert found[setting, place] == pytest.approx(np.mean(removed), abs=5 * stderr + 1e-9)


def test_the_choice_has_the_largest_gain_per_cost_of_all_subsets() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        gains, costs = random.uniform(0, 1, (6, 3)), random.uniform(0.2, 2, (6, 4))
        setting, densities = choose(gains, costs)
        best = -1.0
        for row in range(6):
            for mask in range(1, 8):
                chosen = [each for each in range(3) if mask >> each & 1]
                best = max(best, gains[row, chosen].sum() / (costs[row, 0] + costs[row, [1 + c for c in chosen]].sum()))
        found = gains[setting, densities].sum() / (costs[setting, 0] + costs[setting, [1 + d for d in densities]].sum())
        assert found == pytest.approx(best)


def test_the_model_is_trusted_if_it_predicts_settings_that_it_has_not_seen() -> None:
    random = np.random.default_rng(4)
    places = random.uniform(size=(40, 2))
    smooth = (places[:, 0] - 0.4) ** 2 + 0.5 * places[:, 1]
    assert is_trusted(places, smooth, np.arange(40))
    trusted = [is_trusted(places, random.standard_normal(40), np.arange(40)) for _ in range(20)]
    assert sum(trusted) <= 6
    assert not is_trusted(places, np.ones(40), np.arange(40))
    assert not is_trusted(places[:3], smooth[:3], np.zeros(3, dtype=int))


def value_of(params: dict[str, Any]) -> float:
    """Error of a made-up pruned network: low densities want hotter (larger) rates."""
    best = -1.0 - 0.8 * math.log10(params["density"] / 0.1) / math.log10(4)
    away = (math.log10(params["rate"]) - best) ** 2 / 4 + 20 * (params["rho"] - 0.05) ** 2
    return 0.05 + 0.1 / params["density"] * 0.1 + 0.2 * away + 0.05 * abs(params["epochs"] - 5) / 3


def searched(sampler: optuna.samplers.BaseSampler, trials: int) -> optuna.Study:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for _ in range(trials):
        trial = study.ask(DISTRIBUTIONS)
        study.tell(trial, [value_of(trial.params), trial.params["density"]])
    return study


def front_area(study: optuna.Study) -> float:
    best = [min(t.values[0] for t in study.trials if t.params["density"] == density) for density in (0.1, 0.2, 0.4)]
    return area(np.array(best), np.array([0.5, 0.5, 0.5]))


def test_a_front_is_found_with_fewer_trials_than_at_random() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ours = [front_area(searched(MapSampler(seed, startup=6), 40)) for seed in range(4)]
    random = [front_area(searched(optuna.samplers.RandomSampler(seed), 120)) for seed in range(4)]
    assert np.mean(ours) < np.mean(random)


def test_the_same_seed_gives_the_same_trials() -> None:
    first, second = (searched(MapSampler(3), 20) for _ in range(2))
    assert [each.params for each in first.trials] == [each.params for each in second.trials]


def test_noise_alone_is_left_to_the_stock_sampler() -> None:
    class Stock(optuna.samplers.RandomSampler):
        asked = 0

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            self.asked += 1
            return super().sample_relative(study, trial, search_space)

    stock, random = Stock(0), np.random.default_rng(5)
    study = optuna.create_study(sampler=MapSampler(0, stock=stock))
    for _ in range(40):
        trial = study.ask({"rate": FloatDistribution(0.0, 1.0), "rho": FloatDistribution(0.0, 1.0)})
        study.tell(trial, float(random.uniform()))
    assert stock.asked >= 20


def test_running_trials_are_not_proposed_again() -> None:
    space = {"rate": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=MapSampler(0, startup=4))
    for _ in range(12):
        trial = study.ask(space)
        study.tell(trial, 0.1 + (trial.params["rate"] - 0.5) ** 2)
    running = [study.ask(space).params["rate"] for _ in range(4)]
    apart = np.abs(np.subtract.outer(running, running))[np.triu_indices(4, 1)]
    assert apart.min() >= 0.04


def test_a_tilted_surface_is_that_of_a_step_whose_sign_is_known_with_a_probability() -> None:
    """Conditioning on the pseudo-observation gives the mean and the variance of draws weighted by the sign."""
    random = np.random.default_rng(6)
    places = np.linspace(0, 1, 6)[:, None]
    model = fitted(places, 0.3 * random.standard_normal(6), np.arange(6))
    space = UnitSpace.of({"learning_rate": FloatDistribution(0.0, 1.0)})
    assert space is not None
    assert space.hotter.tolist() == [1.0]
    nothing = np.zeros((0, 1))
    for p in (0.95, 0.2):
        anchors = np.full(6, np.nan)
        anchors[1] = p
        flat = Observed(places, np.zeros(6), np.arange(6), nothing, (), np.full(6, np.nan))
        seen = Observed(places, np.zeros(6), np.arange(6), nothing, (), anchors)
        ends = np.array([places[1], places[1] + TILT_STEP])
        before, after = Surface.of(model, ends, space, flat), Surface.of(model, ends, space, seen)
        covariance = model.cross(ends, ends)
        spread = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        step = spread * random.standard_normal(400_000)
        weight = np.where(step < 0, p, 1 - p)
        expected = np.average(step, weights=weight)
        moved = float((after.mean[1] - after.mean[0] - before.mean[1] + before.mean[0])[0])
        assert moved == pytest.approx(expected, abs=0.02 * spread)


def test_the_direction_of_a_cell_needs_all_measures() -> None:
    assert p_hotter({"lmc": -0.1, "cka": 0.9}, 0.9) is None
    assert p_hotter({"lmc": -0.1, "cka": 0.9, "train_error": None}, 0.9) is None
    low, high = (p_hotter({"lmc": -barrier, "cka": 0.9, "train_error": 0.1}, 0.9) for barrier in (0.0, 0.4))
    assert low is not None
    assert high is not None
    assert 0 < low < high < 1


def test_a_diverged_trial_counts_as_the_worst() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for rate in (0.1, 0.2, 0.3, 0.9):
        study.enqueue_trial({"rate": rate})
        trial = study.ask({"rate": FloatDistribution(0.0, 1.0)})
        if rate == 0.9:
            trial.set_user_attr("regimes:why", "diverged")
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, rate)
    space = UnitSpace.of({"rate": FloatDistribution(0.0, 1.0)})
    assert space is not None
    seen = observed(study, space)
    assert seen.values.argmax() == 3
    assert np.isfinite(seen.values).all()
    assert np.isfinite(fitted(seen.places, seen.values, seen.trainings).predict(seen.places)[0]).all()
