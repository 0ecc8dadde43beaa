"""Queue of fleets: hands out those whose needed stages are done, and that no other command is working on."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable
from dataclasses import replace

from regimes.experiment.claims import LOOK_INTERVAL, Claims
from regimes.experiment.schedule import Fleet, claim_of
from regimes.experiment.stages.stage import Outcome, Report, Stage
from regimes.experiment.store import Store


class ReadyQueue:
    """Queue of the fleets of a command, which shares them with other commands on the same folder.

    A fleet is handed out once the stages it needs are done, as far as its stages can be claimed. Stages that another
    command has claimed are closed when it has done them, and handed out if it gives them up.

    Args:
        fleets: the fleets in order of priority.
        store: the run folder.
        claims: the claims of this command.
        report: function that receives the outcome of each stage, once.

    Attributes:
        open: keys of the stages that are neither done nor failed.
        elsewhere: fleets of stages that other commands are working on.
    """

    def __init__(self, fleets: Iterable[Fleet], store: Store, claims: Claims, report: Report) -> None:
        self.store, self.claims, self.report = store, claims, report
        self.fleets = dict(enumerate(fleets))
        self.open = {stage.key for fleet in self.fleets.values() for stage in fleet.stages}
        self.elsewhere: list[Fleet] = []
        self._failed: set[str] = set()
        self._needed_by: dict[str, list[int]] = {}
        self._missing: dict[int, int] = {}  # number of stages that a fleet still needs
        for number, fleet in self.fleets.items():
            needs = fleet.needs & self.open
            self._missing[number] = len(needs)
            for key in needs:
                self._needed_by.setdefault(key, []).append(number)
        self._ready = [number for number, missing in self._missing.items() if not missing]
        self._first = 0  # number of the fleet that was put back last
        self._claimed: dict[str, set[str]] = {}  # {claim: keys of its open stages}
        self._claim_of: dict[str, str] = {}  # {key: claim}
        self._looked = 0.0

    def __len__(self) -> int:
        return len(self.fleets)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to hand out, now or once others have done their part."""
        return not (self._ready or self.elsewhere)

    def take(self) -> Fleet | None:
        """Remove and return the first ready fleet, None if there is none now; close stages that need a failed one."""
        self._look_elsewhere()
        while self._ready:
            fleet = self._claimed_part(self._possible(self.fleets.pop(heapq.heappop(self._ready))))
            if fleet.stages:
                return fleet
        return None

    def put_back(self, fleet: Fleet) -> None:
        """Put a fleet back at the front of the queue."""
        if fleet.stages:
            self._first -= 1
            self.fleets[self._first] = fleet
            heapq.heappush(self._ready, self._first)

    def close(self, outcome: Outcome) -> None:
        """Record and report the outcome of a stage, once, and give up its claim."""
        if outcome.key not in self.open:
            return
        if outcome.error is not None:
            self._failed.add(outcome.key)
        self._close(outcome.key)
        self.report(outcome)

    def _close(self, key: str) -> None:
        self.open.discard(key)
        for number in self._needed_by.pop(key, ()):
            self._missing[number] -= 1
            if not self._missing[number]:
                heapq.heappush(self._ready, number)
        name = self._claim_of.pop(key, "")
        if name:
            self._claimed[name].remove(key)
            if not self._claimed[name]:
                del self._claimed[name]
                self.claims.release(name)

    def _possible(self, fleet: Fleet) -> Fleet:
        """The open stages of a fleet, without those that have failed elsewhere, and without those that need a failed
        one, which are closed silently."""
        for stage in fleet.stages:
            failure = self.store.failure(stage.key) if stage.key in self.open else None
            if failure is not None:
                self.close(Outcome(stage.key, failure["error"], ours=False))
        fleet = replace(fleet, stages=tuple(stage for stage in fleet.stages if stage.key in self.open))
        rest = fleet.without(self._failed)
        for key in {stage.key for stage in fleet.stages} - {stage.key for stage in rest.stages}:
            self._close(key)
        return rest

    def _claimed_part(self, fleet: Fleet) -> Fleet:
        """The stages of a fleet that are claimed by this command now; the others are noted as being done elsewhere."""
        ours, theirs = list[Stage](), list[Stage]()
        for stage in fleet.stages:
            name = claim_of(stage)
            if self.claims.take(name):
                self._claimed.setdefault(name, set()).add(stage.key)
                self._claim_of[stage.key] = name
                ours.append(stage)
            else:
                theirs.append(stage)
        if theirs:
            self.elsewhere.append(replace(fleet, stages=tuple(theirs)))
        return replace(fleet, stages=tuple(ours))

    def _look_elsewhere(self) -> None:
        """Close the stages that other commands have finished; put back what they have given up."""
        if not self.elsewhere or time.monotonic() - self._looked < LOOK_INTERVAL:
            return
        looked, self.elsewhere = self.elsewhere, []
        for fleet in looked:
            taken = {stage.key: self.claims.is_taken(claim_of(stage)) for stage in fleet.stages}  # before reading
            for stage in fleet.stages:
                if self.store.is_intact(stage.key):
                    self.close(Outcome(stage.key, ours=False))
                elif (failure := self.store.failure(stage.key)) is not None:
                    self.close(Outcome(stage.key, failure["error"], ours=False))
            left = [stage for stage in fleet.stages if stage.key in self.open]
            given_up = tuple(stage for stage in left if not taken[stage.key])
            self.put_back(replace(fleet, stages=given_up))
            still = tuple(stage for stage in left if taken[stage.key])
            if still:
                self.elsewhere.append(replace(fleet, stages=still))
        self._looked = time.monotonic()
