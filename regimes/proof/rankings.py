"""The tables of a recording itself: how courses rank settings, and how far their best ones shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from regimes.figures.sheet import Sheet
from regimes.hpo.shift import Shift, shift_between
from regimes.proof.courses import FULL
from regimes.proof.fidelity import Fidelity
from regimes.proof.searching import Stage
from regimes.proof.tape import courses_of


def fidelity_sheet(ranks: Sequence[Fidelity]) -> Sheet:
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
    return Sheet("How settings are ranked", rows, notes, [asdict(each) for each in ranks])


def shift_sheet(stage: Stage) -> Sheet:
    """How far each proxy's best settings lie from the full network's."""
    tape = stage.tape
    rows, facts = [["course", "hyperparameter", "times", "95 % interval"]], []
    for name in (FULL, *(each.name for each in courses_of(tape.facts) if each.proxy and not each.shift)):
        small = tape.last(name)
        found = shift_between(tape.settings, small, tape.last(FULL, 1), stage.spec.space)
        rows += _rows("full, another seed" if name == FULL else name, found)
        facts.append({"course": name, **asdict(found)})
    notes = ["what suits the full network, times this, suits the proxy; by all settings that were recorded"]
    for course in courses_of(tape.facts):
        if course.shift:
            told = ", ".join(f"{name} x {factor:.2f}" for name, factor in course.shift.items())
            notes.append(f"{course.name}: corrected by a few pairs of runs: {told}")
    return Sheet("How far the best settings shift", rows, notes, facts)


def _rows(course: str, found: Shift) -> list[list[str]]:
    return [
        [course, name, f"{factor:.2f}", f"{found.low[name]:.2f} to {found.high[name]:.2f}"]
        for name, factor in found.factors.items()
    ]
