"""Classification of a grid: the regime of every cell, and its probability."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.record.grid import check_grid, knobs_of, loads_of
from regimes.regime_map import RULES
from regimes.regime_map.cell_stats import error_scale
from regimes.regime_map.classification import MEANING, Classification
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.registry import lookup

REGIMES = {-1: "unknown", 0: "I", 1: "II-A", 2: "II-B"}
DEFAULT_RULE = "transition"
# "cka_cut" is of earlier versions.
ADDED_VARIABLES = ("regime", "regime_probability", "regime_name", "cka_cut", "at_chance")


def classify(
    data: xr.Dataset, rule: str = DEFAULT_RULE, lmc: float | None = None, cka: float | None = None
) -> xr.Dataset:
    """Return the grid with ``regime`` (int8, over knobs and loads) and ``regime_probability`` (..., regime_name).

    Regime I (0): poorly connected, beyond the cliff of the barrier; II-A (1): connected, and a colder training makes
    retrained copies more similar; II-B (2): connected, and it does not (Zhou et al. 2023, arXiv 2305.18383); unknown
    (-1): not measured, diverged, or at chance. The label is the most probable regime. ``regime.attrs`` holds how the
    borders were found, and the regimes present and absent. The rule "error" uses test errors alone: its regimes are the
    direction of the temperature that lowers them.

    Args:
        data: a record, or any grid with ``lmc`` and ``cka`` over at least one knob and ``density``. Other dimensions
            (seeds, pairs) are averaged over; the noise is estimated from dense seeds.
        rule: a name in `RULES` or an import path.
        lmc: LMC below which cells are in I, at most 0. None: the cut given in an earlier classification of the grid, or
            else the cliff found in the data.
        cka: CKA below which connected cells are in II-A, from 0 to 1. None: as for ``lmc``, else the peak found in the
            data.

    Raises:
        UserError: the grid cannot be used, see `check_grid`; the rule is unknown; a cut is outside its range.
    """
    return classify_with_model(data, rule, lmc, cka)[0]


def classify_with_model(
    data: xr.Dataset,
    rule: str = DEFAULT_RULE,
    lmc: float | None = None,
    cka: float | None = None,
    name: str | None = None,
) -> tuple[xr.Dataset, MeasuredGrid, Classification]:
    """Return the classified grid as `classify` does, with the `MeasuredGrid` and the rule's `Classification`."""
    old = data["regime"].attrs if "regime" in data and rule != "error" else {}
    lmc, cka = (old.get(f"given_{name}") if each is None else each for name, each in (("lmc", lmc), ("cka", cka)))
    before = [name for name in ADDED_VARIABLES if name in data.variables]  # of an earlier classification
    data = check_grid(data.drop_vars(before), name or data.attrs.get("title", "grid"))
    given = _given(data, lmc, cka)
    measured = MeasuredGrid.of(data)
    classification: Classification = lookup(RULES, rule, "rule")(measured, given)
    labels = np.where(measured.usable, classification.probability.argmax(1), -1).astype(np.int8)
    if rule == "error":
        labels[np.isnan(measured.mean("test_error"))] = -1
    regime = _as_in(data, measured.on_grid(labels))
    # Plain arrays: a DataArray would replace the grid's coordinates and drop their attributes.
    data["regime"] = (regime.dims, regime.values, _attrs(regime, measured, classification, rule) | _fixed(lmc, cka))
    data = _with_probability(data, measured, classification)
    return data, measured, classification


def _given(data: xr.Dataset, lmc: float | None, cka: float | None) -> dict[str, float]:
    """Cuts given by the user, in the units of the rules."""
    scale = error_scale(data)
    if lmc is not None and (lmc > 0 or (scale == 1 and lmc < -1)):
        raise UserError(f"LMC cut {lmc:g}: allowed: -1 to 0 (LMC is negative at a barrier)")
    if cka is not None and not 0 <= cka <= 1:
        raise UserError(f"CKA cut {cka:g}: allowed: 0 to 1")
    given = {} if lmc is None else {"lmc": lmc / scale}
    return given if cka is None else {**given, "cka": cka}


