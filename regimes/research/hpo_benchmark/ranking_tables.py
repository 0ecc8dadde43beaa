"""The tables of a recording itself: how courses rank settings, and how far their best ones shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any

import numpy as np

from regimes.hpo.fidelity_trainer import VALUES
from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.fidelities import FULL, SEARCHED
from regimes.research.hpo_benchmark.optimum_shift import OptimumShift, shift_between
from regimes.research.hpo_benchmark.ranking_quality import RankingQuality, mean_of, pairs_of, tau
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup
from regimes.research.hpo_benchmark.table import SearchTable, courses_of


def fidelity_sheet(ranks: Sequence[RankingQuality]) -> TextTable:
    """How every course ranks, a row each."""
    head = ["ranked by", "cost", "alone", "tau", "less another seed's", "tau, better half", "Spearman"]
    rows = [[*head, "recall of the best tenth", "regret of five, points"]]
    for each in ranks:
        measured = (each.tau, each.less, each.top_half, each.spearman, each.recall)
        shown = (f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in measured)
        rows.append([each.name, f"{each.cost:.2f}", f"{each.alone:.2f}", *shown, f"{100 * each.regret:.2f}"])
    notes = [
        "against the validation value of trainings of the full network with other seeds; cost: seconds, as a share of "
        "a full training's, in fleets where those are faster, and alone",
        "regret: the full network chooses by its validation value among the first five: how much higher their expected "
        "test error is than that of what it chooses of all settings; intervals hold 95 %, by bootstrap over settings",
    ]
    return TextTable("How settings are ranked", rows, notes, [asdict(each) for each in ranks])


def values_sheet(tape: SearchTable) -> TextTable:
    """What rankings rest on: a value may be ranked well and say little of test errors."""
    names = [FULL, *(each.name for each in courses_of(tape.facts) if each.proxy == "narrowed" and each.plain)]
    told = (f"{value}: tau with {what}" for value in VALUES for what in ("the full network's", "test errors"))
    rows, facts = [["ranked by", *told]], []
    everything = np.arange(len(tape.settings))
    tested = [tape.tested(np.full(len(everything), seed)) for seed in range(SEARCHED)]
    for name in names:
        found: dict[str, Any] = {"course": "full, another seed" if name == FULL else name}
        shown = []
        for value in VALUES:
            pairs = pairs_of(tape, name, tape.epochs, value)
            alike = mean_of(tau, pairs, everything)
            # Pairs go through the full network's seeds in turn; of its own, each is held against the others' errors.
            truly = float(
                np.mean([tau(cheap, errors) for (cheap, _), errors in zip(pairs, cycle(tested), strict=False)])
            )
            shown += [f"{alike:.2f}", f"{truly:.2f}"]
            found[value] = {"alike": alike, "truly": truly}
        rows.append([found["course"], *shown])
        facts.append(found)
    notes = [
        "validation values of a course against those of the full network, and against the full network's expected test "
        "error; searches here go by the calibrated loss",
    ]
    return TextTable("What is ranked", rows, notes, facts)


def shift_sheet(stage: BenchmarkSetup) -> TextTable:
    """How far each proxy's best settings lie from the full network's."""
    tape = stage.tape
    rows, facts = [["course", "hyperparameter", "times", "95 % interval"]], []
    for name in (FULL, *(each.name for each in courses_of(tape.facts) if each.proxy and not each.shift)):
        small = tape.last(name)
        found = shift_between(tape.settings, small, tape.last(FULL, 1), stage.spec.space)
        rows += _rows("full, another seed" if name == FULL else name, found)
        facts.append({"course": name, **asdict(found)})
    notes = [
        "what suits the full network, times this, would suit the proxy if both had one surface, displaced; by all "
        "settings that were recorded; whether it helps is seen where settings were so moved:"
    ]
    for course in courses_of(tape.facts):
        if course.shift:
            told = ", ".join(f"{name} x {factor:.2f}" for name, factor in course.shift.items())
            moved, plain = (_tau(tape, name) for name in (course.name, course.name.rpartition(", ")[0]))
            notes.append(f"{course.name}: {told}: tau {moved:.2f}, unmoved {plain:.2f}")
    return TextTable("How far the best settings shift", rows, notes, facts)


def _tau(tape: SearchTable, course: str) -> float:
    """With the full network, over all settings."""
    return mean_of(tau, pairs_of(tape, course, tape.epochs), np.arange(len(tape.settings)))


def _rows(course: str, found: OptimumShift) -> list[list[str]]:
    return [
        [course, name, f"{factor:.2f}", f"{found.low[name]:.2f} to {found.high[name]:.2f}"]
        for name, factor in found.factors.items()
    ]
