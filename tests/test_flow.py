"""The experiment as a whole: done once, resumed, grown, the same bits whoever does it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import regimes
from regimes.errors import UserError
from regimes.flow import executors, retrain, work
from regimes.flow.plan import fleets
from regimes.flow.run import Result, prepare, run
from regimes.flow.store import Damaged, Store
from regimes.models.mlp import MLP
from regimes.spec.check import resolve

Sweep = dict[str, Any]
Run = Callable[..., Result]


def broken_mlp(input_shape: tuple[int, ...], classes: int) -> MLP:
    """A model that raises at its third forward pass in a row of training under a mask of density below a half."""
    model = MLP(input_shape, classes, [12])

    def hook(module: torch.nn.Module, inputs: Any) -> None:
        if module.training and float((module.body[1].weight == 0).double().mean()) > 0.5:  # type: ignore[index,union-attr]
            raise ValueError("too thin for me\nand a second line")

    model.register_forward_pre_hook(hook)
    return model


def done(store: Store) -> dict[str, Any]:
    """Everything of science in a store: values, histories and weights, not seconds."""
    found = {}
    for path in store.folder.glob("records/*/*.json"):
        key, record = path.stem, store.read(path.stem)
        assert record is not None
        found[key] = (
            record["status"],
            json.dumps(record["values"]),
            json.dumps(record.get("history")),
            record.get("weights"),
        )
    return found


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the stages that are really done, by kind."""
    counts: Counter[str] = Counter()

    def counted(kind: str, do: Callable[..., None]) -> Callable[..., None]:
        def go(fleet: Any, *rest: Any) -> None:
            counts[kind] += len(fleet)
            do(fleet, *rest)

        return go

    monkeypatch.setattr(work, "WORK", {kind: counted(kind, do) for kind, do in work.WORK.items()})
    return counts


def test_a_sweep_is_done_once(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    result = run_tiny(tiny)
    assert not result.progress.todo
    assert count == {"train": 2, "prune": 4, "retrain": 8, "measure": 4 * (2 + 1 + 1)}
    count.clear()
    run_tiny(tiny)
    assert not count


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"load": {"density": [0.2, 0.6, 0.4]}}, {"prune": 2, "retrain": 4, "measure": 8}),
        ({"temperature": {"epochs": [2, 3, 4]}}, {"train": 1, "prune": 2, "retrain": 4, "measure": 8}),
        ({"dense_seeds": 2}, {"train": 2, "prune": 4, "retrain": 8, "measure": 16}),
        ({"retrain_seeds": 3}, {"retrain": 4, "measure": 4 * (1 + 2 + 2)}),
        ({"measure": {"metrics": ["error", "lmc", "cka", "hessian_top"]}}, {"measure": 8}),
        ({"measure": {"metrics": ["error", "lmc", "cka"], "cka": {"on": "logits"}}}, {"measure": 4}),
        ({"retrain": {"epochs": 3}}, {"retrain": 8, "measure": 16}),
        ({"name": "other"}, {}),
    ],
)
def test_growing_a_sweep_does_only_what_is_new(
    tiny: Sweep, run_tiny: Run, count: Counter[str], change: Sweep, expected: dict[str, int]
) -> None:
    first = run_tiny(tiny)
    before = done(Store(first.folder))
    count.clear()
    run_tiny({**tiny, **change})
    assert count == expected
    after = done(Store(first.folder))
    assert {key: after[key] for key in before} == before


def test_snapshots_of_one_training_resume_from_one_another(tiny: Sweep, run_tiny: Run) -> None:
    grown = {**tiny, "temperature": {"epochs": [2, 3, 4]}}
    run_tiny(tiny, "a")
    run_tiny(grown, "a")
    run_tiny(grown, "b")
    stores = [Store(run_tiny(grown, name).folder) for name in "ab"]
    assert done(stores[0]) == done(stores[1])


