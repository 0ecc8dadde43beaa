"""Cells that raise or diverge, workers that die: a result is kept, the rest goes on."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import done

import regimes
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment import executors
from regimes.experiment.run import Result, run
from regimes.experiment.stages import retrain
from regimes.experiment.store import Store
from regimes.models.mlp import MLP

Sweep = dict[str, Any]
Run = Callable[..., Result]
IN_WORKER = "regimes.experiment.worker" in sys.orig_argv


def broken_mlp(input_shape: tuple[int, ...], classes: int) -> MLP:
    """A model that raises at its third forward pass in a row of training under a mask of density below a half."""
    model = MLP(input_shape, classes, [12])

    def hook(module: torch.nn.Module, inputs: Any) -> None:
        if module.training and float((module.body[1].weight == 0).double().mean()) > 0.5:  # type: ignore[index,union-attr]
            raise ValueError("too thin for me\nand a second line")

    model.register_forward_pre_hook(hook)
    return model


def test_a_cell_that_raises_keeps_its_error_and_the_rest_goes_on(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"] = {"name": "test_failures:broken_mlp"}
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
    lane = retrain._lane

    def unlucky(stage: retrain.Retrain, *rest: Any) -> Any:
        if stage.seed == 1:
            raise ValueError("unlucky")
        return lane(stage, *rest)

    monkeypatch.setattr(retrain, "_lane", unlucky)
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
    tiny["model"] = {"name": "test_failures:broken_mlp"}
    run_tiny(tiny)
    count.clear()
    assert len(run_tiny(tiny).progress.failed) == 4
    assert not count
    monkeypatch.setattr(MLP, "register_forward_pre_hook", lambda *_: None)
    mended = run_tiny(tiny, retry_failed=True)
    assert not mended.progress.failed
    assert not mended.progress.todo


def test_fail_fast_stops_at_the_first(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"] = {"name": "test_failures:broken_mlp"}
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
        if len(kills) < 4 and worker.fleet is not None and worker.handle.process.poll() is None:
            kills.append(worker.handle.process.pid)
            worker.handle.process.kill()
        handle(self, worker, event)

    expected = done(Store(run_tiny(tiny, "calm", engine="stacked").folder))
    monkeypatch.setattr(executors.Supervisor, "_handle", murderous)
    result = run_tiny(tiny, "murdered", workers=2, engine="stacked")
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
    tiny["model"] = {"name": "test_failures:suicidal_mlp"}
    result = run_tiny(tiny, workers=1)
    assert all("worker process died 3 times" in error for error in result.progress.failed.values())
    assert len(result.progress.failed) == 2


def test_two_runs_on_one_folder_do_each_other_no_harm(tiny: Sweep, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sweep = resolve_sweep(tiny)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run(sweep, tmp_path / "both", workers=1, engine="stacked"), range(2)))
    assert all(not result.progress.todo and not result.progress.damaged for result in results)
    alone = run(sweep, tmp_path / "alone", workers=0, engine="stacked")
    assert done(Store(tmp_path / "both")) == done(Store(alone.folder))


def test_a_failure_while_weights_are_made_again_is_kept(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regimes.experiment.clean import clean
    from regimes.training import train as training

    result = run_tiny(tiny)
    clean(result.stages, result.progress, Store(result.folder))
    tiny["load"]["density"].append(0.4)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_lockstep", lambda *_: 1 / 0)
        broken = run_tiny(tiny)
    assert set(broken.progress.failed.values()) == {"ZeroDivisionError: division by zero"}
    assert len(broken.progress.failed) == 2  # the two snapshots
    assert not broken.progress.todo
    assert not run_tiny(tiny, retry_failed=True).progress.todo
