"""Cost of a search and the time that it saved, in seconds of training recorded by its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.hpo.plan import Plan
from regimes.hpo.trial_attrs import PREFIX

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
    epochs = {rung.density: rung.epochs for rung in plan.ladder.rungs}
    rungs = [_rung(density, trials, every, epochs[density]) for density in sorted(epochs)]
    full = rungs[-1]
    whole = _full_each(plan, _lasting(studies[0]), trials)
    overhead = (plan.map_guidance.seconds if plan.map_guidance else 0.0) + plan.ladder.seconds
    spent = overhead + sum(rung["seconds"] for rung in rungs)
    baseline = count * whole
    for rung in rungs:
        rung["c"] = rung["seconds_each"] / whole if rung["trials"] and math.isfinite(whole) else None
        rung |= _agreement([] if rung is full else _both(studies), rung["density"], plan.spec.study.value)
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


def _rung(density: float, trials: Sequence[FrozenTrial], every: Sequence[FrozenTrial], epochs: int) -> dict[str, Any]:
    """Cost of one fidelity: seconds spent by all trials, interrupted ones included."""
    here = [[row for row in rows_of(each) if row["density"] == density] for each in trials]
    ran = [rows for rows in here if rows]
    rows_paid = [row for each in every for row in rows_of(each) if row["density"] == density and row.get("paid", True)]
    seconds = sum(row["seconds"] for row in rows_paid)
    whole = [sum(row["seconds"] for row in rows) * epochs / rows[-1]["epoch"] for rows in ran]
    return {
        "density": density,
        "trials": len(ran),
        "finished": sum(rows[-1]["epoch"] == epochs for rows in ran),
        "seconds": seconds,
        "seconds_each": float(np.mean(whole)) if whole else 0.0,
    }


def _full_each(plan: Plan, asked: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> float:
    """Mean seconds of a full training of the given trials; NaN if no full training ran.

    Trials that ran in full are a selection, and small batches take longer: ``a + b / batch size`` with non-negative
    coefficients is fitted to them, partial trainings scaled up.
    """
    epochs = plan.ladder.rungs[-1].epochs
    climbed = [(_batch(plan, each), [row for row in rows_of(each) if row["density"] == 1]) for each in trials]
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
    return [rows for rows in found if rows and rows[-1]["density"] == 1]


def _agreement(climbs: Sequence[list[dict[str, Any]]], density: float, value: str) -> dict[str, Any]:
    """Rank agreement of a fidelity with the full network, over trials that finished both.

    Kendall's tau between their values, and the regret: the full network's value of the fidelity's best trial, less
    the best value.
    """
    from scipy.stats import kendalltau  # slow to import

    pairs = []
    for climbed in climbs:
        rows = [row for row in climbed if row["density"] == density and row.get(value) is not None]
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
                last = row["density"] == 1 and number == len(rows) and trial.state == TrialState.COMPLETE
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
    lines = []
    for rung in facts["rungs"]:
        if rung["trials"]:
            tau = ""
            if rung["tau"] is not None:
                tau = (
                    f", tau with the full network {rung['tau']:.2f}, regret {rung['regret']:.2g} (of {rung['tau_of']})"
                )
            lines.append(
                f"density {rung['density']:g}: {rung['trials']} trials, {rung['finished']} to the end, "
                f"{rung['seconds']:.0f} s, c = {'unknown' if rung['c'] is None else format(rung['c'], '.2f')}{tau}"
            )
    if facts["map_seconds"]:
        lines.append(f"making the map: {facts['map_seconds']:.0f} s")
    lines.append(f"building and timing proxies: {facts['proxy_seconds']:.0f} s")
    if facts["saving"] is not None:
        n, k = facts["n"], facts["k"]
        lines.append(
            f"{facts['seconds']:.0f} s for {n} trials, with {k:.1f} full trainings; "
            f"training all in full: {facts['baseline_seconds']:.0f} s; saving {facts['saving']:.0%}"
        )
    return lines


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
