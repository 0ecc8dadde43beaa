"""Study ``stoppers``: compare all stoppers on the same trials, and a search with a map with one without."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from regimes.config.hpo import Hpo
from regimes.config.hpo_file import read_hpo
from regimes.hpo import STOPPERS
from regimes.hpo.optimize_loop import Limits, run_trials, trial_runner_of
from regimes.hpo.plan import context_of, plan
from regimes.hpo.savings import in_words, rows_of, stopped_at
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions
from regimes.hpo.stoppers import REDUCTION_FACTOR
from regimes.plots.hpo_plots import log_axis_with_plain_labels, objective_label
from regimes.plots.text_table import TextTable
from regimes.registry import lookup
from regimes.research.page import Page, Say

FILE = "sweeps/digits-hpo.toml"
DENSITY = 0.06  # of the proxy, without a map
TITLE = "Proxy HPO: stoppers, and searches with and without a map"
PARAGRAPHS = [
    f"`{FILE}`: hyperparameters of PreResNet-14 (width 16) on handwritten digits - learning rate, weight decay, batch "
    "size, SAM rho, label smoothing -, trained on a narrow proxy and on the full network, each with reports at a tenth "
    "of its epochs and at its end. Steps are cumulative measured seconds; the first report's is 1.",
    "Stoppers: every trial goes through all fidelities; the random trials are the same for each stopper and asked for "
    "in one batch. A training that several stoppers allow is done once and counted for each. `none`: every trial is "
    "trained on the proxy and in full.",
    "Searches: `regimes hpo`, TPE, proxies halved and the best five in full. Without a map the density is set "
    "in the file; with one it is the density that the map trusts, and making the map counts; if it trusts none, "
    "halving acts on the full network. One study of each kind: their difference may be due to chance.",
]

COST_NOTE = (
    "c: mean seconds of a whole training at this fidelity, as a share of a full training's mean over all trials; "
    "fleets of surviving trials are small, and promoted trials may have smaller batch sizes than the others"
)


def study(out: Path, runs: Path, say: Say) -> Page:
    """Compare the stoppers on the same trials; then search with and without a map."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = read_hpo(FILE, ["map.make=true"])
    by_hand = read_hpo(FILE, [f"ladder.densities=[{DENSITY}]"])
    stoppers = _stoppers(by_hand, runs / "stoppers", say)
    found = {}
    for name, spec in (("without a map", by_hand), ("with a map", asked)):
        folder = runs / name.replace(" ", "-")
        found[name] = search(spec, SearchOptions(folder), say)
        say(f"{name}: done")
    return Page("stoppers", TITLE, PARAGRAPHS, [stoppers, _searches(found)], {"best-so-far": curves(found)}, found)


def _stoppers(spec: Hpo, folder: Path, say: Say) -> TextTable:
    context = context_of(spec, "cpu", folder)
    whole = plan(spec, context, None)
    steps = [each.step for each in whole.ladder.stretches]
    rows, facts = [["stopper", *(f"stopped at step {step}" for step in steps[:-1]), "in full", "seconds", "best"]], []
    ranks: dict[int, int] = {}
    for name in ("none", *(each for each in STOPPERS if each != "none")):
        made = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed=0), pruner=lookup(STOPPERS, name, "stopper")(steps)
        )
        run_trials(made, trial_runner_of(whole, context, folder), spec.batch, Limits(spec.trials))
        ranks = ranks or _ranks(made)
        facts.append({"stopper": name, **_outcome(made), "rank": ranks[made.best_trial.number]})
        rows.append(_row(facts[-1], steps, facts[0]["seconds"]))
        say(f"stopper {name}: done")
    densities = ", ".join(f"{rung.density:g}" for rung in whole.ladder.rungs)
    costs = ", ".join(f"{cost:.2f}" for cost in whole.ladder.costs)
    notes = [
        f"{spec.trials} trials in a batch of {spec.batch}; densities {densities}, measured costs {costs}; one process, "
        "one core",
        "best: validation value of the best full training, and its rank among all of them; halving and "
        f"hyperband keep one of {REDUCTION_FACTOR}, median and percentile act from four finished trials on",
    ]
    return TextTable("All stoppers on the same trials", rows, notes, facts)


def _outcome(study: optuna.Study) -> dict[str, Any]:
    return {
        "stopped": stopped_at(study),
        "finished": len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))),
        "seconds": sum(row["seconds"] for each in study.trials for row in rows_of(each)),
        "best": study.best_value,
    }


def _ranks(study: optuna.Study) -> dict[int, int]:
    """{trial: its rank among all full trainings}, 1 is best."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {each.number: rank for rank, each in enumerate(sorted(done, key=_value), 1)}


def _row(found: Mapping[str, Any], steps: list[int], whole: float) -> list[str]:
    stops = [str(found["stopped"].get(step, 0)) for step in steps[:-1]]
    share = f"{found['seconds']:.0f} ({found['seconds'] / whole:.2f} of none's)"
    return [found["stopper"], *stops, str(found["finished"]), share, f"{found['best']:.4f} (rank {found['rank']})"]


def _value(trial: FrozenTrial) -> float:
    return math.inf if trial.value is None else trial.value


def _searches(found: Mapping[str, dict[str, Any]]) -> TextTable:
    rows = [["search", "cost and savings", "test error of the winner, fresh seeds", "for deployment"]]
    for name, result in found.items():
        winner, deployed = result["winner"], result["winner"]["deployment"]
        tested = f"{winner['test_error']:.2%} ± {winner['test_error_sd']:.2%}"
        density = f"density {deployed['density']:g}" if deployed and deployed["density"] is not None else "-"
        rows.append([name, "; ".join(in_words(result["savings"])), tested, density])
    notes = [COST_NOTE, *(note for result in found.values() for note in result["notes"])]
    return TextTable("Searches without and with a map", rows, notes, dict(found))


def curves(found: Mapping[str, dict[str, Any]]) -> Figure:
    """Draw the best validation value of the full network over time, one line per search."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, result), colour, style in zip(found.items(), ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
        curve = result["savings"]["curve"]
        seconds, values = [each["seconds"] for each in curve], [each["value"] for each in curve]
        axes.step(seconds, values, style, where="post", color=colour, label=name)
        axes.plot(seconds[:-1], values[:-1], "o", color=colour, markersize=4)
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlim(left=0)
    log_axis_with_plain_labels(axes.yaxis)
    axes.set_xlabel("seconds, including the map and finding proxies")
    axes.set_ylabel(objective_label(next(iter(found.values()))["value"]))
    axes.set_title("Digits: best so far", fontsize=10)
    return figure
