"""Compare searches with real training with their replays."""

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

LIVE_METHODS = (BASE, "TPE + halving", OURS.name)
FILE = "live.json"
SEEDS = (0, 1, 2)  # of the searches, the same for every method
TEST_SEEDS = 2  # fresh trainings of each incumbent of a live search, to estimate its test error


def search_live(method: SearchMethod, setup: BenchmarkSetup, folder: Path, seed: int) -> dict[str, Any]:
    """Run a method's search with real training and an unrestricted sampler, on the networks of the recording.

    Returns its full trainings (wall-clock seconds, building the proxies included) and their test errors.
    """
    context = context_of(setup.spec, "cpu", folder)
    trainer, before = FidelityTrainer(context, setup.ladder(method), seed), setup.overhead(method)
    marks: list[dict[str, Any]] = []

    def finished(trial: Trial, value: FidelityResult) -> None:
        seconds = before + time.perf_counter() - started
        marks.append({"seconds": seconds, "value": getattr(value, setup.spec.study.value), "params": trial.params})

    started = time.perf_counter()
    MethodRun(method, setup, trainer, seed, lambda base: base, finished).run()
    result = {"arm": method.name, "seed": seed, "seconds": before + time.perf_counter() - started, "marks": marks}
    for _, number in incumbents(as_method_result(result)):
        recipe = recipe_with(setup.spec.recipe, marks[number]["params"])
        marks[number]["tested"] = [
            _tested(recipe, context, seed_of("live", seed, fresh)) for fresh in range(TEST_SEEDS)
        ]
    return result


def _tested(recipe: Recipe, context: RunContext, seed: int) -> float:
    """Test error of a fresh training of a setting."""
    with one_thread():
        whole = recipe.model_copy(update={"last": 1})
        (last,) = train(
            context.new_model(seed), context.data, whole, ("live", seed), [recipe.epochs], evaluate_all=False
        )
        if last.diverged:
            return 1 - 1 / context.data.classes
        return mean_error(context.model_with(last.weights), context.data.test, recipe.loss_fn)


def as_method_result(result: dict[str, Any]) -> MethodResult:
    """Convert the record of a live search; its full trainings are numbered in order."""
    marks = tuple((each["seconds"], number, each["value"]) for number, each in enumerate(result["marks"]))
    return MethodResult(marks, result["seconds"])


def run_live(setup: BenchmarkSetup, folder: Path, say: Callable[[str], None], seeds: Sequence[int] = SEEDS) -> None:
    """Run the searches of `LIVE_METHODS` one after the other, skipping those recorded in the folder."""
    path = folder / FILE
    done = _read(path)
    for seed in seeds:
        for name in LIVE_METHODS:
            if not any(each["arm"] == name and each["seed"] == seed for each in done):
                method = next(each for each in METHODS if each.name == name)
                done.append(search_live(method, setup, folder, seed))
                path.write_text(json.dumps(done, indent=1) + "\n")
                say(f"{name}, seed {seed}: run with real training, {done[-1]['seconds']:.0f} s")


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: not a list of live searches; remove the file to run them again") from error


def live_tables(folder: Path, scores: Scores) -> list[TextTable]:
    """Return a table of the live searches and their replays; an empty list if there are none."""
    done = _read(folder / FILE)
    if not done:
        return []
    head = ["search", "seconds, live", "replayed", f"share of {BASE}", "replayed", "full trainings", "replayed"]
    rows = [[*head, "to the target", "replayed", "test error, %", "replayed"]]
    whole = {each["seed"]: each["seconds"] for each in done if each["arm"] == BASE}
    for each in done:
        name, live, tested = each["arm"], as_method_result(each), tested_of(each)
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
        "live (seed of the search): unrestricted sampler, new trainings, wall-clock seconds; test error of the "
        f"incumbents: the mean of {TEST_SEEDS} fresh trainings; replayed: median, least and greatest",
        "live and replayed seconds were measured on different days; only shares of the full search are comparable",
    ]
    facts = [{name: each[name] for name in ("arm", "seed", "seconds")} for each in done]  # the rest is in the file
    return [TextTable("Live searches and their replays", rows, notes, facts)]


def tested_of(result: dict[str, Any]) -> Numbers:
    """Expected test error (n,) of the full trainings of a live search; infinite for those never incumbent."""
    return np.array([float(np.mean(each.get("tested", math.inf))) for each in result["marks"]])


def _range(values: Sequence[float] | Numbers, form: str = "{:.0f}") -> str:
    ordered = sorted(values)
    low, middle, high = (
        "never" if math.isinf(each) else form.format(each)
        for each in (ordered[0], float(np.median(ordered)), ordered[-1])
    )
    return middle if low == high else f"{middle} ({low} to {high})"
