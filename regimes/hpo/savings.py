"""Cost of a search and the time that it saved, in seconds of training recorded by its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.hpo.fidelities import FULL, Fidelity, title_of
from regimes.hpo.plan import Plan
from regimes.hpo.trial_attrs import PREFIX, fidelity_of

MIN_TRIALS_FOR_TAU = 4


def savings(studies: Sequence[optuna.Study], plan: Plan) -> dict[str, Any]:
    """Return seconds spent and ``saving = 1 - (map + sum_r n_r c_r + k) / n``, in costs of a full training.

    ``n``: trials; ``n_r``: trials that ran on fidelity r, at a measured cost of ``c_r``; ``k``: full trainings, partial
    ones counted in part; ``map``: cost of the map, if made for this search, and of building and timing the proxies. The
    baseline trains every trial in full; its cost is estimated from the full trainings that ran (`_full_each`).

    Args:
        studies: the studies of the search's phases.
        plan: the plan of the whole search.
    """
    every = [each for study in studies for each in study.get_trials(deepcopy=False) if rows_of(each)]
    trials = [each for study in studies for each in _lasting(study)]
    count = len(_lasting(studies[0]))  # trials of a second study are promoted from the first
    rungs = [_rung(rung, trials, every) for rung in plan.ladder.rungs]
    full = rungs[-1]
    whole = _full_each(plan, _lasting(studies[0]), trials)
    overhead = (plan.map_guidance.seconds if plan.map_guidance else 0.0) + plan.ladder.seconds
    spent = overhead + sum(rung["seconds"] for rung in rungs)
    baseline = count * whole
    for rung, fidelity in zip(rungs, plan.ladder.rungs, strict=True):
        rung["c"] = rung["seconds_each"] / whole if rung["trials"] and math.isfinite(whole) else None
        rung |= _agreement([] if rung is full else _both(studies), fidelity.name, plan.spec.study.value)
    return {
        "trials": count,
        "states": {name: sum(each.state.name == name for each in trials) for name in _states(trials)},
        "full_seconds": _plain(whole),
        "map_seconds": plan.map_guidance.seconds if plan.map_guidance else 0.0,
        "proxy_seconds": plan.ladder.seconds,
        "seconds": spent,
        "baseline_seconds": _plain(baseline),
        "saved_seconds": _plain(baseline - spent),
        "saving": _plain(1 - spent / baseline) if baseline else None,
        "k": _plain(full["seconds"] / whole) if math.isfinite(whole) else 0.0,
        "n": count,
        "rungs": rungs,
        "curve": best_so_far(studies, overhead),
    }


def rows_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    """Return the segments that a trial has finished, as plain data."""
    rows: list[dict[str, Any]] = trial.user_attrs.get(f"{PREFIX}climb", [])
    return rows


def _lasting(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with results, without those that were interrupted and requeued."""
    trials = study.get_trials(deepcopy=False)
    again = {each.user_attrs.get(f"{PREFIX}instead_of") for each in trials}
    return [each for each in trials if rows_of(each) and each.number not in again]


def _states(trials: Sequence[FrozenTrial]) -> list[str]:
    return sorted({each.state.name for each in trials})


def rows_on(trial: FrozenTrial, fidelity: str) -> list[dict[str, Any]]:
    """Return the segments that a trial has finished on the fidelity of a name."""
    return [row for row in rows_of(trial) if fidelity_of(row) == fidelity]


