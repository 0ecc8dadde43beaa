"""Do a search: workers ask, climb and tell until there are enough trials; then the winner is tested."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.context import RunContext, one_thread
from regimes.hpo.fidelity_trainer import FidelityTrainer
from regimes.hpo.optuna_study import count_finished, holders, is_duplicate, open_study
from regimes.hpo.plan import Plan
from regimes.hpo.search_space import recipe_with
from regimes.hpo.trial_attrs import PREFIX, note
from regimes.hpo.trial_runner import RunningTrial, TrialRunner, Watch
from regimes.landscape.error import error_and_loss
from regimes.training.train import train

RECORDS = "trials"  # folder of what trials came to, by content


@dataclass(frozen=True)
class Limits:
    """When a search ends.

    Attributes:
        trials: in all, earlier ones included.
        deadline: by ``time.monotonic``.
        draws: whether new settings are drawn; else only those that wait in the study are tried.
    """

    trials: int
    deadline: float = math.inf
    draws: bool = True


def trial_runner_of(
    plan: Plan, context: RunContext, folder: Path | None, watch: Watch | None = None, deadline: float = math.inf
) -> TrialRunner:
    """What a trial of a plan does."""
    trainer = FidelityTrainer(context, plan.ladder, plan.spec.seed, folder / RECORDS if folder else None)
    guide = plan.guide
    start: Callable[[Recipe], tuple[int, str]] | None = None
    if guide is not None and len(plan.ladder.rungs) > 1:
        start = lambda recipe: guide.start(plan.ladder, recipe)  # noqa: E731 - closes over the map
    return TrialRunner(trainer, plan.space, plan.spec.recipe, plan.spec.study.value, start, watch, deadline)


def study_of(plan: Plan, context: RunContext, storage: optuna.storages.BaseStorage, worker: int = 0) -> optuna.Study:
    """The study of a plan."""
    spec = plan.spec
    science = {
        "data": spec.data.model_dump(),
        "fingerprint": context.loaded.fingerprint,
        "model": spec.model.model_dump(),
        "recipe": spec.recipe.science(),
        "value": spec.study.value,
        "ladder": [{"density": rung.density, "epochs": rung.epochs} for rung in plan.ladder.rungs],
        "reports": len(plan.ladder.stretches),
        "seed": spec.seed,
    }
    steps = [each.step for each in plan.ladder.stretches]
    return open_study(storage, spec.name, spec.study, plan.space, steps, science, spec.seed, worker)


def begin(study: optuna.Study, plan: Plan) -> None:
    """Enqueue what the map would try first, once."""
    if study.trials or not plan.priors:
        return
    middle = plan.spec.recipe.model_dump()
    for prior in plan.priors:
        rest = {name: middle[name] for name, each in plan.space.items() if each.ends[0] <= middle[name] <= each.ends[1]}
        allowed = {
            name: value
            for name, value in {**rest, **prior}.items()
            if plan.space[name].choices is None or value in (plan.space[name].choices or ())
        }
        study.enqueue_trial(allowed, user_attrs={f"{PREFIX}from": "map"})


def work(study: optuna.Study, climb: TrialRunner, batch: int, limits: Limits) -> None:
    """Ask for trials in batches and climb with them until there are enough, or time is up.

    Trials that time cuts off are marked and asked for again by the next command.
    """
    while time.monotonic() < limits.deadline:
        trials = study.get_trials(deepcopy=False)
        waiting = sum(each.state == TrialState.WAITING for each in trials)
        count = min(batch, limits.trials - count_finished(trials), batch if limits.draws else waiting)
        if count <= 0:
            return
        climbers = climb.ask(study, count)
        try:
            kept = _needed(study, climbers, limits)
            _leave(study, [each for each in climbers if each not in kept], again=False)
            climb.together(study, kept)
        finally:
            _leave(study, climbers)


def _needed(study: optuna.Study, climbers: list[RunningTrial], limits: Limits) -> list[RunningTrial]:
    """Those to climb with, where others asked at the same time: what had waited, nothing twice, draws if need be."""
    trials = study.get_trials(deepcopy=False)
    waited = [each for each in climbers if trials[each.trial.number].system_attrs.get("fixed_params")]
    drawn = [each for each in climbers if each not in waited]
    spare = max(0, count_finished(trials) - limits.trials) if limits.draws else len(drawn)
    drawn = drawn[: max(0, len(drawn) - spare)]
    waited = [each for each in waited if not is_duplicate(trials[each.trial.number], trials)]
    return [each for each in climbers if each in waited or each in drawn]


def _leave(study: optuna.Study, climbers: list[RunningTrial], again: bool = True) -> None:
    """Mark what was cut off, so that it is asked for again; or hand back what is not needed."""
    for climber in climbers:
        if not climber.over:
            with contextlib.suppress(RuntimeError, ValueError):  # told by another command, which took it for dead
                note(climber.trial, "unfinished" if again else "spare", True)
                study.tell(climber.trial, state=TrialState.FAIL)
            climber.over = True


def winner_of(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """The best trial that came to the top.

    Raises:
        UserError: none did.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        states = [each.state.name.lower() for each in study.get_trials(deepcopy=False)]
        said = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states)) or "no trials"
        held = (
            f"; trials are held by {', '.join(holders(study))}: if that is gone, --take-over" if holders(study) else ""
        )
        raise UserError(
            f"no trial reached the full network ({said}){held}: take a gentler study.stopper, more trials, more time, "
            "or smaller values of what diverges"
        )
    return study.best_trial


def final(plan: Plan, context: RunContext, winner: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Train the winner with fresh seeds and judge it on the test split, which the search has not seen."""
    spec = plan.spec
    recipe = recipe_with(spec.recipe, {name: winner.params[name] for name in plan.space})
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with one_thread():
        for seed in range(spec.final_seeds):
            role = ("hpo-final", spec.seed, seed)
            model = context.new_model(seed_of("init", *role))
            once = recipe.model_copy(update={"last": 1})
            (snapshot,) = train(model, context.data, once, role, [recipe.epochs], evaluate_all=False)
            if snapshot.diverged:
                rows.append({"seed": seed, "test_error": None, "val_error": None})
                continue
            judged = {name: error_and_loss(model, split, recipe.loss_fn)[0].value for name, split in _splits(context)}
            rows.append({"seed": seed, **judged})
    errors = [row["test_error"] for row in rows if row["test_error"] is not None]
    return {
        "params": {name: winner.params[name] for name in plan.space},
        "trial": winner.number,
        "value": winner.value,
        "runs": rows,
        "test_error": float(np.mean(errors)) if errors else None,
        "test_error_sd": float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        "seconds": time.perf_counter() - started,
        "deployment": plan.guide.deployment(recipe) if plan.guide else None,
    }


def _splits(context: RunContext) -> list[tuple[str, Any]]:
    return [("val_error", context.data.val), ("test_error", context.data.test)]
