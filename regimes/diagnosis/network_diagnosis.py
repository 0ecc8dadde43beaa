"""Diagnosis of one setting with its evidence: measured values, the cuts they are compared with, and their effects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regimes.diagnosis.cut_tree import cuts_of
from regimes.diagnosis.diagnosis import Diagnosis, FittedQuestion
from regimes.diagnosis.measures import MEASURES, measure_named
from regimes.diagnosis.rule_text import HIGH, LOW
from regimes.errors import UserError

UNFAMILIAR = 0.5
NOTABLE = 0.02  # change of a probability that is worth a word
WORDS = {
    "p_hotter": ("hotter", "colder"),
    "p_wider": ("a wider network", "the present width"),
    "p_data": ("more data", "the present data"),
}


@dataclass(frozen=True)
class Evidence:
    """A measured value and its effect on a diagnosis.

    Attributes:
        measure: name of the measure.
        value: measured value.
        stderr: its standard error; NaN if unknown.
        cut: learnt threshold, median; None if no tree has a cut on this measure itself.
        interval: 80 % interval of the threshold; None without a threshold.
        effects: {question: probability minus the probability without this measure}; empty if it is not used.
    """

    measure: str
    value: float
    stderr: float
    cut: float | None
    interval: tuple[float, float] | None
    effects: Mapping[str, float]

    def __str__(self) -> str:
        measure = measure_named(self.measure)
        spread = "" if math.isnan(self.stderr) else f" ± {measure.show(self.stderr)}"
        text = f"{measure.long_name} {measure.show(self.value)}{spread}"
        if self.cut is not None and self.interval is not None:
            side = "above" if self.value > self.cut else "not above"
            low, high = map(measure.show, self.interval)
            text += f", {side} the cut {measure.show(self.cut)} ({low} to {high})"
        notable = {name: effect for name, effect in self.effects.items() if abs(effect) >= NOTABLE}
        said = [f"{100 * abs(effect):.0f} points for {WORDS[name][effect < 0]}" for name, effect in notable.items()]
        if not self.effects:
            return f"{text}: not used, the rule has no cut on it"
        return f"{text}: {', '.join(said) or 'changes little'}"


@dataclass(frozen=True)
class NetworkDiagnosis:
    """Diagnosis of one network, or of several networks of one setting.

    Attributes:
        p_hotter: probability that a hotter setting lowers the test error more than a colder one.
        p_wider: probability that a wider network lowers it more than another temperature.
        p_data: probability that more data lower it more than another temperature.
        familiar: 1 within the networks that the diagnosis was learnt from, towards 0 far from them.
        evidence: the measured values.
        notes: limits of this diagnosis.
    """

    p_hotter: float
    p_wider: float
    p_data: float
    familiar: float
    evidence: tuple[Evidence, ...]
    notes: tuple[str, ...] = ()

    @property
    def direction(self) -> str:
        """The more probable direction of the temperature, "hotter" or "colder"."""
        return "hotter" if self.p_hotter >= 0.5 else "colder"

    def facts(self) -> dict[str, object]:
        """Return the diagnosis as numbers, for JSON; unknown numbers are None."""
        return {
            "direction": self.direction,
            **{name: _number(getattr(self, name)) for name in (*WORDS, "familiar")},
            "evidence": [
                {
                    "measure": each.measure,
                    "value": _number(each.value),
                    "stderr": _number(each.stderr),
                    "cut": each.cut,
                    "interval": each.interval and list(each.interval),
                    "effects": {name: _number(effect) for name, effect in each.effects.items()},
                    "text": str(each),
                }
                for each in self.evidence
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        likely = max(self.p_hotter, 1 - self.p_hotter)
        lines = [
            f"{self.direction}   (probability {likely:.0%})",
            f"  a wider network would help more than another temperature: {_percent(self.p_wider)}",
            f"  more data would help more than another temperature: {_percent(self.p_data)}",
            f"  familiar: {self.familiar:.2f}" + (" (outside what was learnt)" if self.familiar < UNFAMILIAR else ""),
            *(f"  {each}" for each in self.evidence),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def diagnose_values(
    diagnosis: Diagnosis,
    values: Mapping[str, float],
    stderrs: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> NetworkDiagnosis:
    """Return the diagnosis of one setting from its measured values.

    Args:
        diagnosis: the learnt diagnosis.
        values: {measure: value}; NaN where not measured.
        stderrs: {measure: standard error}; a value near a cut takes both branches, by the normal distribution.
        notes: limits to report.

    Raises:
        UserError: no measure is known.
    """
    known = {name: float(values[name]) for name in MEASURES if math.isfinite(values.get(name, math.nan))}
    if not known:
        raise UserError(f"no measure has a value; a diagnosis needs at least one of {', '.join(MEASURES)}")
    if not set(known) & set(diagnosis.learnt.names):
        learnt = ", ".join(diagnosis.learnt.names)
        raise UserError(f"only {', '.join(known)} is known, which this diagnosis has not learnt; it uses {learnt}")
    spreads = {name: float((stderrs or {}).get(name, math.nan)) for name in known}
    said, familiar = _probabilities(diagnosis, known, spreads)
    evidence = []
    for name in known:
        rest = {other: value for other, value in known.items() if other != name}
        without = _probabilities(diagnosis, rest, spreads)[0]
        used = name in diagnosis.learnt.names
        effects = {question: said[question] - without[question] for question in said if used}
        number = _first_cut(diagnosis.questions, name)
        cut, interval = (None, None) if number is None else number
        evidence.append(Evidence(name, known[name], spreads[name], cut, interval, effects))
    evidence.sort(key=lambda each: -max((abs(effect) for effect in each.effects.values()), default=0.0))
    told = {name: said.get(name, math.nan) for name in WORDS}
    return NetworkDiagnosis(**told, familiar=familiar, evidence=tuple(evidence), notes=tuple(notes))


def _probabilities(
    diagnosis: Diagnosis, values: Mapping[str, float], stderrs: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """Return {question: probability} and the familiarity of one row."""
    blur = {name: np.array([_blur(name, value, stderrs[name])]) for name, value in values.items()}
    asked = diagnosis.asked({name: np.array([value]) for name, value in values.items()}, 1, blur)
    said = {each.question.name: float(each.probability(asked)[0]) for each in diagnosis.questions}
    return said, float(diagnosis.learnt.familiarity(asked.values, 1)[0])


def _blur(name: str, value: float, stderr: float) -> float:
    """Return a standard error on the scale of a measure's cuts: the larger change of one standard error up or down."""
    if not stderr > 0:
        return 0.0
    measure = MEASURES[name]
    near = np.clip([value - stderr, value, value + stderr], measure.low, measure.high)
    return float(np.abs(np.diff(measure.scale(near))).max())


def _first_cut(questions: Sequence[FittedQuestion], name: str) -> tuple[float, tuple[float, float]] | None:
    """Return the median and interval of the first threshold on a measure in the trees."""
    for fitted in questions:
        for tree in fitted.trees:
            for number, cut in enumerate(cuts_of(tree.tree)):
                if cut.measure == name:
                    return tree.threshold(number, 0.5), (tree.threshold(number, LOW), tree.threshold(number, HIGH))
    return None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(probability: float) -> str:
    return "not learnt" if math.isnan(probability) else f"{probability:.0%}"
