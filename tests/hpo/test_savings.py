"""What a search cost and saved, in seconds paid."""

from __future__ import annotations

import dataclasses

import optuna
import pytest
from optuna.trial import TrialState
from searches import planned, spec

from regimes.hpo.savings import in_words, savings


def test_savings_are_counted_in_seconds() -> None:
    """Closed form: six trials; a proxy takes 1 s, a full training 8 s; two climb, one of them to the end."""
    asked = spec(trials=6, batch=6)
    found, _ = planned(asked)
    ladder = dataclasses.replace(found.ladder, seconds=2.0)
    found = dataclasses.replace(found, ladder=ladder)
    study = optuna.create_study()
    for number in range(6):
        trial = study.ask()
        rows = [{"density": 0.1, "epoch": 4, "calibrated": 1.0 + number, "seconds": 1.0, "at": number}]
        if number < 2:
            rows.append({"density": 1.0, "epoch": 2, "calibrated": 1.0, "seconds": 4.0, "at": 10 + number})
        if number == 0:
            rows.append({"density": 1.0, "epoch": 4, "calibrated": 0.5, "seconds": 4.0, "at": 20})
        trial.set_user_attr("regimes:climb", rows)
        study.tell(trial, 0.5 if number == 0 else None, TrialState.COMPLETE if number == 0 else TrialState.PRUNED)
    facts = savings([study], found)
    assert facts["full_seconds"] == 8.0
    assert facts["k"] == pytest.approx(1.5)
    assert [rung["c"] for rung in facts["rungs"]] == pytest.approx([1 / 8, 1.0])
    assert facts["saving"] == pytest.approx(1 - (2 / 8 + 6 / 8 + 1.5) / 6)
    assert facts["curve"] == [{"seconds": 20.0, "value": 0.5}, {"seconds": 20.0, "value": 0.5}]


def test_what_was_cut_off_is_paid_once_and_counts_once() -> None:
    """Closed form: trial 0 is cut off after its proxy (1 s), trial 1 does it again for nothing and trains in full."""
    asked = spec(trials=2, batch=2)
    found, _ = planned(asked)
    found = dataclasses.replace(found, ladder=dataclasses.replace(found.ladder, seconds=0.0))
    study = optuna.create_study()
    proxy = {"density": 0.1, "epoch": 4, "calibrated": 1.0, "seconds": 1.0, "at": 0.0, "paid": True}
    full = {"density": 1.0, "epoch": 4, "calibrated": 0.5, "seconds": 8.0, "at": 9.0, "paid": True}
    cut_off, again = study.ask(), study.ask()
    cut_off.set_user_attr("regimes:climb", [proxy])
    study.tell(cut_off, state=TrialState.FAIL)
    again.set_user_attr("regimes:instead_of", 0)
    again.set_user_attr("regimes:climb", [{**proxy, "paid": False, "at": 5.0}, full])
    study.tell(again, 0.5)
    facts = savings([study], found)
    assert facts["n"] == 1
    assert facts["seconds"] == pytest.approx(9.0)
    assert facts["baseline_seconds"] == pytest.approx(8.0)
    assert facts["curve"][-1] == {"seconds": 9.0, "value": 0.5}


def test_a_baseline_is_of_the_trials_that_were_asked_for_not_of_those_that_ran() -> None:
    """Closed form: a full training takes 2 + 160 / batch seconds; those promoted have the small batches."""
    asked = spec(trials=4, batch=4, study={"pattern": "promote"})
    found, _ = planned(asked)
    found = dataclasses.replace(found, ladder=dataclasses.replace(found.ladder, seconds=0.0))
    proxies, base = optuna.create_study(), optuna.create_study()
    for number, size in enumerate((16, 32, 64, 128)):
        trial = proxies.ask()
        trial.suggest_int("batch_size", size, size)
        proxy = {"density": 0.1, "epoch": 4, "calibrated": 1.0 + number, "seconds": 1.0, "at": number}
        trial.set_user_attr("regimes:climb", [proxy])
        proxies.tell(trial, 1.0)
    for number, size in enumerate((16, 32)):
        base.enqueue_trial({"batch_size": size}, user_attrs={"regimes:promoted": number})
        trial = base.ask()
        trial.suggest_int("batch_size", size, size)
        row = {"density": 1.0, "epoch": 4, "calibrated": 0.5, "seconds": 2 + 160 / size, "at": 10 + number}
        trial.set_user_attr("regimes:climb", [row])
        base.tell(trial, 0.5)
    facts = savings([proxies, base], found)
    full = [2 + 160 / size for size in (16, 32, 64, 128)]
    assert facts["baseline_seconds"] == pytest.approx(sum(full))
    assert facts["full_seconds"] == pytest.approx(sum(full) / 4)
    assert facts["seconds"] == pytest.approx(4 + full[0] + full[1])
    assert facts["saving"] == pytest.approx(1 - (4 + full[0] + full[1]) / sum(full))
    assert facts["rungs"][0]["tau_of"] == 2  # both finished on both, in two studies
    assert facts["rungs"][0]["c"] == pytest.approx(1 / facts["full_seconds"])


def test_how_a_rung_ranks_is_told_by_tau_and_regret() -> None:
    """Brute force: the proxy puts trial 1 first, which is the second best of the full network."""
    asked = spec(trials=4, batch=4)
    found, _ = planned(asked)
    study = optuna.create_study()
    small, large = [2.0, 1.0, 3.0, 4.0], [0.5, 0.7, 0.8, 0.9]
    for number, (first, last) in enumerate(zip(small, large, strict=True)):
        trial = study.ask()
        rows = [{"density": 0.1, "epoch": 4, "calibrated": first, "seconds": 1.0, "at": number}]
        rows.append({"density": 1.0, "epoch": 4, "calibrated": last, "seconds": 8.0, "at": 10 + number})
        trial.set_user_attr("regimes:climb", rows)
        study.tell(trial, last)
    proxy, full = savings([study], found)["rungs"]
    assert proxy["tau"] == pytest.approx((5 - 1) / 6)  # of six pairs one is the other way round
    assert proxy["regret"] == pytest.approx(0.7 - 0.5)
    assert proxy["tau_of"] == 4
    assert full["tau"] is full["regret"] is None


def test_savings_are_said_in_words() -> None:
    rung = {"trials": 6, "finished": 2, "seconds": 3.0, "c": 0.25, "tau": None, "tau_of": 2, "density": 1.0}
    cheap = {**rung, "images": 0.5, "tau": 0.4, "tau_of": 5}
    full = {**rung, "trials": 1, "finished": 1, "seconds": 9.0, "c": 1.0}
    facts = {"rungs": [cheap, full], "map_seconds": 0.0, "proxy_seconds": 1.0, "seconds": 13.0, "n": 6}
    lines = in_words({**facts, "baseline_seconds": 52.0, "saving": 0.75})
    assert lines == [
        "6 trials trained on the full network on 50 % of the images, 4 of them stopped early: 3 s, a whole training "
        "takes 0.25 of a full one's time; rank agreement with the full training (Kendall's tau, 1 is perfect) 0.40 "
        "over the 5 trials trained on both, a selection of good ones",
        "1 trial trained in full: 9 s",
        "building and timing the fidelities: 1 s",
        "in all 13 s for 6 trials; training each of them in full would take about 52 s: 75% saved",
    ]
    slow = in_words({**facts, "baseline_seconds": 6.5, "saving": -1.0})
    assert slow[-1].endswith("would take about 6 s: no time saved")