def _as_in(data: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Values over the sorted axes, reordered as in the grid."""
    return values.sel({name: data[name].values for name in values.dims if name in data.coords})


def _with_probability(data: xr.Dataset, measured: MeasuredGrid, classification: Classification) -> xr.Dataset:
    names = list(MEANING)
    shares = _as_in(data, measured.on_grid(classification.probability, "regime_name"))
    about = {"units": "1", "long_name": "probability of the regime of the mean over dense seeds"}
    data = data.assign_coords(regime_name=names)
    data["regime_probability"] = (shares.dims, shares.values, about)
    at_chance = _as_in(data, measured.on_grid(measured.at_chance.astype(np.int8)))
    if at_chance.any():
        data["at_chance"] = (at_chance.dims, at_chance.values, {"units": "1", "long_name": "networks at chance"})
    return data


def check_classified(data: xr.Dataset) -> None:
    """Refuse a grid without the result of `classify`.

    Raises:
        UserError: ``regime`` or ``regime_probability`` is missing, or is not as `classify` writes it.
    """
    axes = {*knobs_of(data), *loads_of(data)}
    expected = {"regime": axes, "regime_probability": {*axes, "regime_name"}}
    if not (
        axes
        and all(name in data and set(data[name].dims) == dims for name, dims in expected.items())
        and data["regime"].isin(list(REGIMES)).all()
        and data["regime_probability"].dtype.kind == "f"
        and list(data["regime_name"].values) == list(MEANING)
        and {"rule", "thresholds"} <= data["regime"].attrs.keys()
    ):
        raise UserError("the grid has no regimes, or not as `classify` writes them; classify it first")


def meaning_of(data: xr.Dataset) -> dict[str, str]:
    """Return the rule's description of each regime in a classified grid."""
    about = data["regime"].attrs
    return {name: str(about.get(f"meaning_{name}", text)) for name, text in MEANING.items()}


def present(data: xr.Dataset) -> dict[str, int]:
    """Return the number of cells in each regime, absent ones included."""
    return {name: int((data["regime"] == number).sum()) for number, name in REGIMES.items() if number >= 0}


def _attrs(
    regime: xr.DataArray, measured: MeasuredGrid, classification: Classification, rule: str
) -> dict[str, object]:
    found = [name for number, name in REGIMES.items() if number >= 0 and bool((regime == number).any())]
    absent = [name for name in MEANING if name not in found]
    notes = [*classification.notes, *_about_noise(measured)]
    return {
        "long_name": "regime of pruning",
        "flag_values": np.array(list(REGIMES), dtype=np.int8),
        "flag_meanings": " ".join(REGIMES.values()),
        "rule": rule,
        **{f"meaning_{name}": text for name, text in classification.meaning.items()},
        **_cut(measured, classification),
        "thresholds": "; ".join(notes),
        "present": " ".join(found) or "none",
        "absent": " ".join(absent) or "none",
    }


def _fixed(lmc: float | None, cka: float | None) -> dict[str, object]:
    return {name: value for name, value in (("given_lmc", lmc), ("given_cka", cka)) if value is not None}


def _cut(measured: MeasuredGrid, classification: Classification) -> dict[str, float]:
    """Cut of LMC at the middle of the load axes; empty without a cliff."""
    regions = classification.regions
    return {} if regions is None or regions.cliff.seen < 0.5 else {"lmc_cut": regions.cliff.middle(measured)}


def _about_noise(measured: MeasuredGrid) -> list[str]:
    notes = []
    scale = measured.scale
    if scale != 1:
        notes.append(f"LMC is a loss here and is divided by the median test error, {scale:.4g}")
    if count := int(measured.at_chance.sum()):
        notes.append(f"{count} cells are at chance and have no regime")
    if measured.data.sizes.get("dense_seed", 1) == 1:
        notes.append("one dense seed: the noise between seeds is estimated from the roughness of the grid")
    return notes
