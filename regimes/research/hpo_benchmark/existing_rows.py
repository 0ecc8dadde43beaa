"""What stands in a recording already: a command that adds a course trains that one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regimes.errors import UserError
from regimes.hpo.fidelity_trainer import VALUES
from regimes.research.hpo_benchmark.fidelities import RecordedFidelity
from regimes.research.hpo_benchmark.table import VARIABLES, SearchTable, open_table

Row = dict[str, Any]


@dataclass(frozen=True)
class ExistingRows:
    """A recording that is added to, or none.

    Attributes:
        tape: the recording; None where there is none.
    """

    tape: SearchTable | None = None

    @classmethod
    def of(cls, path: Path, settings: Sequence[Mapping[str, Any]]) -> ExistingRows:
        """The recording at a path.

        Raises:
            UserError: it is of other settings, or no recording.
        """
        if not path.is_file():
            return cls()
        tape = open_table(path)
        if tape.settings != list(settings):
            raise UserError(f"{path}: is a recording of other settings; take another --out, or remove it")
        return cls(tape)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the recording; nothing where there is none."""
        return self.tape.facts if self.tape else {}

    @property
    def courses(self) -> list[dict[str, Any]]:
        """Its courses with their networks, but those of moved settings, which follow from the others."""
        plain = [each for each in self.facts.get("courses", ()) if not each["course"]["shift"]]
        return [{**each, "made": self.facts["made"][each["course"]["name"]]} for each in plain]

    def moved(self, name: str) -> dict[str, Any] | None:
        """The course of that name with settings moved by what pairs of runs said; None where it is not there."""
        found = [each for each in self.facts.get("courses", ()) if each["course"]["name"] == f"{name}, shifted"]
        return {**found[0], "made": self.facts["made"][f"{name}, shifted"]} if found else None

    def seconds(self, names: Sequence[str]) -> dict[str, Any] | None:
        """What its courses took, where all of these were timed; None else."""
        if self.tape is None or not set(names) <= set(self.facts["seconds"]):
            return None
        return {name: self.facts[name] for name in ("seconds", "beside")}

    def rows(self, course: RecordedFidelity, numbers: Sequence[int], seed: int) -> dict[int, Row] | None:
        """{setting: its row} of a course, where all of them stand there; None else.

        Values are as exact as the file: single precision.
        """
        if self.tape is None or course.name not in self.tape.courses:
            return None
        place = self.tape.courses[course.name]
        if np.isnan(self.tape.arrays["loss"][place, list(numbers), seed, -1]).any():
            return None
        return {number: self._row(place, number, seed) for number in numbers}

    def _row(self, place: int, number: int, seed: int) -> Row:
        """None stands for what is not finite, as where a training is recorded."""
        assert self.tape is not None
        found = {name: self.tape.arrays[name][place, number, seed] for name in VARIABLES}
        row: Row = {name: [float(each) if np.isfinite(each) else None for each in found[name]] for name in VALUES}
        row.update({name: float(each) for name, each in found.items() if name not in VALUES and np.isfinite(each)})
        return row
