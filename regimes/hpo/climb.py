"""Trials climb the ladder: every stretch is a report to the study, whose stopper ends the weak ones."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from regimes.errors import UserError
from regimes.hpo.ladder import Stretch
from regimes.hpo.space import Space, distributions, recipe_with, suggest
from regimes.hpo.trainer import Entry, Trainer, Value
from regimes.hpo.workers import this_worker
from regimes.spec.recipe import Recipe
from regimes.training.lane import FREE

PREFIX = "regimes:"  # of what is noted on a trial, as plain JSON, for dashboards too
Watch = Callable[[Trial, Stretch, Value], None]
Start = Callable[[Recipe], "tuple[int, str]"]  # a trial's recipe -> the rung it starts on, and why


NOTHING = Value(math.inf, math.inf, 0.0)


@dataclass
class Climber:
    """One trial.

    Attributes:
        trial: Optuna's.
        entry: what is trained.
        first: number of the stretch it starts with.
        value: of the last stretch done.
        over: it was told to the study.
    """

    trial: Trial
    entry: Entry
    first: int = 0
    value: Value = NOTHING
    over: bool = False


class Climb:
    """What one trial, or a batch of them, does from the first rung to the top.

    Args:
        trainer: trains the stretches.
        space: of the hyperparameters.
        recipe: of the full network, for what the space leaves open.
        value: "loss" or "error".
        start: where a trial starts; None: on the cheapest rung.
        watch: called after every stretch of every trial.
        deadline: time (``time.monotonic``) from which no stretch is begun.
    """

    def __init__(
        self,
        trainer: Trainer,
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

    def ask(self, study: optuna.Study, count: int) -> list[Climber]:
        """New trials of a study.

        Where proxies stack, as many as fill a fleet share what lanes of a fleet cannot differ in (the batch size): the
        first of them draws it. Values that wait in the study stay as they are.
        """
        fixed, shared = distributions(self.space), sorted(set(self.space) - set(FREE))
        size = self.trainer.ladder.rungs[0].together
        sampler = study.sampler
        trials: list[Trial] = []
        try:
            for number in range(count):
                if shared and size > 1:
                    leads = number % size == 0
                    study.sampler = sampler if leads else _partly({n: trials[-1].params[n] for n in shared}, sampler)
                trials.append(study.ask(fixed))
        finally:
            study.sampler = sampler
        return [self.climber(trial) for trial in trials]

    def climber(self, trial: Trial) -> Climber:
        """A trial, its values drawn by now or drawn here, ready to climb."""
        recipe = recipe_with(self.recipe, suggest(trial, self.space))
        seed = trial.user_attrs.get(f"{PREFIX}seed", trial.number)
        note(trial, "seed", seed)
        note(trial, "worker", this_worker())
        rung, why = self.start(recipe) if self.start else (0, "")
        if why:
            note(trial, "start", why)
        first = next(number for number, each in enumerate(self.stretches) if each.rung >= rung)
        return Climber(trial, Entry(recipe, seed), first)

    # -- one by one -------------------------------------------------------------------------------------------------

    def alone(self, trial: Trial) -> float:
        """The objective of ``study.optimize``: the full network's value.

        Raises:
            optuna.TrialPruned: the stopper has ended the trial, or it has diverged.
        """
        climber = self.climber(trial)
        try:
            for number in range(climber.first, len(self.stretches)):
                (value,) = self.trainer.run([climber.entry], self.stretches[number])
                self._report(climber, number, value)
                if value.why == "diverged":
                    raise optuna.TrialPruned("diverged")
                if value.why:
                    raise UserError(f"trial {trial.number}: {value.why}")
                if number + 1 < len(self.stretches) and trial.should_prune():
                    raise optuna.TrialPruned
            return self._told(climber.value)
        finally:
            self.trainer.forget(climber.entry)

    # -- together ---------------------------------------------------------------------------------------------------

    def together(self, study: optuna.Study, climbers: Sequence[Climber]) -> None:
        """Climb with a batch and tell the study how each ended; those that run out of time are left open."""
        for first in sorted({each.first for each in climbers}):
            self._from(study, [each for each in climbers if each.first == first], first)

    def _from(self, study: optuna.Study, climbers: Sequence[Climber], number: int) -> None:
        """Do a stretch with all; then, the most promising first, climb on with as many as train together.

        The stopper is asked twice: once when all have reported, and again before a trial climbs on, since by then it
        has seen better ones finish. So a first batch is no batch of free riders.
        """
        if time.monotonic() > self.deadline:
            return
        values = self.trainer.run([each.entry for each in climbers], self.stretches[number])
        for climber, value in zip(climbers, values, strict=True):
            self._report(climber, number, value)
        left = [each for each in climbers if not each.value.why]
        for climber in climbers:
            if climber.value.why:
                self._end(study, climber, climber.value.why)
        if number + 1 == len(self.stretches):
            for climber in left:
                self._tell(study, climber, TrialState.COMPLETE)
            return
        for climber in fair_order(left, self.value):
            if climber.trial.should_prune():
                self._tell(study, climber, TrialState.PRUNED)
        left = sorted((each for each in left if not each.over), key=lambda each: self._told(each.value))
        size = self.trainer.ladder.rungs[self.stretches[number + 1].rung].together
        while left:
            group, left = left[:size], left[size:]
            for climber in group:
                if climber.trial.should_prune():
                    self._tell(study, climber, TrialState.PRUNED)
            group = [each for each in group if not each.over]
            if group:
                self._from(study, group, number + 1)

    # -- telling ----------------------------------------------------------------------------------------------------

    def _report(self, climber: Climber, number: int, value: Value) -> None:
        stretch = self.stretches[number]
        climber.value = value
        trial = climber.trial
        if not value.why or value.why == "diverged":
            trial.report(self._told(value), stretch.step)
        rows = [*trial.user_attrs.get(f"{PREFIX}climb", []), row_of(self.trainer, stretch, value)]
        note(trial, "climb", rows)
        if self.watch is not None:
            self.watch(trial, stretch, value)

    def _told(self, value: Value) -> float:
        return value.loss if self.value == "loss" else value.error

    def _tell(self, study: optuna.Study, climber: Climber, state: TrialState) -> None:
        climber.over = True
        self.trainer.forget(climber.entry)
        done = state == TrialState.COMPLETE
        study.tell(climber.trial, self._told(climber.value) if done else None, state)

    def _end(self, study: optuna.Study, climber: Climber, why: str) -> None:
        """A diverged trial is a bad one, and the sampler learns from it; one that raised says nothing of its values."""
        note(climber.trial, "why", why)
        self._tell(study, climber, TrialState.PRUNED if why == "diverged" else TrialState.FAIL)


def _partly(values: dict[str, Any], sampler: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        return optuna.samplers.PartialFixedSampler(values, sampler)


def fair_order(climbers: Sequence[Climber], value: str = "loss") -> list[Climber]:
    """The order in which a batch is put before the stopper: the best, then from a third down to the worst, then the
    rest of the best third.

    Successive halving compares a trial with those that were asked about before it. In this order it decides on a batch
    as if it had seen all of it: best first it would let one through, worst first all.
    """
    ranked = sorted(climbers, key=lambda each: each.value.loss if value == "loss" else each.value.error)
    third = max(1, len(ranked) // 3)
    return [*ranked[:1], *ranked[third:], *ranked[1:third]]


def row_of(trainer: Trainer, stretch: Stretch, value: Value) -> dict[str, Any]:
    """A stretch as plain JSON; what is not finite is null."""
    rung = trainer.ladder.rungs[stretch.rung]
    numbers = {"loss": value.loss, "error": value.error}
    return {
        "density": rung.density,
        "epoch": stretch.stop,
        "step": stretch.step,
        **{name: each if math.isfinite(each) else None for name, each in numbers.items()},
        "seconds": round(value.seconds, 4),
        "at": round(time.time(), 3),
        "paid": value.paid,
        **({"why": value.why} if value.why else {}),
    }


def note(trial: Trial, name: str, value: Any) -> None:
    """Note plain data on a trial."""
    trial.set_user_attr(f"{PREFIX}{name}", value)