def test_same_numbers_with_no_one_and_two_workers(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"]["dropout"] = 0.2
    tiny["measure"]["metrics"] = ["error", "lmc", "cka", "hessian_trace", "hessian_top"]
    folders = [run_tiny(tiny, f"w{workers}", workers=workers).folder for workers in (0, 1, 2)]
    results = [done(Store(folder)) for folder in folders]
    assert results[0] == results[1] == results[2]
    records = [regimes.open(folder) for folder in folders]
    xr.testing.assert_identical(records[0], records[2])


@pytest.mark.parametrize("knob", ["batch_size", "learning_rate", "weight_decay", "sam_rho"])
def test_every_knob_makes_networks_of_its_own(tiny: Sweep, run_tiny: Run, knob: str) -> None:
    values = {"batch_size": [16, 64], "learning_rate": [0.01, 0.1], "weight_decay": [0.0, 0.1], "sam_rho": [0.0, 0.5]}
    tiny["temperature"] = {knob: values[knob]}
    record = regimes.open(run_tiny(tiny).folder)
    assert record.sizes[knob] == 2
    assert bool((record.status == 1).all())
    assert not (record.train_loss.isel({knob: 0}) == record.train_loss.isel({knob: 1})).all()


def test_several_knobs_make_a_grid(tiny: Sweep, run_tiny: Run) -> None:
    tiny["temperature"] = {"epochs": [2, 4], "batch_size": [16, 32]}
    result = run_tiny(tiny)
    record = regimes.open(result.folder)
    assert record.lmc.sizes == {"epochs": 2, "batch_size": 2, "density": 2, "dense_seed": 1, "pair": 1}
    assert len({stage.training for stage in result.stages if stage.kind == "train"}) == 2  # type: ignore[attr-defined]


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_cell_that_raises_keeps_its_error_and_the_rest_goes_on(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"] = {"name": "test_flow:broken_mlp"}
    for workers in (0, 2):
        result = run_tiny(tiny, f"w{workers}", workers=workers)
        assert set(result.progress.failed.values()) == {"ValueError: too thin for me"}
        assert len(result.progress.failed) == 4
        assert result.progress.blocked == 2 * 4
        record = regimes.open(result.folder)
        assert (record.status.sel(density=0.2) == 3).all()
        assert (record.status.sel(density=0.6) == 1).all()
        failure = Store(result.folder).failure(next(iter(result.progress.failed)))
        assert failure is not None
        assert "broken_mlp" not in failure["error"]
        assert "too thin for me" in failure["trace"]


def test_one_failed_copy_does_not_stop_what_the_others_allow(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = retrain._trained

    def unlucky(stage: retrain.Retrain, *rest: Any) -> Any:
        if stage.seed == 1:
            raise ValueError("unlucky")
        return trained(stage, *rest)

    monkeypatch.setattr(retrain, "_trained", unlucky)
    result = run_tiny({**tiny, "retrain_seeds": 3})
    assert len(result.progress.failed) == 4
    assert not result.progress.todo
    record = regimes.open(result.folder)
    assert record.cka.sel(pair=1).notnull().all()  # copies 0 and 2
    assert record.cka.sel(pair=[0, 2]).isnull().all()
    assert record.train_error.sel(retrain_seed=[0, 2]).notnull().all()


def test_failed_cells_wait_for_a_retry(
    tiny: Sweep, run_tiny: Run, count: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["model"] = {"name": "test_flow:broken_mlp"}
    run_tiny(tiny)
    count.clear()
    assert len(run_tiny(tiny).progress.failed) == 4
    assert not count
    monkeypatch.setattr(MLP, "register_forward_pre_hook", lambda *_: None)
    mended = run_tiny(tiny, retry_failed=True)
    assert not mended.progress.failed
    assert not mended.progress.todo


def test_fail_fast_stops_at_the_first(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"] = {"name": "test_flow:broken_mlp"}
    result = run_tiny(tiny, fail_fast=True)
    assert len(result.progress.failed) == 1
    assert result.progress.todo


def test_divergence_is_recorded_and_not_a_crash(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"]["batch_norm"] = False
    tiny["temperature"] = {"learning_rate": [0.1, 1e30]}
    result = run_tiny(tiny)
    assert not result.progress.failed
    assert not result.progress.todo
    record = regimes.open(result.folder)
    assert (record.status.sel(learning_rate=1e30) == 2).all()
    assert (record.status.sel(learning_rate=0.1) == 1).all()
    assert record.lmc.sel(learning_rate=1e30).isnull().all()


def test_a_worker_that_dies_is_replaced_and_its_fleet_put_back(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = []
    handle = executors.Supervisor._handle

    def murderous(self: executors.Supervisor, worker: Any, event: Any) -> None:
        if len(kills) < 4 and worker.process.poll() is None:
            kills.append(worker.process.pid)
            worker.process.kill()
        handle(self, worker, event)

    expected = done(Store(run_tiny(tiny, "calm").folder))
    monkeypatch.setattr(executors.Supervisor, "_handle", murderous)
    result = run_tiny(tiny, "murdered", workers=2)
    assert len(kills) == 4
    assert not result.progress.todo
    assert done(Store(result.folder)) == expected


def suicidal_mlp(input_shape: tuple[int, ...], classes: int) -> MLP:
    """A model that ends the process it is trained in."""
    import os

    model = MLP(input_shape, classes, [4])
    model.register_forward_pre_hook(lambda module, _: os._exit(9) if module.training else None)
    return model


def test_a_fleet_that_kills_every_worker_fails_in_words(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"] = {"name": "test_flow:suicidal_mlp"}
    result = run_tiny(tiny, workers=1)
    assert all("worker process died 3 times" in error for error in result.progress.failed.values())
    assert len(result.progress.failed) == 2


# -- files ------------------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(bytes(content[: len(content) // 2]))
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "altered", "emptied"])
@pytest.mark.parametrize("what", ["records/*/*.json", "weights/*/*.safetensors"])
def test_damaged_file_is_named_and_done_again(tiny: Sweep, run_tiny: Run, what: str, how: str) -> None:
    first = run_tiny(tiny)
    before = done(Store(first.folder))
    files = sorted(first.folder.glob(what))
    for index in (0, len(files) // 2):
        damage(files[index], how)
    progress = prepare(resolve(tiny), first.folder).progress
    assert len(progress.damaged) == 2
    assert all(str(files[index]) in " ".join(progress.damaged.values()) for index in (0, len(files) // 2))
    again = run_tiny(tiny)
    assert not again.progress.damaged
    assert not again.progress.todo
    assert done(Store(first.folder)) == before


def test_an_altered_number_is_not_believed(tiny: Sweep, run_tiny: Run) -> None:
    folder = run_tiny(tiny).folder
    path = next(path for path in folder.glob("records/*/*.json") if '"cka":{' in path.read_text())
    text = path.read_text()
    path.write_text(text.replace('"samples":180', '"samples":181'))
    assert path.read_text() != text
    with pytest.raises(Damaged, match="altered"):
        Store(folder).read(path.stem)
    assert int(regimes.open(folder).cka.isnull().sum()) == 1


def test_removed_weights_are_made_again_only_where_needed(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    from regimes.flow.clean import clean

    result = run_tiny(tiny)
    before = done(Store(result.folder))
    files, freed = clean(result.stages, result.progress, Store(result.folder))
    assert files == 2 + 4 + 8
    assert freed > 0
    count.clear()
    run_tiny(tiny)
    assert not count
    tiny["load"]["density"].append(0.4)
    run_tiny(tiny)
    assert count == {"train": 2, "prune": 2, "retrain": 4, "measure": 8}
    after = done(Store(result.folder))
    assert {key: after[key] for key in before} == before


def test_clean_keeps_what_pending_stages_need(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    from regimes.flow.clean import clean

    tiny["model"] = {"name": "test_flow:broken_mlp"}
    result = run_tiny(tiny)
    clean(result.stages, result.progress, Store(result.folder))
    kept = {path.stem for path in result.folder.glob("weights/*/*")}
    thin = [stage for stage in result.stages if stage.kind == "retrain" and stage.at["density"] == 0.2]
    assert kept == {need.key for stage in thin for need in stage.needs}


def test_numerics_that_changed_are_refused_unless_allowed(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(tiny)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(UserError, match=r"began with eager, float32, cpu .*--allow-mixed"):
        run_tiny(tiny)
    assert not run_tiny(tiny, allow_mixed=True).progress.todo


def test_two_runs_on_one_folder_do_each_other_no_harm(tiny: Sweep, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sweep = resolve(tiny)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run(sweep, tmp_path / "both", workers=1), range(2)))
    assert all(not result.progress.todo and not result.progress.damaged for result in results)
    alone = run(sweep, tmp_path / "alone", workers=0)
    assert done(Store(tmp_path / "both")) == done(Store(alone.folder))


def test_fleets_share_what_is_shared_and_know_what_they_need(tiny: Sweep, tmp_path: Path) -> None:
    prepared = prepare(resolve(tiny), tmp_path / "none")
    grouped = fleets(prepared.progress.todo)
    assert Counter(fleet.kind for fleet in grouped) == {"train": 1, "prune": 2, "retrain": 8, "measure": 4}
    assert {stage.key for fleet in grouped for stage in fleet.stages} == {stage.key for stage in prepared.stages}
    assert not grouped[0].needs
    assert not (tmp_path / "none").exists()


def test_keys_cover_the_science_and_nothing_else(tiny: Sweep, tmp_path: Path) -> None:
    def keys(**change: Any) -> set[str]:
        return {stage.key for stage in prepare(resolve({**tiny, **change}), tmp_path / "none").stages}

    assert keys() == keys(name="renamed")
    assert keys() != keys(data={**tiny["data"], "seed": 1})
    assert keys() != keys(model={**tiny["model"], "widths": [12, 13]})
    for field, value in {"momentum": 0.8, "gamma": 0.2, "last": 2, "label_smoothing": 0.1, "nesterov": True}.items():
        assert not keys() & keys(recipe={**tiny["recipe"], field: value}), field


def test_leftovers_of_killed_writers_are_removed(tiny: Sweep, run_tiny: Run) -> None:
    folder = run_tiny(tiny).folder
    left = folder / "records" / ".999999999.abc.tmp"
    left.write_text("half a rec")
    run_tiny(tiny)
    assert not left.exists()
