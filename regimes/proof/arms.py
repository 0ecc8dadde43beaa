"""Ways to search, side by side: what is said to save time, its controls, and ours."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna
from optuna import pruners
from optuna.trial import Trial

from regimes.hpo import SAMPLERS, STOPPERS
from regimes.hpo.climb import Climb
from regimes.hpo.drive import Limits, work
from regimes.hpo.guide import Guide
from regimes.hpo.ladder import Ladder, Rung, Stretch, ladder_of
from regimes.hpo.phase import promote
from regimes.hpo.trainer import Value
from regimes.proof.courses import FULL
from regimes.proof.pool import Pool
from regimes.proof.replayed import Replayed
from regimes.proof.tape import Tape
from regimes.registry import load
from regimes.spec.hpo import Hpo

TRIALS = 64
BASE = "TPE, full network"
OWN_STOCK: dict[str, Callable[[], pruners.BasePruner]] = {  # as Optuna makes them when nothing is said
    "median": pruners.MedianPruner,
    "percentile": lambda: pruners.PercentilePruner(25.0),
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
}


@dataclass(frozen=True)
class Arm:
    """A way to search.

    Attributes:
        name: in tables.
        what: in words.
        sampler: a name in `SAMPLERS`.
        courses: of the rungs below the full network.
        stopper: a name in `STOPPERS`, set up for the ladder's steps; "own ...": as Optuna makes it by default.
        reports: shares of the full training at which it is reported too.
        batch: trials asked for together.
        promoted: trials of a study on the cheap rung alone that are then trained in full; 0: every trial climbs.
        begun: share of the full training that is that cheap rung.
        mapped: whether a map says where trials start; its cost counts.
    """

    name: str
    what: str
    sampler: str = "tpe"
    courses: tuple[str, ...] = ()
    stopper: str = "none"
    reports: tuple[float, ...] = ()
    batch: int = 1
    promoted: int = 0
    begun: float = 0.0
    mapped: bool = False


EACH = tuple(number / 20 for number in range(1, 20))


def _stock(name: str) -> Arm:
    what = "Optuna's stopper as it is made by default, asked every epoch"
    return Arm(f"TPE + {name}", what, stopper=f"own {name}", reports=EACH)


def _best(name: str, what: str, course: str, promoted: int = 5) -> Arm:
    return Arm(name, f"{what}, one by one; the best {promoted} in full", courses=(course,), promoted=promoted)


def _ours(name: str, what: str, course: str = "narrowed 0.06", mapped: bool = False) -> Arm:
    return Arm(name, what, "tpe", (course,), "halving", (0.25, 0.5), batch=32, mapped=mapped)


ARMS = (
    Arm("random, full network", "every trial in full", sampler="random"),
    Arm(BASE, "every trial in full: the base line"),
    *(_stock(name) for name in OWN_STOCK),
    Arm("few epochs, keep the best", "a tenth of the epochs; the best 5 go on", promoted=5, begun=0.1),
    _best("data subset", "a quarter of the images", "quarter of the images"),
    _best("narrowed network", "density 0.06 by width", "narrowed 0.06"),
    _best("random channels", "density 0.06, magnitude's widths, any channels", "random 0.06"),
    _best("magnitude", "density 0.06, the largest channels", "magnitude 0.06"),
    _best("saliency", "density 0.06, the most salient channels", "saliency 0.06"),
    _best("the paper's recipe", "density 0.06, the most salient channels", "saliency 0.06", promoted=1),
    _ours("ours, no map", "narrowed to 0.06, in fleets; halving"),
    _ours("ours, with the map", "the same, where the map trusts it", mapped=True),
    _ours("ours + discovery", "discovered at 0.06, in fleets; halving", "discovered 0.06"),
)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        marks: (seconds, setting, validation value) of every full training that came to its end.
        seconds: of it all.
        overhead: of them spent before the first trial: on proxies and the map.
    """

    marks: tuple[tuple[float, int, float], ...]
    seconds: float
    overhead: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What arms are replayed on.

    Attributes:
        tape: the recording.
        spec: of the search.
        rungs: {course: its network}.
        guide: the map; None without one.
        trials: of every arm.
    """

    tape: Tape
    spec: Hpo
    rungs: Mapping[str, Rung]
    guide: Guide | None = None
    trials: int = TRIALS


def replay(arm: Arm, stage: Stage, seed: int) -> Found:
    """Do a search on the recording; seeds are paired: the same seed draws alike and sees the same trainings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rungs = [*(stage.rungs[name] for name in arm.courses), stage.rungs[FULL]]
    names = [*arm.courses, FULL]
    overhead = sum(stage.tape.facts["made"].get(name, 0.0) for name in arm.courses)
    if arm.mapped and stage.guide is not None:
        overhead += stage.guide.seconds
    ladder = ladder_of(rungs, arm.reports)
    run = _Run(arm, stage, Replayed(stage.tape, ladder, names, seed % 2), seed, overhead)
    return run.promoting() if arm.promoted else run.climbing()


