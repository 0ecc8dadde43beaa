"""Training of trials through the fidelities: a report after every segment, and early stopping by the study."""

from __future__ import annotations

import contextlib
import dataclasses
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
from regimes.experiment.process_identity import this_worker
from regimes.hpo.batch_ask import ask, check_minimises, check_space
from regimes.hpo.fidelities import Ladder, Segment
from regimes.hpo.fidelity_trainer import FidelityResult, TrialJob
from regimes.hpo.search_space import Space, recipe_with, suggest
from regimes.hpo.stoppers import HALVING_STOPPERS, fair_order
from regimes.hpo.trial_attrs import PREFIX, note, row_of

Watch = Callable[[Trial, Segment, FidelityResult], None]
Start = Callable[[Recipe], "tuple[int, str]"]  # a trial's recipe -> index of its first fidelity, and the reason


NO_RESULT = FidelityResult(math.inf, math.inf, 0.0)


class SegmentTrainer(Protocol):
    """Interface of a trainer of segments; see `FidelityTrainer`."""

    ladder: Ladder

    def run(self, jobs: Sequence[TrialJob], segment: Segment) -> list[FidelityResult]:
        """Train a segment for some trials."""

    def forget(self, job: TrialJob, over: bool = True) -> None:
        """Drop what a trial needs to continue; for good if it is over."""


@dataclass
class RunningTrial:
    """A trial in progress.

    Attributes:
        trial: Optuna's trial.
        job: its training job.
        first: index of its first segment.
        value: result of its last segment.
        over: whether the study knows its final state.
    """

    trial: Trial
    job: TrialJob
    first: int = 0
    value: FidelityResult = NO_RESULT
    over: bool = False


