"""Label every cell of a grid with its regime, and say how sure that is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.record.grid import check_grid
from regimes.regime_map import RULES
from regimes.regime_map.cell_stats import error_scale
from regimes.regime_map.landscape_rules import MEANING, Classification
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.thresholds import Cuts
from regimes.registry import load

REGIMES = {-1: "unknown", 0: "I", 1: "II-A", 2: "II-B"}
DEFAULT = "smooth"
MADE = ("regime", "regime_probability", "regime_name", "cka_cut", "at_chance")


def classify(data: xr.Dataset, rule: str = DEFAULT, lmc: float | None = None, cka: float | None = None) -> xr.Dataset:
    """Return the grid with ``regime`` (int8, over knobs and loads) and ``regime_probability`` (..., regime_name).

    Regime I: LMC below its cut; II-A: connected, CKA below its cut at that density; II-B: connected and similar
    (Zhou et al. 2023, arXiv 2305.18383); -1: not measured, diverged, or at chance (networks that have learnt nothing
    are connected and alike). The label is the most probable regime. The cuts are found in the data by the rule, or
    given; ``regime.attrs`` says how each was found, which regimes are present, and which are not. The rule "error"
    has no cuts: it reads off the test error which way the temperature should turn.

    Args:
        data: a record, or any grid with ``lmc`` and ``cka`` over at least one knob and ``density``; other dimensions
            (seeds, pairs) are averaged over, dense seeds tell the noise.
        rule: a name in `RULES` or an import path.
        lmc: a cut to take instead of the one in the data, at most 0; None: the one that was given when the grid was
            classified before, if any.
        cka: likewise, the same at every density.

    Raises:
        UserError: a grid that cannot be used, see `check_grid`; a cut outside its range.
    """
    return classify_with_model(data, rule, lmc, cka)[0]


def classify_with_model(
    data: xr.Dataset, rule: str = DEFAULT, lmc: float | None = None, cka: float | None = None
) -> tuple[xr.Dataset, MeasuredGrid, Classification]:
    """What `classify` returns, with the cells and the verdict behind it."""
    old = data["regime"].attrs if "regime" in data and rule != "error" else {}
    lmc, cka = (old.get(f"given_{name}") if each is None else each for name, each in (("lmc", lmc), ("cka", cka)))
    before = [name for name in MADE if name in data.variables]  # of an earlier classification
    data = check_grid(data.drop_vars(before), data.attrs.get("title", "grid"))
    given = _given(data, lmc, cka)
    measured = MeasuredGrid.of(data)
    verdict: Classification = load(RULES, rule, "rule")(measured, given)
    labels = np.where(measured.told, verdict.probability.argmax(1), -1).astype(np.int8)
    if verdict.cuts is None:
        labels[np.isnan(measured.mean("test_error"))] = -1
    regime = _as_in(data, measured.on_grid(labels))
    # As plain arrays: a labelled one would bring its own, bare coordinates and wipe out what they say of themselves.
    data["regime"] = (regime.dims, regime.values, _attrs(regime, measured, verdict, rule) | _fixed(lmc, cka))
    data = _with_probability(data, measured, verdict)
    if verdict.cuts is not None:
        lines = xr.DataArray(list(verdict.cuts.cka.values()), {"density": list(verdict.cuts.cka)}, "density")
        about = {"units": "1", "long_name": "CKA below which connected cells are II-A"}
        data["cka_cut"] = (("density",), lines.sel(density=data["density"].values).values, about)
    return data, measured, verdict


def _given(data: xr.Dataset, lmc: float | None, cka: float | None) -> dict[str, float]:
    """The cuts a user fixes, in the units that rules see."""
    scale = error_scale(data)
    if lmc is not None and (lmc > 0 or (scale == 1 and lmc < -1)):
        raise UserError(f"LMC cut {lmc:g}: allowed: -1 to 0 (a barrier is negative)")
    if cka is not None and not 0 <= cka <= 1:
        raise UserError(f"CKA cut {cka:g}: allowed: 0 to 1")
    given = {} if lmc is None else {"lmc": lmc / scale}
    return given if cka is None else {**given, "cka": cka}


def _as_in(data: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Values over the sorted axes, in the order that the grid has."""
    return values.sel({name: data[name].values for name in values.dims if name in data.coords})


def _with_probability(data: xr.Dataset, measured: MeasuredGrid, verdict: Classification) -> xr.Dataset:
    names = list(MEANING)
    shares = _as_in(data, measured.on_grid(verdict.probability, "regime_name"))
    about = {"units": "1", "long_name": "probability of the regime of the mean over dense seeds"}
    data = data.assign_coords(regime_name=names)
    data["regime_probability"] = (shares.dims, shares.values, about)
    guessing = _as_in(data, measured.on_grid(measured.guessing.astype(np.int8)))
    if guessing.any():
        data["at_chance"] = (guessing.dims, guessing.values, {"units": "1", "long_name": "networks that guess"})
    return data


def meaning_of(data: xr.Dataset) -> dict[str, str]:
    """What each regime means in a classified grid, in words: the rule's."""
    about = data["regime"].attrs
    return {name: str(about.get(f"meaning_{name}", text)) for name, text in MEANING.items()}


def present(data: xr.Dataset) -> dict[str, int]:
    """How many cells each regime has, absent ones included."""
    return {name: int((data["regime"] == number).sum()) for number, name in REGIMES.items() if number >= 0}


def _attrs(regime: xr.DataArray, measured: MeasuredGrid, verdict: Classification, rule: str) -> dict[str, object]:
    found = [name for number, name in REGIMES.items() if number >= 0 and bool((regime == number).any())]
    absent = [name for name in MEANING if name not in found]
    notes = [*verdict.notes, *_about_noise(measured, verdict.cuts)]
    return {
        "long_name": "regime of pruning",
        "flag_values": np.array(list(REGIMES), dtype=np.int8),
        "flag_meanings": " ".join(REGIMES.values()),
        "rule": rule,
        **{f"meaning_{name}": text for name, text in verdict.meaning.items()},
        **_numbers(verdict.cuts),
        "thresholds": "; ".join(notes),
        "present": " ".join(found) or "none",
        "absent": " ".join(absent) or "none",
    }


def _fixed(lmc: float | None, cka: float | None) -> dict[str, object]:
    return {name: value for name, value in (("given_lmc", lmc), ("given_cka", cka)) if value is not None}


def _numbers(cuts: Cuts | None) -> Mapping[str, float]:
    return {} if cuts is None else {"lmc_cut": cuts.lmc, "noise_lmc": cuts.noise_lmc}


def _about_noise(measured: MeasuredGrid, cuts: Cuts | None) -> list[str]:
    notes = []
    scale = measured.scale
    if scale != 1 and cuts is not None:
        notes.append(f"LMC, a loss here, is taken in units of the median test error, {scale:.4g}")
    if count := int(measured.guessing.sum()):
        notes.append(f"{count} cells are at chance and have no regime: their networks guess")
    if measured.data.sizes.get("dense_seed", 1) == 1:
        notes.append("one dense seed: what another would show is guessed from how rough the grid is")
    return notes
