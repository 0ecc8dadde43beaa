"""Measures that a diagnosis may use: their ranges, and the scales on which cuts are placed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESOLUTION = 1e-4  # errors that differ by less are not told apart


@dataclass(frozen=True)
class DiagnosticMeasure:
    """A measure of a network or a pair of networks.

    Attributes:
        long_name: its name in sentences.
        low, high: range of its values.
        scale: from values to the scale on which cuts are normally distributed.
        inverse: from that scale back to values.
        percent: whether values are shown in percent.
        hint: advice for values out of range.
    """

    long_name: str
    low: float
    high: float
    scale: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    percent: bool = False
    hint: str = "divide percentages by 100"

    def show(self, value: float) -> str:
        """Return a value as text, errors in percent."""
        if not np.isfinite(value):
            return "not measured"
        return f"{100 * value:.3g} %" if self.percent else f"{value:.3g}"


def _log_error(value: Array) -> Array:
    return np.log10(np.maximum(value, 0) + RESOLUTION)


def _error(scaled: Array) -> Array:
    return np.maximum(10.0**scaled - RESOLUTION, 0)


def _signed_log(value: Array) -> Array:
    return np.arcsinh(value / 2)  # about the natural logarithm for large values, and defined for traces below 0


def _signed_exp(scaled: Array) -> Array:
    return 2 * np.sinh(scaled)


def _same(value: Array) -> Array:
    return value


def _log(value: Array) -> Array:
    return np.log(value)


def _exp(scaled: Array) -> Array:
    return np.exp(scaled)


MEASURES: Mapping[str, DiagnosticMeasure] = {
    "train_error": DiagnosticMeasure("training error", 0, 1, _log_error, _error, percent=True),
    "train_loss": DiagnosticMeasure("training loss", 0, np.inf, _log_error, _error, hint="a mean cross entropy is not"),
    "curve": DiagnosticMeasure("connectivity along a trained curve", -1, 1, _same, _same, percent=True),
    "curve_peak": DiagnosticMeasure(
        "minus the highest training error on that curve",
        -1,
        1e-6,
        lambda value: -_log_error(-value),
        lambda scaled: -_error(-scaled),
        percent=True,
        hint="it is negative, like a barrier: flip the sign, and divide percentages by 100",
    ),
    "lmc": DiagnosticMeasure("linear mode connectivity", -1, 1, _same, _same, percent=True),
    "cka": DiagnosticMeasure("CKA of outputs on mixed images", -0.2, 1.001, _same, _same, hint="1 means identical"),
    "hessian_trace": DiagnosticMeasure("Hessian trace", -np.inf, np.inf, _signed_log, _signed_exp),
    "hessian_top": DiagnosticMeasure("largest Hessian eigenvalue", -np.inf, np.inf, _signed_log, _signed_exp),
}
DERIVED: Mapping[str, DiagnosticMeasure] = {
    "peak_ratio": DiagnosticMeasure("highest training error on the curve, relative to the ends", 0, np.inf, _log, _exp),
    "hessian_ratio": DiagnosticMeasure("Hessian trace relative to its largest eigenvalue", 0, np.inf, _log, _exp),
}
GAINS = ("gain_hotter", "gain_colder", "gain_wider", "gain_data")


def measure_named(name: str) -> DiagnosticMeasure:
    """Return a measure or a derived measure."""
    return MEASURES[name] if name in MEASURES else DERIVED[name]


def derive(measured: Mapping[str, Array]) -> dict[str, Array]:
    """Return measured values with the derived measures added where their parts are known.

    ``peak_ratio = (0.0001 - curve_peak) / (train_error + 0.001)``; ``hessian_ratio = hessian_trace / hessian_top``, for
    positive values only.
    """
    derived = dict(measured)
    if "curve_peak" in measured and "train_error" in measured:
        derived["peak_ratio"] = (np.maximum(-measured["curve_peak"], 0) + RESOLUTION) / (
            measured["train_error"] + 10 * RESOLUTION
        )
    if "hessian_trace" in measured and "hessian_top" in measured:
        trace, top = measured["hessian_trace"], measured["hessian_top"]
        known = (trace > 0) & (top > 0)
        derived["hessian_ratio"] = np.where(known, trace, np.nan) / np.where(known, top, 1.0)
    return derived


def scaled(measured: Mapping[str, Array]) -> dict[str, Array]:
    """Return measured values and derived measures on the scales of their cuts."""
    return {name: measure_named(name).scale(value) for name, value in derive(measured).items()}
