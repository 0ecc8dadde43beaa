"""Interface of stages: a frozen description with a content key, the stages it needs, and grid coordinates."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from regimes.config.sweep import Size
from regimes.device_faults import reraise_device_fault
from regimes.experiment.context import RunContext
from regimes.experiment.store import Store
from regimes.faults import storage_error_of
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Curve, Variable

Coordinates = Mapping[str, Any]  # {dimension: value} in the record


def size_of(coords: Coordinates) -> Size:
    """Return the size of the network at some coordinates."""
    return {name: coords[name] for name in ("width",) if name in coords}


@runtime_checkable
class Stage(Protocol):
    """A unit of work, done once and cached under its content key."""

    @property
    def kind(self) -> str:
        """The kind: "train", "given", "prune", "discover", "retrain" or "measure"."""

    @property
    def key(self) -> str:
        """The content key."""

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The stages whose weights this one starts from."""

    @property
    def coords(self) -> Coordinates:
        """The coordinates of its values in the record."""

    @property
    def intermediate(self) -> bool:
        """Whether it is an intermediate step, whose values are not part of the record."""

    @property
    def cost(self) -> float:
        """The cost in forward passes of one image, for time estimates."""

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a stage.

    Attributes:
        key: the stage's key.
        error: the error message of one line of a stage that failed; None: it is done.
        ours: whether it was done by this command, not found done or failed meanwhile by another one.
    """

    key: str
    error: str | None = None
    ours: bool = field(default=True, compare=False)


Report = Callable[[Outcome], None]
Member = TypeVar("Member")


def reraise_faults(error: BaseException) -> None:
    """Raise an error again that would make all later stages fail: a fault of the device or the disk."""
    reraise_device_fault(error)
    if storage_error_of(error):
        raise error


@contextmanager
def attempt(stages: Sequence[Stage], store: Store, report: Report) -> Iterator[Report]:
    """Context manager that writes an exception as the failure of all stages not yet reported as done.

    Yields the function to report with. Faults of the device or the disk are raised again.
    """
    done: set[str] = set()

    def note(outcome: Outcome) -> None:
        done.add(outcome.key)
        report(outcome)

    try:
        yield note
    except (Exception, SystemExit) as error:  # user code may raise anything
        reraise_faults(error)
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        for stage in stages:
            if stage.key not in done:
                store.fail(stage.key, line, traceback.format_exc(), stage.coords)
                report(Outcome(stage.key, line))


def bisect_on_failure(
    members: Sequence[Member],
    stages_of: Callable[[Member], Sequence[Stage]],
    work: Callable[[Sequence[Member], Report], None],
    store: Store,
    report: Report,
    finished: frozenset[str] = frozenset(),
) -> None:
    """Do members together; if that raises, do each half separately, down to single members.

    A network that raises thus fails alone, and a fleet that exceeds the memory is split until it fits. Stages that are
    ``finished`` are not done again.
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
    except (Exception, SystemExit) as error:
        reraise_faults(error)  # else leave this block first: the error's frames hold the failed fleet's memory
    middle = len(left) // 2
    for half in (left[:middle], left[middle:]):
        bisect_on_failure(half, stages_of, work, store, report, frozenset(reported))


def is_diverged(stage: Stage, store: Store) -> bool:
    """Return whether a done stage diverged, i.e. ended with a non-finite loss."""
    record = store.read(stage.key)
    return record is not None and record["status"] == "diverged"


def record_of(
    stage: Stage, context: RunContext, started: float, values: Mapping[str, Any], share: int = 1, **more: Any
) -> dict[str, Any]:
    """Return the record of a finished stage; ``share`` stages were done together since ``started``."""
    return {
        "kind": stage.kind,
        "status": "ok",
        "at": {name: place for name, place in stage.coords.items() if name != "pair"},  # numbered by the sweep
        "values": dict(values),
        "seconds": round((time.perf_counter() - started) / share, 4),
        "work": stage.cost,
        "numerics": context.spec.numerics.id,
        "description": stage.describe(),
        **more,
    }


def value(measured: Estimate | Curve, variable: Variable) -> dict[str, Any]:
    """Return a value as JSON; non-finite numbers become null."""
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
