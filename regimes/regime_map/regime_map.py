"""The map as an instrument: what stands where, which way to turn a knob, which network to prune."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.record.grid import read_grid
from regimes.regime_map import ADVISERS
from regimes.regime_map.axes import Axis
from regimes.regime_map.candidates import Candidates, candidates_at
from regimes.regime_map.classify import DEFAULT, MEANING, classify_with_model
from regimes.regime_map.landscape_rules import regimes_at
from regimes.regime_map.measured_grid import Numbers
from regimes.regime_map.rank_fidelity import rungs
from regimes.regime_map.results import Advice, DensityTrust, Selection
from regimes.registry import load

IN_ERROR = ("error", "joint")  # advisers whose costs are log errors
BY_ERROR, BY_LANDSCAPE = "joint", "combined"  # with test errors, without: the best in reports/advice


class RegimeMap:
    """Regimes, their border and their uncertainty over (temperature, load), and the answers they give.

    Everything is read off smooth surfaces through the cells, so temperatures and densities between measured ones are
    interpolated, with their uncertainty; beyond the measured ones the map refuses to answer.

    Args:
        data: a record, or any grid that `classify` takes.
        rule, lmc, cka: as for `classify`; a rule without cuts cannot advise.

    Attributes:
        data: the classified grid.

    Raises:
        UserError: a grid that cannot be used.
    """

    def __init__(
        self, data: xr.Dataset, rule: str = DEFAULT, lmc: float | None = None, cka: float | None = None
    ) -> None:
        self.data, self._measured, self._verdict = classify_with_model(data, rule, lmc, cka)
        self._columns: dict[tuple[Any, ...], Candidates] = {}
        if not self._measured.told.any():
            raise UserError("no cell tells anything: all are at chance, or not measured")
        if self._verdict.unsure is None:
            raise UserError(f"rule '{rule}' has no cuts to advise by; take rule '{DEFAULT}'")

    @classmethod
    def open(
        cls, path: str | Path, rule: str = DEFAULT, lmc: float | None = None, cka: float | None = None
    ) -> RegimeMap:
        """The map of a run's folder or a netCDF grid."""
        return cls(read_grid(path), rule, lmc, cka)

    @classmethod
    def of(cls, data: xr.Dataset) -> RegimeMap:
        """The map of a grid that is classified already: by the same rule and the cuts that were given to it."""
        about = data["regime"].attrs
        return cls(data, about["rule"], about.get("given_lmc"), about.get("given_cka"))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Knobs, then loads."""
        return self._measured.axes

    @property
    def knobs(self) -> list[str]:
        """The temperature axes."""
        return self._measured.knobs

    def regimes(self, density: float, at: Mapping[str, float]) -> dict[str, float]:
        """Probabilities of the regimes at a setting, {"I": ..., "II-A": ..., "II-B": ...}.

        Raises:
            UserError: a knob or load is missing, or a name is none.
            OutsideRange: a setting beyond the measured ones.
        """
        found = self._column(density, at, at)
        assert found.here is not None
        return dict(zip(MEANING, found.regimes[found.here].tolist(), strict=True))

    def regimes_at(self, places: Numbers) -> Numbers:
        """(m, 3) probabilities of the regimes at coordinates (m, k), see `Axis.place`."""
        assert self._verdict.unsure is not None
        density = self._measured.axes[-1].value(places[:, -1])
        return regimes_at(self._measured, self._verdict.unsure, places, density)

    def advise(self, density: float, at: Mapping[str, float], adviser: str | None = None) -> Advice:
        """Which way to turn the temperature for networks to be pruned to a density.

        Args:
            density: to prune to.
            at: {knob: value} where one stands; the width too, where the grid varies it.
            adviser: a name in `ADVISERS` or an import path; None: "joint" where the grid has test errors, else
                "combined".

        Raises:
            UserError, OutsideRange: as for `regimes`; an unknown adviser, or one that this grid does not serve.
        """
        found = self._column(density, at, at)
        assert found.here is not None
        name, cost = self._cost(found, adviser)
        chosen = int(cost.mean(0).argmin())
        directions = found.toward(chosen)
        rival = found.here if chosen != found.here else _second(cost)
        sure = 1.0 if rival == chosen else (cost[:, chosen] + self._seeds(found, chosen, name) < cost[:, rival]).mean()
        turned = {each for each in directions.values() if each != "stay"}
        return Advice(
            "stay" if not turned else turned.pop() if len(turned) == 1 else "mixed",
            directions,
            self._regime(found, found.here),
            self._said(found, chosen),
            self._expected(found, chosen),
            float(sure),
            name,
            density,
            {"here": self._row(found, found.here), "target": self._row(found, chosen)},
            self._notes(density, found),
        )

    def select(self, density: float, at: Mapping[str, float] | None = None, adviser: str | None = None) -> Selection:
        """Which of the measured temperatures to prune to a density: one network of a family that is trained already.

        Args:
            density: to prune to.
            at: knobs that are settled, {knob: value}, and the width where the grid varies it.
            adviser: as for `advise`.

        Raises:
            UserError, OutsideRange: as for `advise`.
        """
        found = self._column(density, None, at or {})
        name, cost = self._cost(found, adviser)
        chosen = int(cost.mean(0).argmin())
        often = np.bincount(cost.argmin(1), minlength=len(found.heat)) / len(cost)
        rows = tuple({**self._row(found, i), "chosen": float(often[i])} for i in range(len(found.heat)))
        return Selection(
            found.settings[chosen],
            self._regime(found, chosen),
            self._expected(found, chosen),
            float(often[chosen]),
            name,
            density,
            rows,
            self._notes(density, found),
        )

    def sam_rho(self, density: float, at: Mapping[str, float] | None = None, adviser: str | None = None) -> Selection:
        """Which radius of sharpness-aware minimisation to train with, for networks to be pruned to a density.

        Args:
            density: to prune to.
            at: the other knobs' values, where the grid turns more than rho.
            adviser: as for `advise`.

        Raises:
            UserError: the grid does not turn sam_rho; else as for `advise`.
        """
        if "sam_rho" not in self.knobs:
            turned = ", ".join(self.knobs)
            raise UserError(
                f"this grid turns {turned}, not sam_rho; sweep it: [temperature] sam_rho = [0.0, 0.05, ...]"
            )
        settled = dict(at or {})
        if "sam_rho" in settled:
            raise UserError("sam_rho is what is asked for; leave --at sam_rho out, or ask `regimes advise`")
        for axis in self._measured.axes[: len(self.knobs)]:
            if axis.name != "sam_rho" and axis.name not in settled and len(axis.values) > 1:
                values = ", ".join(f"{each:g}" for each in axis.values)
                raise UserError(f"where on {axis.name}? Say it with --at {axis.name}=VALUE; measured: {values}")
        return self.select(density, settled, adviser)

    def rungs(
        self, densities: Sequence[float] | None = None, at: Mapping[str, float] | None = None
    ) -> list[DensityTrust]:
        """The densities whose networks rank training settings as the full network does, and those that do not.

        Sparsest first; `rank_fidelity` defines when a density is trusted. ``at`` gives the width where it varies.

        Raises:
            UserError: fewer than four temperatures.
            OutsideRange: a density beyond the measured ones.
        """
        return rungs(self._measured, self._verdict, densities, dict(at or {}))

    def _column(self, density: float, here: Mapping[str, float] | None, given: Mapping[str, float]) -> Candidates:
        names = [axis.name for axis in self._measured.axes]
        if "density" in given:
            raise UserError("the density is asked for already; leave it out of --at")
        loads = {name: value for name, value in given.items() if name not in self.knobs and name in names}
        stand = None if here is None else {k: v for k, v in here.items() if k not in loads}
        fixed = {k: v for k, v in given.items() if k not in loads} if here is None else {}
        for name in fixed:
            if name not in self.knobs:
                raise UserError(f"'{name}' is no axis of this grid; allowed: {', '.join(names)}")
        key = (density, *sorted({**loads, **fixed}.items()))
        if key not in self._columns:
            whole = {**loads, "density": density}
            self._columns[key] = candidates_at(self._measured, self._verdict, whole, None, fixed)
        if stand is None:
            return self._columns[key]
        if stand in self._columns[key].settings:
            return dataclasses.replace(self._columns[key], here=self._columns[key].settings.index(stand))
        return candidates_at(self._measured, self._verdict, {**loads, "density": density}, stand, fixed)

    def _cost(self, found: Candidates, adviser: str | None) -> tuple[str, Numbers]:
        name = adviser or (BY_ERROR if found.error is not None else BY_LANDSCAPE)
        return name, load(ADVISERS, name, "adviser")(found, self._measured)

    def _said(self, found: Candidates, which: int) -> dict[str, int | float]:
        return {
            axis.name: axis.said(found.settings[which][axis.name]) for axis in self._measured.axes[: len(self.knobs)]
        }

    def _seeds(self, found: Candidates, which: int, adviser: str) -> Numbers:
        """(draws,) how far two temperatures of one more seed differ beyond their means; 0 for costs of another unit."""
        count = len(found.lmc)
        if found.error is None or adviser not in IN_ERROR:
            return np.zeros(count)
        noise = self._measured.surface("test_error").noise
        return np.sqrt(2) * noise * np.random.default_rng(2 + which).standard_normal(count)

    def _regime(self, found: Candidates, which: int) -> str:
        return list(MEANING)[int(found.regimes[which].argmax())]

    def _expected(self, found: Candidates, which: int) -> float | None:
        if found.error is None:
            return None
        return float(np.median(self._measured.stretch("test_error").back(found.error[:, which])))

    def _row(self, found: Candidates, which: int) -> dict[str, Any]:
        """What the map holds of a candidate: middle and 95 % of each measure, probabilities of the regimes."""
        row: dict[str, Any] = {**self._said(found, which)}
        row["regimes"] = dict(zip(MEANING, np.round(found.regimes[which], 4).tolist(), strict=True))
        measures = {"lmc": found.lmc, "cka": found.cka, "test_error": found.error}
        for name, drawn in measures.items():
            if drawn is not None:
                values = self._measured.stretch(name).back(drawn[:, which])
                low, middle, high = np.quantile(values, [0.025, 0.5, 0.975]).tolist()
                row[name] = {"value": middle, "low": low, "high": high}
        return row

    def _notes(self, density: float, found: Candidates) -> tuple[str, ...]:
        notes = []
        if not np.isclose(density, self._measured.axes[-1].values).any():
            notes.append(f"density {density:g} lies between measured ones; interpolated")
        if self._measured.data.sizes.get("dense_seed", 1) == 1:
            notes.append("one dense seed: the confidence knows other seeds only by how rough the grid is")
        return tuple(notes)


def _second(cost: Numbers) -> int:
    """The candidate with the second lowest mean cost; the only one where there is no other."""
    return int(cost.mean(0).argsort()[min(1, cost.shape[1] - 1)])
