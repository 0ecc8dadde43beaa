"""The map answers: right where the answer is known, the same whatever the order, refused where there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from known_grids import SEEDS, world

from regimes import RegimeMap, UserError
from regimes.errors import OutsideRange
from regimes.regime_map import ADVISERS
from regimes.regime_map.cell_stats import cell_mean
from regimes.regime_map.classify import classify
from regimes.regime_map.evaluate_advice import evaluate_advice, pooled
from regimes.research.studies.synthetic_grids import NOISES, synthetic_grid


@pytest.fixture(scope="module")
def chart() -> RegimeMap:
    return RegimeMap(world())


def test_the_best_temperature_is_selected_and_its_error_told(chart: RegimeMap) -> None:
    rates = chart.data["learning_rate"].values
    for density, best in ((0.02, rates[4]), (0.8, rates[1])):
        for adviser in ("error", "joint"):
            found = chart.select(density, adviser=adviser)
            assert found.selected == {"learning_rate": pytest.approx(best)}
        errors = cell_mean(chart.data["test_error"], ["learning_rate"])
        truth = float(errors.sel(density=density, learning_rate=best))
        assert found.expected_error == pytest.approx(truth, rel=0.1)
        assert found.confidence > 0.5
        assert sum(each["chosen"] for each in found.candidates) == pytest.approx(1.0)


def test_advice_points_to_the_best_from_both_sides(chart: RegimeMap) -> None:
    rates = chart.data["learning_rate"].values
    cold = chart.advise(0.02, {"learning_rate": rates[0]})
    hot = chart.advise(0.8, {"learning_rate": rates[-1]})
    assert (cold.direction, hot.direction) == ("hotter", "colder")
    assert min(cold.confidence, hot.confidence) > 0.9
    there = chart.advise(0.02, {"learning_rate": rates[4]})
    assert (there.direction, there.target) == ("stay", {"learning_rate": rates[4]})
    assert json.loads(json.dumps(cold.facts()))["target"] == cold.target
    between = chart.advise(0.03, {"learning_rate": 0.02})
    assert between.direction == "hotter"
    assert any("interpolated" in note for note in between.notes)


@pytest.mark.parametrize("adviser", ADVISERS)
def test_every_adviser_answers_everywhere(chart: RegimeMap, adviser: str) -> None:
    rates = chart.data["learning_rate"].values
    if adviser == "diagnosis":
        with pytest.raises(UserError, match="needs train_error or hessian_trace"):
            chart.select(0.1, adviser=adviser)
        chart = RegimeMap(world().assign(train_error=0.5 * world().test_error, hessian_trace=200 * world().test_error))
    for density in (0.02, 0.1, 0.8):
        found = chart.select(density, adviser=adviser)
        assert found.selected["learning_rate"] in rates
        assert found.adviser == adviser
        for rate in (rates[0], 0.1, rates[-1]):
            advice = chart.advise(density, {"learning_rate": rate}, adviser)
            step = advice.target["learning_rate"] - rate
            assert advice.direction == ("hotter" if step > 0 else "colder" if step < 0 else "stay")
            assert 0 <= advice.confidence <= 1


@pytest.mark.parametrize("adviser", ["barrier", "regime", "similarity", "combined", "landscape"])
def test_the_landscape_alone_is_enough(adviser: str) -> None:
    data, _ = synthetic_grid("diagonal", NOISES["calm"], 0.01, 0, dense_seeds=3)
    found = RegimeMap(data).advise(0.07, {"learning_rate": 0.01}, adviser)
    assert found.regime == "I"
    assert found.direction == "hotter"
    assert found.expected_error is None


def test_advisers_that_need_test_errors_say_so() -> None:
    chart = RegimeMap(synthetic_grid("diagonal", NOISES["calm"], 0.01, 0)[0])
    assert chart.select(0.1).adviser == "landscape"
    for adviser in ("fitted", "error", "joint"):
        with pytest.raises(UserError, match="this grid has none; use 'landscape'"):
            chart.select(0.1, adviser=adviser)
    with pytest.raises(UserError, match="unknown adviser 'eror'"):
        chart.select(0.1, adviser="eror")


def test_questions_beyond_the_measured_ones_are_refused(chart: RegimeMap) -> None:
    for ask in (
        lambda: chart.advise(0.01, {"learning_rate": 0.1}),
        lambda: chart.advise(0.1, {"learning_rate": 2.0}),
        lambda: chart.select(0.9),
        lambda: chart.regimes(0.1, {"learning_rate": 0.001}),
        lambda: chart.rungs([0.001]),
    ):
        with pytest.raises(OutsideRange, match="outside the measured range"):
            ask()
    assert OutsideRange.exit_code == 3
    with pytest.raises(UserError, match="missing value for learning_rate"):
        chart.advise(0.1, {})
    with pytest.raises(UserError, match=r"unknown axis .* .did you mean 'learning_rate'"):
        chart.advise(0.1, {"learning_rat": 0.1})


def test_order_changes_no_answer(chart: RegimeMap) -> None:
    turned = world().isel(learning_rate=[3, 1, 5, 0, 2, 4], density=[4, 2, 0, 1, 3], dense_seed=[2, 0, 3, 1])
    other = RegimeMap(turned.transpose("pair", "dense_seed", "density", "retrain_seed", "learning_rate"))
    ours, theirs = (each.advise(0.05, {"learning_rate": 0.3}) for each in (chart, other))
    assert (ours.direction, ours.target) == (theirs.direction, theirs.target)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=0.02)
    aligned = other.data["regime_probability"].sel(
        learning_rate=chart.data["learning_rate"], density=chart.data["density"]
    )
    np.testing.assert_allclose(
        aligned.transpose(*chart.data["regime_probability"].dims), chart.data["regime_probability"], atol=1e-6
    )


def test_several_knobs_and_widths() -> None:
    one = world(size=(5, 4))
    two = xr.concat([one, one], dim="batch_size").assign_coords(batch_size=[32, 64])
    found = RegimeMap(two).advise(0.02, {"learning_rate": 0.01, "batch_size": 64})
    assert set(found.directions) == set(found.target) == {"learning_rate", "batch_size"}
    assert found.directions["learning_rate"] == "hotter"
    assert isinstance(found.target["batch_size"], int)
    settled = RegimeMap(two).select(0.02, {"batch_size": 32})
    assert settled.selected["batch_size"] == 32
    assert len(settled.candidates) == 5
    wide = xr.concat([one, one], dim="width").assign_coords(width=[4, 8])
    assert RegimeMap(wide).advise(0.02, {"learning_rate": 0.01, "width": 8}).direction == "hotter"
    with pytest.raises(UserError, match="missing value for width"):
        RegimeMap(wide).select(0.02)


def test_sam_rho_is_asked_of_grids_that_turn_it(chart: RegimeMap) -> None:
    data = world().rename(learning_rate="sam_rho")
    rho = RegimeMap(data).sam_rho(0.02)
    assert rho.selected == {"sam_rho": pytest.approx(float(data["sam_rho"][4]))}
    with pytest.raises(UserError, match="varies learning_rate, not sam_rho"):
        chart.sam_rho(0.1)
    with pytest.raises(UserError, match="remove it from --at"):
        RegimeMap(data).sam_rho(0.1, {"sam_rho": 0.1})


def test_rungs_trust_densities_that_rank_as_the_dense_network_does(chart: RegimeMap) -> None:
    """Dense networks are best at heat 0.2, so are those of high density; those of low density are best at 0.8."""
    found = {round(each.density, 3): each for each in chart.rungs()}
    assert list(found) == sorted(found)
    low, high = found[min(found)], found[max(found)]
    assert low.tau is not None
    assert high.tau is not None
    assert low.tau < 0 < 0.7 < high.tau <= 1
    assert (low.trusted, high.trusted) == (False, True)
    assert high.ceiling is not None
    assert high.ceiling > 0.8
    assert high.low is not None
    assert high.low <= high.tau + 1e-9
    between = chart.rungs([0.5])[0]
    assert between.trusted


def test_rungs_without_errors_rest_on_the_regimes() -> None:
    chart = RegimeMap(synthetic_grid("diagonal", NOISES["calm"], 0.01, 0, dense_seeds=3)[0])
    found = chart.rungs()
    assert not found[0].trusted
    assert found[-1].trusted
    assert all(each.tau is None and "no errors" in each.reason for each in found)
    few = synthetic_grid("diagonal", NOISES["calm"], 0.01, 0, (3, 5))[0]
    with pytest.raises(UserError, match="too few temperatures to rank: 3"):
        RegimeMap(few).rungs()


def test_seeds_that_do_not_agree_trust_nothing() -> None:
    """Two dense seeds rank the temperatures one way, two the other: four of six pairs disagree, tau is -1/3."""
    data = world()
    errors = np.stack([np.arange(6.0), np.arange(6.0), -np.arange(6.0), -np.arange(6.0)], 1) / 100 + 0.2
    data["dense_test_error"] = (("learning_rate", "dense_seed"), errors)
    found = RegimeMap(data).rungs()
    assert found[0].ceiling == pytest.approx(-1 / 3)
    assert not any(each.trusted for each in found)
    assert "dense networks of two seeds do not rank the temperatures alike" in found[0].reason


def test_judgements_by_hand() -> None:
    """Without noise every seed is alike: the best by test error is the oracle, and controls do what they say."""
    data = world(noise=0.0)
    found = {each.name: each for each in evaluate_advice(data)}
    errors = cell_mean(data["test_error"], ["learning_rate"])
    excess = errors - errors.min("learning_rate")
    assert found["error"].mean == pytest.approx(0.0, abs=1e-3)
    assert found["error"].captured == pytest.approx(1.0, abs=0.02)
    assert found["error"].right == 1.0
    assert found["coldest"].mean == pytest.approx(float(excess.isel(learning_rate=0).mean()))
    assert found["hottest"].worst == pytest.approx(float(excess.isel(learning_rate=-1).max()))
    assert found["coldest"].choices == 5 * SEEDS
    logs = np.log(errors) - np.log(errors).min("learning_rate")
    assert found["coldest"].chance == pytest.approx(float(logs.mean()))
    assert found["coldest"].captured == pytest.approx(1 - float(logs.isel(learning_rate=0).mean() / logs.mean()))
    dense = int(data["dense_test_error"].mean("dense_seed").values.argmin())
    assert found["lowest dense test error"].mean == pytest.approx(float(excess.isel(learning_rate=dense).mean()))
    assert "most trained" not in found
    both = {each.name: each for each in pooled([list(found.values())] * 2)}
    assert both["coldest"].mean == pytest.approx(found["coldest"].mean)
    assert both["coldest"].choices == 2 * found["coldest"].choices


def test_controls_of_epochs() -> None:
    data = world().rename(learning_rate="epochs").assign_coords(epochs=[5, 10, 20, 40, 60, 80])
    data["epochs"].attrs["first_decay"] = 40.0
    found = {each.name: each for each in evaluate_advice(data, ["barrier"])}
    errors = cell_mean(data["test_error"], ["epochs"])
    excess = errors - errors.min("epochs")
    assert found["most trained"].mean == pytest.approx(float(excess.sel(epochs=80).mean()), rel=0.1)
    assert found["last before the first decay"].mean == pytest.approx(float(excess.sel(epochs=40).mean()), rel=0.1)


def test_a_seed_is_judged_by_errors_the_map_has_not_seen() -> None:
    """One seed whose errors are turned upside down changes how it is judged, not what it is told."""
    data = world(noise=0.0)
    turned = data.copy(deep=True)
    flipped = turned["test_error"].isel(dense_seed=0).values[::-1].copy()
    turned["test_error"][{"dense_seed": 0}] = flipped
    ours, theirs = (
        ({each.name: each for each in evaluate_advice(grid, ["error"])})["error"] for grid in (data, turned)
    )
    assert ours.worst < 0.01
    assert theirs.worst > 0.1


def test_one_dense_seed_is_judged_with_densities_left_out() -> None:
    data = world().isel(dense_seed=[0])
    found = {each.name: each for each in evaluate_advice(data, ["error", "similarity"])}
    assert found["similarity"].choices == found["coldest"].choices == 3  # the same for all: not at the ends
    assert found["error"].choices == 3


def test_networks_at_chance_have_no_regime() -> None:
    data = world()
    data.attrs["chance_error"] = 0.9
    data["test_error"][{"learning_rate": 5, "density": 0}] = 0.88
    labelled = classify(data)
    assert int(labelled["regime"].isel(learning_rate=5, density=0)) == -1
    assert int(labelled["at_chance"].sum()) == 1
    assert "1 cells are at chance" in labelled["regime"].attrs["thresholds"]
    data["test_error"][:] = 0.9
    with pytest.raises(UserError, match="no usable cell"):
        RegimeMap(data)


def test_a_single_pair_of_one_network_is_not_believed() -> None:
    """Noise about zero reaches above it as far as below, and is no barrier."""
    random = np.random.default_rng(0)
    false = 0
    for _ in range(20):
        lmc = 0.02 * random.standard_normal((6, 6))
        coords = {"epochs": [5, 10, 20, 40, 80, 160], "density": [0.03, 0.05, 0.08, 0.14, 0.3, 0.8]}
        grid = xr.Dataset({"lmc": (("epochs", "density"), lmc), "cka": (("epochs", "density"), 0.99 + 0 * lmc)}, coords)
        false += bool((classify(grid)["regime"] == 0).any())
    assert false <= 4


def test_odd_grids_get_an_answer_or_a_line() -> None:
    """What a review broke: one temperature, no usable errors, exact zeros, constant errors, a cut given before."""
    one = world().isel(learning_rate=[0])
    assert RegimeMap(one).advise(0.1, {"learning_rate": float(one["learning_rate"][0])}).direction == "stay"
    empty = world()
    empty["test_error"] = empty["test_error"] * np.nan
    assert RegimeMap(empty).select(0.1).adviser == "landscape"
    with pytest.raises(UserError, match="needs test errors, and this grid has none"):
        classify(empty, "error")
    zeros = world()
    zeros["lmc"], zeros["test_error"] = zeros["lmc"] * 0, zeros["test_error"] * 0
    assert np.isfinite(RegimeMap(zeros).data["regime_probability"]).all()
    assert np.isnan(pooled([evaluate_advice(zeros, ["error"])] * 2)[0].captured)
    before = classify(world(), lmc=-0.3)
    assert RegimeMap(before).data["regime"].attrs["lmc_cut"] == -0.3
    rounded = world().assign_coords(learning_rate=world()["learning_rate"].astype("float32"))
    assert RegimeMap(rounded).advise(0.1, {"learning_rate": 0.01}).direction
    with pytest.raises(UserError, match="all temperatures are ranked together; allowed: nothing"):
        RegimeMap(world()).rungs(None, {"learning_rate": 0.1})


def test_confidence_is_about_one_more_seed() -> None:
    """Said against what a seed that was left out shows, over many worlds whose temperatures differ little."""
    said, was = [], []
    for seed in range(5):
        data = world(seed, noise=0.25)
        for left in range(SEEDS):
            chart = RegimeMap(data.sel(dense_seed=[each for each in range(SEEDS) if each != left]))
            own = data["test_error"].sel(dense_seed=left).mean("retrain_seed")
            for density in data["density"].values:
                for rate in data["learning_rate"].values:
                    advice = chart.advise(float(density), {"learning_rate": float(rate)}, "error")
                    if advice.direction != "stay":
                        here, there = (
                            own.sel(density=density, learning_rate=each)
                            for each in (rate, advice.target["learning_rate"])
                        )
                        said.append(advice.confidence)
                        was.append(float(there) < float(here))
    said_, was_ = np.array(said), np.array(was)
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        inside = (said_ > low) & (said_ <= high)
        assert was_[inside].mean() == pytest.approx(said_[inside].mean(), abs=0.12)
