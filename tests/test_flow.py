"""The experiment as a whole: done once, resumed, grown, the same bits whoever does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import regimes
from regimes.errors import UserError
from regimes.flow import executors, files, retrain, work
from regimes.flow.files import Damaged
from regimes.flow.plan import fleets
from regimes.flow.run import Result, prepare, run
from regimes.flow.store import Store
from regimes.models.mlp import MLP
from regimes.spec.check import resolve

IN_WORKER = "regimes.flow.worker" in sys.orig_argv
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
        assert len(result.progress.blocked) == 2 * 4
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
    """A model that ends the worker it is trained in."""
    model = MLP(input_shape, classes, [4])
    if IN_WORKER:
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
    found = sorted(first.folder.glob(what))
    for index in (0, len(found) // 2):
        damage(found[index], how)
    progress = prepare(resolve(tiny), first.folder).progress
    assert len(progress.damaged) == 2
    assert all(str(found[index]) in " ".join(progress.damaged.values()) for index in (0, len(found) // 2))
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
    removed, freed = clean(result.stages, result.progress, Store(result.folder))
    assert removed == 2 + 4 + 8
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
    assert keys() == keys(measure={**tiny["measure"], "lmc": {"points": 11}})  # a default, written out
    assert keys(model={"name": "mlp"}) == keys(model={"name": "mlp", "widths": [128, 128], "dropout": 0.0})
    assert keys() != keys(data={**tiny["data"], "seed": 1})
    assert keys() != keys(model={**tiny["model"], "widths": [12, 13]})
    for field, value in {"momentum": 0.8, "gamma": 0.2, "last": 2, "label_smoothing": 0.1, "nesterov": True}.items():
        assert not keys() & keys(recipe={**tiny["recipe"], field: value}), field


def test_leftovers_of_killed_writers_are_removed(tiny: Sweep, run_tiny: Run) -> None:
    folder = run_tiny(tiny).folder
    killed, elsewhere = (folder / "records" / f".{host}.999999999.abc.tmp" for host in (files._HOST, "anotherhost"))
    alive = folder / "records" / f".{files._HOST}.{os.getpid()}.abc.tmp"
    for path in (killed, elsewhere, alive):
        path.write_text("half a rec")
    run_tiny(tiny)
    assert not killed.exists()
    assert elsewhere.exists()
    assert alive.exists()


# -- a user's own code ------------------------------------------------------------------------------------------------

OWN = """
import random
import numpy as np
import torch
from torch import nn
from regimes import Dataset
from part import act

def data(classes=2, seeded=True):
    x = (np.random.default_rng(0) if seeded else np.random.default_rng()).standard_normal((160, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    made = Dataset.from_arrays(train=(x[:120], y[:120]), test=(x[120:], y[120:]), title="own")
    return Dataset(made.train, made.val, made.test, classes, "own")

def net(input_shape, classes):
    model = nn.Sequential(nn.Linear(4, 8), act(), nn.Linear(8, classes))
    with torch.no_grad():
        model[0].weight.mul_(np.random.rand() + random.random())
    return model

def tied(input_shape, classes):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, classes))
    model[2].weight = model[0].weight
    return model

def wide(input_shape, classes):
    return nn.Linear(4, classes + 1)

def everything(scores, keep):
    return {name: score.numel() for name, score in scores.items()}

def quitting(candidate):
    raise SystemExit(0)
"""


@pytest.fixture
def own(tmp_path: Path, tiny: Sweep, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a user's folder: own.py, part.py and a sweep file that names them, under module names of its own."""
    from conftest import write_toml

    numbers = iter(range(99))

    def make(**change: Any) -> Path:
        number = f"{abs(hash(str(tmp_path)))}_{next(numbers)}"
        folder = tmp_path / f"user{number}"
        folder.mkdir()
        (folder / f"own{number}.py").write_text(OWN.replace("from part", f"from part{number}"))
        (folder / f"part{number}.py").write_text("from torch.nn import ReLU as act\n")
        sweep = {**tiny, "data": {"name": f"own{number}:data"}, "model": {"name": f"own{number}:net"}}
        sweep["recipe"] = {"epochs": 4, "batch_size": 16, "augment": "none"}
        for table, values in change.items():
            values = {
                key: str(each).replace("own:", f"own{number}:") if "own:" in str(each) else each
                for key, each in values.items()
            }
            sweep[table] = {**sweep[table], **values}
        return write_toml(folder / "s.toml", sweep)

    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return make


