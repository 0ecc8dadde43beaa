"""The map decides on rungs, on where a trial starts, on radii and deployment; where it does not know, it says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from known_grids import world
from searches import clock, engine, spec

from regimes import RegimeMap, UserError
from regimes.config.hpo import Dimension
from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.config.sweep_file import resolve_sweep
from regimes.hpo.fidelities import Fidelity, ladder_of
from regimes.hpo.map_guidance import MapGuidance, open_guidance
from regimes.hpo.plan import context_of, guidance_of, load_plan, map_sweep, plan, save_plan
from regimes.record.grid import read_grid, save_grid
from regimes.regime_map.results import DensityTrust


@pytest.fixture(scope="module")
def guide() -> MapGuidance:
    """Of a world in which the two densest of five densities rank learning rates as the full network does."""
    return MapGuidance(RegimeMap(world()), "world")


def test_rungs_are_the_sparsest_densities_that_the_map_trusts(guide: MapGuidance) -> None:
    assert [each.density for each in guide.densities() if each.trusted] == pytest.approx([0.318, 0.8], rel=1e-2)


@pytest.mark.parametrize(
    ("rate", "first", "why"),
    [
        (
            1.0,
            0,
            "not in regime I at density 0.0502973",
        ),
        (0.1, 1, "not in regime I at density 0.126491"),
        (0.011, 2, "in regime I at every proxy density: only the full network"),
        (9.0, 0, "outside the range of the map"),
    ],
)
def test_a_trial_starts_where_its_own_temperature_is_connected(
    guide: MapGuidance, rate: float, first: int, why: str
) -> None:
    made: Any = None
    densities = guide.chart.data["density"].values
    rungs = [Fidelity(float(d), float(d), made, 4, made, float(d), 1.0) for d in (densities[1], densities[2], 1.0)]
    found = guide.start(ladder_of(rungs, []), Recipe(learning_rate=rate))
    assert found[0] == first
    assert why in found[1]


def test_radii_are_searched_where_the_map_would_choose_them() -> None:
    """The best radius of the known world is large at low densities, small at high ones."""
    guide = MapGuidance(RegimeMap(world().rename(learning_rate="sam_rho")), "world")
    measured = guide.chart.data["sam_rho"].values
    asked, densities = Dimension(low=0.0, high=2.0), guide.chart.data["density"].values
    sparse, dense = (guide.rho(float(each), asked, Recipe()) for each in (densities[0], densities[-1]))
    assert sparse is not None
    assert dense is not None
    assert sparse[1] == pytest.approx(measured[4])
    assert dense[1] == pytest.approx(measured[1])
    for range_, best, why in (sparse, dense):
        low, high = range_.ends
        assert measured[0] <= low < best < high <= measured[-1]
        assert f"range {low:g} to {high:g}" in why
    assert sparse[0].ends[0] > dense[0].ends[0]
    assert "regime I at density" in sparse[2]
    assert guide.rho(float(densities[0]), Dimension(choices=(0.0, 0.1)), Recipe()) is None
    assert MapGuidance(RegimeMap(world()), "world").rho(0.1, asked, Recipe()) is None  # it does not turn rho


def test_the_sparsest_density_that_costs_nothing_is_deployed(guide: MapGuidance) -> None:
    """Errors of the world rise from dense to sparse, so only near the densest it costs nothing."""
    found = guide.deployment(Recipe(learning_rate=0.05))
    assert found["density"] == pytest.approx(0.8)
    assert found["regime"].startswith("II")
    flat = world()
    flat["test_error"] = flat["test_error"] * 0 + flat["test_error"].sel(density=0.8)
    assert MapGuidance(RegimeMap(flat), "flat").deployment(Recipe(learning_rate=0.05))["density"] == pytest.approx(0.02)
    assert guide.deployment(Recipe(learning_rate=7.0))["density"] is None
    without = world().drop_vars(["test_error", "dense_test_error"])
    assert guide.deployment(Recipe(learning_rate=7.0))["reason"]
    assert (
        "no validation errors" in MapGuidance(RegimeMap(without), "w").deployment(Recipe(learning_rate=0.05))["reason"]
    )


def test_where_no_proxy_is_trusted_it_is_said_and_the_full_network_is_searched(
    guide: MapGuidance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = DensityTrust(0.1, 0.1, None, None, 0.9, 0.2, 0.1, False, "tau 0.10, two seeds of the dense network 0.90")
    monkeypatch.setattr(MapGuidance, "densities", lambda self: [bad])
    asked = spec(ladder={"densities": None})
    found = plan(asked, context_of(asked, "cpu", tmp_path), guide)
    assert [rung.density for rung in found.ladder.rungs] == [1.0]
    assert "density 0.1: not trusted, tau 0.10, two seeds of the dense network 0.90" in found.notes
    assert "the map trusts no density: all trials use the full network" in found.notes


def test_a_trusted_density_becomes_a_rung(guide: MapGuidance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)
    asked = spec(ladder={"densities": None, "most": 2})
    found = plan(asked, context_of(asked, "cpu", tmp_path), guide)
    assert [rung.density for rung in found.ladder.rungs] == pytest.approx([0.318, 0.8, 1.0], rel=1e-2)
    assert not any("left out" in each for each in found.notes)
    # Halving alone takes half of every full training.
    early = {"densities": None, "most": 2, "reports": [0.25], "proxy_reports": [0.25]}
    few = {"stopper": "halving", "pattern": "promote", "promoted": 3}  # of 12: a quarter of every full training
    asked = spec(ladder=early, study=few)
    found = plan(asked, context_of(asked, "cpu", tmp_path), guide)
    assert [rung.density for rung in found.ladder.rungs] == pytest.approx([0.318, 1.0], rel=1e-2)
    slow = "density 0.8 left out: takes 0.39 of the next fidelity's time; the limit is 0.30"
    assert slow in found.notes
    asked = spec(ladder=early, study={**few, "promoted": 6})
    assert len(plan(asked, context_of(asked, "cpu", tmp_path), guide).ladder.rungs) == 1
    by_hand = {"densities": [0.3, 0.8]}, {"densities": None, "step_time": [0.15, 0.4]}
    asked_for = (spec(ladder={**early, **each}, study={**few, "promoted": 6}) for each in by_hand)
    for asked in (spec(ladder=early, study={"stopper": "none"}), *asked_for):
        found = plan(asked, context_of(asked, "cpu", tmp_path), guide)
        assert len(found.ladder.rungs) == 3  # nothing is stopped there; asked for by hand
    alone = spec(ladder={"densities": [0.5, 0.9]}, batch=1)  # one by one: 0.9 takes nearly as long as the full network
    found = plan(alone, context_of(alone, "cpu", tmp_path), None)
    assert [rung.density for rung in found.ladder.rungs] == [0.5, 1.0]
    assert any("density 0.9 left out: takes 0." in each for each in found.notes)


# -- maps that are made, and maps that do not fit ---------------------------------------------------------------------


def test_the_sweep_of_a_map_is_a_sweep_of_the_same_network() -> None:
    asked = spec(recipe={"epochs": 10, "batch_size": 32})
    sweep = resolve_sweep(map_sweep(asked))
    assert (sweep.data, sweep.model) == (asked.data, asked.model)
    assert sweep.recipe.epochs == 5
    assert list(sweep.temperature) == ["learning_rate"]
    assert sweep.temperature["learning_rate"] == pytest.approx((0.001, 0.00562, 0.0316, 0.178, 1.0))


def test_a_map_is_made_first_its_cost_counted_and_the_plan_kept(tmp_path: Path) -> None:
    asked = spec(
        ladder={"densities": None},
        map={"temperature": {"learning_rate": [0.01, 0.03, 0.1, 0.3]}, "density": [0.2, 0.6], "epochs": 1.0},
    )
    said: list[str] = []
    made = guidance_of(asked, None, tmp_path, 0, "cpu", said.append)
    assert made is not None
    assert made.seconds > 0
    assert said[0].startswith("making a map first")
    assert made.chart.knobs == ["learning_rate"]
    context = context_of(asked, "cpu", tmp_path)
    whole = plan(asked, context, made)
    save_plan(whole, tmp_path)
    again = load_plan(asked, context, tmp_path)
    assert again is not None
    assert again.map_guidance is not None
    assert again.map_guidance.seconds == made.seconds
    assert again.ladder.stretches == whole.ladder.stretches
    assert (
        load_plan(asked.model_copy(update={"trials": 99}), context, tmp_path) is not None
    )  # more trials: the same search
    other = spec(model={"name": "mlp", "widths": [31]})
    with pytest.raises(UserError, match=r"made with another \[model\]: .*widths = \[32, 32\], not \[31\]"):
        open_guidance(tmp_path / "map", other.data, other.model)
    with pytest.raises(UserError, match=r"another \[data\]: train = 200, not 300"):
        open_guidance(tmp_path / "map", Named(**{**asked.data.model_dump(), "train": 300}), asked.model)
    with pytest.raises(UserError, match="no such file or folder"):
        open_guidance(tmp_path / "nowhere", asked.data, asked.model)


def test_a_map_decides_by_validation_errors_whatever_the_test_split_says(guide: MapGuidance, tmp_path: Path) -> None:
    data = world()
    wrong = {"test_error": 1 - data["test_error"], "dense_test_error": 1 - data["dense_test_error"]}
    seen = {"val_error": data["test_error"], "dense_val_error": data["dense_test_error"]}
    for name, more in (("both", {**wrong, **seen}), ("test", {})):
        save_grid(data.assign(more), tmp_path / f"{name}.nc")
    asked = spec()
    found = open_guidance(tmp_path / "both.nc", asked.data, asked.model)
    judged = [
        dataclasses.replace(trust, reason=trust.reason.replace("test", "validation")) for trust in guide.densities()
    ]
    assert found.densities() == judged
    assert found.chart.rungs() == RegimeMap(read_grid(tmp_path / "both.nc")).rungs()  # as `regimes advise --rungs` says
    assert found.deployment(Recipe(learning_rate=0.05)) == guide.deployment(Recipe(learning_rate=0.05))
    blind = open_guidance(tmp_path / "test.nc", asked.data, asked.model)
    assert "no validation errors" in blind.deployment(Recipe(learning_rate=0.05))["reason"]
    assert all("tau" not in each.reason for each in blind.densities())


def test_a_map_with_a_knob_outside_recipes_is_refused() -> None:
    strange = world().rename(learning_rate="noise")
    strange["noise"].attrs["hotter"] = "larger"
    with pytest.raises(UserError, match=r"map strange\.nc: its knob 'noise' is not in a recipe"):
        MapGuidance(RegimeMap(strange), "strange.nc").map_coordinates(Recipe())


def test_a_map_is_made_only_where_the_file_asks_for_one(tmp_path: Path) -> None:
    def nothing(text: str) -> None:
        raise AssertionError(text)

    bare = {"densities": None}
    for asked in (
        spec(ladder=bare),
        spec(ladder=bare, map={"make": False, "epochs": 1.0}),
        spec(ladder={"densities": [0.1]}, map={"make": True}),
        spec(ladder={**bare, "images": [0.5]}, map={"make": True}),
    ):
        assert guidance_of(asked, None, tmp_path, 0, "cpu", nothing) is None
    assert spec(map={"make": True}).map.is_wanted
    assert spec(map={"density": [0.2]}).map.is_wanted
