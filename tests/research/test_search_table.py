"""Recording with real training, resuming it, the benchmark on it, and live searches."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search_tables as tables

import regimes.research.hpo_benchmark.bench as bench
from regimes.config.hpo_file import read_hpo, resolve_hpo
from regimes.config.keys import seed_of
from regimes.errors import UserError
from regimes.hpo.plan import context_of
from regimes.landscape.error import error_and_loss
from regimes.research.hpo_benchmark import fidelity_by_regime
from regimes.research.hpo_benchmark.compare import compare
from regimes.research.hpo_benchmark.fidelities import FULL, RecordedFidelity, as_facts, from_facts
from regimes.research.hpo_benchmark.live_check import LIVE_METHODS, live_tables, run_live
from regimes.research.hpo_benchmark.methods import AS_FAST, BASE, METHODS
from regimes.research.hpo_benchmark.methods import compared as methods_compared
from regimes.research.hpo_benchmark.record import (
    ExistingRows,
    recipes_of,
    record,
    row_of,
    settings,
    tasks_of,
    train_task,
)
from regimes.research.hpo_benchmark.record_study import record_full
from regimes.research.hpo_benchmark.recordings import PrunedDesign, Recording
from regimes.research.hpo_benchmark.run_method import replay
from regimes.research.hpo_benchmark.scores import Scores
from regimes.research.hpo_benchmark.table import open_table, write_table
from regimes.research.hpo_benchmark.timing import time_fidelities
from regimes.research.speed.harness import BenchOptions
from regimes.training.train import train

RUNNABLE = [
    method for method in METHODS if all(name.removeprefix(AS_FAST) in tables.SECONDS for name in method.fidelities)
]


@pytest.fixture
def few() -> tuple[Any, Any, list[Any]]:
    """A small search, its context, and some numbered recipes."""
    spec = resolve_hpo({**tables.SPEC, "recipe": {"epochs": 2}}, "few")
    return spec, context_of(spec, "cpu", Path()), recipes_of(spec, settings(spec.space, 8))


@pytest.mark.parametrize("name", ["narrowed 0.06", FULL, "quarter of the images"])
def test_a_recorded_training_is_that_training(name: str, few: tuple[Any, Any, list[Any]]) -> None:
    _, context, recipes = few
    fidelity, built = tables.rungs()[name]
    (task, *_) = tasks_of(fidelity, built, as_facts(fidelity, built), recipes, 3)
    rows = train_task(task, context)
    assert len(rows) == len(task.numbers) > 1
    for number, recipe, row in list(zip(task.numbers, task.recipes, rows, strict=True))[:2]:
        _, same = from_facts(task.facts, context, recipe)
        role = ("proof", name, number, 3)
        model = same.context.new_model(seed_of("init", *role))
        once = recipe.model_copy(update={"last": 1})
        losses = []
        for snapshot in train(model, same.context.data, once, role, [1, 2], evaluate_all=False):
            judged = same.context.model_with(snapshot.weights)
            losses.append(error_and_loss(judged, context.data.val, recipe.loss_fn)[1].value)
        assert row["loss"] == pytest.approx(losses, rel=1e-3)
        assert all(calibrated <= loss + 1e-6 for calibrated, loss in zip(row["calibrated"], row["loss"], strict=True))
        assert ("test_error" in row) == (name == FULL)
        if name == FULL:
            assert row["test_error"] == error_and_loss(judged, context.data.test, recipe.loss_fn)[0].value


def test_a_recording_goes_on_where_it_was_cut(few: tuple[Any, Any, list[Any]], tmp_path: Path) -> None:
    spec, context, recipes = few
    fidelity, built = tables.rungs()[FULL]
    tasks = list(tasks_of(fidelity, built, as_facts(fidelity, built), recipes, 0))
    record(spec, tmp_path, tasks[:1], 1, lambda text: None)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("records/*/*.json")}
    assert len(files) == len(tasks[0].numbers)
    record(spec, tmp_path, tasks, 2, lambda text: None)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    for task in tasks:
        for place in range(len(task.numbers)):
            row = row_of(tmp_path, task, place, context)
            assert row is not None
            assert len(row["loss"]) == 2
    said: list[str] = []
    record(spec, tmp_path, tasks, 2, said.append)
    assert said == []  # nothing is left


def test_a_recording_that_stands_is_added_to(tmp_path: Path) -> None:
    """Its rows are those that were recorded; a fidelity, a seed or a setting that is missing is told apart."""
    found = settings(tables.world()[0].space, tables.COUNT)
    assert (
        ExistingRows.of(tmp_path / "recording.nc", found).rows(tables.rungs()[FULL][0], [0], 0) is None
    )  # there is none
    write_table(tables.recorded(), tmp_path / "recording.nc")
    standing = ExistingRows.of(tmp_path / "recording.nc", found)
    for name, seed in ((FULL, 3), ("narrowed 0.06", 1), ("narrowed 0.12, short", 0)):
        fidelity, built = tables.rungs()[name]
        rows = standing.rows(fidelity, range(tables.COUNT), seed)
        assert rows is not None
        for number, row in rows.items():
            diverged = found[number]["learning_rate"] > 0.9
            losses = [tables.loss_of(found[number], name, seed, epoch) for epoch in range(1, built.epochs + 1)]
            told = [None] * built.epochs if diverged else pytest.approx(losses, rel=1e-6)
            assert row["loss"][: built.epochs] == told
            assert ("test_error" in row) == (name == FULL and not diverged)
    once = tables.rungs()["narrowed 0.12"][0]
    assert standing.rows(once, [0], 1) is None  # one seed
    assert standing.rows(dataclasses.replace(once, name="narrowed 0.5"), [0], 0) is None
    assert [each["course"]["name"] for each in standing.fidelities] == list(tables.SECONDS)
    assert standing.seconds(["narrowed 0.06"]) is not None
    assert standing.seconds(["narrowed 0.06", "narrowed 0.5"]) is None
    with pytest.raises(UserError, match="a recording of other settings"):
        ExistingRows.of(tmp_path / "recording.nc", found[1:])


def test_the_bench_on_a_known_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SEARCHES", 6)
    monkeypatch.setattr("regimes.research.hpo_benchmark.ranking_quality.BOOTSTRAP_DRAWS", 20)
    monkeypatch.setattr("regimes.research.hpo_benchmark.optimum_shift.BOOTSTRAP_DRAWS", 5)
    write_table(tables.recorded(), tmp_path / "recording.nc")
    found = bench.bench(BenchOptions(), lambda text: None, tmp_path / "recording.nc")
    files = found.write(tmp_path / "out", "python -m regimes.research bench hpo")
    assert {path.name for path in files} >= {"hpo.md", "hpo.json", "best-so-far.png", "fidelity.svg"}
    methods = json.loads(found.json())["sheets"][0]["facts"]
    names = [each["arm"] for each in methods]
    assert names == [method.name for method in RUNNABLE if not method.uses_map]  # no map was recorded
    base = methods[names.index(BASE)]
    target, page = base["mean_error"] + tables.table().seed_noise(), (tmp_path / "out/hpo.md").read_text()
    assert f"{100 * target:.2f} %" in page
    for asked in ("What does it save?", "Compared with Optuna's stoppers?", "Does pruning matter, or only width?"):
        assert f"**{asked}**" in page
    for each in methods:
        assert each["searches"] == 6
        times, seconds = each["quartiles"]["times"], each["quartiles"]["seconds"]
        assert all(time is None or time <= seconds[-1] + 1e-6 for time in times)
    again = bench.bench(BenchOptions(), lambda text: None, tmp_path / "recording.nc")
    assert again.json() == found.json()


def test_proxies_over_a_map() -> None:
    class Chart:
        def regimes(self, density: float, at: dict[str, float]) -> dict[str, float]:
            return {"I": 0.7, "II-A": 0.3} if at["learning_rate"] < 0.03 else {"I": 0.1, "II-A": 0.9}

    class Map:
        chart = Chart()

        def densities(self) -> list[Any]:
            return []

    found = fidelity_by_regime.map_bins(tables.table(), Map())  # type: ignore[arg-type]
    assert len(found) == 2 * fidelity_by_regime.BINS
    assert all(each.less.low <= each.tau - each.again <= each.less.high for each in found)
    assert fidelity_by_regime.by_regime(found)["I"][0] + fidelity_by_regime.by_regime(found)["II-A"][0] == len(found)
    assert found[0].regime == "I"
    assert found[-1].regime == "II-A"
    rates = [each["learning_rate"] for each in tables.table().settings]
    assert sum(sum(each.low <= rate < each.high for rate in rates) for each in found) == 2 * tables.COUNT
    table = fidelity_by_regime.regime_table(found, Map())  # type: ignore[arg-type]
    assert len(table.rows) == 1 + len(found)
    assert fidelity_by_regime.regime_figure(found).axes[0].get_ylabel() == "density of the proxy"


def test_live_searches_are_kept_and_shown_beside_their_replays(tmp_path: Path) -> None:
    setup = tables.benchmark_setup()
    spec = resolve_hpo({**tables.SPEC, "recipe": {"epochs": 2}, "trials": 6, "batch": 3}, "live")
    small = type(setup)(setup.table, spec, setup.fidelities, None, 6)
    run_live(small, tmp_path, lambda text: None, (0,))
    kept = json.loads((tmp_path / "live.json").read_text())
    assert [each["arm"] for each in kept] == list(LIVE_METHODS)
    assert all(each["marks"] and math.isfinite(each["seconds"]) for each in kept)
    assert len(kept[0]["marks"]) == 6
    before = (tmp_path / "live.json").stat().st_mtime_ns
    run_live(small, tmp_path, lambda text: None, (0,))
    assert (tmp_path / "live.json").stat().st_mtime_ns == before
    methods = [method for method in RUNNABLE if method.name in LIVE_METHODS]
    replays = {method.name: [replay(method, setup, seed) for seed in range(2)] for method in methods}
    seen = [tables.table().seen_seeds(seed)[0] for seed in range(2)]
    scores = Scores.of(replays, [tables.table().expected_test_errors(each) for each in seen], 0.01)
    (table,) = live_tables(tmp_path, scores)
    assert [row[0] for row in table.rows[1:]] == [f"{name} (0)" for name in LIVE_METHODS]
    part = kept[1]["seconds"] / kept[0]["seconds"]  # of what the first method took, searched with the same number
    assert [row[3] for row in table.rows[1:3]] == ["1.00", f"{part:.2f}"]
    (tmp_path / "live.json").write_text("[")
    with pytest.raises(UserError, match="not a list of live searches"):
        live_tables(tmp_path, scores)
    assert live_tables(tmp_path / "none", scores) == []


def test_a_recording_of_another_search_is_made_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks smaller in an option are proxies; the compared methods run on any recording; recorded rows stay."""
    monkeypatch.setattr("regimes.research.hpo_benchmark.timing.ROUNDS", 1)
    monkeypatch.setattr("regimes.research.hpo_benchmark.ranking_quality.BOOTSTRAP_DRAWS", 20)
    monkeypatch.setattr(bench, "_SETUP", [])
    for module in ("record", "bench"):
        monkeypatch.setattr(f"regimes.research.hpo_benchmark.{module}.ProcessPoolExecutor", InThisProcess)
        monkeypatch.setattr(f"regimes.research.hpo_benchmark.{module}.exit_with_parent", lambda parent: None)
    lines = (f"{name} = {json.dumps(each)}" for name, each in tables.SPEC["data"].items())
    (tmp_path / "search.toml").write_text(
        "trials = 6\nbatch = 6\n[data]\n" + "\n".join(lines) + '\n[model]\nname = "mlp"\nwidths = [32, 32]\n'
        "[recipe]\nepochs = 2\n[space]\nbatch_size = [32, 64]\nlearning_rate = { low = 0.001, high = 1.0, log = true }"
    )
    fidelities = (
        RecordedFidelity(FULL, seeds=2),
        RecordedFidelity("widths 8", size={"widths": [8, 8]}),
        RecordedFidelity("quarter of the images", images=0.25),
        RecordedFidelity("half of the images", images=0.5),
    )
    design = PrunedDesign(2, (0.5,))
    made = Recording("small", str(tmp_path / "search.toml"), "clusters", 16, fidelities, design, ("widths 8",))
    page = record_full(made, tmp_path / "out", tmp_path / "runs", lambda text: None)
    assert "16 settings of batch size, learning rate" in page.paragraphs[0]
    assert "Processor time: 40 trainings of the full network" in page.paragraphs[1]  # 16 x 2 + 4 x 2
    table = open_table(tmp_path / "out/recording.nc")
    known = (~np.isnan(table.arrays["loss"][..., -1])).sum(axis=1)  # (fidelities, seeds)
    assert known.tolist() == [[16, 16, 4, 4], *[[16, 0, 0, 0]] * 3]
    place, context = table.positions["widths 8"], context_of(read_hpo(made.file), "cpu", tmp_path)
    fidelity, built = from_facts(table.facts["courses"][place], context, read_hpo(made.file).recipe)
    assert {len(each) for each in built.context.new_model(0).parameters()} == {8, 4}  # two layers, four classes
    assert not fidelity.is_full
    monkeypatch.setattr("regimes.research.hpo_benchmark.record_study.record", _not_again)
    record_full(made, tmp_path / "out", tmp_path / "other", lambda text: None)
    compared = compare(made, tmp_path / "out/recording.nc", 4, lambda text: None)
    names = [each["arm"] for each in compared.tables[0].facts]
    assert names == [method.name for method in methods_compared(made.proxies)]
    assert len(names) == 13
    assert {"ours", "ours, widths 8", "one epoch, keep the best", "GP, full network"} < set(names)
    compared.write(tmp_path / "out", "python -m regimes.research hpo_benchmark compare small")
    assert (tmp_path / "out/compare-best-so-far.png").is_file()


class InThisProcess:
    """A pool without processes, which take longer to start than to work here."""

    def __init__(self, *arguments: Any, initializer: Any, initargs: tuple[Any, ...], **more: Any) -> None:
        initializer(*initargs)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *arguments: object) -> None:
        pass

    def map(self, function: Any, items: Any) -> Any:
        return map(function, items)


def _not_again(*arguments: Any) -> None:
    raise AssertionError("trained again")


def test_seconds_are_of_a_whole_training(few: tuple[Any, Any, list[Any]]) -> None:
    spec, context, _ = few
    fidelities = [as_facts(*tables.rungs()[name]) for name in (FULL, "narrowed 0.06")]
    found = time_fidelities(spec, fidelities, context)
    assert set(found) == {FULL, "narrowed 0.06"}
    for each in found.values():
        assert set(each) == {"32", "64"}
        assert all(seconds > 0 for row in each.values() for seconds in row.values())
    assert all(set(row) == {"alone", "judged"} for row in found[FULL].values())  # the full network is trained alone
    assert all(set(row) == {"alone", "judged", "16", "32"} for row in found["narrowed 0.06"].values())
    assert all(row["alone"] > row["32"] for row in found["narrowed 0.06"].values())
