"""Regime map: regimes with probabilities at any setting, and advice on knobs, networks and densities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.record.grid import open_grid
from regimes.regime_map import ADVISERS, RULES
from regimes.regime_map.axes import Axis
from regimes.regime_map.candidates import Candidates, candidates_at, once_per_load
from regimes.regime_map.classification import MEANING, Classification
from regimes.regime_map.classify import DEFAULT_RULE, classify_with_model
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.rank_fidelity import rungs
from regimes.regime_map.results import Advice, DensityTrust, Selection
from regimes.registry import lookup

LOG_ERROR_ADVISERS = ("error", "joint")  # advisers whose costs are in units of log error
DEFAULT_ADVISER, DEFAULT_ADVISER_WITHOUT_ERRORS = "joint", "landscape"


class RegimeMap:
    """Regimes over temperature and load with their uncertainty, and the advice that follows from them.

    All answers come from Gaussian-process surfaces through the cells. Settings between measured ones are interpolated,
    with their uncertainty; settings outside the measured range raise `OutsideRange`.

    Args:
        data: a record, or any grid accepted by `classify`.
        rule, lmc, cka: as for `classify`; the rule "error" cannot be used.

    Attributes:
        data: the classified grid.

    Raises:
        UserError: the grid cannot be used; no cell is usable; the rule cannot give advice.
    """

    def __init__(
        self, data: xr.Dataset, rule: str = DEFAULT_RULE, lmc: float | None = None, cka: float | None = None
    ) -> None:
        self._build(*classify_with_model(data, rule, lmc, cka))

    def _build(self, data: xr.Dataset, measured: MeasuredGrid, classification: Classification) -> None:
        self.data, self._measured = data, measured
        self._cache: dict[tuple[Any, ...], Candidates] = {}
        if not measured.usable.any():
            raise UserError("no usable cell: all are at chance or not measured")
        if classification.regions is None:
            raise UserError(f"rule '{data['regime'].attrs['rule']}' cannot give advice; use '{DEFAULT_RULE}'")
        self._regions = classification.regions

    @classmethod
    def open(
        cls, path: str | Path, rule: str = DEFAULT_RULE, lmc: float | None = None, cka: float | None = None
    ) -> RegimeMap:
        """Return the map of a run folder or a netCDF grid."""
        chart = cls.__new__(cls)
        chart._build(*classify_with_model(open_grid(path), rule, lmc, cka, str(path)))
        return chart

    @classmethod
    def of(cls, data: xr.Dataset) -> RegimeMap:
        """Return the map of a classified grid, by the same rule and given cuts.

        Raises:
            UserError: the rule is an import path, which is not imported at the word of a file; otherwise as for the
                class.
        """
        about = data["regime"].attrs
        if about["rule"] not in RULES:
            raise UserError(f"the grid was classified by the rule '{about['rule']}'; give it as `rule` instead")
        return cls(data, about["rule"], about.get("given_lmc"), about.get("given_cka"))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The knobs, then the loads."""
        return self._measured.axes

    @property
    def densities(self) -> tuple[float, ...]:
        """The measured densities; empty if the grid has other loads only."""
        axis = self._measured.density_axis
        return () if axis is None else axis.values

    @property
    def knobs(self) -> list[str]:
        """Names of the temperature axes."""
        return self._measured.knobs

    def regimes(self, density: float | None, at: Mapping[str, float]) -> dict[str, float]:
        """Return the probabilities of the regimes at a setting, {"I": ..., "II-A": ..., "II-B": ...}.

        Raises:
            UserError: a knob or load is missing or unknown.
            OutsideRange: the setting is outside the measured range.
        """
        candidates = self._candidates_at(density, at, at)
        assert candidates.current is not None
        return dict(zip(MEANING, candidates.regimes[candidates.current].tolist(), strict=True))

    def regimes_at(self, places: Numbers) -> Numbers:
        """Return the probabilities (m, 3) of the regimes at coordinates (m, k), see `Axis.place`."""
        return self._regions.probabilities(places)

    def advise(self, density: float | None, at: Mapping[str, float], adviser: str | None = None) -> Advice:
        """Return which way to turn the knobs for networks that will be pruned to a density.

        Args:
            density: the density to prune to; None if the grid has no density.
            at: {knob: value} of the current temperature; also other loads that the grid varies, such as the width.
            adviser: a name in `ADVISERS` or an import path; None: "joint" if the grid has test errors, else
                "landscape".

        Raises:
            UserError, OutsideRange: as for `regimes`; the adviser is unknown, or needs test errors that the grid lacks.
        """
        candidates = self._candidates_at(density, at, at)
        assert candidates.current is not None
        name, cost = self._cost(candidates, adviser)
        chosen = int(cost.mean(0).argmin())
        directions = candidates.directions_to(chosen)
        rival = candidates.current if chosen != candidates.current else _second(cost)
        sure = (
            1.0
            if rival == chosen
            else (cost[:, chosen] + self._seeds(candidates, chosen, name) < cost[:, rival]).mean()
        )
        turned = {each for each in directions.values() if each != "stay"}
        return Advice(
            "stay" if not turned else turned.pop() if len(turned) == 1 else "mixed",
            directions,
            self._regime(candidates, candidates.current),
            self._setting(candidates, chosen),
            self._expected(candidates, chosen),
            float(sure),
            name,
            density,
            {"here": self._row(candidates, candidates.current), "target": self._row(candidates, chosen)},
            self._notes(density, candidates),
        )

    def select(
        self, density: float | None, at: Mapping[str, float] | None = None, adviser: str | None = None
    ) -> Selection:
        """Return which of the measured temperatures to prune to a density, among networks that are already trained.

        Args:
            density: the density to prune to.
            at: {knob: value} of knobs to hold fixed; also other loads that the grid varies.
            adviser: as for `advise`.

        Raises:
            UserError, OutsideRange: as for `advise`.
        """
        candidates = self._candidates_at(density, None, at or {})
        name, cost = self._cost(candidates, adviser)
        chosen = int(cost.mean(0).argmin())
        often = np.bincount(cost.argmin(1), minlength=len(candidates.temperature)) / len(cost)
        rows = tuple(
            {**self._row(candidates, i), "chosen": float(often[i])} for i in range(len(candidates.temperature))
        )
        return Selection(
            candidates.settings[chosen],
            self._regime(candidates, chosen),
            self._expected(candidates, chosen),
            float(often[chosen]),
            name,
            density,
            rows,
            self._notes(density, candidates),
        )

    def sam_rho(
        self, density: float | None, at: Mapping[str, float] | None = None, adviser: str | None = None
    ) -> Selection:
        """Return the radius rho of sharpness-aware minimisation to train with for networks pruned to a density.

        Args:
            density: the density to prune to.
            at: {knob: value} of the other knobs, if the grid varies more than rho.
            adviser: as for `advise`.

        Raises:
            UserError: the grid does not vary sam_rho; otherwise as for `advise`.
        """
        if "sam_rho" not in self.knobs:
            knobs = ", ".join(self.knobs)
            raise UserError(
                f"this grid varies {knobs}, not sam_rho; sweep it: [temperature] sam_rho = [0.0, 0.05, ...]"
            )
        settled = dict(at or {})
        if "sam_rho" in settled:
            raise UserError("sam_rho cannot be chosen and fixed at once; remove it from --at")
        for axis in self._measured.knob_axes:
            if axis.name != "sam_rho" and axis.name not in settled and len(axis.values) > 1:
                values = ", ".join(f"{each:g}" for each in axis.values)
                raise UserError(f"missing value for {axis.name}; pass --at {axis.name}=VALUE; measured: {values}")
        return self.select(density, settled, adviser)

    def rungs(
        self, densities: Sequence[float] | None = None, at: Mapping[str, float] | None = None
    ) -> list[DensityTrust]:
        """Return, for each density, whether its networks rank training settings as dense networks do.

        Args:
            densities: the densities to evaluate; None for the measured ones.
            at: {"width": ...} if the grid varies it.

        Returns:
            One `DensityTrust` per density, lowest density first.

        Raises:
            UserError: there are fewer than four temperatures.
            OutsideRange: a density is outside the measured range.
        """
        return rungs(self._regions, densities, dict(at or {}))

    def _candidates_at(
        self, density: float | None, here: Mapping[str, float] | None, given: Mapping[str, float]
    ) -> Candidates:
        names = [axis.name for axis in self._measured.axes]
        self._check_density(density, given)
        loads = {name: value for name, value in given.items() if name not in self.knobs and name in names}
        current = None if here is None else {k: v for k, v in here.items() if k not in loads}
        fixed = {k: v for k, v in given.items() if k not in loads} if here is None else {}
        for name in fixed:
            if name not in self.knobs:
                raise UserError(f"unknown axis '{name}'; this grid has: {', '.join(names)}")
        key = (density, *sorted({**loads, **fixed}.items()))
        if key not in self._cache:
            self._cache[key] = candidates_at(self._regions, _with_density(loads, density), None, fixed)
        if current is None:
            return self._cache[key]
        if current in self._cache[key].settings:
            return dataclasses.replace(self._cache[key], current=self._cache[key].settings.index(current))
        return candidates_at(self._regions, _with_density(loads, density), current, fixed)

    def _check_density(self, density: float | None, given: Mapping[str, float]) -> None:
        loads = [axis.name for axis in self._measured.load_axes]
        if "density" in given:
            raise UserError("density is given by --density; remove it from --at")
        if "density" in loads and density is None:
            raise UserError("missing density; pass --density D, a fraction of weights kept")
        if "density" not in loads and density is not None:
            raise UserError(f"this grid has no density; pass its load by --at {loads[-1]}=VALUE")

    def _cost(self, candidates: Candidates, adviser: str | None) -> tuple[str, Numbers]:
        name = adviser or (DEFAULT_ADVISER if candidates.error is not None else DEFAULT_ADVISER_WITHOUT_ERRORS)
        return name, lookup(ADVISERS, name, "adviser")(candidates, self._measured)

    def _setting(self, candidates: Candidates, which: int) -> dict[str, int | float]:
        return {axis.name: axis.as_number(candidates.settings[which][axis.name]) for axis in self._measured.knob_axes}

    def _seeds(self, candidates: Candidates, which: int, adviser: str) -> Numbers:
        """Noise (draws,) of the log error difference between two temperatures of one more seed; 0 for other costs."""
        count = len(candidates.lmc)
        if candidates.error is None or adviser not in LOG_ERROR_ADVISERS:
            return np.zeros(count)
        noise = self._measured.surface("test_error").noise
        return np.sqrt(2) * noise * np.random.default_rng(2 + which).standard_normal(count)

    def _regime(self, candidates: Candidates, which: int) -> str:
        return list(MEANING)[int(candidates.regimes[which].argmax())]

    def _expected(self, candidates: Candidates, which: int) -> float | None:
        if candidates.error is None:
            return None
        return float(_intervals(candidates, self._measured)["test_error"][1][which])

    def _row(self, candidates: Candidates, which: int) -> dict[str, Any]:
        """Evidence on a candidate: median and 95 % interval of each variable, probabilities of the regimes."""
        row: dict[str, Any] = {**self._setting(candidates, which)}
        row["regimes"] = dict(zip(MEANING, np.round(candidates.regimes[which], 4).tolist(), strict=True))
        for name, (low, middle, high) in _intervals(candidates, self._measured).items():
            row[name] = {"value": float(middle[which]), "low": float(low[which]), "high": float(high[which])}
        return row

    def _notes(self, density: float | None, candidates: Candidates) -> tuple[str, ...]:
        notes = []
        if density is not None and not np.isclose(density, self.densities).any():
            notes.append(f"density {density:g} is between measured ones; interpolated")
        if self._measured.data.sizes.get("dense_seed", 1) == 1:
            notes.append("one dense seed: the noise between seeds is estimated from the roughness of the grid")
        return tuple(notes)


