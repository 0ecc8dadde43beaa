"""Promotion while proxies are trained: what is due when, and what a search shows on its way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial
from searches import clock, engine, spec

from regimes.hpo.optuna_study import open_storage
from regimes.hpo.progress import SearchState
from regimes.hpo.promotion import HELD_BACK, due, promoted
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions

NUMBERS = {"x": IntDistribution(0, 999)}
PROMOTE: dict[str, Any] = {"pattern": "promote", "promoted": 4, "stopper": "none"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)


def proxies_of(values: list[float]) -> optuna.Study:
    study = optuna.create_study()
    for number, value in enumerate(values):
        study.add_trial(create_trial(params={"x": number}, distributions=NUMBERS, value=value))
    return study


def train(base: optuna.Study, found: list[Any], state: TrialState = TrialState.COMPLETE) -> None:
    """Promote trials and train them."""
    for trial in found:
        done = create_trial(
            params=trial.params,
            distributions=NUMBERS,
            value=trial.value if state == TrialState.COMPLETE else None,
            state=state,
            user_attrs={"regimes:promoted": trial.number},
        )
        base.add_trial(done)


@pytest.mark.parametrize(("batch", "total", "most"), [(16, 64, 5), (8, 64, 5), (1, 10, 3), (5, 12, 1), (4, 8, 2)])
def test_promotions_keep_pace_with_the_proxies(batch: int, total: int, most: int) -> None:
    """Closed form: ``ceil((most - 2) * share of the proxies)`` on the way, the best of the others first; then all."""
    values = [math.sin(7.0 * number) for number in range(total)]
    base, order = optuna.create_study(), []
    for done in range(batch, total + batch, batch):
        done = min(done, total)
        proxies = proxies_of(values[:done])
        found = due(proxies, base, most, total - done)
        train(base, found)
        order += [each.number for each in found]
        expected = most if done == total else math.ceil(max(0, most - HELD_BACK) * done / total)
        assert len(promoted(base)) == expected
        fresh = sorted(
            (each for each in range(done) if each not in order[: -len(found) or None]), key=values.__getitem__
        )
        assert [each.number for each in found] == fresh[: len(found)]
    best = sorted(range(total), key=values.__getitem__)
    assert set(best[: min(HELD_BACK, most)]) <= promoted(base)
    assert due(proxies, base, most, 0) == []


def test_nothing_more_is_due_while_a_proxy_of_another_runs_and_the_rest_when_it_is_done() -> None:
    proxies, base = proxies_of([3.0, 2.0, 1.0]), optuna.create_study()
    running = proxies.ask(NUMBERS)
    assert due(proxies, base, 2, 0) == []
    proxies.tell(running, 0.0)
    assert [each.number for each in due(proxies, base, 2, 0)] == [3, 2]


def test_a_better_proxy_of_an_extended_search_is_promoted_beyond_the_total() -> None:
    proxies, base = proxies_of([1.0, 2.0, 3.0]), optuna.create_study()
    train(base, due(proxies, base, 3, 0))
    proxies.add_trial(create_trial(params={"x": 9}, distributions=NUMBERS, value=0.5))
    proxies.add_trial(create_trial(params={"x": 8}, distributions=NUMBERS, value=4.0))
    assert [each.number for each in due(proxies, base, 3, 0)] == [3]


def test_where_all_full_trainings_fail_the_next_are_due() -> None:
    proxies, base = proxies_of([1.0, 2.0, 3.0, 4.0, 5.0]), optuna.create_study()
    for expected in ([0, 1], [2, 3], [4], []):
        found = due(proxies, base, 2, 0)
        assert [each.number for each in found] == expected
        train(base, found, TrialState.PRUNED)


def test_a_search_shows_a_full_training_before_its_proxies_are_done(tmp_path: Path) -> None:
    seen: list[tuple[list[tuple[int, int]], str]] = []

    def look(state: SearchState) -> None:
        seen.append((state.counts, state.line()))

    asked = spec(study=PROMOTE, trials=12, batch=3)
    result = search(asked, SearchOptions(tmp_path), look=look)
    assert seen[0][0] == [(0, 12), (0, 4)]
    assert seen[-1][0] == [(12, 12), (4, 4)]
    early = [line for counts, line in seen if counts[1][0] == 1 and counts[0][0] < 12]
    assert early[0].startswith("3 of 12 trials on density 0.1, 1 of 4 trained in full, best validation loss ")
    storage = open_storage(str(tmp_path / "study.log"))
    proxies, base = (optuna.load_study(study_name=name, storage=storage) for name in ("tiny-proxy", "tiny"))
    times = [[each.user_attrs["regimes:climb"][-1]["at"] for each in study.trials] for study in (proxies, base)]
    assert [sum(at < full for at in times[0]) for full in times[1]] == [3, 9, 12, 12]  # after a third, two thirds, all
    ranked = [each.number for each in sorted(proxies.trials, key=lambda each: each.value or 0.0)]
    assert set(ranked[:HELD_BACK]) <= promoted(base)
    assert len(base.trials) == result["savings"]["rungs"][-1]["trials"] == 4
    assert result["winner"]["value"] == min(each.value or math.inf for each in base.trials)


def test_a_search_cut_off_at_any_segment_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Interrupted after 1, 2, 3, ... segments and resumed; in the end as many full trainings, none of them twice."""

    class Cut(Exception):
        pass

    asked = spec(study={**PROMOTE, "promoted": 3}, trials=6, batch=3)
    search(asked, SearchOptions(tmp_path / "whole"))
    for attempt in range(1, 30):
        left = [attempt]

        def watch(*_: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Cut

        try:
            search(asked, SearchOptions(tmp_path / "cut"), watch=watch)
            break
        except Cut:
            continue
    full = []
    for name in ("whole", "cut"):
        storage = open_storage(str(tmp_path / name / "study.log"))
        study = optuna.load_study(study_name="tiny", storage=storage)
        done = [each for each in study.trials if each.state == TrialState.COMPLETE]
        assert not [each for each in study.trials if not each.state.is_finished()]
        assert len({each.user_attrs["regimes:promoted"] for each in done}) == len(done)
        full.append(len(done))
        proxies = optuna.load_study(study_name="tiny-proxy", storage=storage)
        assert sum(each.state == TrialState.COMPLETE for each in proxies.trials) == 6
    assert full == [3, 3]


def test_a_batch_that_leaves_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    asked = spec(study={**PROMOTE, "sampler": "tpe"}, trials=6, batch=6)
    search(asked, SearchOptions(tmp_path / "one"), said.append)
    assert any(line.startswith("batch = 6, trials = 6: sampled before any result") for line in said)
    said.clear()
    search(spec(study=PROMOTE, trials=6, batch=6), SearchOptions(tmp_path / "random"), said.append)
    search(spec(study={**PROMOTE, "sampler": "tpe"}, trials=6, batch=3), SearchOptions(tmp_path / "two"), said.append)
    assert not any(line.startswith("batch = ") for line in said)
