"""One search of one arm, whatever trains it: a recording that is looked up, or trainings."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from regimes.config.hpo import Hpo
from regimes.hpo import SAMPLERS, STOPPERS
from regimes.hpo.cost_filter import drop_slow, max_cost_share
from regimes.hpo.fidelities import Fidelity, Ladder, Segment, ladder_of
from regimes.hpo.fidelity_trainer import FidelityResult
from regimes.hpo.map_guidance import MapGuidance
from regimes.hpo.optimize_loop import Limits, work
from regimes.hpo.promotion import promote
from regimes.hpo.stoppers import FACTOR
from regimes.hpo.trial_runner import SegmentTrainer, TrialRunner
from regimes.registry import load
from regimes.research.hpo_benchmark.fidelities import FULL
from regimes.research.hpo_benchmark.methods import AS_FAST, OWN_STOCK, SearchMethod
from regimes.research.hpo_benchmark.pool_sampler import PoolSampler
from regimes.research.hpo_benchmark.replay_trainer import ReplayTrainer
from regimes.research.hpo_benchmark.table import SearchTable, courses_of

Finished = Callable[[Trial, FidelityResult], None]


@dataclass(frozen=True)
class MethodResult:
    """What a search came to.

    Attributes:
        marks: (seconds, setting, validation value) of every full training that came to its end.
        seconds: of it all.
        overhead: of them spent before the first trial: on proxies, pairs and the map.
    """

    marks: tuple[tuple[float, int, float], ...]
    seconds: float
    overhead: float = 0.0


@dataclass(frozen=True)
class BenchmarkSetup:
    """What arms are replayed on.

    Attributes:
        tape: the recording.
        spec: of the search.
        rungs: {course: its network}, with the seconds of the recording.
        guide: the map; None without one.
        trials: of every arm.
    """

    tape: SearchTable
    spec: Hpo
    rungs: Mapping[str, Fidelity]
    guide: MapGuidance | None = None
    trials: int = 64

    def courses(self, arm: SearchMethod) -> list[str]:
        """An arm's courses, the full network last; those that a map chooses are the first it trusts that save time."""
        names = [self._as_fast(each) for each in arm.courses]
        if arm.mapped and self.guide is not None:
            trusted = {each.density for each in self.guide.judged() if each.trusted}
            recorded = [each for each in courses_of(self.tape.facts) if each.proxy == "narrowed" and each.plain]
            names = [each.name for each in recorded if each.density in trusted][: self.spec.ladder.most]
            full = self.rungs[FULL]
            goes_on = arm.promoted / self.trials if arm.promoted else FACTOR**-2
            most = max_cost_share(arm.reports, arm.proxy_reports, goes_on)
            names = [name for name in names if len(drop_slow([self.rungs[name], full], [], most)) > 1]
        return [*names, FULL]

    def _as_fast(self, name: str) -> str:
        if not name.startswith(AS_FAST):
            return name
        wanted = self.tape.mean_seconds(name.removeprefix(AS_FAST), together=False)
        narrowed = [each.name for each in courses_of(self.tape.facts) if each.proxy == "narrowed" and each.plain]
        away = [abs(np.log(self.tape.mean_seconds(each, together=False) / wanted)) for each in narrowed]
        return narrowed[int(np.argmin(away))]

    def ladder(self, arm: SearchMethod) -> Ladder:
        """Of an arm."""
        return ladder_of([self.rungs[name] for name in self.courses(arm)], arm.reports, 0.0, arm.proxy_reports)

    def overhead(self, arm: SearchMethod) -> float:
        """Seconds before the first trial: proxies made and timed, pairs trained, the map."""
        courses, how = self.courses(arm), "alone" if arm.batch == 1 else "together"
        made = sum(self.tape.facts["made"][name][how] for name in courses) if len(courses) > 1 else 0.0
        pairs = arm.pairs * sum(self.tape.mean_seconds(name) for name in courses)
        return made + pairs + (self.guide.seconds if arm.mapped and self.guide is not None else 0.0)