def _with_density(loads: Mapping[str, float], density: float | None) -> dict[str, float]:
    return dict(loads) if density is None else {**loads, "density": density}


@once_per_load
def _intervals(candidates: Candidates, m: MeasuredGrid) -> dict[str, Numbers]:
    """Lower end of the 95 % interval, median and upper end (3, m) of each variable at the candidates."""
    drawn = {"lmc": candidates.lmc, "cka": candidates.cka, "test_error": candidates.error}
    scale = {"lmc": m.scale}
    return {
        name: scale.get(name, 1.0) * np.quantile(m.transform(name).inverse(values), [0.025, 0.5, 0.975], axis=0)
        for name, values in drawn.items()
        if values is not None
    }


def _second(cost: Numbers) -> int:
    """Index of the second lowest mean cost; of the only candidate if there is one."""
    return int(cost.mean(0).argsort()[min(1, cost.shape[1] - 1)])


def classify_and_map(
    data: xr.Dataset, rule: str = DEFAULT_RULE, lmc: float | None = None, cka: float | None = None, name: str = ""
) -> tuple[xr.Dataset, RegimeMap | None]:
    """Classify a grid and return it with its map, which is None if the rule cannot give advice or no cell is usable.

    ``name`` is the grid's name in error messages.
    """
    data, measured, classification = classify_with_model(data, rule, lmc, cka, name or None)
    chart = RegimeMap.__new__(RegimeMap)
    try:
        chart._build(data, measured, classification)
    except UserError:
        return data, None
    return data, chart
