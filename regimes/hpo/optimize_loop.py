"""Ask-and-tell loop of a study, and the final test of the winner."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.trial import Trial, TrialState
from torch import nn

from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.context import RunContext, one_thread
from regimes.hpo.batch_ask import check_space
from regimes.hpo.build_fidelities import ProxyContext
from regimes.hpo.exhaustion import ended_by_sampler, settings_left
from regimes.hpo.fidelity_trainer import FidelityTrainer
from regimes.hpo.optuna_study import open_study
from regimes.hpo.plan import Plan
from regimes.hpo.requeue import count_finished, holders, is_drawn_twice, is_duplicate
from regimes.hpo.search_space import Space, recipe_with
from regimes.hpo.trial_attrs import PREFIX, note
from regimes.hpo.trial_runner import TrialRunner, Watch
from regimes.landscape.error import error_and_loss
from regimes.training.train import train

RECORDS = "trials"  # subfolder of stored results


class Running(Protocol):
    """Interface of a trial in progress: Optuna's trial, and whether the study knows its final state."""

    trial: Trial
    over: bool


class BatchRunner(Protocol):
    """Interface of a runner of batches of trials; see `TrialRunner` and `CellRunner`."""

    space: Space

    def ask(self, study: optuna.Study, count: int) -> list[Any]:
        """Ask a study for new trials."""

    def run_batch(self, study: optuna.Study, batch: Sequence[Any]) -> None:
        """Run a batch and tell the study each trial's final state; at the deadline, trials stay open."""


@dataclass(frozen=True)
class Limits:
    """Limits of a search.

    Attributes:
        trials: total number of trials, earlier ones included.
        deadline: time by ``time.monotonic`` after which nothing new is started.
        draws: whether new settings are sampled; if not, only trials enqueued in the study run.
    """

    trials: int
    deadline: float = math.inf
    draws: bool = True


def trial_runner_of(
    plan: Plan, context: RunContext, folder: Path | None, watch: Watch | None = None, deadline: float = math.inf
) -> TrialRunner:
    """Return the runner for the trials of a plan."""
    trainer = FidelityTrainer(context, plan.ladder, plan.spec.seed, folder / RECORDS if folder else None)
    guidance = plan.map_guidance
    start: Callable[[Recipe], tuple[int, str]] | None = None
    proxies = plan.ladder.rungs[:-1]
    if guidance is not None and proxies and all(isinstance(each.context, ProxyContext) for each in proxies):
        start = lambda recipe: guidance.start(plan.ladder, recipe)  # noqa: E731
    return TrialRunner(trainer, plan.space, plan.spec.recipe, plan.spec.study.value, start, watch, deadline)


def study_of(plan: Plan, context: RunContext, storage: optuna.storages.BaseStorage, worker: int = 0) -> optuna.Study:
    """Create or open the study of a plan."""
    spec = plan.spec
    science = {
        "data": spec.data.model_dump(),
        "fingerprint": context.loaded.fingerprint,
        "model": spec.model.model_dump(),
        "recipe": spec.recipe.key_fields(),
        "value": spec.study.value,
        "ladder": [{"density": rung.density, **rung.differences, "epochs": rung.epochs} for rung in plan.ladder.rungs],
        "reports": len(plan.ladder.stretches),
        "seed": spec.seed,
    }
    steps = [each.step for each in plan.ladder.stretches]
    return open_study(storage, spec.name, spec.study, plan.space, steps, science, spec.seed, worker)


def enqueue_priors(study: optuna.Study, plan: Plan) -> None:
    """Enqueue the first values that the map suggests, if the study has no trials yet."""
    if study.trials or not plan.priors:
        return
    middle = {name: getattr(plan.spec.recipe, name) for name in plan.space}
    for prior in plan.priors:
        rest = {name: middle[name] for name, each in plan.space.items() if each.ends[0] <= middle[name] <= each.ends[1]}
        allowed = {
            name: value
            for name, value in {**rest, **prior}.items()
            if plan.space[name].choices is None or value in (plan.space[name].choices or ())
        }
        study.enqueue_trial(allowed, user_attrs={f"{PREFIX}from": "map"})


