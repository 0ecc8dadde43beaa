"""What a map answers: advice, a choice, a rung; each with its evidence, and as plain data for machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Evidence = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """Anything a map answers."""

    def facts(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Advice(Answer):
    """Which way to turn the temperature at a load.

    Attributes:
        direction: "hotter", "colder" or "stay"; "mixed" where several knobs turn differently.
        directions: the same for each knob.
        regime: the most probable one where one stands.
        target: {knob: value} of the measured temperature to go to.
        expected_error: test error there, after pruning and retraining; None where the grid has none.
        confidence: probability that the adviser would put the target before here (for "stay": here before the next
            best); of one more dense seed where test errors decide, else over the noise of LMC and CKA.
        adviser: how the target was chosen.
        evidence: what the map holds here and at the target.
        notes: what to mind, in words.
    """

    direction: str
    directions: Mapping[str, str]
    regime: str
    target: Mapping[str, float]
    expected_error: float | None
    confidence: float
    adviser: str
    density: float
    evidence: Evidence = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection(Answer):
    """Which of a family of temperatures to prune at a load.

    Attributes:
        selected: {knob: value}.
        regime: the most probable one there.
        expected_error: test error there; None where the grid has none.
        confidence: share of what other seeds might have shown in which the same one is chosen.
        adviser: how it was chosen.
        candidates: every temperature with what the map holds of it, and how often it is chosen.
        notes: what to mind, in words.
    """

    selected: Mapping[str, float]
    regime: str
    expected_error: float | None
    confidence: float
    adviser: str
    density: float
    candidates: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DensityTrust(Answer):
    """Whether networks of a density rank training settings as the dense network does.

    Attributes:
        density: fraction of weights kept.
        tau: Kendall's tau along the temperature between test errors at this density and of dense networks of other
            seeds, averaged over seeds; None where the grid has no test errors.
        low, high: 95 % of a bootstrap over dense seeds; None with fewer than three.
        ceiling: tau between dense networks of two seeds, the most a proxy could reach.
        prior: tau to expect from the regimes alone: the ceiling times the probability of being connected.
        trust: prior and measurement together, relative to the ceiling.
        trusted: whether it is more likely than not that at least 70 % of the ceiling is reached.
        reason: in words.
    """

    density: float
    tau: float | None
    low: float | None
    high: float | None
    ceiling: float | None
    prior: float
    trust: float
    trusted: bool
    reason: str
