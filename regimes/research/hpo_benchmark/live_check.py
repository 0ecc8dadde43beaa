"""Searches that are really trained, beside the same ones replayed: do replay and life agree?"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import Trial

from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.context import RunContext, one_thread
from regimes.hpo.fidelity_trainer import FidelityResult, FidelityTrainer
from regimes.hpo.plan import context_of
from regimes.hpo.search_space import recipe_with
from regimes.landscape.error import mean_error
from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.methods import BASE, METHODS, OURS, SearchMethod
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup, MethodResult, MethodRun
from regimes.research.hpo_benchmark.scores import Numbers, Scores, final_error, incumbents, time_to
from regimes.training.train import train

LIVE = (BASE, "TPE + halving", OURS.name)
FILE = "live.json"
SEEDS = (0, 1, 2)  # of the searches, alike in every arm
FRESH = 2  # seeds with which what a live search held is trained anew and tested


def search_live(arm: SearchMethod, stage: BenchmarkSetup, folder: Path, seed: int) -> dict[str, Any]:
    """Do an arm's search by training, with a free sampler, on the networks of the recording.

    Returns its marks (seconds by the clock, what making the proxies took included) and what they tested at.
    """
    context = context_of(stage.spec, "cpu", folder)
    trainer, before = FidelityTrainer(context, stage.ladder(arm), seed), stage.overhead(arm)
    marks: list[dict[str, Any]] = []

    def finished(trial: Trial, value: FidelityResult) -> None:
        seconds = before + time.perf_counter() - started
        marks.append({"seconds": seconds, "value": getattr(value, stage.spec.study.value), "params": trial.params})

    started = time.perf_counter()
    MethodRun(arm, stage, trainer, seed, lambda base: base, finished).go()
    result = {"arm": arm.name, "seed": seed, "seconds": before + time.perf_counter() - started, "marks": marks}
    for _, number in incumbents(as_found(result)):
        recipe = recipe_with(stage.spec.recipe, marks[number]["params"])
        marks[number]["tested"] = [_tested(recipe, context, seed_of("live", seed, fresh)) for fresh in range(FRESH)]
    return result


def _tested(recipe: Recipe, context: RunContext, seed: int) -> float:
    """Test error of a setting, trained anew."""
    with one_thread():
        whole = recipe.model_copy(update={"last": 1})
        (last,) = train(
            context.new_model(seed), context.data, whole, ("live", seed), [recipe.epochs], evaluate_all=False
        )
        if last.diverged:
            return 1 - 1 / context.data.classes
        return mean_error(context.model_with(last.weights), context.data.test, recipe.loss_fn)


def as_found(result: dict[str, Any]) -> MethodResult:
    """A live search as a replayed one is told, its full trainings numbered."""
    marks = tuple((each["seconds"], number, each["value"]) for number, each in enumerate(result["marks"]))
    return MethodResult(marks, result["seconds"])


def go_live(stage: BenchmarkSetup, folder: Path, say: Callable[[str], None], seeds: Sequence[int] = SEEDS) -> None:
    """Train the arms in `LIVE`, one after the other; what is done is kept."""
    path = folder / FILE
    done = _read(path)
    for seed in seeds:
        for name in LIVE:
            if not any(each["arm"] == name and each["seed"] == seed for each in done):
                arm = next(each for each in METHODS if each.name == name)
                done.append(search_live(arm, stage, folder, seed))
                path.write_text(json.dumps(done, indent=1) + "\n")
                say(f"{name}, seed {seed}: trained live, {done[-1]['seconds']:.0f} s")


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: is no list of live searches; remove it, and they are trained anew") from error


def beside(folder: Path, scores: Scores) -> list[TextTable]:
    """The live searches beside their replays; nothing where none was trained."""
    done = _read(folder / FILE)
    if not done:
        return []
    head = ["search", "seconds, live", "replayed", f"of those of {BASE}", "replayed", "full trainings", "replayed"]
    rows = [[*head, "to the target", "replayed", "test error, %", "replayed"]]
    whole = {each["seed"]: each["seconds"] for each in done if each["arm"] == BASE}
    for each in done:
        name, live, tested = each["arm"], as_found(each), tested_of(each)
        replays = scores.found[name]
        rows.append(
            [
                f"{name} ({each['seed']})",
                f"{each['seconds']:.0f}",
                _range(scores.seconds[name]),
                f"{each['seconds'] / whole[each['seed']]:.2f}" if each["seed"] in whole else "unknown",
                _range(np.divide(scores.seconds[name], scores.seconds[BASE]), "{:.2f}"),
                str(len(live.marks)),
                _range([len(one.marks) for one in replays]),
                _range([time_to(live, tested, scores.target)]),
                _range(scores.times[name]),
                f"{100 * final_error(live, tested):.2f}",
                _range([100 * error for error in scores.errors[name]], "{:.2f}"),
            ]
        )
    notes = [
        "live (number of the search): a free sampler, new trainings, seconds by the clock; test errors of what was "
        f"held: the mean of {FRESH} fresh trainings; replayed: median, least and greatest",
        "live seconds are of another day's machine than replayed ones; parts of what the whole search took compare",
    ]
    facts = [{name: each[name] for name in ("arm", "seed", "seconds")} for each in done]  # the rest stands in the file
    return [TextTable("Do replay and life agree?", rows, notes, facts)]


def tested_of(result: dict[str, Any]) -> Numbers:
    """Expected test error of a live search's full trainings (n,): of those that it held; others are not needed."""
    return np.array([float(np.mean(each.get("tested", math.inf))) for each in result["marks"]])


def _range(values: Sequence[float] | Numbers, form: str = "{:.0f}") -> str:
    ordered = sorted(values)
    low, middle, high = (
        "never" if math.isinf(each) else form.format(each)
        for each in (ordered[0], float(np.median(ordered)), ordered[-1])
    )
    return middle if low == high else f"{middle} ({low} to {high})"
