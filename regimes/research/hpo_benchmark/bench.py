"""Benchmark ``hpo``: replay search methods on a recorded table; report cost, savings and ranking quality."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from optuna.exceptions import ExperimentalWarning

from regimes.config.hpo_file import resolve_hpo
from regimes.experiment.parent_watchdog import exit_with_parent
from regimes.hpo.map_guidance import open_guidance
from regimes.hpo.plan import Say, context_of
from regimes.research.hpo_benchmark import fidelity_by_regime, figures
from regimes.research.hpo_benchmark.comparisons import contrasts, contrasts_table
from regimes.research.hpo_benchmark.conclusions import conclusions
from regimes.research.hpo_benchmark.fidelities import FULL, from_facts
from regimes.research.hpo_benchmark.live_check import live_tables, run_live
from regimes.research.hpo_benchmark.methods import METHODS, SearchMethod
from regimes.research.hpo_benchmark.ranking_quality import RankingQuality, ranking_quality
from regimes.research.hpo_benchmark.ranking_tables import ranking_table, shift_table, validation_value_table
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup, MethodResult, replay
from regimes.research.hpo_benchmark.scores import Scores
from regimes.research.hpo_benchmark.table import Numbers, SearchTable, fidelities_of, open_table
from regimes.research.hpo_benchmark.tables import methods_table, targets_table
from regimes.research.page import Page, benchmark_page
from regimes.research.speed.harness import BenchOptions

RECORDING, MAP = Path("reports/hpo-digits/recording.nc"), "map.nc"
SEARCHES = 300  # of each method, paired by seed
INTRODUCTION = "Searches replayed on `recording.nc`; [README.md](README.md) describes how it was made."
PARTIAL_TRAINING = (0.1, 0.25, 0.5)  # shares of the full training whose ranking quality is reported too


def bench(options: BenchOptions, say: Say, recording: Path | None = None, live: bool = False) -> Page:
    """Replay every search method and score every fidelity.

    Args:
        options: not used.
        say: reports progress.
        recording: recorded table; default: `RECORDING`.
        live: whether to run some of the searches with real training as well.
    """
    path = recording or RECORDING
    table = open_table(path)
    setup = setup_of(table, path.parent)
    if live:
        run_live(setup, path.parent, say)
    found = searches(path, setup, METHODS, SEARCHES, say)
    tested = tested_errors(table, SEARCHES)
    scores = Scores.of(found, tested, table.seed_noise())
    asked, ranks = contrasts(scores), ranked(table, say)
    tables = [methods_table(scores, setup), contrasts_table(asked), targets_table(scores)]
    tables += [
        *live_tables(path.parent, scores),
        ranking_table(ranks),
        validation_value_table(table),
        shift_table(setup),
    ]
    drawn = {"best-so-far": figures.curves(found, tested, scores.target), "fidelity": figures.ranking_figure(ranks)}
    if setup.guide is not None:
        bins = fidelity_by_regime.map_bins(table, setup.guide)
        tables.append(fidelity_by_regime.regime_table(bins, setup.guide))
        drawn["over-the-map"] = fidelity_by_regime.regime_figure(bins)
    return benchmark_page("hpo", tables, drawn, (INTRODUCTION, *conclusions(scores, asked)))


def setup_of(table: SearchTable, folder: Path, with_map: bool = True) -> BenchmarkSetup:
    """Return the benchmark setup of a recorded table: its search, its networks and the map in its folder, if any."""
    spec = resolve_hpo(table.facts["spec"], "recording")
    context = context_of(spec, "cpu", folder)
    images = len(context.loaded.train.targets) * spec.recipe.epochs  # of a full training
    fidelities = {}
    for facts in table.facts["courses"]:
        fidelity, built = from_facts(facts, context, spec.recipe)
        seconds, alone = (table.mean_seconds(fidelity.name, together) / images for together in (True, False))
        fidelities[fidelity.name] = dataclasses.replace(built, seconds=seconds, alone=alone)
    guide = None
    if with_map and "map" in table.facts:
        guide = open_guidance(folder / MAP, spec.data, spec.model, table.facts["map"]["seconds"])
    return BenchmarkSetup(table, spec, fidelities, guide, spec.trials)


def tested_errors(table: SearchTable, count: int) -> list[Numbers]:
    """Return the settings' expected test errors for each of so many searches, without the training that it sees."""
    return [table.expected_test_errors(without=table.seen_seeds(seed)[table.positions[FULL]]) for seed in range(count)]


def searches(
    path: Path, setup: BenchmarkSetup, methods: Sequence[SearchMethod], count: int, say: Say
) -> dict[str, list[MethodResult]]:
    """Replay methods in parallel: {method: results by seed}.

    Methods that need a map are left out where there is none, and those of fidelities that are not recorded.
    """
    found = {}
    pool = ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ready,
        initargs=(path, dict(setup.asking), setup.guide is not None, os.getpid()),
    )
    with pool:
        for method in methods:
            if (setup.guide is not None or not method.uses_map) and set(setup.fidelity_names(method)) <= set(
                setup.fidelities
            ):
                found[method.name] = list(pool.map(_replayed, [(method, seed) for seed in range(count)]))
                say(f"{method.name}: {count} searches replayed")
    return found


_SETUP: list[BenchmarkSetup] = []  # of this process


def _ready(path: Path, asking: dict[str, float], with_map: bool, parent: int) -> None:
    exit_with_parent(parent)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # of the sampler with a Gaussian process
    _SETUP.append(dataclasses.replace(setup_of(open_table(path), path.parent, with_map), asking=asking))


def _replayed(asked: tuple[SearchMethod, int]) -> MethodResult:
    method, seed = asked
    return replay(method, _SETUP[0], seed)


def ranked(table: SearchTable, say: Say) -> list[RankingQuality]:
    """Ranking quality of another seed of the full network, of partial full trainings, and of every fidelity."""
    found = [ranking_quality(table, FULL)]
    found += [ranking_quality(table, FULL, max(1, round(part * table.epochs))) for part in PARTIAL_TRAINING]
    found += [ranking_quality(table, fidelity.name) for fidelity in fidelities_of(table.facts) if fidelity.name != FULL]
    say("ranking quality of every fidelity: done")
    return found
