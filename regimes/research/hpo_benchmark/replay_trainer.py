"""Trainer that looks up recorded results and adds up the measured seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regimes.config.recipe import Recipe
from regimes.hpo.fidelities import Ladder, Segment
from regimes.hpo.fidelity_trainer import VALUES, FidelityResult, TrialJob, stackable_groups
from regimes.research.hpo_benchmark.table import SearchTable


class ReplayTrainer:
    """Replay trials on a recorded table.

    A network trained alone costs the seconds measured for its fidelity and batch size; a fleet costs those of a fleet
    with the same number of lanes, idle lanes included.

    Args:
        table: the recording.
        ladder: fidelities of the search, with the networks of the recording.
        fidelity_names: name of each fidelity in the table.
        replay: seed of the search; it determines which training of every fidelity and setting is seen.
    """

    def __init__(self, table: SearchTable, ladder: Ladder, fidelity_names: Sequence[str], replay: int = 0) -> None:
        self.table, self.ladder, self.fidelity_names = table, ladder, fidelity_names
        self.seen = table.seen_seeds(replay)
        self.spent = 0.0

    def run(self, jobs: Sequence[TrialJob], segment: Segment) -> list[FidelityResult]:
        """Look up a segment of several trials."""
        numbers = [self.number(job.recipe) for job in jobs]
        seconds = [0.0] * len(jobs)
        for places in stackable_groups([job.recipe for job in jobs]):
            together = self._seconds(len(places), segment, jobs[places[0]].recipe.batch_size)
            for place in places:
                seconds[place] = together / len(places)
        self.spent += sum(seconds)
        return [self._value(number, segment, share) for number, share in zip(numbers, seconds, strict=True)]

    def forget(self, job: TrialJob, over: bool = True) -> None:
        """Do nothing: no state is kept."""

    def number(self, recipe: Recipe) -> int:
        """Return the index of a trial's setting."""
        names = sorted(self.table.settings[0])
        return self.table.number_of[tuple(getattr(recipe, name) for name in names)]

    def _value(self, number: int, segment: Segment, seconds: float) -> FidelityResult:
        name = self.fidelity_names[segment.rung]
        fidelity = self.table.positions[name]
        at = fidelity, number, self.seen[fidelity, number], segment.stop - 1
        loss, error, calibrated = (float(self.table.arrays[each][at]) for each in VALUES)
        if math.isnan(loss):
            raise KeyError(f"setting {number} of fidelity '{name}' is not in the recording")
        return FidelityResult(loss, error, seconds, True, "" if math.isfinite(loss) else "diverged", calibrated)

    def _seconds(self, count: int, segment: Segment, size: int) -> float:
        """Seconds of a segment for trials that share a batch size; diverged trials cost as much."""
        name, built = self.fidelity_names[segment.rung], self.ladder.rungs[segment.rung]
        part = (segment.stop - segment.start) / built.epochs
        judged = count * self.table.seconds(name, size, "judged")
        if built.choice.lanes == 1 or built.engine(count) == "eager":
            return count * self.table.seconds(name, size, "alone") * part + judged
        lanes = built.choice.lanes
        fleets = (built.lanes_for(min(lanes, count - first)) for first in range(0, count, lanes))
        return sum(each * self.table.seconds(name, size, each) for each in fleets) * part + judged
