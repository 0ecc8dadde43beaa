"""The tables of a replay: what each way to search took and came to, how courses rank, how far settings shift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from regimes.figures.sheet import Sheet
from regimes.hpo.shift import shift_between
from regimes.proof.arms import ARMS, BASE, OWN_STOCK, Found, Stage
from regimes.proof.courses import FULL
from regimes.proof.fidelity import Fidelity
from regimes.proof.scores import Interval, Numbers, final_error, mean_difference, not_worse, saving, target_of, time_to
from regimes.proof.tape import courses_of

STOCK = tuple(f"TPE + {name}" for name in OWN_STOCK)
Searches = Mapping[str, Sequence[Found]]


@dataclass(frozen=True)
class Scores:
    """All arms, scored seed by seed.

    Attributes:
        target: expected test error that a search has to come to.
        noise: standard deviation of the test error between seeds of one setting.
        seconds: {arm: of the whole search}.
        times: {arm: to the target}.
        errors: {arm: expected test error of what is held at the end}.
    """

    target: float
    noise: float
    seconds: Mapping[str, list[float]]
    times: Mapping[str, list[float]]
    errors: Mapping[str, list[float]]

    @classmethod
    def of(cls, found: Searches, tested: Sequence[Numbers], noise: float) -> Scores:
        """Score searches by the expected test errors of settings, for each seed those of other trainings."""
        pairs = {name: list(zip(each, tested, strict=True)) for name, each in found.items()}
        errors = {name: [final_error(*pair) for pair in each] for name, each in pairs.items()}
        target = target_of(errors[BASE], noise)
        times = {name: [time_to(*pair, target) for pair in each] for name, each in pairs.items()}
        return cls(target, noise, {name: [one.seconds for one in each] for name, each in found.items()}, times, errors)

    @property
    def best_stock(self) -> str:
        """The stock stopper that comes to the target soonest."""
        return min((name for name in STOCK if name in self.times), key=lambda name: float(np.median(self.times[name])))


def arms_sheet(scores: Scores, stage: Stage) -> Sheet:
    """Time to target, savings, equality, arm by arm."""
    rivals = (BASE, scores.best_stock)
    head = ["search", "seconds in all", "to the target", "missed", "saves of TPE's", f"of {rivals[1]}'s"]
    rows = [[*head, "test error", "less TPE's", "not worse"]]
    facts = []
    for name, times in scores.times.items():
        saved = [saving(times, scores.times[each]) for each in rivals]
        apart = mean_difference(scores.errors[name], scores.errors[BASE])
        same = not_worse(apart, scores.noise)
        rows.append(
            [
                name,
                f"{np.median(scores.seconds[name]):.0f}",
                _seconds(float(np.median(times))),
                f"{sum(math.isinf(each) for each in times)} of {len(times)}",
                *("-" if name == each else one.percent() for each, one in zip(rivals, saved, strict=True)),
                f"{100 * float(np.mean(scores.errors[name])):.2f} %",
                "-" if name == BASE else _points(apart),
                "yes" if same else "no",
            ]
        )
        numbers = {"seconds": scores.seconds[name], "times": times, "errors": scores.errors[name]}
        facts.append({"arm": name, **numbers, "saves": [asdict(each) for each in saved], "apart": asdict(apart)})
    return Sheet("Ways to search", rows, _notes(scores, stage), facts)


def _notes(scores: Scores, stage: Stage) -> list[str]:
    default = [*stage.tape.facts["default"]["test_error"]]
    noise = f"{100 * scores.noise:.2f} points"
    return [
        f"{stage.trials} trials out of {len(stage.tape.settings)} recorded settings, {len(scores.times[BASE])} paired "
        "seeds; medians; intervals hold 95 %, by bootstrap over seeds",
        f"target: the mean test error of what TPE on the full network ends with, and one standard deviation of seed "
        f"noise ({noise}): {100 * scores.target:.2f} %; reached when what is held is within it and stays so",
        f"not worse: the upper end of the difference to TPE's test error is within {noise}",
        "seconds: one process on one core; making proxies, the map, drawing settings and judging are counted",
        f"no search at all: the default recipe has {100 * float(np.mean(default)):.2f} % test error",
        *(f"{arm.name}: {arm.what}" for arm in ARMS if arm.name in scores.times),
    ]


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0f}"


def _points(apart: Interval) -> str:
    return f"{100 * apart.value:+.2f} ({100 * apart.low:+.2f} to {100 * apart.high:+.2f})"


def fidelity_sheet(ranks: Sequence[Fidelity]) -> Sheet:
    """How every course ranks, a row each."""
    rows = [["ranked by", "cost", "tau", "tau, better half", "Spearman", "recall of the best tenth", "regret of five"]]
    for each in ranks:
        measured = (each.tau, each.top_half, each.spearman, each.recall)
        shown = (f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in measured)
        rows.append([each.name, f"{each.cost:.2f}", *shown, f"{100 * each.regret:.2f}"])
    notes = [
        "against the validation value of one training of the full network; cost: seconds, as a share of a full "
        "training's; networks that stack are trained in full fleets",
        "regret: expected test error of the best of the first five settings, less the least of all, in points; "
        "intervals hold 95 %, by bootstrap over settings",
    ]
    return Sheet("How settings are ranked", rows, notes, [asdict(each) for each in ranks])


def shift_sheet(stage: Stage) -> Sheet:
    """How far each proxy's best settings lie from the full network's."""
    tape = stage.tape
    rows, facts = [["course", "hyperparameter", "times", "95 % interval"]], []
    for course in courses_of(tape.facts):
        if not course.proxy or course.shift:
            continue
        found = shift_between(tape.settings, tape.last(course.name), tape.last(FULL, 1), stage.spec.space)
        for name, factor in found.factors.items():
            rows.append([course.name, name, f"{factor:.2f}", f"{found.low[name]:.2f} to {found.high[name]:.2f}"])
        facts.append({"course": course.name, **asdict(found)})
    notes = [
        "what suits the full network, times this, suits the proxy; by all settings that were recorded",
    ]
    for course in courses_of(tape.facts):
        if course.shift:
            told = ", ".join(f"{name} x {factor:.2f}" for name, factor in course.shift.items())
            notes.append(f"{course.name}: corrected by a few pairs of runs: {told}")
    return Sheet("How far the best settings shift", rows, notes, facts)
