"""A trainer that trains nothing: it looks up what a setting came to, and counts the seconds that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regimes.config.recipe import Recipe
from regimes.hpo.fidelities import Ladder, Segment
from regimes.hpo.fidelity_trainer import VALUES, FidelityResult, TrialJob, alike
from regimes.research.hpo_benchmark.table import SearchTable


class ReplayTrainer:
    """Climbs a ladder on a recording.

    Seconds: a network trained by itself takes what was measured of its course alone at its batch size; a fleet takes
    what one of as many lanes took, idle lanes included.

    Args:
        tape: the recording.
        ladder: its rungs' networks are those of the recording.
        courses: name of each rung's course.
        replay: number of the search: it says which training it sees of every course and setting.
    """

    def __init__(self, tape: SearchTable, ladder: Ladder, courses: Sequence[str], replay: int = 0) -> None:
        self.tape, self.ladder, self.courses = tape, ladder, courses
        self.seen = tape.seen(replay)
        self.spent = 0.0

    def run(self, entries: Sequence[TrialJob], stretch: Segment) -> list[FidelityResult]:
        """Look a stretch up for some trials."""
        numbers = [self.number(entry.recipe) for entry in entries]
        seconds = [0.0] * len(entries)
        for places in alike([entry.recipe for entry in entries]):
            together = self._seconds(len(places), stretch, entries[places[0]].recipe.batch_size)
            for place in places:
                seconds[place] = together / len(places)
        self.spent += sum(seconds)
        return [self._value(number, stretch, share) for number, share in zip(numbers, seconds, strict=True)]

    def forget(self, entry: TrialJob, over: bool = True) -> None:
        """Nothing is held."""

    def number(self, recipe: Recipe) -> int:
        """The setting of a trial."""
        names = sorted(self.tape.settings[0])
        return self.tape.number_of[tuple(getattr(recipe, name) for name in names)]

    def _value(self, number: int, stretch: Segment, seconds: float) -> FidelityResult:
        name = self.courses[stretch.rung]
        course = self.tape.courses[name]
        at = course, number, self.seen[course, number], stretch.stop - 1
        loss, error, calibrated = (float(self.tape.arrays[each][at]) for each in VALUES)
        if math.isnan(loss):
            raise KeyError(f"setting {number}, course {name} is not in the recording")
        return FidelityResult(loss, error, seconds, True, "" if math.isfinite(loss) else "diverged", calibrated)

    def _seconds(self, count: int, stretch: Segment, size: int) -> float:
        """A stretch's seconds for so many trials that share a batch size; one that diverges costs as much."""
        name, rung = self.courses[stretch.rung], self.ladder.rungs[stretch.rung]
        part = (stretch.stop - stretch.start) / rung.epochs
        judged = count * self.tape.seconds(name, size, "judged")
        if rung.choice.lanes == 1 or rung.engine(count) == "eager":
            return count * self.tape.seconds(name, size, "alone") * part + judged
        lanes = rung.choice.lanes
        fleets = (rung.lanes_for(min(lanes, count - first)) for first in range(0, count, lanes))
        return sum(each * self.tape.seconds(name, size, each) for each in fleets) * part + judged
