"""Studies at a small scale: their statistics and their pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from known_grids import world
from scipy.stats import spearmanr

from regimes.config.recipe import Recipe
from regimes.landscape.estimate import Estimate
from regimes.regime_map import ADVISERS
from regimes.regime_map.classify import classify
from regimes.research.studies import (
    adaptive_replay,
    advice,
    advisers,
    calibration,
    digits_sweeps,
    knobs,
    metric_correlations,
    peak_memory,
    stability,
    synthetic,
    synthetic_grids,
)
from regimes.research.studies.rank_ci import spearman
from regimes.research.studies.synthetic_grids import NOISES, synthetic_grid


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(5, 30), ties=st.booleans())
def test_rank_correlation_is_scipys(seed: int, count: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((2, count))
    if ties:
        x, y = np.round(x), np.round(y)
    found, truth = spearman(x, y), spearmanr(x, y).statistic
    if ties and np.isnan(found.value):  # most cells are the same: nothing is said
        return
    assert found.value == pytest.approx(truth, abs=1e-12)


def test_strata_remove_differences_between_them() -> None:
    random = np.random.default_rng(0)
    strata = np.repeat(np.arange(8), 10)
    x = random.standard_normal(80)
    y = -x + 100 * strata
    x = x + 100 * strata
    assert spearman(x, y).value > 0.9
    within = spearman(x, y, strata)
    assert within.value == pytest.approx(-1)
    assert within.excludes_zero
    noise = spearman(random.standard_normal(80), random.standard_normal(80), strata)
    assert abs(noise.value) < 0.4
    assert noise.low < noise.value < noise.high


def test_correlations_without_enough_data() -> None:
    assert str(spearman(np.ones(9), np.arange(9.0))) == "-"
    assert spearman(np.arange(3.0), np.arange(3.0)).cells == 3
    holes = np.array([1.0, np.nan, 2.0, 3.0, 4.0, 5.0])
    assert spearman(holes, np.arange(6.0)).cells == 5


def test_the_interval_has_its_nominal_coverage() -> None:
    random, covered = np.random.default_rng(1), 0
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's of a normal pair with correlation 0.5
    for seed in range(60):
        x = random.standard_normal(40)
        y = 0.5 * x + 0.75**0.5 * random.standard_normal(40)
        found = spearman(x, y, seed=seed)
        covered += found.low <= truth <= found.high
    assert 51 <= covered <= 60


# -- calibration ------------------------------------------------------------------------------------------------------


def test_coverage_is_counted() -> None:
    found = [Estimate(0.0, 1.0, 5), Estimate(1.9, 1.0, 5), Estimate(2.1, 1.0, 5), Estimate(-5.0, 1.0, 5)]
    row = calibration._row("x", 0.0, found)
    assert row["covered"] == 0.5
    assert row["mean"] == pytest.approx(-0.25)
    assert calibration._row("x", 2.0, [Estimate(2.0 + 1e-6, 0.0, 5)])["covered"] == 1.0


def test_calibration_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "REPETITIONS", 3)
    monkeypatch.setattr(calibration, "POOL_SIZE", 700)
    monkeypatch.setattr(peak_memory, "CHUNKS", ())
    said: list[str] = []
    page = calibration.study(tmp_path, tmp_path, said.append)
    assert len(said) == 25
    page.write(tmp_path / "out", "python -m regimes.research study calibration", 1.0)
    text = (tmp_path / "out/README.md").read_text()
    assert "| Hessian trace, Tanh, 'auto' to 5 % |" in text
    facts = json.loads((tmp_path / "out/study.json").read_text())["sheets"][0]["facts"]
    assert all(0 <= each["covered"] <= 1 for each in facts)
    exact = {each["estimate"]: each["exact"] for each in facts}
    assert exact["Gauss-Newton trace, to 10 %"] == pytest.approx(exact["Hessian trace, ReLU, 'auto' to 5 %"], rel=1e-4)


# -- stability --------------------------------------------------------------------------------------------------------


def test_stability_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COPIES", 3), ("LAST_EPOCHS", 2), ("SUBSET_SIZES", (32, 64)), ("REPEATS", 2)):
        monkeypatch.setattr(stability, name, value)
    monkeypatch.setattr(stability, "RECIPE", Recipe(epochs=2, batch_size=256))
    monkeypatch.setattr(stability, "SINGLE_MEASURES", {"training error": stability.SINGLE_MEASURES["training error"]})
    monkeypatch.setattr(stability, "PAIR_MEASURES", {"disagreement": stability.PAIR_MEASURES["disagreement"]})
    page = stability.study(tmp_path, tmp_path, lambda line: None)
    first, second = page.tables[0].facts
    assert [each["size"] for each in first["by_size"]] == [32, 64]
    assert first["copies"] >= 0
    assert second["epochs"] >= 0
    page.write(tmp_path / "out", "python -m regimes.research study stability", 1.0)
    assert (tmp_path / "out/spread.png").stat().st_size > 5000


# -- maps and correlations --------------------------------------------------------------------------------------------


def grids() -> dict[str, xr.Dataset]:
    """Five grids in which the test error follows the Hessian trace and has nothing to do with CKA."""
    random = np.random.default_rng(0)
    found = {}
    knobs_of_it = ("batch_size", "learning_rate", "epochs", "weight_decay", "sam_rho")
    for name, knob in zip(digits_sweeps.SWEEPS, knobs_of_it, strict=True):
        dims, shape = (knob, "density"), (5, 5)
        trace = random.random(shape)
        data = {
            "lmc": (dims, np.where(np.arange(5) < 2, -0.2, 0.0) + 0.001 * random.standard_normal(shape)),
            "cka": (dims, 0.9 + 0.05 * random.random(shape)),
            "test_error": (dims, 0.1 + 0.1 * trace),
            "hessian_trace": (dims, trace),
            "dense_test_error": ((knob,), random.random(5)),
        }
        grid = xr.Dataset(data, {knob: [1.0, 2.0, 3.0, 4.0, 5.0], "density": [0.02, 0.03, 0.05, 0.08, 0.4]})
        found[name] = classify(grid)
    return found


def test_correlations_find_the_measure_that_goes_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_correlations, "one_seed_grids", lambda runs, say: (grids(), "They took no time."))
    page = metric_correlations.study(tmp_path, tmp_path, lambda line: None)
    rows = {row[0]: row for row in page.tables[0].rows}
    assert rows["Hessian trace"][-1].startswith("+1.00")
    facts = {(each["measure"], each["column"]): each for each in page.tables[0].facts}
    assert facts["hessian_trace", "all"]["cells"] == 125
    assert abs(facts["cka", "all"]["value"]) < 0.35
    assert rows["sharpness (SAM's)"][1] == "-"  # not measured here
    assert "exclude zero for: Hessian trace" in page.paragraphs[2]
    regimes = {row[0]: row for row in page.tables[1].rows}
    assert regimes["measure"] == ["measure", "I", "II-A", "II-B"]
    page.write(tmp_path / "out", "python -m regimes.research study measures", 1.0)


def test_maps_are_drawn_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "five_seed_grids", lambda out, runs, say: grids())
    page = knobs.study(tmp_path, tmp_path, lambda line: None)
    assert [row[0] for row in page.tables[0].rows][1:] == [
        "batch size",
        "learning rate",
        "training epochs",
        "weight decay",
        "SAM rho",
    ]
    assert sum(axes.axison for axes in page.figures["maps"].axes) == 5
    page.write(tmp_path / "out", "python -m regimes.research study knobs", 1.0)
    assert (tmp_path / "out/maps.svg").exists()


def test_the_digits_sweeps_have_the_same_densities_and_metrics() -> None:
    from regimes.config.sweep_file import read_sweep

    sweeps = [
        read_sweep(Path(__file__).parents[2] / f"sweeps/{name}.toml", digits_sweeps.ONE_SEED_CHANGES)
        for name in digits_sweeps.SWEEPS
    ]
    assert len({sweep.load.density for sweep in sweeps}) == 1
    assert len({sweep.measure.metrics for sweep in sweeps}) == 1
    assert len({next(iter(sweep.temperature)) for sweep in sweeps}) == 5


# -- synthetic grids, and advice -------------------------------------------------------------------------


def test_synthetic_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "KNOWN", ((1, 1, False), (3, 1, True)))
    for module in (synthetic, adaptive_replay):
        monkeypatch.setattr(module, "SHAPES", {name: synthetic_grids.SHAPES[name] for name in ("diagonal", "I alone")})
    monkeypatch.setattr(synthetic, "HEIGHTS", (0.1, 0.6))
    page = synthetic.study(tmp_path, tmp_path, lambda line: None)
    calm = page.tables[0].facts[len(synthetic_grids.NOISES)]
    assert (calm["known"], calm["noise"]) == ("3 dense seeds, 1 pair, test errors", "calm")
    assert calm["transition"]["right"] > 0.95
    assert calm["transition"]["poorly"] > 0.97
    assert calm["transition"]["border"] < 0.4
    for row in page.tables[3].facts:
        assert sum(share for _, _, share in row["bins"]) == pytest.approx(1.0)
    page.write(tmp_path / "out", "python -m regimes.research study synthetic", 1.0)
    assert (tmp_path / "out/calibration.png").stat().st_size > 5000


def test_synthetic_grids_have_the_stated_noise_and_regimes() -> None:
    """The scatter has unit variance, two thirds of it shared by what comes from one dense network."""
    drawn = synthetic_grids._scatter(np.random.default_rng(0), (30, 30, 10, 4))
    assert drawn.var() == pytest.approx(1.0, rel=0.1)
    assert drawn.mean(-1).var() == pytest.approx(2 / 3 + 1 / 12, rel=0.1)
    for shape in synthetic_grids.SHAPES:
        data, truth = synthetic_grids.synthetic_grid(shape, synthetic_grids.Noise(0, 0, 0), 0.01, 0)
        lmc = data["lmc"].isel(dense_seed=0, pair=0).values
        foot = 0.1 * 10.0 ** (-1.5 * np.linspace(0, 1, 7))
        cliff = 0.4 * (1 - 0.4 * np.linspace(0, 1, 7))
        assert ((-lmc - foot > 0.5 * cliff) == (truth == 0)).all()  # half-way up the cliff


def test_the_border_of_a_synthetic_grid_by_brute_force() -> None:
    line = synthetic._true_border("level", 0, rows=5)
    shift = np.random.default_rng(0).uniform(-0.08, 0.08, 2)
    assert line == pytest.approx(np.full(5, 0.35 - shift[1]), abs=2e-3)


def test_advice_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = world(size=(5, 5))
    monkeypatch.setattr(advice, "five_seed_grids", lambda out, runs, say: {"digits": grid, "again": grid})
    monkeypatch.setattr(
        advice, "replay_synthetic_grids", lambda say: adaptive_replay.TextTable("none", [["-"]], [], [])
    )
    monkeypatch.setattr(advice, "CIFAR_GRID", tmp_path / "none")
    page = advice.study(tmp_path, tmp_path, lambda line: None)
    titles = [table.title for table in page.tables]
    assert titles[0] == "All knobs"
    assert titles.count("learning_rate") == 2
    pooled = {each["name"]: each for each in page.tables[0].facts}
    assert pooled["joint"]["captured"] > 0.9
    assert pooled["joint"]["choices"] == 2 * 4 * 5
    replay = page.tables[-2].facts[0]
    assert 0 < replay["regimes"]["share"] <= 1
    assert replay["regimes"]["third"] > 0.7
    page.write(tmp_path / "out", "python -m regimes.research study advice", 1.0)
    assert "| oracle |" not in (tmp_path / "out/README.md").read_text()


def test_recorded_grids_are_read_and_not_measured_anew(tmp_path: Path) -> None:
    for name in digits_sweeps.FIVE_SEED_TEMPERATURES:
        world(size=(4, 4)).to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    said: list[str] = []
    found = digits_sweeps.five_seed_grids(tmp_path, tmp_path / "runs", said.append)
    assert list(found) == list(digits_sweeps.FIVE_SEED_TEMPERATURES)
    assert not said


def test_the_default_adviser_is_compared_with_the_best_on_other_grids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grids() -> Iterator[tuple[str, list[xr.Dataset]]]:
        for seed, name in enumerate(("one", "two", advisers.PUBLIC)):
            yield name, [synthetic_grid("diagonal", NOISES["calm"], 0.02, seed, (5, 5), 2, errors=True)[0]]

    monkeypatch.setattr(advisers, "_grids", grids)
    right, gain, left_out = advisers.study(tmp_path, tmp_path, lambda line: None).tables
    assert right.rows[0] == ["adviser", "one", "two", advisers.PUBLIC, "mean"]
    gains = {row["adviser"]: row["values"] for row in gain.facts}
    assert {"coldest", "hottest", "barrier", "landscape", "joint"} <= set(gains)
    for row in left_out.facts:
        others = [name for name in gains["joint"] if name != row["left out"]]
        best = np.mean([gains[row["chosen"]][name] for name in others])
        able = [name for name in gains if name in ADVISERS]
        if row["advisers"] == "without test errors":
            able = [name for name in able if name not in ("fitted", "error", "joint")]
        assert best == max(np.mean([gains[name][each] for each in others]) for name in able)
        assert row["gain"] == gains[row["chosen"]][row["left out"]]
