"""Searches that are killed, cut off or out of time: nothing that finished is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest
from databases import postgres, postgres_programs
from optuna.trial import TrialState
from searches import PROGRAM, call, clock, engine, finished, spec, written

from regimes.hpo.fidelities import Segment
from regimes.hpo.optuna_study import open_storage
from regimes.hpo.promotion import HELD_BACK
from regimes.hpo.requeue import is_drawn_twice, requeue_dead_trials
from regimes.hpo.savings import in_words
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    kind: str = request.param
    programs = postgres_programs()
    if kind == "postgresql" and programs is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    given = {"journal": str(tmp_path / "study.log"), "sqlite": f"sqlite:///{tmp_path}/study.db"}
    with nullcontext(given[kind]) if kind in given else postgres(programs) as found:  # type: ignore[arg-type]
        yield found


def test_killed_workers_lose_no_trial_and_none_is_run_twice(file: Path, tmp_path: Path, url: str) -> None:
    line = ["hpo", "tiny.toml", "--out", "out", "--storage", url, "--trials", "24", "--json"]
    command = [PROGRAM, *line, "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    records = tmp_path / "out/trials/records"
    until = time.monotonic() + 120
    while len(list(records.glob("*/*.json"))) < 5 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    study = optuna.load_study(study_name="tiny", storage=open_storage(url))
    before = finished(study)
    cut_off = [each.number for each in study.trials if each.state == TrialState.RUNNING]
    assert cut_off
    done = call(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "interrupted trials are requeued" in done.stderr
    study = optuna.load_study(study_name="tiny", storage=open_storage(url))
    assert before.items() <= finished(study).items()
    nameless = {number for number in cut_off if "regimes:worker" not in study.trials[number].user_attrs}
    assert len(nameless) <= 2  # a worker that is killed in the instant of its asking has not said who it is
    assert all(study.trials[number].state == TrialState.FAIL for number in cut_off if number not in nameless)
    lasting = [each for each in study.trials if each.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(lasting) == 24
    seeds = [each.user_attrs["regimes:seed"] for each in lasting]
    assert len(set(seeds)) == 24
    again = {each.user_attrs.get("regimes:instead_of"): each for each in study.trials}
    drawn = [number for number in cut_off if study.trials[number].params]  # some are killed while they ask
    assert all(again[number].params == study.trials[number].params for number in drawn)
    paid = [
        (each.user_attrs["regimes:seed"], row["density"], row["epoch"])
        for each in study.trials
        for row in each.user_attrs.get("regimes:climb", [])
        if row["paid"]
    ]
    assert len(paid) == len(set(paid))  # what was finished before the kill is not trained again


def test_a_search_that_promotes_as_it_goes_is_killed_and_resumed_by_two_workers(file: Path, tmp_path: Path) -> None:
    line = ["hpo", "tiny.toml", "--out", "out", "--workers", "2", "--trials", "16", "--json"]
    line += ["--set", "ladder.densities=[1.0]", "--set", "ladder.images=[0.5]"]
    line += ["--set", "study.pattern=promote", "--set", "study.promoted=4", "--set", "study.stopper=none"]
    process = subprocess.Popen([PROGRAM, *line], cwd=tmp_path, stderr=subprocess.PIPE, process_group=0)
    records = tmp_path / "out/trials/records"
    until = time.monotonic() + 120
    while len(list(records.glob("*/*.json"))) < 8 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = call(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    storage = open_storage(str(tmp_path / "out/study.log"))
    proxies, base = (optuna.load_study(study_name=name, storage=storage) for name in ("tiny-proxy", "tiny"))
    lasting = [[each for each in study.trials if each.state == TrialState.COMPLETE] for study in (proxies, base)]
    chosen = [each.user_attrs["regimes:promoted"] for each in lasting[1]]
    assert len(lasting[0]) == 16
    assert len(chosen) == len(set(chosen))
    assert len(chosen) in (4, 5)  # two workers may promote different trials in the same instant
    best = sorted(lasting[0], key=lambda each: each.value or 0.0)[:HELD_BACK]
    assert {each.number for each in best} <= set(chosen)
    assert not [each for study in (proxies, base) for each in study.trials if not each.state.is_finished()]


def test_a_worker_that_is_killed_is_replaced(file: Path, tmp_path: Path) -> None:
    line = ["hpo", "tiny.toml", "--out", "out", "--workers", "2", "--trials", "60", "--json"]
    process = subprocess.Popen([PROGRAM, *line], cwd=tmp_path, stdout=subprocess.PIPE)
    records = tmp_path / "out/trials/records"
    until = time.monotonic() + 120
    workers: list[int] = []
    while not (workers and list(records.glob("*/*.json"))) and time.monotonic() < until:
        listed = ["pgrep", "-P", str(process.pid), "-f", "spawn_main"]
        workers = [int(each) for each in subprocess.run(listed, capture_output=True, check=False).stdout.split()]
        time.sleep(0.02)
    os.kill(workers[-1], signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(out)["savings"]["n"] >= 60
    study = optuna.load_study(study_name="tiny", storage=open_storage(str(tmp_path / "out/study.log")))
    assert not [each for each in study.trials if each.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert sum(each.state in (TrialState.COMPLETE, TrialState.PRUNED) for each in study.trials) == 60


def test_a_trial_of_a_living_worker_is_left_alone() -> None:
    from regimes.experiment.process_identity import is_dead, this_worker

    study = optuna.create_study()
    alive, dead, elsewhere = (study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}) for _ in range(3))
    host, pid, _ = this_worker().rsplit("/", 2)
    names = this_worker(), f"{host}/{pid}/1", "another-machine/1/1"
    for trial, name in zip((alive, dead, elsewhere), names, strict=True):
        trial.set_user_attr("regimes:worker", name)
    assert [is_dead(name) for name in names] == [False, True, False]
    assert requeue_dead_trials(study) == [dead.number]
    assert requeue_dead_trials(study) == []
    states = [each.state for each in study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert requeue_dead_trials(study, elsewhere=True) == [elsewhere.number]  # --take-over
    assert study.trials[alive.number].state == TrialState.RUNNING


def test_what_another_command_has_drawn_from_the_same_seed_is_not_drawn_twice() -> None:
    space = {"rate": optuna.distributions.FloatDistribution(0, 1)}
    study = optuna.create_study()
    first, again = (study.ask({"rate": space["rate"]}) for _ in range(2))
    study.enqueue_trial(first.params)
    same = study.ask(space)
    for trial, worker in ((first, "host/1/1"), (again, "host/1/1"), (same, "host/2/1")):
        trial.set_user_attr("regimes:worker", worker)
    trials = study.get_trials(deepcopy=False)
    assert [is_drawn_twice(each, trials) for each in trials] == [False, False, True]
    same.set_user_attr("regimes:worker", "host/1/1")  # a setting may be tried again by the same process
    assert not is_drawn_twice(study.trials[2], study.trials)


def test_time_that_is_up_hands_trials_back(file: Path, tmp_path: Path) -> None:
    first = call("hpo", "tiny.toml", "--out", "out", "--timeout", "0", cwd=tmp_path)
    assert first.returncode == 2
    assert "no trial reached the full network" in first.stderr
    assert "Traceback" not in first.stderr
    second = call("hpo", "tiny.toml", "--out", "out", "--json", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["savings"]["n"] == 12


def test_time_that_is_up_before_any_promotion_leaves_the_best_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)
    asked = spec(study={"pattern": "promote", "promoted": 2, "stopper": "none"}, ladder={"proxy_reports": [0.5]})
    late, now = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + late[0])

    ended: list[int] = []

    def watch(trial: optuna.trial.Trial, stretch: Segment, value: object) -> None:
        ended.extend([trial.number] * (stretch.stop == asked.recipe.epochs))
        late[0] = 1e6 * (len(ended) == asked.batch)  # the first batch of proxies is over

    said: list[str] = []
    cut = search(asked, SearchOptions(tmp_path, timeout=1e5), said.append, watch)
    assert "time was up before any full training finished: the winner is the best proxy trial" in said
    assert cut["winner"]["trial"] < asked.batch
    assert cut["savings"]["curve"] == []
    assert cut["savings"]["saving"] is None
    assert not any("saved" in line for line in in_words(cut["savings"]))
    late[0] = 0.0
    whole = search(asked, SearchOptions(tmp_path))
    assert whole["savings"]["n"] == asked.trials
    assert len(whole["savings"]["curve"]) >= 2
    assert whole["notes"] == []
