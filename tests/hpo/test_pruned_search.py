"""Searches for pruned networks: trials are cells of sweeps, nothing is trained twice, nothing that finished is lost."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from pruned_searches import pruned_spec, silent, study_in, written
from searches import PROGRAM, call

import regimes
from regimes.errors import UserError
from regimes.experiment import executors
from regimes.experiment.run import run
from regimes.experiment.store import Store
from regimes.hpo.pruned import search_folder as pruned_module
from regimes.hpo.pruned.cell_runner import cell_of
from regimes.hpo.pruned.pruned_search import search_pruned
from regimes.hpo.pruned.search_folder import open_cells
from regimes.hpo.search_options import SearchOptions


def test_a_setting_is_trained_once_and_pruned_to_every_density(tmp_path: Path) -> None:
    spec = pruned_spec()
    result = search_pruned(spec, SearchOptions(tmp_path), silent)
    trials = study_in(tmp_path).get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) == 12
    settings = {(each.params["learning_rate"], each.params["epochs"]) for each in trials}
    assert len(settings) == 4
    assert result["spending"]["trainings"] == 4
    data = regimes.open(tmp_path)
    assert dict(data.sizes)["setting"] == 4
    for trial in trials:  # the value of a trial is the record's
        here = data.isel(setting=np.flatnonzero(data.learning_rate == trial.params["learning_rate"]))
        value = here.val_error.sel(density=trial.params["density"]).values.ravel()
        assert trial.values == [pytest.approx(float(value[0])), trial.params["density"]]
    costs = [each["cost"] for each in result["best"]]
    values = [each["value"] for each in result["best"]]
    assert costs == sorted(set(costs))
    assert values == sorted(set(values), reverse=True)
    assert all(len(each["test_errors"]) == 2 for each in result["best"])
    assert (tmp_path / "result.json").exists()


def test_a_later_snapshot_of_a_training_continues_it(tmp_path: Path) -> None:
    spec = pruned_spec(space={"learning_rate": [0.1], "epochs": [2, 4]}, trials=6, load={"density": [0.2]})
    result = search_pruned(spec, SearchOptions(tmp_path), silent)
    assert result["spending"]["trainings"] == 1
    snapshots = {path.name for path in (tmp_path / "records").glob("*/*-e*.json")}
    seeds = {name.split("-")[0] for name in snapshots}
    assert len(seeds) == 1 + spec.final_seeds  # one training, with both snapshots; and the fresh ones of the best
    assert result["spending"]["seconds"] < result["spending"]["alone_seconds"]


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_interrupted_and_resumed_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    spec = pruned_spec(trials=6)
    whole = search_pruned(spec, SearchOptions(tmp_path / "whole"), silent)
    done, calls = executors.run_fleet, itertools.count()

    def interrupted(*given: object) -> None:
        if next(calls) == cut:
            raise KeyboardInterrupt
        done(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(executors, "run_fleet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search_pruned(spec, SearchOptions(tmp_path / "cut"), silent)
    monkeypatch.setattr(executors, "run_fleet", done)
    resumed = search_pruned(spec, SearchOptions(tmp_path / "cut"), silent)
    key = [(each["params"], each["density"], each["value"], each["test_errors"]) for each in whole["best"]]
    assert [(each["params"], each["density"], each["value"], each["test_errors"]) for each in resumed["best"]] == key
    states = [each.state for each in study_in(tmp_path / "cut").trials]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == 6


def test_killed_with_two_workers_and_resumed_no_cell_is_trained_twice(tmp_path: Path) -> None:
    written(tmp_path)
    line = ["hpo", "small.toml", "--out", "out", "--trials", "36", "--json"]
    process = subprocess.Popen(
        [PROGRAM, *line, "--workers", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    records = tmp_path / "out/records"
    until = time.monotonic() + 120
    while len(list(records.glob("*/*.json"))) < 8 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in records.glob("*/*.json")}
    done = call(*line, "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    study = study_in(tmp_path / "out")
    assert not [each for each in study.trials if each.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) >= 36
    assert json.loads(done.stdout)["best"]


def test_a_diverged_network_is_pruned_of_a_single_value_and_failed_on_a_front(tmp_path: Path) -> None:
    space = {"learning_rate": [1e30], "epochs": [2, 4]}
    for densities, state in (([0.2], TrialState.PRUNED), ([0.2, 0.6], TrialState.FAIL)):
        folder = tmp_path / str(len(densities))
        spec = pruned_spec(space=space, trials=2, load={"density": densities}, recipe={"clip_norm": 0.0})
        with pytest.raises(UserError, match="no trial finished"):
            search_pruned(spec, SearchOptions(folder), silent)
        trials = study_in(folder).trials
        assert {each.state for each in trials} == {state}
        assert all(each.user_attrs["regimes:why"] == "diverged" for each in trials)


def test_parameters_macs_and_latency_as_the_cost_of_a_front(tmp_path: Path) -> None:
    data = {"name": "synthetic", "shape": [3, 8, 8], "train": 100, "test": 40}
    model = {"name": "preresnet", "depth": 8, "width": 8}
    load = {"density": [0.2, 0.6], "pruner": "channels-magnitude"}
    for against in ("parameters", "macs", "latency"):
        spec = pruned_spec(data=data, model=model, trials=2, final_seeds=1, load=load, study={"against": against})
        search_pruned(spec, SearchOptions(tmp_path / against), silent)
        small, large = sorted(study_in(tmp_path / against).trials, key=lambda each: each.params["density"])
        assert small.values[1] > 0
        if against != "latency":  # a timing
            assert small.values[1] < large.values[1]


def test_final_trainings_of_a_cleaned_folder_count_without_their_weights(tmp_path: Path) -> None:
    data = {"name": "synthetic", "shape": [3, 8, 8], "train": 100, "test": 40}
    model = {"name": "preresnet", "depth": 8, "width": 8}
    load = {"density": [0.2, 0.6], "pruner": "channels-magnitude"}
    asked = {"data": data, "model": model, "trials": 2, "load": load, "study": {"against": "macs"}}
    first = search_pruned(pruned_spec(**asked, final_seeds=1), SearchOptions(tmp_path), silent)
    assert call("clean", str(tmp_path), cwd=tmp_path).returncode == 0
    more = search_pruned(pruned_spec(**asked, final_seeds=2), SearchOptions(tmp_path), silent)
    assert [each["test_errors"][0] for each in more["best"]] == [each["test_errors"][0] for each in first["best"]]


def test_parameters_of_a_masked_network_are_those_that_are_not_zero(tmp_path: Path) -> None:
    spec = pruned_spec(trials=2, load={"density": [0.2, 0.6]}, study={"against": "parameters"}, final_seeds=1)
    search_pruned(spec, SearchOptions(tmp_path), silent)
    cells, _ = open_cells(spec, tmp_path, "cpu")
    for trial in study_in(tmp_path).trials:
        (copy,) = cells.copies(cells.stages(cell_of(trial.params, spec)))
        model = cells.context.model_with(cells.store.weights(copy.key))
        nonzero = sum(int((each != 0).sum()) for each in model.parameters())
        never = sum(int((each == 0).sum()) for name, each in model.named_parameters() if each.dim() < 2)
        assert trial.values[1] == nonzero + never


def test_a_search_that_another_command_begins_at_once_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pruned_module.prepare

    def beaten(*given: Any, **how: Any) -> Any:
        """Prepare, while another command writes run.json with other engines."""
        prepared = real(*given, **how)
        numerics = {**dataclasses.asdict(prepared.spec.numerics), "engine": "stacked"}
        prepared.store.write_json("run.json", {"numerics": numerics, "lanes": {"train": 1, "retrain": 8}})
        return prepared

    monkeypatch.setattr(pruned_module, "prepare", beaten)
    spec = pruned_spec(trials=3)
    search_pruned(spec, SearchOptions(tmp_path), silent)
    cells, engines = open_cells(spec, tmp_path, "cpu")
    assert (engines["retrain"].engine, engines["retrain"].lanes) == ("stacked", 8)
    assert cells.context.spec.numerics.engine == "stacked"
    assert next(Store(tmp_path).numerics()) == cells.context.spec.numerics.id


def test_as_typed(tmp_path: Path) -> None:
    written(tmp_path)
    done = call("hpo", "small.toml", "--out", "out", "--set", 'study.sampler="map"', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "front of validation error against density" in done.stdout
    assert "Traceback" not in done.stderr
    assert "12 trials from 4 dense trainings" in done.stdout
    assert "test error of 2 new trainings" in done.stdout
    assert (tmp_path / "out/search.png").exists()
    for command in (["status", "out"], ["export", "out", "--to", "csv", "--out", "all.csv"]):
        again = call(*command, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    refused = call("map", "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the trials of a search do not form a grid" in refused.stderr


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_where_all_cells_are_tried_the_search_ends(tmp_path: Path) -> None:
    space = {"learning_rate": [0.1, 0.05], "epochs": [2, 4]}
    study = {"sampler": "optuna.samplers:BruteForceSampler"}
    result = search_pruned(pruned_spec(space=space, trials=40, study=study), SearchOptions(tmp_path), silent)
    trials = study_in(tmp_path).trials
    assert {each.state for each in trials} == {TrialState.COMPLETE}
    assert len({tuple(sorted(each.params.items())) for each in trials}) == len(trials) == 12
    assert result["spending"]["trainings"] == 2


def test_a_study_resumed_with_another_space_is_refused_and_left_alone(tmp_path: Path) -> None:
    search_pruned(pruned_spec(trials=3), SearchOptions(tmp_path), silent)
    other = pruned_spec(trials=6, space={"learning_rate": [0.1, 0.2], "epochs": [2, 4]})
    storage = str(tmp_path / "study.log")
    with pytest.raises(UserError, match="learning_rate"):
        search_pruned(other, SearchOptions(tmp_path / "other", storage=storage), silent)
    assert [each.state for each in study_in(tmp_path).trials] == [TrialState.COMPLETE] * 3


def test_trials_whose_trainings_fail_are_counted_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("no retraining today")

    monkeypatch.setattr("regimes.experiment.stages.retrain._retrain_together", broken)
    with pytest.raises(UserError, match=r"no trial finished \(3 fail\); the first failed: RuntimeError: no retraining"):
        search_pruned(pruned_spec(trials=3), SearchOptions(tmp_path), silent)
    assert [each.state for each in study_in(tmp_path).trials] == [TrialState.FAIL] * 3


def test_a_failed_final_training_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regimes.experiment.stages import retrain as module

    spec, real = pruned_spec(trials=3), module._retrain_together

    def broken(stages: Any, *given: Any) -> None:
        if any(stage.pruned.dense.seed > 0 for stage in stages):
            raise RuntimeError("not now")
        real(stages, *given)

    monkeypatch.setattr(module, "_retrain_together", broken)
    with pytest.raises(UserError, match="a final training failed: RuntimeError: not now"):
        search_pruned(spec, SearchOptions(tmp_path), silent)
    monkeypatch.setattr(module, "_retrain_together", real)
    result = search_pruned(spec, SearchOptions(tmp_path), silent)
    assert all(None not in each["test_errors"] for each in result["best"])


def test_the_map_sampler_takes_lists_of_one_value(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 0.01, "high": 1.0, "log": True}, "epochs": [4], "batch_size": [32]}
    result = search_pruned(
        pruned_spec(space=space, trials=36, study={"sampler": "map"}), SearchOptions(tmp_path), silent
    )
    assert result["spending"]["trials"] == 36


def test_run_and_clean_of_a_search_folder(tmp_path: Path) -> None:
    search_pruned(pruned_spec(trials=3, seed=5), SearchOptions(tmp_path), silent)
    with pytest.raises(UserError, match="holds the trials of a search; go on with: regimes hpo"):
        run(None, tmp_path)
    assert call("clean", str(tmp_path), cwd=tmp_path).returncode == 0
    assert not list((tmp_path / "weights").glob("*/*.safetensors"))
    more = search_pruned(pruned_spec(trials=6, seed=5), SearchOptions(tmp_path), silent)
    assert more["spending"]["trials"] == 6


def test_progress_of_losses_is_no_percentage(tmp_path: Path) -> None:
    shown: list[bool] = []
    for value in ("loss", "error"):
        spec = pruned_spec(trials=3, study={"value": value})
        search_pruned(spec, SearchOptions(tmp_path / value), silent, lambda study, what: shown.append(what["fraction"]))
    assert set(shown[:3]) == {False}
    assert set(shown[-3:]) == {True}


def test_directions_need_their_measures(tmp_path: Path) -> None:
    study = {"sampler": "map", "sampler_options": {"landscape": True}}
    with pytest.raises(UserError, match="landscape: needs the metrics error, lmc and cka"):
        search_pruned(pruned_spec(trials=3, study=study), SearchOptions(tmp_path / "without"), silent)
    measure = {"metrics": ["error", "lmc", "cka"]}
    spec = pruned_spec(trials=36, study=study, measure=measure, retrain_seeds=2)
    assert search_pruned(spec, SearchOptions(tmp_path / "with"), silent)["spending"]["trials"] == 36
