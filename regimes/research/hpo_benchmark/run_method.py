"""Run one search with one method, replayed or with real training."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
from regimes.hpo.optimize_loop import Limits, run_trials
from regimes.hpo.promotion import due, promote, promoted
from regimes.hpo.requeue import count_finished
from regimes.hpo.stoppers import REDUCTION_FACTOR
from regimes.hpo.trial_attrs import PREFIX
from regimes.hpo.trial_runner import SegmentTrainer, TrialRunner
from regimes.registry import lookup
from regimes.research.hpo_benchmark.fidelities import FULL
from regimes.research.hpo_benchmark.methods import AS_FAST, OWN_STOCK, SearchMethod
from regimes.research.hpo_benchmark.pool_sampler import PoolSampler
from regimes.research.hpo_benchmark.replay_trainer import ReplayTrainer
from regimes.research.hpo_benchmark.table import SearchTable, fidelities_of

Finished = Callable[[Trial, FidelityResult], None]


@dataclass(frozen=True)
class MethodResult:
    """Result of a search.

    Attributes:
        marks: (seconds, setting, validation value) of every completed full training.
        seconds: seconds of the whole search.
        overhead: seconds spent before the first trial, on proxies, pairs and the map.
    """

    marks: tuple[tuple[float, int, float], ...]
    seconds: float
    overhead: float = 0.0


@dataclass(frozen=True)
class BenchmarkSetup:
    """Everything that a replay needs.

    Attributes:
        table: recorded table.
        spec: configuration of the recorded search.
        fidelities: {name: fidelity with the recorded seconds}.
        guide: regime map; None without one.
        trials: number of trials of every method.
        asking: {sampler: seconds of drawing a setting}, where they differ from the recorded ones, TPE's.
    """

    table: SearchTable
    spec: Hpo
    fidelities: Mapping[str, Fidelity]
    guide: MapGuidance | None = None
    trials: int = 64
    asking: Mapping[str, float] = field(default_factory=dict)

    def fidelity_names(self, method: SearchMethod) -> list[str]:
        """Return the names of a method's fidelities, the full network last.

        A map chooses the cheapest densities that it trusts and that save time.
        """
        names = [self._as_fast(each) for each in method.fidelities]
        if method.uses_map and self.guide is not None:
            trusted = {each.density for each in self.guide.densities() if each.trusted}
            recorded = [
                each for each in fidelities_of(self.table.facts) if each.proxy == "narrowed" and each.unmodified
            ]
            names = [each.name for each in recorded if each.density in trusted][: self.spec.ladder.most]
            full = self.fidelities[FULL]
            goes_on = method.promoted / self.trials if method.promoted else REDUCTION_FACTOR**-2
            most = max_cost_share(method.reports, method.proxy_reports, goes_on)
            names = [name for name in names if len(drop_slow([self.fidelities[name], full], [], most)) > 1]
        return [*names, FULL]

    def _as_fast(self, name: str) -> str:
        if not name.startswith(AS_FAST):
            return name
        wanted = self.table.mean_seconds(name.removeprefix(AS_FAST), together=False)
        narrowed = [
            each.name for each in fidelities_of(self.table.facts) if each.proxy == "narrowed" and each.unmodified
        ]
        away = [abs(np.log(self.table.mean_seconds(each, together=False) / wanted)) for each in narrowed]
        return narrowed[int(np.argmin(away))]

    def ladder(self, method: SearchMethod) -> Ladder:
        """Return a method's fidelities and segments."""
        return ladder_of(
            [self.fidelities[name] for name in self.fidelity_names(method)], method.reports, 0.0, method.proxy_reports
        )

    def overhead(self, method: SearchMethod) -> float:
        """Return the seconds spent before the first trial: on proxies, pairs and the map."""
        fidelities, how = self.fidelity_names(method), "alone" if method.batch == 1 else "together"
        made = sum(self.table.facts["made"][name][how] for name in fidelities) if len(fidelities) > 1 else 0.0
        pairs = method.pairs * sum(self.table.mean_seconds(name) for name in fidelities)
        return made + pairs + (self.guide.seconds if method.uses_map and self.guide is not None else 0.0)


def replay(method: SearchMethod, setup: BenchmarkSetup, seed: int) -> MethodResult:
    """Replay a search on the recorded table.

    Searches are paired: with the same seed all methods draw the same numbers and see the same trainings.
    """
    trainer = ReplayTrainer(setup.table, setup.ladder(method), setup.fidelity_names(method), seed)
    overhead, asking = setup.overhead(method), setup.asking.get(method.sampler, setup.table.facts["asking"])
    marks: list[tuple[float, int, float]] = []
    drawn = 0

    def sampler(base: BaseSampler) -> BaseSampler:
        return PoolSampler(base, setup.table.settings, setup.spec.space, drawing=count)

    def count() -> None:
        nonlocal drawn
        drawn += 1

    def spent() -> float:
        return overhead + trainer.spent + drawn * float(asking)

    def finished(trial: Trial, value: FidelityResult) -> None:
        number = setup.table.number_of[tuple(trial.params[name] for name in sorted(trial.params))]
        marks.append((spent(), number, getattr(value, setup.spec.study.value)))

    MethodRun(method, setup, trainer, seed, sampler, finished).run()
    return MethodResult(tuple(marks), spent(), overhead)


