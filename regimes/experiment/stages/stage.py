"""What a stage is: a frozen description with a key, the stages it needs, and a place in the grid."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from regimes.config.sweep import Size
from regimes.experiment.context import RunContext
from regimes.experiment.store import Store
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Curve, Variable

Coordinates = Mapping[str, Any]  # {dimension: value}, where a stage's values stand in the record


def size_of(at: Coordinates) -> Size:
    """The size of the network at a place in the record."""
    return {name: at[name] for name in ("width",) if name in at}


@runtime_checkable
class Stage(Protocol):
    """One unit of science: done once, kept under its key, never done again."""

    @property
    def kind(self) -> str:
        """The stage of the flow: train, prune, retrain or measure."""

    @property
    def key(self) -> str:
        """The content key."""

    @property
    def needs(self) -> tuple[Stage, ...]:
        """Stages whose weights this one starts from."""

    @property
    def at(self) -> Coordinates:
        """Where its values stand in the record."""

    @property
    def aside(self) -> bool:
        """Whether it is a step on the way, whose values are not the map's."""

    @property
    def work(self) -> float:
        """Cost in forward passes of one image, for estimates of time."""

    def describe(self) -> dict[str, Any]:
        """The full description that the key is a hash of."""


@dataclass(frozen=True)
class Outcome:
    """What became of one stage: done, or failed with a line of error."""

    key: str
    error: str | None = None


Report = Callable[[Outcome], None]
Member = TypeVar("Member")


@contextmanager
def attempt(stages: Sequence[Stage], store: Store, report: Report) -> Iterator[Report]:
    """Keep what stages raise as the failure of those not yet reported done; those that were stay done.

    Yields the function to report with.
    """
    done: set[str] = set()

    def note(outcome: Outcome) -> None:
        done.add(outcome.key)
        report(outcome)

    try:
        yield note
    except (Exception, SystemExit) as error:  # a user's model or data may raise anything
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        for stage in stages:
            if stage.key not in done:
                store.fail(stage.key, line, traceback.format_exc(), stage.at)
                report(Outcome(stage.key, line))


def bisect_on_failure(
    members: Sequence[Member],
    stages_of: Callable[[Member], Sequence[Stage]],
    work: Callable[[Sequence[Member], Report], None],
    store: Store,
    report: Report,
    finished: frozenset[str] = frozenset(),
) -> None:
    """Do members together; when that raises, do each half on its own, down to the one that cannot be done.

    So one network that raises fails alone, and a fleet that is too large for the memory is cut until it fits. What was
    ``finished`` before the fleet raised stays so.
    """
    left = [member for member in members if any(stage.key not in finished for stage in stages_of(member))]
    if len(left) <= 1:
        open_stages = [stage for member in left for stage in stages_of(member) if stage.key not in finished]
        with attempt(open_stages, store, report) as done:
            work(left, done)
        return
    reported = set(finished)

    def note(outcome: Outcome) -> None:
        reported.add(outcome.key)
        report(outcome)

    try:
        work(left, note)
        return
    except (Exception, SystemExit):
        pass  # out of this block first: while an exception is handled, its frames hold the memory of the failed fleet
    middle = len(left) // 2
    for half in (left[:middle], left[middle:]):
        bisect_on_failure(half, stages_of, work, store, report, frozenset(reported))


def is_diverged(stage: Stage, store: Store) -> bool:
    """Whether a finished stage ended in a loss that is not finite."""
    record = store.read(stage.key)
    return record is not None and record["status"] == "diverged"


def record_of(
    stage: Stage, context: RunContext, started: float, values: Mapping[str, Any], share: int = 1, **more: Any
) -> dict[str, Any]:
    """The record of a finished stage, ready to be stored; ``share`` stages were done together since ``started``."""
    return {
        "kind": stage.kind,
        "status": "ok",
        "at": {name: each for name, each in stage.at.items() if name != "pair"},  # pairs are numbered by the sweep
        "values": dict(values),
        "seconds": round((time.perf_counter() - started) / share, 4),
        "work": stage.work,
        "numerics": context.spec.numerics.id,
        "description": stage.describe(),
        **more,
    }


def value(measured: Estimate | Curve, variable: Variable) -> dict[str, Any]:
    """One value as JSON: numbers that are not finite become null."""
    about = {"units": variable.units, "long_name": variable.long_name}
    if isinstance(measured, Curve):
        at = [float(each) for each in measured.at]
        return {
            "value": [_finite(each) for each in measured.values],
            "coordinate": measured.coordinate,
            "at": at,
            **about,
        }
    return {"value": _finite(measured.value), "stderr": _finite(measured.stderr), "samples": measured.samples, **about}


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
