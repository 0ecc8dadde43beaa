"""Trials climb the ladder: every stretch is a report to the study, whose stopper ends the weak ones."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.hpo.batch_ask import ask, check
from regimes.hpo.fidelities import Ladder, Segment
from regimes.hpo.fidelity_trainer import FidelityResult, TrialJob
from regimes.hpo.process_identity import this_worker
from regimes.hpo.search_space import Space, recipe_with, suggest
from regimes.hpo.stoppers import AT_ONCE, fair_order
from regimes.hpo.trial_attrs import PREFIX, note, row_of

Watch = Callable[[Trial, Segment, FidelityResult], None]
Start = Callable[[Recipe], "tuple[int, str]"]  # a trial's recipe -> the rung it starts on, and why


NOTHING = FidelityResult(math.inf, math.inf, 0.0)


class SegmentTrainer(Protocol):
    """What trains trials; see `trainer.Trainer`."""

    ladder: Ladder

    def run(self, entries: Sequence[TrialJob], stretch: Segment) -> list[FidelityResult]:
        """Do a stretch for some trials."""

    def forget(self, entry: TrialJob, over: bool = True) -> None:
        """Let go of what a trial would have needed to train on; for good, once it is over."""


@dataclass
class RunningTrial:
    """One trial.

    Attributes:
        trial: Optuna's.
        entry: what is trained.
        first: number of the stretch it starts with.
        value: of the last stretch done.
        over: it was told to the study.
    """

    trial: Trial
    entry: TrialJob
    first: int = 0
    value: FidelityResult = NOTHING
    over: bool = False


class TrialRunner:
    """What one trial, or a batch of them, does from the first rung to the top.

    Args:
        trainer: trains the stretches.
        space: of the hyperparameters.
        recipe: of the full network, for what the space leaves open.
        value: what is told to the study: "loss", "error" or "calibrated".
        start: where a trial starts; None: on the cheapest rung.
        watch: called after every stretch of every trial.
        deadline: time (``time.monotonic``) from which no stretch is begun.
    """

    def __init__(
        self,
        trainer: SegmentTrainer,
        space: Space,
        recipe: Recipe,
        value: str = "loss",
        start: Start | None = None,
        watch: Watch | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.trainer, self.space, self.recipe, self.value = trainer, space, recipe, value
        self.start, self.watch, self.deadline = start, watch, deadline
        self.stretches = trainer.ladder.stretches

    # -- asking -----------------------------------------------------------------------------------------------------

    def ask(self, study: optuna.Study, count: int) -> list[RunningTrial]:
        """New trials of a study; see `asking.ask`."""
        return [self.climber(each) for each in ask(study, count, self.space, self.trainer.ladder.rungs[0].together)]

    def climber(self, trial: Trial) -> RunningTrial:
        """A trial, its values drawn by now or drawn here, ready to climb."""
        note(trial, "worker", this_worker())
        recipe = recipe_with(self.recipe, suggest(trial, self.space))
        seed = trial.user_attrs.get(f"{PREFIX}seed", trial.number)
        note(trial, "seed", seed)
        rung, why = self.start(recipe) if self.start else (0, "")
        if why:
            note(trial, "start", why)
        first = next(number for number, each in enumerate(self.stretches) if each.rung >= rung)
        return RunningTrial(trial, TrialJob(recipe, seed), first)

    # -- one by one -------------------------------------------------------------------------------------------------

    def alone(self, trial: Trial) -> float:
        """The objective of ``study.optimize``: the full network's value.

        Raises:
            optuna.TrialPruned: the stopper has ended the trial, or it has diverged.
        """
        check(trial.study)
        climber, over = self.climber(trial), False
        try:
            for number in range(climber.first, len(self.stretches)):
                (value,) = self.trainer.run([climber.entry], self.stretches[number])
                self._report(climber, number, value)
                if value.why == "diverged":
                    raise optuna.TrialPruned("diverged")
                if value.why:
                    raise UserError(f"trial {trial.number}: {value.why}")
                if number + 1 < len(self.stretches) and self._stops(climber):
                    raise optuna.TrialPruned
            over = True
            return self._told(climber.value)
        except optuna.TrialPruned:
            over = True
            raise
        finally:
            self.trainer.forget(climber.entry, over)

    # -- together ---------------------------------------------------------------------------------------------------

    def together(self, study: optuna.Study, climbers: Sequence[RunningTrial]) -> None:
        """Climb with a batch and tell the study how each ended; those that run out of time are left open."""
        for first in sorted({each.first for each in climbers}):
            self._from(study, [each for each in climbers if each.first == first], first)

    def _from(self, study: optuna.Study, climbers: Sequence[RunningTrial], number: int) -> None:
        """Do a stretch with all; then climb on, the most promising first, as many together as `_at_once` says.

        The stopper is asked once when all have reported, in `fair_order`, by which successive halving has seen them
        all; and again before a trial climbs on, since by then median and percentile may have seen better ones finish
        (halving does not decide twice on a step). So a first batch is no batch of free riders.
        """
        if time.monotonic() > self.deadline:
            return
        values = self.trainer.run([each.entry for each in climbers], self.stretches[number])
        for climber, value in zip(climbers, values, strict=True):
            self._report(climber, number, value)
        left = [each for each in climbers if not each.value.why and not each.over]
        for climber in climbers:
            if climber.value.why and not climber.over:
                self._end(study, climber, climber.value.why)
        if number + 1 == len(self.stretches):
            for climber in left:
                self._tell(study, climber, TrialState.COMPLETE)
            return
        for climber in fair_order(left, lambda each: self._told(each.value)):
            if self._stops(climber):
                self._tell(study, climber, TrialState.PRUNED)
        left = sorted((each for each in left if not each.over), key=lambda each: self._told(each.value))
        size = self._at_once(study, self.stretches[number + 1], len(left))
        while left:
            group, left = left[:size], left[size:]
            for climber in group:
                if self._stops(climber):
                    self._tell(study, climber, TrialState.PRUNED)
            group = [each for each in group if not each.over]
            if group:
                self._from(study, group, number + 1)

    def _at_once(self, study: optuna.Study, stretch: Segment, left: int) -> int:
        """How many climb on together: one by one where networks do not stack; all, so that fleets of one batch size are
        as large as they can be, where the stopper has decided by now; a fleet, where it waits for some to finish."""
        together = self.trainer.ladder.rungs[stretch.rung].together
        has_decided = isinstance(study.pruner, (*AT_ONCE, optuna.pruners.NopPruner))
        return left if together > 1 and has_decided else together

    # -- telling ----------------------------------------------------------------------------------------------------

    def _stops(self, climber: RunningTrial) -> bool:
        """Ask the study's stopper.

        Halving and Hyperband file a trial's first report with all first reports, whatever its step: one that started
        on a higher rung would be held against proxies, so they are not asked about it.
        """
        if climber.first and isinstance(climber.trial.study.pruner, AT_ONCE):
            return False
        try:
            with _unless_taken(climber):
                return climber.trial.should_prune()
            return False
        except (TypeError, ValueError) as error:
            raise UserError(f"study.stopper: {str(error).splitlines()[0]}") from error

    def step(self, study: optuna.Study, number: int) -> int:
        """What a stretch is told as: by the first plan that this study saw, so that all of its steps compare."""
        steps = study.user_attrs.get(f"{PREFIX}steps")
        if steps is None:
            steps = [each.step for each in self.stretches]
            study.set_user_attr(f"{PREFIX}steps", steps)
        if len(steps) != len(self.stretches):
            raise UserError(
                f"study '{study.study_name}' was begun with another ladder: {len(steps)} reports a trial, here "
                f"{len(self.stretches)}; take another study"
            )
        return int(steps[number])

    def _report(self, climber: RunningTrial, number: int, value: FidelityResult) -> None:
        stretch = self.stretches[number]
        climber.value = value
        trial = climber.trial
        with _unless_taken(climber):
            if not value.why or value.why == "diverged":
                trial.report(self._told(value), self.step(trial.study, number))
            rows = [*trial.user_attrs.get(f"{PREFIX}climb", []), row_of(self.trainer.ladder, stretch, value)]
            note(trial, "climb", rows)
        if self.watch is not None:
            self.watch(trial, stretch, value)

    def _told(self, value: FidelityResult) -> float:
        return float(getattr(value, self.value))

    def _tell(self, study: optuna.Study, climber: RunningTrial, state: TrialState) -> None:
        done = state == TrialState.COMPLETE
        with _unless_taken(climber):
            study.tell(climber.trial, self._told(climber.value) if done else None, state, skip_if_finished=True)
        self.trainer.forget(climber.entry)  # after it is told: a kill between costs disk, not a training
        climber.over = True

    def _end(self, study: optuna.Study, climber: RunningTrial, why: str) -> None:
        """A diverged trial is a bad one, and the sampler learns from it; one that raised says nothing of its values."""
        with _unless_taken(climber):
            note(climber.trial, "why", why)
        self._tell(study, climber, TrialState.PRUNED if why == "diverged" else TrialState.FAIL)


@contextlib.contextmanager
def _unless_taken(climber: RunningTrial) -> Iterator[None]:
    """A trial that another command has told meanwhile (both took it from the same place, or it counted as given up) is
    over here too."""
    try:
        yield
    except UpdateFinishedTrialError:
        climber.over = True