class _Run:
    """One search of one arm."""

    def __init__(self, arm: Arm, stage: Stage, trainer: Replayed, seed: int, overhead: float) -> None:
        self.arm, self.stage, self.trainer, self.seed, self.overhead = arm, stage, trainer, seed, overhead
        self.marks: list[tuple[float, int, float]] = []
        self.asked, self.value = 0, stage.spec.study.value

    def climbing(self) -> Found:
        """Every trial climbs the ladder."""
        study = self._study(self.trainer.ladder)
        self._work(study, self.trainer.ladder, self.arm.batch, self.stage.trials)
        return self._found()

    def promoting(self) -> Found:
        """A study of what is cheap; then the best of it in full, the most promising first."""
        cheap, base = self._halves()
        first = self._study(cheap)
        self._work(first, cheap, self.arm.batch, self.stage.trials)
        second = self._study(base)
        promote(first, second, self.arm.promoted)
        self._work(second, base, 1, self.arm.promoted)
        return self._found()

    def _halves(self) -> tuple[Ladder, Ladder]:
        """The cheap rung alone, and what is left of the full network."""
        ladder, full = self.trainer.ladder, len(self.trainer.ladder.rungs) - 1
        if not self.arm.begun:
            cheap = tuple(each for each in ladder.stretches if each.rung < full)
            return (
                dataclasses.replace(ladder, stretches=cheap),
                dataclasses.replace(ladder, stretches=ladder.stretches[-1:]),
            )
        whole = ladder.stretches[-1]
        stop = max(1, round(self.arm.begun * whole.stop))
        return (
            dataclasses.replace(ladder, stretches=(Stretch(full, 0, stop, 1, self.arm.begun),)),
            dataclasses.replace(ladder, stretches=(Stretch(full, stop, whole.stop, 1, 1.0),)),
        )

    def _study(self, ladder: Ladder) -> optuna.Study:
        steps = [each.step for each in ladder.stretches]
        base = load(SAMPLERS, self.arm.sampler, "sampler")(self.seed)
        pool = Pool(base, self.stage.tape.settings, self.stage.spec.space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, _, own = self.arm.stopper.partition(" ")
            stopper = OWN_STOCK[own]() if kind == "own" else load(STOPPERS, kind, "stopper")(steps)
            return optuna.create_study(
                study_name=f"{self.arm.name}-{self.seed}-{len(steps)}", sampler=pool, pruner=stopper
            )

    def _work(self, study: optuna.Study, ladder: Ladder, batch: int, trials: int) -> None:
        guide = self.stage.guide if self.arm.mapped else None
        start = (lambda recipe: guide.start(ladder, recipe)) if guide is not None and len(ladder.rungs) > 1 else None
        self.trainer.ladder = ladder
        climb = Climb(self.trainer, self.stage.spec.space, self.stage.spec.recipe, self.value, start, self._watch)
        work(study, climb, batch, Limits(trials))
        self.asked += len(study.trials)

    def _watch(self, trial: Trial, stretch: Stretch, value: Value) -> None:
        whole = self.trainer.courses[stretch.rung] == FULL and stretch.stop == self.stage.tape.epochs
        if whole and not value.why:
            number = self.stage.tape.number_of[tuple(trial.params[name] for name in sorted(trial.params))]
            self.marks.append((self._spent(self.asked + trial.number + 1), number, getattr(value, self.value)))

    def _spent(self, asked: int) -> float:
        return self.overhead + self.trainer.spent + asked * self.stage.tape.facts["asking"]

    def _found(self) -> Found:
        return Found(tuple(self.marks), self._spent(self.asked), self.overhead)