def run_trials(study: optuna.Study, runner: BatchRunner, batch: int, limits: Limits) -> None:
    """Ask for trials in batches and train them until there are enough, time is up or the sampler has no more settings.

    Trials that the deadline interrupts are marked; `requeue_dead_trials` enqueues them again.
    """
    while run_batch(study, runner, batch, limits):
        pass


def run_batch(study: optuna.Study, runner: BatchRunner, batch: int, limits: Limits) -> bool:
    """Ask for one batch of trials and train it; returns whether there was anything to do, see `run_trials`."""
    check_space(study, runner.space)
    count = min(batch, trials_left(study, runner.space, limits))
    if count <= 0 or time.monotonic() >= limits.deadline:
        return False
    with ended_by_sampler(study):
        started = runner.ask(study, int(count))
        try:
            kept = _needed(study, started, limits)
            _fail_unfinished(study, [each for each in started if each not in kept], again=False)
            runner.run_batch(study, kept)
        finally:
            _fail_unfinished(study, started)
    return True


def trials_left(study: optuna.Study, space: Space, limits: Limits) -> float:
    """Return how many trials a study can still start within its limits."""
    trials = study.get_trials(deepcopy=False)
    waiting = sum(each.state == TrialState.WAITING for each in trials)
    drawn = settings_left(study, space) if limits.draws else 0
    return min(limits.trials - count_finished(trials), waiting + drawn)


def _needed(study: optuna.Study, started: Sequence[Running], limits: Limits) -> Sequence[Running]:
    """Drop duplicates and surplus draws caused by concurrent workers; enqueued trials have priority."""
    trials = study.get_trials(deepcopy=False)
    enqueued = [each for each in started if trials[each.trial.number].system_attrs.get("fixed_params")]
    drawn = [each for each in started if each not in enqueued]
    spare = max(0, count_finished(trials) - limits.trials) if limits.draws else len(drawn)
    drawn = drawn[: max(0, len(drawn) - spare)]
    if any(is_drawn_twice(trials[each.trial.number], trials) for each in drawn):
        study.sampler.reseed_rng()  # another command began at the same moment, from the same seed
        drawn = [each for each in drawn if not is_drawn_twice(trials[each.trial.number], trials)]
    enqueued = [each for each in enqueued if not is_duplicate(trials[each.trial.number], trials)]
    return [each for each in started if each in enqueued or each in drawn]


def _fail_unfinished(study: optuna.Study, started: Sequence[Running], again: bool = True) -> None:
    """Mark unfinished trials failed, to be requeued (``again``) or as surplus."""
    for running in started:
        if not running.over:
            with contextlib.suppress(RuntimeError, ValueError):  # already finished by another process
                note(running.trial, "unfinished" if again else "spare", True)
                study.tell(running.trial, state=TrialState.FAIL)
            running.over = True


def winner_of(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """Return the best trial that finished the full network.

    Raises:
        UserError: no trial did.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        states = [each.state.name.lower() for each in study.get_trials(deepcopy=False)]
        said = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states)) or "no trials"
        held = f"; trials are held by {', '.join(holders(study))}: if gone, use --take-over" if holders(study) else ""
        raise UserError(
            f"no trial reached the full network ({said}){held}: use a study.stopper that stops less, more trials, "
            "more time, or smaller values of a hyperparameter that diverges"
        )
    return study.best_trial


def evaluate_winner(plan: Plan, context: RunContext, winner: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Train the winner's setting with fresh seeds and evaluate it on the test split, which the search never uses."""
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
            rows.append({"seed": seed, **_errors(model, recipe, context)})
    errors = [row["test_error"] for row in rows if row["test_error"] is not None]
    return {
        "params": {name: winner.params[name] for name in plan.space},
        "trial": winner.number,
        "value": winner.value,
        "runs": rows,
        "test_error": float(np.mean(errors)) if errors else None,
        "test_error_sd": float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        "seconds": time.perf_counter() - started,
        "deployment": plan.map_guidance.deployment(recipe) if plan.map_guidance else None,
    }


def _errors(model: nn.Module, recipe: Recipe, context: RunContext) -> dict[str, float]:
    splits = {"val_error": context.data.val, "test_error": context.data.test}
    function = recipe.error_function
    return {name: error_and_loss(model, each, recipe.loss_fn, function)[0].value for name, each in splits.items()}