def _rung(rung: Fidelity, trials: Sequence[FrozenTrial], every: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Cost of one fidelity: seconds spent by all trials, interrupted ones included."""
    ran = [rows for each in trials if (rows := rows_on(each, rung.name))]
    seconds = sum(row["seconds"] for each in every for row in rows_on(each, rung.name) if row.get("paid", True))
    whole = [sum(row["seconds"] for row in rows) * rung.epochs / rows[-1]["epoch"] for rows in ran]
    return {
        "density": rung.density,
        **rung.differences,
        **({"share": rung.share} if rung.density == 1 and rung.share < 1 else {}),
        "trials": len(ran),
        "finished": sum(rows[-1]["epoch"] == rung.epochs for rows in ran),
        "seconds": seconds,
        "seconds_each": float(np.mean(whole)) if whole else 0.0,
    }


def _full_each(plan: Plan, asked: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> float:
    """Mean seconds of a full training of the given trials; NaN if no full training ran.

    Trials that ran in full are a selection, and small batches take longer: ``a + b / batch size`` with non-negative
    coefficients is fitted to them, partial trainings scaled up.
    """
    epochs = plan.ladder.rungs[-1].epochs
    climbed = [(_batch(plan, each), rows_on(each, FULL)) for each in trials]
    ran = [(size, rows) for size, rows in climbed if rows]
    if not ran:
        return math.nan
    sizes = np.array([size for size, _ in ran])
    seconds = [sum(row["seconds"] for row in rows) * epochs / rows[-1]["epoch"] for _, rows in ran]
    if len(set(sizes)) < 2:
        return float(np.mean(seconds))
    from scipy.optimize import nnls

    (a, b), _ = nnls(np.column_stack([np.ones_like(sizes), 1 / sizes]), np.array(seconds))
    return float(np.mean([a + b / _batch(plan, each) for each in asked]))


def _batch(plan: Plan, trial: FrozenTrial) -> float:
    return float(trial.params.get("batch_size", plan.spec.recipe.batch_size))


def _both(studies: Sequence[optuna.Study]) -> list[list[dict[str, Any]]]:
    """Segments of trials that finished the full network, with those of their proxy trials."""
    proxies: dict[Any, list[dict[str, Any]]] = {
        each.number: rows_of(each) for each in studies[0].get_trials(deepcopy=False)
    }
    done = studies[-1].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [[*proxies.get(each.user_attrs.get(f"{PREFIX}promoted"), ()), *rows_of(each)] for each in done]
    return [rows for rows in found if rows and fidelity_of(rows[-1]) == FULL]


def _agreement(climbs: Sequence[list[dict[str, Any]]], fidelity: str, value: str) -> dict[str, Any]:
    """Rank agreement of a fidelity with the full network, over trials that finished both.

    Kendall's tau between their values, and the regret: the full network's value of the fidelity's best trial, less
    the best value.
    """
    from scipy.stats import kendalltau  # slow to import

    pairs = []
    for climbed in climbs:
        rows = [row for row in climbed if fidelity_of(row) == fidelity and row.get(value) is not None]
        if rows:
            pairs.append((rows[-1][value], climbed[-1][value]))
    if len(pairs) < MIN_TRIALS_FOR_TAU:
        return {"tau": None, "regret": None, "tau_of": len(pairs)}
    tau = _plain(float(kendalltau(*zip(*pairs, strict=True)).statistic))
    return {"tau": tau, "regret": _plain(min(pairs)[1] - min(full for _, full in pairs)), "tau_of": len(pairs)}


def best_so_far(studies: Sequence[optuna.Study], overhead: float) -> list[dict[str, float]]:
    """Return the full network's best value against seconds of training spent, over all workers and studies."""
    marks = []
    for study in studies:
        for trial in study.get_trials(deepcopy=False):
            rows = rows_of(trial)
            for number, row in enumerate(rows, 1):
                last = fidelity_of(row) == FULL and number == len(rows) and trial.state == TrialState.COMPLETE
                paid = row["seconds"] if row.get("paid", True) else 0.0
                marks.append((row["at"], paid, trial.value if last else None))
    curve, spent, best = [], overhead, math.inf
    for _, seconds, value in sorted(marks, key=lambda mark: mark[0]):
        spent += seconds
        if value is not None and value < best:
            best = value
            curve.append({"seconds": spent, "value": best})
    return [*curve, {"seconds": spent, "value": best}] if curve else []


def stopped_at(study: optuna.Study) -> dict[int, int]:
    """Return {step: number of trials that the stopper ended there}."""
    found: dict[int, int] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
        if f"{PREFIX}why" not in trial.user_attrs and trial.intermediate_values:
            step = max(trial.intermediate_values)
            found[step] = found.get(step, 0) + 1
    return dict(sorted(found.items()))


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """Return the savings as a few lines of text."""
    lines = [_fidelity_in_words(rung) for rung in facts["rungs"] if rung["trials"]]
    if facts["map_seconds"]:
        lines.append(f"making the map: {facts['map_seconds']:.0f} s")
    lines.append(f"building and timing the fidelities: {facts['proxy_seconds']:.0f} s")
    if facts["saving"] is not None:
        saved = f"{facts['saving']:.0%} saved" if facts["saving"] > 0 else "no time saved"
        lines.append(
            f"in all {facts['seconds']:.0f} s for {facts['n']} trials; training each of them in full would take about "
            f"{facts['baseline_seconds']:.0f} s: {saved}"
        )
    return lines


def _fidelity_in_words(rung: Mapping[str, Any]) -> str:
    is_full = title_of(rung["density"], rung.get("images", 1.0), rung.get("share", 1.0)) == title_of(1.0)
    where = "in full" if is_full else f"on {title_of(rung['density'], rung.get('images', 1.0), rung.get('share', 1.0))}"
    text = f"{rung['trials']} trial{'s' if rung['trials'] > 1 else ''} trained {where}"
    if rung["finished"] < rung["trials"]:
        text += f", {rung['trials'] - rung['finished']} of them stopped early"
    text += f": {rung['seconds']:.0f} s"
    if not is_full and rung["c"] is not None:
        text += f", a whole training takes {rung['c']:.2f} of a full one's time"
    if rung["tau"] is not None:
        text += (
            f"; rank agreement with the full training (Kendall's tau, 1 is perfect) {rung['tau']:.2f} over the "
            f"{rung['tau_of']} trials trained on both, a selection of good ones"
        )
    return text


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
