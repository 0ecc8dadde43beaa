"""What a map holds at one load: candidate temperatures, and what each might show, drawn many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regimes.regime_map.axes import position
from regimes.regime_map.landscape_rules import Classification, regimes_at
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

DRAWS = 400
TEMPERATURES = tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Candidates:
    """Temperatures side by side at one load; the scales of ``lmc``, ``cka`` and ``error`` are the stretched ones.

    Attributes:
        settings: {knob: value} of each candidate.
        places: (m, k) their coordinates.
        heat: (m,) from cold to hot: the mean coordinate over knobs.
        regimes: (m, 3) probabilities.
        lmc, cka: (draws, m) surfaces drawn from their posteriors.
        connected, similar: (draws, m) whether LMC and CKA lie above their cuts, these drawn too.
        error: (draws, m) log test error, None where the grid has none.
        here: the candidate one stands at, None where there is none.
    """

    settings: TEMPERATURES
    places: Numbers
    heat: Numbers
    regimes: Numbers
    lmc: Numbers
    cka: Numbers
    connected: NDArray[np.bool_]
    similar: NDArray[np.bool_]
    error: Numbers | None
    here: int | None

    def toward(self, chosen: int) -> dict[str, str]:
        """Which way each knob turns from here to a candidate: "hotter", "colder" or "stay"."""
        assert self.here is not None
        step = self.places[chosen] - self.places[self.here]
        words = ("stay" if abs(each) < 1e-9 else "hotter" if each > 0 else "colder" for each in step)
        return dict(zip(self.settings[0], words, strict=False))


def candidates_at(
    m: MeasuredGrid,
    verdict: Classification,
    load: Mapping[str, float],
    at: Mapping[str, float] | None,
    fixed: Mapping[str, float],
) -> Candidates:
    """The candidates at a load: every measured temperature, and where one stands.

    Args:
        m, verdict: the grid and its cuts.
        load: {"density": ...} and the width where it varies; between measured values the surfaces interpolate.
        at: {knob: value} where one stands, if anywhere; becomes a candidate if it is none yet.
        fixed: {knob: value} of knobs that are not to be turned.

    Raises:
        UserError: a knob or load is missing, or a name is none.
        OutsideRange: a value beyond the measured ones.
    """
    knobs = m.axes[: len(m.knobs)]
    settings: list[dict[str, float]] = [{}]
    for axis in knobs:
        values = (fixed[axis.name],) if axis.name in fixed else axis.values
        settings = [{**each, axis.name: value} for each in settings for value in values]
    here = None
    if at is not None:
        position(m.axes, {**at, **load})  # says what is missing
        asked = {axis.name: axis.nearest(float(at.get(axis.name, axis.values[0]))) for axis in knobs}
        if asked not in settings:
            settings.append(asked)
        here = settings.index(asked)
    places = np.stack([position(m.axes, {**each, **load}) for each in settings])
    random = np.random.default_rng(0)
    drawn = {name: m.surface(name).draws(places, DRAWS, random) for name in ("lmc", "cka")}
    assert verdict.unsure is not None
    turn = np.arange(DRAWS) % len(verdict.unsure[0])
    lmc_cut = m.stretch("lmc").there(verdict.unsure[0])[turn]
    own = np.log10(np.array(m.axes[-1].values))
    lines = [np.interp(np.log10(load["density"]), own, each) for each in m.stretch("cka").there(verdict.unsure[1])]
    error = m.surface("test_error").draws(places, DRAWS, random) if m.knows_error else None
    return Candidates(
        tuple(settings),
        places,
        places[:, : len(knobs)].mean(1),
        regimes_at(m, verdict.unsure, places, np.full(len(places), load["density"])),
        drawn["lmc"],
        drawn["cka"],
        drawn["lmc"] >= lmc_cut[:, None],
        drawn["cka"] >= np.array(lines)[turn][:, None],
        error,
        here,
    )
