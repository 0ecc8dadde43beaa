"""``regimes hpo`` as a user types it: from a file to a tested winner, refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from searches import call, finished, planned, spec, written

from regimes.cli.hpo import SearchProgress
from regimes.hpo.optuna_study import open_storage
from regimes.hpo.progress import SearchState
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions
from regimes.plots.hpo_plots import CLASSES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path)


CONVOLUTIONS = [
    *("--set", "data.shape=[3, 8, 8]", "--set", "recipe.epochs=3", "--trials", "8"),
    *("--set", 'model={name = "preresnet", depth = 8, width = 16}'),
]  # of a network whose proxies are faster


def test_from_a_file_to_a_winner_that_is_tested_once(file: Path, tmp_path: Path) -> None:
    first = call("hpo", "tiny.toml", "--out", "out", "--json", *CONVOLUTIONS, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["savings"]["n"] == 8
    assert result["winner"]["test_error"] <= 1
    assert len(result["winner"]["runs"]) == 2
    assert {each["density"] for each in result["ladder"]} <= {0.06, 1.0}
    assert (tmp_path / "out/search.png").exists()
    again = call("hpo", "tiny.toml", "--out", "out", *CONVOLUTIONS, cwd=tmp_path)  # nothing is left to do
    assert again.returncode == 0, again.stderr
    assert f"{result['winner']['test_error']:.2%}" in again.stdout
    assert "test error of 2 new trainings" in again.stdout
    assert "trained with 2 fresh seeds" not in again.stderr
    more = call("hpo", "tiny.toml", "--out", "out", *CONVOLUTIONS, "--trials", "10", "--json", cwd=tmp_path)
    assert json.loads(more.stdout)["savings"]["n"] == 10


def test_a_proxy_study_first_and_its_best_promoted(file: Path, tmp_path: Path) -> None:
    """Weak proxies are stopped at their first report; what is promoted is trained to its end, unasked."""
    changes = [
        *CONVOLUTIONS,
        *("--set", "study.pattern=promote", "--set", "study.promoted=2", "--set", "ladder.proxy_reports=[0.34]"),
    ]
    done = call("hpo", "tiny.toml", "--out", "out", "--json", *changes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" trained in full, batch_size ") == 2
    assert "nat (after temperature scaling), rank 1 of 1 so far" in done.stderr
    storage = open_storage(str(tmp_path / "out/study.log"))
    proxies, base = (optuna.load_study(study_name=name, storage=storage) for name in ("tiny-proxy", "tiny"))
    best = sorted((each for each in proxies.trials if each.value is not None), key=lambda each: each.value or 0)[:2]
    assert [each.params for each in base.trials] == [each.params for each in best]
    assert [each.user_attrs["regimes:promoted"] for each in base.trials] == [each.number for each in best]
    assert {row["density"] for each in proxies.trials for row in each.user_attrs["regimes:climb"]} == {0.06}
    climbs = [each.user_attrs["regimes:climb"] for each in base.trials]
    assert [[(row["density"], row["epoch"]) for row in each] for each in climbs] == [[(1.0, 3)]] * 2
    stopped = [each for each in proxies.trials if each.state == TrialState.PRUNED]
    assert len(stopped) >= 4  # of eight
    assert all(row["epoch"] == 1 for each in stopped for row in each.user_attrs["regimes:climb"])


def test_progress_tells_every_full_training_once_and_the_time_left(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """By hand: proxies of 2 s and full trainings of 10 s; 2 of 4 proxies and 1 of 3 full trainings are left."""
    monkeypatch.setattr("regimes.cli.status_line.LINE_INTERVAL", 0.0)
    asked = spec(trials=4, study={"pattern": "promote", "promoted": 3}, final_seeds=2)
    found, _ = planned(asked)
    proxies, base = optuna.create_study(), optuna.create_study()
    state = SearchState([proxies, base], found, CLASSES, workers=2)
    progress = SearchProgress()
    progress.look(state)
    for study, seconds, values in ((proxies, 2.0, (0.7, 0.6)), (base, 10.0, (0.5, 0.25))):
        for number, value in enumerate(values):
            trial = study.ask()
            trial.suggest_float("learning_rate", 0.1, 0.1)
            row = {"density": 1.0 if study is base else 0.1, "epoch": 4, "calibrated": value, "seconds": seconds}
            trial.set_user_attr("regimes:climb", [{**row, "at": number}])
            trial.set_user_attr("regimes:promoted", 7 - number)
            study.tell(trial, value)
    for _ in range(2):
        progress.look(state)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("0 of 4 trials on density 0.1, 0 of 3 trained in full, ")
    assert "left" not in lines[0]
    full = "trained in full, learning_rate 0.1: validation loss"
    assert lines[1] == f"trial 7 {full} 0.5 nat (after temperature scaling), rank 2 of 2 so far"
    assert lines[2] == f"trial 6 {full} 0.25 nat (after temperature scaling), rank 1 of 2 so far"
    assert lines[3].startswith("2 of 4 trials on density 0.1, 2 of 3 trained in full, best validation loss 0.25 nat")
    assert lines[3].endswith(f"about {(2 * 2 + 10) / 2 + 2 * 10:.0f} s left")
    assert len(lines) == 5


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["trials=0"], "trials: Input should be greater than or equal to 1"),
        (["space.learning_rate={low=1.0, high=0.1}"], "space.learning_rate: needs low < high"),
        (["space.learning_rate={low=0.0, high=0.1, log=true}"], "log = true needs low above 0"),
        (["space.learnig_rate=[0.1]"], "unknown hyperparameter (did you mean 'learning_rate'?)"),
        (["space.batch_size=[1]"], "space.batch_size: should be greater than or equal to 2"),
        (["space.batch_size=[16.5]"], "16.5 is not a whole number"),
        (["space.batch_size=[16, 512]"], "space.batch_size: 512 is larger than the training set"),
        (["ladder.proxy=narowed"], "unknown proxy 'narowed' (did you mean 'narrowed'?)"),
        (["ladder.densities=[0.1, 0.1]"], "ladder.densities: duplicate value 0.1"),
        (["ladder.densities=[1.5]"], "ladder.densities.0: should be less than or equal to 1"),
        (["ladder.step_time=[0.5]"], "cannot be combined with densities; remove one of the two"),
        (["study.stopper=sha"], "unknown stopper 'sha'"),
        (["study.sampler=bohb"], "unknown sampler 'bohb'"),
        (["study.stopper_options={factor=3}"], "study.stopper_options: "),
        (["study.sampler_options={n_startup=3}"], "study.sampler_options: "),
        (["study.sampler=tpe", 'study.sampler_options={n_startup_trials="a"}'], "study.sampler: "),
        (["recipe.loss=mse", "space.label_smoothing=[0.1]"], "space.label_smoothing: needs loss = 'cross-entropy'"),
    ],
)
def test_mistakes_in_the_file_get_a_line(file: Path, changes: list[str], line: str, capfd: Any) -> None:
    from regimes import UserError
    from regimes.config.hpo_file import read_hpo

    with pytest.raises(UserError) as error:
        search(read_hpo(file, changes), SearchOptions(file.parent / "out"))
    assert line.replace("Input ", "") in str(error.value).replace("Input ", "")


def test_another_search_in_the_same_place_is_refused_and_nothing_is_lost(file: Path, tmp_path: Path) -> None:
    assert call("hpo", "tiny.toml", "--out", "out", "--trials", "4", cwd=tmp_path).returncode == 0

    def trials() -> dict[int, tuple[Any, ...]]:
        return finished(optuna.load_study(study_name="tiny", storage=open_storage(str(tmp_path / "out/study.log"))))

    before = trials()
    narrower = ["--set", "space.learning_rate={low = 0.01, high = 0.5, log = true}"]
    changed = call("hpo", "tiny.toml", "--out", "out", *narrower, cwd=tmp_path)
    assert changed.returncode == 2
    assert "holds a search with another space" in changed.stderr
    storage = ["--storage", "out/study.log", "--out", "elsewhere"]
    elsewhere = call("hpo", "tiny.toml", *storage, *narrower, cwd=tmp_path)
    assert elsewhere.returncode == 2
    assert "study 'tiny' was started with another space (learning_rate.attributes." in elsewhere.stderr
    assert trials() == before
    assert len(before) == 4
    for each in (changed, elsewhere):
        assert "Traceback" not in each.stderr
        assert len(each.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    "url", ["nowhere.db", "mysqll://x", "postgresql+psycopg://nobody@127.0.0.1:1/none", "sqlite:////no/folder/x.db"]
)
def test_a_storage_that_cannot_be_reached_gets_a_line(file: Path, tmp_path: Path, url: str) -> None:
    done = call("hpo", "tiny.toml", "--out", "out", "--storage", url, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert url in done.stderr


# -- looked at --------------------------------------------------------------------------------------------------------


def test_every_step_of_the_ladder_is_seen_in_the_dashboard() -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="pip install optuna-dashboard")
    from regimes.hpo.optimize_loop import Limits, run_trials

    asked = spec(trials=4, batch=4)
    _, climb = planned(asked)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    run_trials(study, climb, 4, Limits(4))
    app = dashboard.wsgi(storage)
    answers: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/api/studies/{study._study_id}", "QUERY_STRING": "after=0"}
    environ |= {"SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
    body = b"".join(app(environ, lambda status, headers, info=None: answers.append(status)))
    assert answers == ["200 OK"]
    shown = json.loads(body)
    steps = [each.step for each in climb.stretches]
    complete = [each for each in shown["trials"] if each["state"] == "Complete"]
    assert complete
    assert all([value["step"] for value in each["intermediate_values"]] == steps for each in complete)
    names = {attr["key"] for each in shown["trials"] for attr in each["user_attrs"]}
    assert {"regimes:climb", "regimes:seed"} <= names
