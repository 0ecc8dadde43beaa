"""Replays of searches for pruned networks on a made-up table: what is seen, what it costs, how it is scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from regimes.research.hpo_benchmark.compare_pruned import compare_pruned, methods_of
from regimes.research.hpo_benchmark.pruned_table import assemble_pruned, write_pruned
from regimes.research.hpo_benchmark.recordings import PrunedDesign, Recording
from regimes.research.hpo_benchmark.replay_pruned import (
    CellPool,
    Mark,
    PrunedMethod,
    PrunedTable,
    curve,
    replay,
    time_to,
)

DESIGN = PrunedDesign(32, (0.1, 0.3, 0.8), (0.5, 1.0))
SPEC = {
    "data": {"name": "synthetic", "shape": [8], "train": 200, "test": 60},
    "model": {"name": "mlp", "widths": [16]},
    "recipe": {"epochs": 10, "batch_size": 32},
    "space": {"learning_rate": {"low": 0.01, "high": 1.0, "log": True}, "batch_size": [16, 32]},
}
SECONDS = {
    "dense": {"16": {"alone": 8.0, "8": 3.0}, "32": {"alone": 4.0, "8": 2.0}},
    "retrain": {"alone": 4.0, "8": 1.0},
    "judged": 0.1,
    "evaluated": 0.2,
    "prune": 0.05,
    "lmc": 0.5,
    "cka": 0.1,
    "hessian_trace": 0.3,
}
FACTS = {
    "spec": SPEC,
    "engine": {"engine": "stacked", "lanes": 8, "reason": ""},
    "seconds": SECONDS,
    "classes": 10,
    "chance_error": 0.9,
}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    """A table with errors that depend on the rate and the density, with a little noise; one setting diverged."""
    random = np.random.default_rng(0)
    settings = [
        {"learning_rate": float(f"{10 ** random.uniform(-2, 0):.6g}"), "batch_size": int(random.choice([16, 32]))}
        for _ in range(DESIGN.settings)
    ]
    values: dict[str, dict[tuple[int, ...], float | None]] = {"val_error": {}, "test_error": {}, "train_error": {}}
    values |= {"lmc": {}, "cka": {}}
    for number, setting in enumerate(settings):
        for snapshot in range(2):
            for place, density in enumerate(DESIGN.densities):
                best = -1 - 0.5 * math.log10(density)
                error = (
                    0.2 + 0.02 / density + 0.1 * (math.log10(setting["learning_rate"]) - best) ** 2 - 0.01 * snapshot
                )
                if number != 3:
                    values["lmc"][number, 0, snapshot, place, 0] = -0.01 / density
                    values["cka"][number, 0, snapshot, place, 0] = 0.8
                for copy in range(2):
                    at = (number, 0, snapshot, place, copy)
                    noise = 0.01 * random.standard_normal(2)
                    values["val_error"][at] = None if number == 3 else error + noise[0]
                    values["train_error"][at] = None if number == 3 else error / 2
                    values["test_error"][at] = None if number == 3 else error + noise[1]
    return assemble_pruned(DESIGN, 10, settings, values, FACTS)


def test_a_search_sees_one_copy_and_is_tested_on_the_other(data: xr.Dataset) -> None:
    table = PrunedTable(data, (0, 1, 2))
    seen, tested = table.seen(5), table.tested(5)
    val, test = table.val, data["test_error"].isel(dense_seed=0).values
    copies = (seen == val[..., 1]).astype(int)
    assert (np.take_along_axis(val, copies[..., None], 3)[..., 0] == seen)[[0, 1, 2]].all()
    other = np.take_along_axis(test, 1 - copies[..., None], 3)[..., 0]
    sound = np.isfinite(seen)
    assert np.allclose(tested[sound], other[sound])
    assert (tested[3] == 1).all()
    assert (table.seen(6) != seen).any()
    assert table.noise == pytest.approx(0.01, rel=0.4)


@pytest.mark.parametrize("densities", [(1,), (0, 1, 2)])
def test_every_method_tries_recorded_cells_once(data: xr.Dataset, densities: tuple[int, ...]) -> None:
    table = PrunedTable(data, densities)
    for method in methods_of(len(densities)):
        marks, seconds = replay(table, method, 24, 0)
        cells = [(each.point, each.density) for each in marks]
        assert len(cells) == 24
        assert len(set(cells)) == 24
        assert all(0 <= each.density < len(densities) for each in marks)
        assert [each.seconds for each in marks] == sorted(each.seconds for each in marks)
        assert seconds >= marks[-1].seconds
        values = table.seen(0)
        for each in marks:
            expected = values[(*each.point, densities[each.density])]
            assert each.value == (expected if math.isfinite(expected) else 1.0)


def test_seconds_of_independent_and_of_shared_trials(data: xr.Dataset) -> None:
    table = PrunedTable(data, (0, 1, 2))
    alone, _ = replay(table, PrunedMethod("", "", "random"), 12, 0)
    asking = 0.5  # more than the sampler's own time
    expected = 0.0
    for each in alone:
        setting = table.settings[each.point]
        expected += SECONDS["dense"][str(setting["batch_size"])]["alone"] * setting["epochs"] / 10 + 4.0 + 0.15
    assert expected <= alone[-1].seconds <= expected + asking * 12
    shared, _ = replay(table, PrunedMethod("", "", "random", True, 12), 12, 0)
    trainings = {each.point for each in shared}
    assert len(trainings) == 4
    retrained = 8 * 1.0 + 4 * 4.0  # a fleet of eight, and four more by themselves or in a second one
    dense = sum(
        SECONDS["dense"][str(table.settings[each]["batch_size"])]["alone"] * table.settings[each]["epochs"] / 10
        for each in trainings
    )
    assert shared[-1].seconds <= dense + min(retrained, 16.0) + 12 * 0.15 + asking * 12


def test_a_fleet_is_used_where_it_is_faster(data: xr.Dataset) -> None:
    table = PrunedTable(data, (0,))
    one = table.retrain_seconds(1) - 0.15
    assert one == pytest.approx(4.0)
    assert table.retrain_seconds(3) - 3 * 0.15 == pytest.approx(8.0)  # eight lanes, five of them idle
    assert table.retrain_seconds(8) - 8 * 0.15 == pytest.approx(8.0)
    assert table.retrain_seconds(9) - 9 * 0.15 == pytest.approx(12.0)
    assert table.dense_seconds(16, 2, 0.5) == pytest.approx(8.0)


def test_the_curve_of_a_front_is_the_area_under_its_incumbents(data: xr.Dataset) -> None:
    table = PrunedTable(data, (0, 1, 2))
    tested = np.zeros((DESIGN.settings, 2, 3))
    tested[0, 0], tested[1, 0] = [0.5, 0.4, 0.3], [0.45, 0.5, 0.2]
    marks = [
        Mark(1.0, (0, 0), 1, 0.42),
        Mark(2.0, (1, 0), 0, 0.41),  # sparser and better: serves the next density, too
        Mark(3.0, (1, 0), 2, 0.25),
        Mark(4.0, (0, 0), 2, 0.30),  # no improvement
    ]
    widths = np.diff(np.log([0.1, 0.3, 0.8]))
    widths = np.append(widths, widths.mean())
    widths /= widths.sum()
    found = curve(marks, tested, table)
    assert [each[0] for each in found] == [1.0, 2.0, 3.0]
    areas = [np.dot(widths, each) for each in ([1.0, 0.4, 0.4], [0.45, 0.45, 0.45], [0.45, 0.45, 0.2])]
    assert [each[1] for each in found] == pytest.approx(areas)
    assert time_to(found, 0.4) == 3.0
    assert time_to([(1.0, 0.2), (2.0, 0.5), (3.0, 0.3)], 0.35) == 3.0
    assert time_to([(1.0, 0.2), (2.0, 0.5)], 0.35) == math.inf


def test_the_pool_gives_the_nearest_cell_that_is_left(data: xr.Dataset) -> None:
    import optuna

    table = PrunedTable(data, (0, 1))
    pool, study = CellPool(table), optuna.create_study(directions=["minimize"] * 2)
    asked = {**table.settings[5, 0], "density": 0.3}
    assert pool.nearest(asked, study) == asked
    study.enqueue_trial(asked)
    study.ask(pool.space)
    assert pool.nearest(asked, study) != asked


def test_the_page_compares_all_problems(data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.research.hpo_benchmark.compare_pruned.SINGLE_TRIALS", 12)
    monkeypatch.setattr("regimes.research.hpo_benchmark.compare_pruned.FRONT_TRIALS", 24)
    write_pruned(data, tmp_path / "pruned.nc")
    made = Recording("small", "", "clusters", 32, (), DESIGN, ())
    page = compare_pruned(made, tmp_path / "pruned.nc", 2, lambda line: None)
    assert [each.title for each in page.tables] == [
        "Density 0.1",
        "Density 0.3",
        "Density 0.8",
        "Front over densities 0.1, 0.3, 0.8",
    ]
    assert "the map, compared with the same engine without it" in page.text()
    assert json.loads(page.json())
    page.write(tmp_path, "command")
    assert (tmp_path / "compare-pruned.png").exists()