class MethodRun:
    """One search with one method.

    Args:
        method: the search method.
        setup: fidelities, map and search space.
        trainer: trains or replays the trials.
        seed: seed of the sampler.
        sampler: wraps the method's sampler.
        finished: called after every completed full training.
    """

    def __init__(
        self,
        method: SearchMethod,
        setup: BenchmarkSetup,
        trainer: SegmentTrainer,
        seed: int,
        sampler: Callable[[BaseSampler], BaseSampler],
        finished: Finished,
    ) -> None:
        self.method, self.setup, self.trainer, self.seed, self.finished = method, setup, trainer, seed, finished
        self.ladder, self.sampler = trainer.ladder, sampler

    def run(self) -> None:
        """Run the search: one study through all fidelities, or a proxy study whose best trials are then promoted."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if not self.method.promoted or (len(self.ladder.rungs) == 1 and not self.method.first_share):
            self._work(self._study(self.ladder), self.ladder, self.method.batch, self.setup.trials)
            return
        cheap, base = self._halves()
        first, second = self._study(cheap), self._study(base)
        if self.method.as_it_goes:
            self._promote_as_it_goes(first, cheap, second, base)
            return
        self._work(first, cheap, self.method.batch, self.setup.trials)
        promote(first, second, self.method.promoted)
        self._work(second, base, 1, self.method.promoted)

    def _promote_as_it_goes(self, first: optuna.Study, cheap: Ladder, second: optuna.Study, base: Ladder) -> None:
        """Train batches of proxies, and after each the promotions that are due, as `StudyRunner` does."""
        while True:
            finished = count_finished(first.get_trials(deepcopy=False))
            left = self.setup.trials - finished
            for trial in due(first, second, self.method.promoted, left):
                second.enqueue_trial(trial.params, user_attrs={f"{PREFIX}promoted": trial.number})
            self._work(second, base, 1, len(promoted(second)))
            if left <= 0:
                return
            self._work(first, cheap, self.method.batch, finished + min(self.method.batch, left))

    def _halves(self) -> tuple[Ladder, Ladder]:
        """Split the segments into those of the cheap fidelity and those of the full network."""
        ladder, full = self.ladder, len(self.ladder.rungs) - 1
        whole = ladder.stretches[-1]
        if self.method.first_share:
            stop = max(1, round(self.method.first_share * whole.stop))
            parts = Segment(full, 0, stop, 1, self.method.first_share), Segment(full, stop, whole.stop, 1, 1.0)
            return dataclasses.replace(ladder, stretches=parts[:1]), dataclasses.replace(ladder, stretches=parts[1:])
        cheap = tuple(each for each in ladder.stretches if each.rung < full)
        all_of_it = dataclasses.replace(whole, start=0, step=1)
        return dataclasses.replace(ladder, stretches=cheap), dataclasses.replace(ladder, stretches=(all_of_it,))

    def _study(self, ladder: Ladder) -> optuna.Study:
        steps = [each.step for each in ladder.stretches]
        base = lookup(SAMPLERS, self.method.sampler, "sampler")(self.seed)
        kind, _, own = self.method.stopper.partition(" ")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stopper = OWN_STOCK[own]() if kind == "own" else lookup(STOPPERS, kind, "stopper")(steps)
            name = f"{self.method.name}-{self.seed}-{len(steps)}"  # Hyperband derives brackets from it
            return optuna.create_study(study_name=name, sampler=self.sampler(base), pruner=stopper)

    def _work(self, study: optuna.Study, ladder: Ladder, batch: int, trials: int) -> None:
        setup, guide = self.setup, self.setup.guide if self.method.uses_map and not self.method.promoted else None
        start = (lambda recipe: guide.start(ladder, recipe)) if guide is not None and len(ladder.rungs) > 1 else None
        self.trainer.ladder = ladder
        climb = TrialRunner(
            self.trainer, setup.spec.space, setup.spec.recipe, setup.spec.study.value, start, self._watch
        )
        run_trials(study, climb, batch, Limits(trials))

    def _watch(self, trial: Trial, stretch: Segment, value: FidelityResult) -> None:
        rungs = self.ladder.rungs
        if stretch.rung == len(rungs) - 1 and stretch.stop == rungs[-1].epochs and not value.why:
            self.finished(trial, value)
