"""Tables of a recording: ranking quality of its fidelities and shifts of their optima."""

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
from regimes.research.hpo_benchmark.table import SearchTable, fidelities_of


def ranking_table(ranks: Sequence[RankingQuality]) -> TextTable:
    """Return the ranking quality of every fidelity as a table."""
    head = ["ranked by", "cost", "alone", "tau", "minus another seed's", "tau, better half", "Spearman"]
    rows = [[*head, "recall of the best tenth", "regret of five, points"]]
    for each in ranks:
        measured = (each.tau, each.less, each.top_half, each.spearman, each.recall)
        shown = (f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in measured)
        rows.append([each.name, f"{each.cost:.2f}", f"{each.alone:.2f}", *shown, f"{100 * each.regret:.2f}"])
    notes = [
        "compared with the validation value of trainings of the full network with other seeds; cost: seconds as a "
        "share of a full training's, in fleets where those are faster, and alone",
        "regret: expected test error of the full network's choice among the first five, minus that of its choice among "
        "all settings; 95 % intervals by bootstrap over settings",
    ]
    return TextTable("Ranking of settings", rows, notes, [asdict(each) for each in ranks])


def validation_value_table(table: SearchTable) -> TextTable:
    """Return the rank correlations by validation value: with the full network's value and with test errors."""
    names = [FULL, *(each.name for each in fidelities_of(table.facts) if each.proxy == "narrowed" and each.unmodified)]
    told = (f"{value}: tau with {what}" for value in VALUES for what in ("the full network's", "test errors"))
    rows, facts = [["ranked by", *told]], []
    everything = np.arange(len(table.settings))
    tested = [table.expected_test_errors(np.full(len(everything), seed)) for seed in range(SEARCHED)]
    for name in names:
        found: dict[str, Any] = {"course": "full, another seed" if name == FULL else name}
        shown = []
        for value in VALUES:
            pairs = pairs_of(table, name, table.epochs, value)
            alike = mean_of(tau, pairs, everything)
            # Pairs cycle through the full network's seeds; each is compared with the errors of the other seeds.
            truly = float(
                np.mean([tau(cheap, errors) for (cheap, _), errors in zip(pairs, cycle(tested), strict=False)])
            )
            shown += [f"{alike:.2f}", f"{truly:.2f}"]
            found[value] = {"alike": alike, "truly": truly}
        rows.append([found["course"], *shown])
        facts.append(found)
    notes = [
        "validation values of a fidelity against those of the full network, and against the full network's expected "
        "test error; searches minimize the calibrated loss",
    ]
    return TextTable("Validation values", rows, notes, facts)


def shift_table(setup: BenchmarkSetup) -> TextTable:
    """Return the shift of each proxy's optimum as a table."""
    table = setup.table
    rows, facts = [["fidelity", "hyperparameter", "factor", "95 % interval"]], []
    for name in (FULL, *(each.name for each in fidelities_of(table.facts) if each.proxy and not each.shift)):
        small = table.final_values(name)
        found = shift_between(table.settings, small, table.final_values(FULL, 1), setup.spec.space)
        rows += _rows("full, another seed" if name == FULL else name, found)
        facts.append({"course": name, **asdict(found)})
    notes = [
        "factor from the full network's best value to the proxy's, if both have the same surface, displaced; estimated "
        "from all recorded settings; effect on the ranking where settings were so shifted:"
    ]
    for fidelity in fidelities_of(table.facts):
        if fidelity.shift:
            told = ", ".join(f"{name} x {factor:.2f}" for name, factor in fidelity.shift.items())
            moved, plain = (_tau(table, name) for name in (fidelity.name, fidelity.name.rpartition(", ")[0]))
            notes.append(f"{fidelity.name}: {told}: tau {moved:.2f}, unshifted {plain:.2f}")
    return TextTable("Shift of the optimum", rows, notes, facts)


def _tau(table: SearchTable, fidelity: str) -> float:
    """Kendall's tau with the full network over all settings."""
    return mean_of(tau, pairs_of(table, fidelity, table.epochs), np.arange(len(table.settings)))


def _rows(fidelity: str, found: OptimumShift) -> list[list[str]]:
    return [
        [fidelity, name, f"{factor:.2f}", f"{found.low[name]:.2f} to {found.high[name]:.2f}"]
        for name, factor in found.factors.items()
    ]
