"""``bench hpo``: search methods replayed on a recorded table: seconds, savings, and how proxies rank."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from regimes.config.hpo_file import resolve_hpo
from regimes.experiment.parent_watchdog import end_with
from regimes.hpo.map_guidance import open_guide
from regimes.hpo.plan import Say, context_of
from regimes.research.hpo_benchmark import fidelity_by_regime, figures
from regimes.research.hpo_benchmark.comparisons import contrasts, contrasts_sheet
from regimes.research.hpo_benchmark.conclusions import in_words
from regimes.research.hpo_benchmark.fidelities import FULL, from_facts
from regimes.research.hpo_benchmark.live_check import beside, go_live
from regimes.research.hpo_benchmark.methods import METHODS, SearchMethod
from regimes.research.hpo_benchmark.ranking_quality import RankingQuality, fidelity
from regimes.research.hpo_benchmark.ranking_tables import fidelity_sheet, shift_sheet, values_sheet
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup, MethodResult, replay
from regimes.research.hpo_benchmark.scores import Scores
from regimes.research.hpo_benchmark.table import SearchTable, courses_of, open_table
from regimes.research.hpo_benchmark.tables import arms_sheet, targets_sheet
from regimes.research.speed.rate_table import BenchmarkResult

RECORDING, MAP = Path("reports/hpo-digits/recording.nc"), "map.nc"
SEARCHES = 300  # of every arm, in pairs
WORDS = "Searches replayed on `recording.nc`; how that was made is told in [README.md](README.md)."
PARTS = (0.1, 0.25, 0.5)  # of the full training, whose ranking is judged too


def bench(
    device: str, rounds: int, images: str, say: Say, recording: Path | None = None, live: bool = False
) -> BenchmarkResult:
    """Replay every arm with so many paired seeds; judge how every course ranks; train some arms live if asked."""
    path = recording or RECORDING
    tape = open_table(path)
    stage = stage_of(tape, path.parent)
    if live:
        go_live(stage, path.parent, say)
    found = searches(path, stage, say)
    tested = [tape.tested(without=tape.seen(seed)[tape.courses[FULL]]) for seed in range(SEARCHES)]
    scores = Scores.of(found, tested, tape.seed_noise())
    asked, ranks = contrasts(scores), ranked(tape, say)
    sheets = [arms_sheet(scores, stage), contrasts_sheet(asked), targets_sheet(scores)]
    sheets += [*beside(path.parent, scores), fidelity_sheet(ranks), values_sheet(tape), shift_sheet(stage)]
    drawn = {"best-so-far": figures.curves(found, tested, scores.target), "fidelity": figures.fidelities(ranks)}
    if stage.guide is not None:
        places = fidelity_by_regime.places(tape, stage.guide)
        sheets.append(fidelity_by_regime.sheet(places, stage.guide))
        drawn["over-the-map"] = fidelity_by_regime.figure(places)
    return BenchmarkResult("hpo", sheets, drawn, words=(WORDS, *in_words(scores, asked)))


def stage_of(tape: SearchTable, folder: Path) -> BenchmarkSetup:
    """What arms are replayed on: the recording's search, its networks, and the map beside it, if there is one."""
    spec = resolve_hpo(tape.facts["spec"], "recording")
    context = context_of(spec, "cpu", folder)
    images = len(context.loaded.train.targets) * spec.recipe.epochs  # of a full training
    rungs = {}
    for facts in tape.facts["courses"]:
        course, rung = from_facts(facts, context, spec.recipe)
        seconds, alone = (tape.mean_seconds(course.name, together) / images for together in (True, False))
        rungs[course.name] = dataclasses.replace(rung, seconds=seconds, alone=alone)
    guide = None
    if "map" in tape.facts:
        guide = open_guide(folder / MAP, spec.data, spec.model, tape.facts["map"]["seconds"])
    return BenchmarkSetup(tape, spec, rungs, guide, spec.trials)


def searches(path: Path, stage: BenchmarkSetup, say: Say) -> dict[str, list[MethodResult]]:
    """{arm: its replays, by seed}; those that need a map only where there is one. Every core replays."""
    found = {}
    pool = ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"), initializer=_ready, initargs=(path, os.getpid())
    )
    with pool:
        for arm in METHODS:
            if (stage.guide is not None or not arm.mapped) and set(stage.courses(arm)) <= set(stage.rungs):
                found[arm.name] = list(pool.map(_replayed, [(arm, seed) for seed in range(SEARCHES)]))
                say(f"{arm.name}: {SEARCHES} searches replayed")
    return found


_STAGE: list[BenchmarkSetup] = []  # of this process


def _ready(path: Path, parent: int) -> None:
    end_with(parent)
    torch.set_num_threads(1)
    _STAGE.append(stage_of(open_table(path), path.parent))


def _replayed(asked: tuple[SearchMethod, int]) -> MethodResult:
    arm, seed = asked
    return replay(arm, _STAGE[0], seed)


def ranked(tape: SearchTable, say: Say) -> list[RankingQuality]:
    """How another seed ranks, how parts of the full training do, and how every course does."""
    found = [fidelity(tape, FULL)]
    found += [fidelity(tape, FULL, max(1, round(part * tape.epochs))) for part in PARTS]
    found += [fidelity(tape, course.name) for course in courses_of(tape.facts) if course.name != FULL]
    say("how every course ranks: done")
    return found