def replay(arm: SearchMethod, stage: BenchmarkSetup, seed: int) -> MethodResult:
    """Do a search on the recording.

    Searches are paired: with the same seed every arm draws alike, and sees the same trainings.
    """
    trainer = ReplayTrainer(stage.tape, stage.ladder(arm), stage.courses(arm), seed)
    overhead, asking = stage.overhead(arm), stage.tape.facts["asking"]
    marks: list[tuple[float, int, float]] = []
    drawn = 0

    def sampler(base: BaseSampler) -> BaseSampler:
        return PoolSampler(base, stage.tape.settings, stage.spec.space, drawing=count)

    def count() -> None:
        nonlocal drawn
        drawn += 1

    def spent() -> float:
        return overhead + trainer.spent + drawn * float(asking)

    def finished(trial: Trial, value: FidelityResult) -> None:
        number = stage.tape.number_of[tuple(trial.params[name] for name in sorted(trial.params))]
        marks.append((spent(), number, getattr(value, stage.spec.study.value)))

    MethodRun(arm, stage, trainer, seed, sampler, finished).go()
    return MethodResult(tuple(marks), spent(), overhead)


class MethodRun:
    """One search of one arm.

    Args:
        arm: the way to search.
        stage: the ladder, the map and the space.
        trainer: of trials.
        seed: of the sampler.
        sampler: makes one of another.
        finished: is told of every full training that came to its end.
    """

    def __init__(
        self,
        arm: SearchMethod,
        stage: BenchmarkSetup,
        trainer: SegmentTrainer,
        seed: int,
        sampler: Callable[[BaseSampler], BaseSampler],
        finished: Finished,
    ) -> None:
        self.arm, self.stage, self.trainer, self.seed, self.finished = arm, stage, trainer, seed, finished
        self.ladder, self.sampler = trainer.ladder, sampler

    def go(self) -> None:
        """Every trial climbs; or a study of what is cheap, then the best of it in full, the most promising first."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if not self.arm.promoted or (len(self.ladder.rungs) == 1 and not self.arm.begun):
            self._work(self._study(self.ladder), self.ladder, self.arm.batch, self.stage.trials)
            return
        cheap, base = self._halves()
        first, second = self._study(cheap), self._study(base)
        self._work(first, cheap, self.arm.batch, self.stage.trials)
        promote(first, second, self.arm.promoted)
        self._work(second, base, 1, self.arm.promoted)

    def _halves(self) -> tuple[Ladder, Ladder]:
        """The cheap rung alone, and what is left of the full network."""
        ladder, full = self.ladder, len(self.ladder.rungs) - 1
        whole = ladder.stretches[-1]
        if self.arm.begun:
            stop = max(1, round(self.arm.begun * whole.stop))
            parts = Segment(full, 0, stop, 1, self.arm.begun), Segment(full, stop, whole.stop, 1, 1.0)
            return dataclasses.replace(ladder, stretches=parts[:1]), dataclasses.replace(ladder, stretches=parts[1:])
        cheap = tuple(each for each in ladder.stretches if each.rung < full)
        all_of_it = dataclasses.replace(whole, start=0, step=1)
        return dataclasses.replace(ladder, stretches=cheap), dataclasses.replace(ladder, stretches=(all_of_it,))

    def _study(self, ladder: Ladder) -> optuna.Study:
        steps = [each.step for each in ladder.stretches]
        base = load(SAMPLERS, self.arm.sampler, "sampler")(self.seed)
        kind, _, own = self.arm.stopper.partition(" ")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stopper = OWN_STOCK[own]() if kind == "own" else load(STOPPERS, kind, "stopper")(steps)
            name = f"{self.arm.name}-{self.seed}-{len(steps)}"  # Hyperband's brackets rest on it
            return optuna.create_study(study_name=name, sampler=self.sampler(base), pruner=stopper)

    def _work(self, study: optuna.Study, ladder: Ladder, batch: int, trials: int) -> None:
        stage, guide = self.stage, self.stage.guide if self.arm.mapped and not self.arm.promoted else None
        start = (lambda recipe: guide.start(ladder, recipe)) if guide is not None and len(ladder.rungs) > 1 else None
        self.trainer.ladder = ladder
        climb = TrialRunner(
            self.trainer, stage.spec.space, stage.spec.recipe, stage.spec.study.value, start, self._watch
        )
        work(study, climb, batch, Limits(trials))

    def _watch(self, trial: Trial, stretch: Segment, value: FidelityResult) -> None:
        rungs = self.ladder.rungs
        if stretch.rung == len(rungs) - 1 and stretch.stop == rungs[-1].epochs and not value.why:
            self.finished(trial, value)