def test_a_model_that_draws_from_numpy_or_random_has_the_same_bits_too(
    own: Callable[..., Path], tmp_path: Path
) -> None:
    file = own()
    results = [done(Store(run(file, tmp_path / f"r{workers}", workers=workers).folder)) for workers in (0, 2)]
    assert results[0] == results[1]


def test_a_changed_file_that_a_users_module_imports_changes_the_keys(own: Callable[..., Path]) -> None:
    from regimes.sources import fingerprint, imported_sources

    file = own()
    module = next(file.parent.glob("own*.py"))
    before = fingerprint(imported_sources(str(module)))
    assert len(imported_sources(str(module))) == 2
    part = next(file.parent.glob("part*.py"))
    part.write_text("from torch.nn import Tanh as act\n")
    assert fingerprint(imported_sources(str(module))) != before


def test_a_module_edited_since_its_import_is_refused(own: Callable[..., Path], tmp_path: Path) -> None:
    file = own()
    prepare(file, tmp_path / "r")
    next(file.parent.glob("part*.py")).write_text("from torch.nn import Tanh as act\n")
    with pytest.raises(UserError, match="changed since it was imported; restart Python"):
        prepare(file, tmp_path / "r")


def test_the_number_of_classes_is_part_of_the_key(own: Callable[..., Path], tmp_path: Path) -> None:
    keys = [{stage.key for stage in prepare(own(data={"classes": n}), tmp_path / "r").stages} for n in (2, 3)]
    assert not keys[0] & keys[1]


def test_data_that_differ_each_time_are_noticed(own: Callable[..., Path], tmp_path: Path) -> None:
    result = run(own(data={"seeded": False}), tmp_path / "r", workers=1)
    assert all("is not the same each time it is loaded" in error for error in result.progress.failed.values())
    assert result.progress.failed


def test_tied_weights_are_pruned_as_one(own: Callable[..., Path], tmp_path: Path) -> None:
    assert not run(own(model={"name": "own:tied"}), tmp_path / "r", workers=0).progress.failed


def test_a_model_with_wrong_outputs_is_said_before_any_work(own: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"for two inputs it returned \(2, 3\); logits of shape \(2, 2\)"):
        prepare(own(model={"name": "own:wide"}), tmp_path / "r")


def test_an_allocation_that_keeps_another_density_fails_in_words(own: Callable[..., Path], tmp_path: Path) -> None:
    result = run(own(load={"allocation": "own:everything"}), tmp_path / "r", workers=0)
    assert all("density 0." in error and "asks for" in error for error in result.progress.failed.values())
    assert len(result.progress.failed) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_code_that_quits_is_a_failure(own: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    result = run(own(load={"pruner": "own:quitting"}), tmp_path / "r", workers=workers)
    assert set(result.progress.failed.values()) == {"SystemExit: 0"}


def reading_mlp(input_shape: tuple[int, ...], classes: int) -> MLP:
    """A model whose user starts children: one that reads standard input, one that outlives a killed worker."""
    subprocess.run(["cat"], check=True, capture_output=True)
    if os.environ.get("REGIMES_TEST_FORK") and IN_WORKER:
        subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), 9)
    return MLP(input_shape, classes, [4])


def test_children_of_a_users_code_stop_nobody(tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    before = os.dup(0)
    os.dup2(nothing, 0)  # pytest's own standard input may be anything
    try:
        tiny["model"] = {"name": "test_flow:reading_mlp"}
        assert not run_tiny(tiny, workers=1).progress.todo
        monkeypatch.setenv("REGIMES_TEST_FORK", "1")
        result = run_tiny(tiny, "dying", workers=1)
        assert all("died 3 times" in error for error in result.progress.failed.values())
    finally:
        os.dup2(before, 0)


def test_a_failure_while_weights_are_made_again_is_kept(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regimes.flow.clean import clean
    from regimes.training import train as training

    result = run_tiny(tiny)
    clean(result.stages, result.progress, Store(result.folder))
    tiny["load"]["density"].append(0.4)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_epoch", lambda *_: 1 / 0)
        broken = run_tiny(tiny)
    assert set(broken.progress.failed.values()) == {"ZeroDivisionError: division by zero"}
    assert len(broken.progress.failed) == 2  # the two snapshots
    assert not broken.progress.todo
    assert not run_tiny(tiny, retry_failed=True).progress.todo


def test_run_json_that_was_removed_does_not_let_numerics_mix(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_tiny(tiny).folder / "run.json").unlink()
    run_tiny(tiny)
    (run_tiny(tiny).folder / "run.json").unlink()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(UserError, match="--allow-mixed"):
        run_tiny(tiny)
