"""Fleets that wait for one another: which can be done now, and which never will."""

from __future__ import annotations

from collections.abc import Iterable

from regimes.experiment.schedule import Fleet
from regimes.experiment.stages.stage import Outcome


class ReadyQueue:
    """Fleets still to be done.

    Attributes:
        fleets: in the order in which they are handed out, as soon as their needs are met.
        open: keys of stages that are neither done nor failed.
        failed: keys of stages that failed, or wait for one that did.
    """

    def __init__(self, fleets: Iterable[Fleet]) -> None:
        self.fleets = list(fleets)
        self.open = {stage.key for fleet in self.fleets for stage in fleet.stages}
        self.failed: set[str] = set()

    def __len__(self) -> int:
        return len(self.fleets)

    def take(self) -> Fleet | None:
        """The first fleet whose needs are met, None when there is none; stages that need a failed one are dropped."""
        remaining = (fleet.without(self.failed) for fleet in self.fleets)
        self.fleets = [fleet for fleet in remaining if fleet.stages]
        self.open -= self.failed
        for fleet in self.fleets:
            if not fleet.needs & self.open:
                self.fleets.remove(fleet)
                return fleet
        return None

    def put_back(self, fleet: Fleet) -> None:
        """Hand a fleet out again, before all others."""
        self.fleets.insert(0, fleet)

    def close(self, outcome: Outcome) -> None:
        """Take note of what became of a stage."""
        self.open.discard(outcome.key)
        if outcome.error is not None:
            self.failed.add(outcome.key)
