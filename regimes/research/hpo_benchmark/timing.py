"""Time trainings, pruning and measurements, in turn, on an otherwise idle machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from regimes.config.hpo import Hpo
from regimes.config.recipe import Recipe
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.engine_selection import EngineChoice, engine_of, seconds_per_image
from regimes.hpo import SAMPLERS
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.search_space import distributions
from regimes.hpo.validation import validate
from regimes.landscape import METRICS
from regimes.landscape.error import mean_error
from regimes.landscape.metric import Metric, Probe, Trained
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prune
from regimes.registry import lookup
from regimes.research.hpo_benchmark.fidelities import from_facts, typical_recipes
from regimes.training.batches import generator_of
from regimes.training.fleet import Engine, Lane

ROUNDS = 5

Seconds = dict[str, dict[str, float]]  # {batch size: {"alone", "judged", fleet's lanes: seconds of one network}}


def time_fidelities(spec: Hpo, fidelities: Sequence[dict[str, Any]], context: RunContext) -> dict[str, Seconds]:
    """Return {fidelity: {batch size: seconds}}, medians of several rounds with all fidelities in turn.

    Seconds of a full training "alone", of one validation ("judged"), and per network in fleets, by number of lanes.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(ROUNDS):
        for facts in fidelities:
            fidelity, built = from_facts(facts, context, spec.recipe)
            for timed in typical_recipes(spec):
                recipe = fidelity.recipe(timed)
                row = {
                    "alone": _training(built, recipe, EngineChoice("eager", 1)),
                    "judged": _judged(built.context, recipe),
                }
                for lanes in fleet_sizes(built):
                    row[str(lanes)] = _training(built, recipe, EngineChoice(built.choice.engine, lanes))
                found.setdefault(fidelity.name, {}).setdefault(str(timed.batch_size), []).append(row)
    return {name: {size: _medians(rows) for size, rows in each.items()} for name, each in found.items()}


def fleet_sizes(built: Fidelity) -> list[int]:
    """Return the fleet sizes of a fidelity: powers of two up to its largest fleet."""
    lanes = built.lanes_for(1) if built.choice.lanes > 1 else built.choice.lanes + 1
    found = []
    while lanes <= built.choice.lanes:
        found.append(lanes)
        lanes *= 2
    return found


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _training(built: Fidelity, recipe: Recipe, choice: EngineChoice) -> float:
    """Seconds of a full training of one network without evaluations, extrapolated from a few steps."""
    steps = len(built.context.data.train.targets) // recipe.batch_size
    return seconds_per_image(built.context, choice, recipe) * steps * recipe.batch_size * recipe.epochs


def _judged(context: RunContext, recipe: Recipe) -> float:
    """Seconds of the evaluation and validation that follow a training or a reported segment."""
    model, val = context.new_model(seed=0), context.data.val
    with one_thread():
        started = time.process_time()
        mean_error(model, val, recipe.loss_fn)
        validate(model, val, recipe)
        return time.process_time() - started


def seconds_of_asking(spec: Hpo, sampler: str = "tpe") -> float:
    """Return the mean seconds of processor time that a sampler takes to draw a setting in a search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=lookup(SAMPLERS, sampler, "sampler")(0))
    with one_thread():
        started = time.process_time()
        for number in range(spec.trials):
            study.tell(study.ask(distributions(spec.space)), float(number % 7))
        return (time.process_time() - started) / spec.trials


def machine_load() -> str:
    """Return the machine's load average, as text."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def time_pruned(
    spec: Hpo, context: RunContext, choice: EngineChoice, density: float, measures: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the seconds of trainings, pruning and measurements, medians of several rounds with all of them in turn.

    Seconds are processor time of one thread, so that other jobs of the machine hardly matter.

    Args:
        spec: the search.
        context: data and model.
        choice: engine of retrainings in fleets.
        density: density of the pruned networks.
        measures: {metric: options}.

    Returns:
        {"dense": {batch size: {"alone", fleet's lanes: of a whole training, per network}}, "retrain": {"alone", fleet's
        lanes: of a whole retraining}, "judged": of one validation, "evaluated": of one evaluation on the validation and
        test split, "prune", metric: of one network or pair}.
    """
    dense: dict[str, list[dict[str, float]]] = {}
    retrain: list[dict[str, float]] = []
    others: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        for recipe in typical_recipes(spec):
            dense.setdefault(str(recipe.batch_size), []).append(_by_lanes(context, choice, recipe)[0])
        started = time.process_time()
        mask = prune(context.new_model(seed=0), density)
        row = {"prune": time.process_time() - started, "judged": _judged(context, spec.recipe)}
        times, trained = _by_lanes(context, choice, spec.recipe, mask)
        retrain.append(times)
        started = time.process_time()
        trained.errors()
        row["evaluated"] = time.process_time() - started
        model = context.model_with(trained.state(0)[0])
        others.append({**row, **_measured(context, spec.recipe, Trained(model, mask), measures)})
    return {
        "dense": {size: _medians(rows) for size, rows in dense.items()},
        "retrain": _medians(retrain),
        **_medians(others),
    }


def _by_lanes(
    context: RunContext, choice: EngineChoice, recipe: Recipe, mask: Mask | None = None
) -> tuple[dict[str, float], Engine]:
    """Seconds of a whole training per network, alone and in fleets up to the engine's size; and the engine alone."""
    alone, trained = _timed_epochs(context, EngineChoice("eager", 1), recipe, mask)
    found = {"alone": alone}
    lanes = engine_of(choice.engine).slots(1, context.new_model(seed=0))
    while lanes <= choice.lanes and choice.lanes > 1:
        found[str(lanes)] = _timed_epochs(context, EngineChoice(choice.engine, lanes), recipe, mask)[0]
        lanes *= 2
    return found, trained


def _timed_epochs(
    context: RunContext, choice: EngineChoice, recipe: Recipe, mask: Mask | None = None
) -> tuple[float, Engine]:
    """Seconds of a whole training per network, from its second epoch, without evaluations; and its engine."""
    seeds = range(choice.lanes)
    lanes = [Lane(context.new_model(seed), recipe, ("timing", seed), mask) for seed in seeds]
    trial = engine_of(choice.engine)(lanes, context.data)
    trial.epoch(0)
    started = time.process_time()
    trial.epoch(1)
    return (time.process_time() - started) * recipe.epochs / choice.lanes, trial


def _measured(
    context: RunContext, recipe: Recipe, network: Trained, measures: Mapping[str, dict[str, Any]]
) -> dict[str, float]:
    """Seconds of measuring one network, or a pair of it with itself."""
    found = {}
    for name, options in measures.items():
        metric: Metric = lookup(METRICS, name, "metric")
        started = time.process_time()
        subjects = [network] * (2 if metric.subject == "pair" else 1)
        metric.measure(subjects, Probe(context.data, recipe.loss_fn, generator_of("timing")), metric.options(**options))
        found[name] = time.process_time() - started
    return found