class TrialRunner:
    """Trains one trial, or a batch of trials, from the first fidelity to the full network.

    Args:
        trainer: trains the segments.
        space: the search space.
        recipe: the full network's recipe, for fields outside the space.
        value: the value reported to the study: "loss", "error" or "calibrated".
        start: selects a trial's first fidelity; None: the cheapest.
        watch: called after every segment of every trial.
        deadline: time (``time.monotonic``) after which no segment is started.
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

    # -- new trials -------------------------------------------------------------------------------------------------

    def ask(self, study: optuna.Study, count: int) -> list[RunningTrial]:
        """Ask a study, which minimises one value, for new trials; see `batch_ask.ask`."""
        check_minimises(study)
        return [self.prepare(each) for each in ask(study, count, self.space, self.trainer.ladder.rungs[0].stack_size)]

    def prepare(self, trial: Trial) -> RunningTrial:
        """Sample a trial's values, unless sampled before, and return it ready to run."""
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

    def run_trial(self, trial: Trial) -> float:
        """Train one trial and return the full network's value; an objective for ``study.optimize``.

        Raises:
            optuna.TrialPruned: the stopper ended the trial, or its training diverged.
        """
        check_minimises(trial.study)
        check_space(trial.study, self.space)
        running, over = self.prepare(trial), False
        try:
            for number in range(running.first, len(self.stretches)):
                (value,) = self.trainer.run([running.job], self.stretches[number])
                self._report(running, number, value)
                why = running.value.why
                if why == "diverged":
                    raise optuna.TrialPruned(why)
                if why:
                    raise UserError(f"trial {trial.number}: {why}")
                if number + 1 < len(self.stretches) and self._stops(running):
                    raise optuna.TrialPruned
            over = True
            return self._objective(running.value)
        except optuna.TrialPruned:
            over = True
            raise
        finally:
            self.trainer.forget(running.job, over)

    # -- in batches -------------------------------------------------------------------------------------------------

    def run_batch(self, study: optuna.Study, batch: Sequence[RunningTrial]) -> None:
        """Train a batch and tell the study each trial's final state; at the deadline, trials stay open."""
        for first in sorted({each.first for each in batch}):
            self._run_from(study, [each for each in batch if each.first == first], first)

    def _run_from(self, study: optuna.Study, batch: Sequence[RunningTrial], number: int) -> None:
        """Train a segment for all trials, then continue with the best first, in groups of the size given by `_at_once`.

        The stopper is asked once after all have reported, in `fair_order`, so that successive halving compares all of
        them, and again before a trial continues, since median and percentile may have seen better trials finish by then
        (halving does not decide twice on a step). So the first batch can be stopped too.
        """
        if time.monotonic() > self.deadline:
            return
        values = self.trainer.run([each.job for each in batch], self.stretches[number])
        for running, value in zip(batch, values, strict=True):
            self._report(running, number, value)
        left = [each for each in batch if not each.value.why and not each.over]
        for running in batch:
            if running.value.why and not running.over:
                self._end(study, running, running.value.why)
        if number + 1 == len(self.stretches):
            for running in left:
                self._tell(study, running, TrialState.COMPLETE)
            return
        for running in fair_order(left, lambda each: self._objective(each.value)):
            if self._stops(running):
                self._tell(study, running, TrialState.PRUNED)
        left = sorted((each for each in left if not each.over), key=lambda each: self._objective(each.value))
        size = self._at_once(study, self.stretches[number + 1], len(left))
        while left:
            group, left = left[:size], left[size:]
            for running in group:
                if self._stops(running):
                    self._tell(study, running, TrialState.PRUNED)
            group = [each for each in group if not each.over]
            if group:
                self._run_from(study, group, number + 1)

    def _at_once(self, study: optuna.Study, segment: Segment, left: int) -> int:
        """Number of trials that continue together.

        One if networks do not stack; all of them (largest fleets) if the stopper has already decided; one fleet if the
        stopper waits for finished trials.
        """
        together = self.trainer.ladder.rungs[segment.rung].stack_size
        has_decided = isinstance(study.pruner, (*HALVING_STOPPERS, optuna.pruners.NopPruner))
        return left if together > 1 and has_decided else together

    # -- reports ----------------------------------------------------------------------------------------------------

    def _stops(self, running: RunningTrial) -> bool:
        """Ask the study's stopper.

        Halving and Hyperband compare a trial's first report with all first reports, whatever the step: a trial that
        started on a higher fidelity would be compared with proxies, so they are not asked about it.
        """
        if running.first and isinstance(running.trial.study.pruner, HALVING_STOPPERS):
            return False
        try:
            with _unless_taken(running):
                return running.trial.should_prune()
            return False
        except (TypeError, ValueError) as error:
            raise UserError(f"study.stopper: {str(error).splitlines()[0]}") from error

    def step(self, study: optuna.Study, number: int) -> int:
        """Return the Optuna step of a segment, fixed by the study's first plan so that steps stay comparable."""
        steps = study.user_attrs.get(f"{PREFIX}steps")
        if steps is None:
            steps = [each.step for each in self.stretches]
            study.set_user_attr(f"{PREFIX}steps", steps)
        if len(steps) != len(self.stretches):
            raise UserError(
                f"study '{study.study_name}' was started with another ladder: {len(steps)} reports per trial, now "
                f"{len(self.stretches)}; use another study"
            )
        return int(steps[number])

    def _report(self, running: RunningTrial, number: int, value: FidelityResult) -> None:
        """Report a segment's value; a trial whose value is not finite (an own error or score) has diverged."""
        segment = self.stretches[number]
        if not value.why and not math.isfinite(self._objective(value)):
            value = dataclasses.replace(value, why="diverged")
        running.value = value
        trial = running.trial
        with _unless_taken(running):
            if not value.why or value.why == "diverged":
                trial.report(self._objective(value), self.step(trial.study, number))
            rows = [*trial.user_attrs.get(f"{PREFIX}climb", []), row_of(self.trainer.ladder, segment, value)]
            note(trial, "climb", rows)
        if self.watch is not None:
            self.watch(trial, segment, value)

    def _objective(self, value: FidelityResult) -> float:
        return float(getattr(value, self.value))

    def _tell(self, study: optuna.Study, running: RunningTrial, state: TrialState) -> None:
        done = state == TrialState.COMPLETE
        with _unless_taken(running):
            study.tell(running.trial, self._objective(running.value) if done else None, state, skip_if_finished=True)
        self.trainer.forget(running.job)  # after tell: a kill in between costs disk space, not a training
        running.over = True

    def _end(self, study: optuna.Study, running: RunningTrial, why: str) -> None:
        """Mark a diverged trial PRUNED, so the sampler learns from it; one that raised FAIL, so it is ignored."""
        with _unless_taken(running):
            note(running.trial, "why", why)
        self._tell(study, running, TrialState.PRUNED if why == "diverged" else TrialState.FAIL)


@contextlib.contextmanager
def _unless_taken(running: RunningTrial) -> Iterator[None]:
    """Treat a trial that another process has finished meanwhile as over."""
    try:
        yield
    except UpdateFinishedTrialError:
        running.over = True
