"""Results of a regime map: advice, a selection, the trust in a density; with evidence, and convertible to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Evidence = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """Base class of the results."""

    def facts(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Advice(Answer):
    """Advice on which way to turn the knobs at a load.

    Attributes:
        direction: "hotter", "colder" or "stay"; "mixed" if several knobs turn differently.
        directions: {knob: direction}.
        regime: the most probable regime at the current temperature.
        target: {knob: value} of the temperature to change to; the current one for "stay".
        expected_error: median of the posterior test error at the target, after pruning and retraining; None if the
            grid has no test errors.
        confidence: probability that the adviser prefers the target to the current temperature (for "stay": the current
            temperature to the next best). For advisers in units of log error, of one more dense seed; otherwise over
            the noise of LMC and CKA.
        adviser: name of the adviser.
        density: the density to prune to; None if the grid has none.
        evidence: estimates at the current temperature ("here") and at the target ("target").
        notes: caveats.
    """

    direction: str
    directions: Mapping[str, str]
    regime: str
    target: Mapping[str, float]
    expected_error: float | None
    confidence: float
    adviser: str
    density: float | None
    evidence: Evidence = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection(Answer):
    """Selection of one of the measured temperatures to prune at a load.

    Attributes:
        selected: {knob: value} of the selected temperature.
        regime: the most probable regime there.
        expected_error: median of the posterior test error there; None if the grid has no test errors.
        confidence: share of the posterior draws in which this temperature is chosen.
        adviser: name of the adviser.
        density: the density to prune to; None if the grid has none.
        candidates: estimates at every temperature, and the share of draws in which it is chosen ("chosen").
        notes: caveats.
    """

    selected: Mapping[str, float]
    regime: str
    expected_error: float | None
    confidence: float
    adviser: str
    density: float | None
    candidates: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DensityTrust(Answer):
    """Rank fidelity of a density: do its networks rank training settings as dense networks do?

    Attributes:
        density: the density.
        tau: Kendall's tau over temperatures between the errors at this density and those of dense networks of
            other seeds, averaged over seeds; None if not known.
        low, high: 95 % bootstrap interval of tau over dense seeds; None with fewer than three.
        ceiling: tau between dense networks of two seeds, the most a proxy can reach; None if not known.
        prior: prior mean of tau from the regimes: the ceiling (1 if not known) times the share of connected
            temperatures.
        trust: posterior mean of tau, relative to the ceiling.
        trusted: whether tau is more likely than not to reach 70 % of the ceiling.
        reason: the reason, in words.
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
