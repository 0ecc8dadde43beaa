"""The comparisons of reports/mnist1d/COMPARISONS.md, stated before their run, and all other pairs of batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from regimes.plots.grid_matrix import percent
from regimes.plots.text_table import TextTable
from regimes.regime_map.cell_stats import seed_means
from regimes.research.studies.paired_tests import Numbers, PairedTest, holm, paired_test

KNOB = "batch_size"
MEASURES = {"test_error": "test error", "lmc": "LMC", "cka": "CKA"}
CONNECTED = -0.05  # LMC above it counts as no barrier
SIGNIFICANT = 0.05  # of the adjusted p


class StatedComparison(NamedTuple):
    """A claim: a measure is higher at one batch size than at another.

    Attributes:
        row: row of the statement.
        measure: name of the variable.
        higher: batch size with the higher value.
        lower: batch size with the lower value; None: `CONNECTED` in its place.
        density: the density.
        less: for the interaction: the difference at this density is subtracted.
    """

    row: str
    measure: str
    higher: int
    lower: int | None
    density: float
    less: float | None = None

    @property
    def claim(self) -> str:
        """The claim in words."""
        bound = f"above {CONNECTED:g}" if self.lower is None else f"above {self.lower}"
        where = f"{percent(self.density)} %" + (
            "" if self.less is None else f" less the same at {percent(self.less)} %"
        )
        return f"{MEASURES[self.measure]}: {self.higher} {bound}, {where}"

    def differences(self, grid: xr.Dataset) -> Numbers:
        """Return the differences (dense seeds,), positive where the claim holds."""
        found = self._at(grid, self.density)
        return found if self.less is None else found - self._at(grid, self.less)

    def _at(self, grid: xr.Dataset, density: float) -> Numbers:
        values = seed_means(grid[self.measure], [KNOB]).sel(density=density)
        low = CONNECTED if self.lower is None else values.sel({KNOB: self.lower}).values
        return np.asarray(values.sel({KNOB: self.higher}).values - low, dtype=float)


STATED = (
    *(StatedComparison("A", "lmc", 16, 128, density) for density in (0.11, 0.15, 0.2)),
    *(StatedComparison("B1", "test_error", 128, 16, density) for density in (0.11, 0.15, 0.2)),
    *(StatedComparison("B2", "test_error", 64, 16, density) for density in (0.11, 0.15, 0.2)),
    *(StatedComparison("C1", "test_error", 16, 64, density) for density in (0.35, 0.6)),
    *(StatedComparison("C2", "test_error", 8, 32, density) for density in (0.35, 0.6)),
    *(StatedComparison("D1", "lmc", 8, None, density) for density in (0.35, 0.6)),
    *(StatedComparison("D2", "lmc", 32, None, density) for density in (0.35, 0.6)),
    *(StatedComparison("D3", "cka", 32, 8, density) for density in (0.35, 0.6)),
    StatedComparison("E", "test_error", 64, 16, 0.15, less=0.6),
)


class ComparisonOutcome(NamedTuple):
    """A comparison, its test, Holm's adjusted p over all of them, and whether it is confirmed."""

    comparison: StatedComparison
    test: PairedTest
    adjusted: float
    confirmed: bool


def outcomes(grid: xr.Dataset) -> list[ComparisonOutcome]:
    """Test all stated comparisons on a grid."""
    tests = [paired_test(each.differences(grid)) for each in STATED]
    adjusted = holm([test.p for test in tests])
    found = []
    for comparison, test, p in zip(STATED, tests, adjusted, strict=True):
        confirmed = test.mean > 0 and p < SIGNIFICANT
        if comparison.less is not None:  # the difference has to change its sign, too
            signs = [paired_test(comparison._at(grid, each)).mean for each in (comparison.density, comparison.less)]
            confirmed = confirmed and signs[0] > 0 > signs[1]
        found.append(ComparisonOutcome(comparison, test, p, confirmed))
    return found


def comparison_table(grid: xr.Dataset) -> TextTable:
    """Return the table of the stated comparisons, confirmed or not."""
    rows = [["", "claim", "values", "difference", "t", "p", "adjusted p", "seeds with this sign", "confirmed"]]
    facts = []
    for comparison, test, adjusted, confirmed in outcomes(grid):
        rows.append([comparison.row, comparison.claim, _values(grid, comparison), f"{100 * test.mean:+.2f}"])
        rows[-1] += [f"{test.t:+.1f}", f"{test.p:.2g}", f"{adjusted:.2g}", f"{test.positive} of {test.n}"]
        rows[-1].append("yes" if confirmed else "**no**")
        facts.append({**comparison._asdict(), **vars(test), "adjusted_p": adjusted, "confirmed": confirmed})
    notes = [
        "values and differences: percent, means over dense seeds; a positive difference has the sign that was claimed",
        f"t paired over dense seeds, p two-sided; adjusted: Holm, {len(STATED)} tests",
    ]
    return TextTable("Comparisons stated before the run", rows, notes, facts)


def _values(grid: xr.Dataset, comparison: StatedComparison) -> str:
    means = seed_means(grid[comparison.measure], [KNOB]).mean("dense_seed").sel(density=comparison.density)
    sizes = [comparison.higher, comparison.lower]
    return ", ".join(f"{100 * float(means.sel({KNOB: each})):.1f}" for each in sizes if each is not None)


def all_pairs(grid: xr.Dataset) -> list[TextTable]:
    """Return a table for each measure: differences of all pairs of batch sizes at all densities."""
    return [_pairs(grid, name) for name in MEASURES]


def _pairs(grid: xr.Dataset, name: str) -> TextTable:
    values = seed_means(grid[name], [KNOB])
    densities, sizes = values["density"].values.tolist(), values[KNOB].values.tolist()
    rows, facts = [["batch sizes", *(f"{percent(each)} %" for each in densities)]], []
    for first, second in itertools.combinations(sizes, 2):
        apart = values.sel({KNOB: second}) - values.sel({KNOB: first})
        tests = {density: paired_test(apart.sel(density=density).values) for density in densities}
        rows.append([f"{second:g} - {first:g}", *(difference_text(test) for test in tests.values())])
        facts += [{"pair": [second, first], "density": density, **vars(test)} for density, test in tests.items()]
    notes = ["percent: colder minus hotter; in brackets t over dense seeds, not corrected for the number of pairs"]
    return TextTable(f"{MEASURES[name]}, all pairs of batch sizes", rows, notes, facts)


def difference_text(test: PairedTest) -> str:
    """Return a difference in percent with its t, e.g. "+1.3 (2.4)"."""
    return f"{100 * test.mean:+.1f} ({test.t:.1f})"


def cell_means(grid: xr.Dataset, names: Mapping[str, str]) -> list[TextTable]:
    """Return a table of means over dense seeds for each measure: batch sizes in rows, densities in columns."""
    tables = []
    for name, title in names.items():
        values = seed_means(grid[name], [KNOB]).mean("dense_seed")
        rows = [["batch size", *(f"{percent(each)} %" for each in values["density"].values.tolist())]]
        for size in values[KNOB].values:
            rows.append([f"{size:g}", *(f"{100 * each:.1f}" for each in values.sel({KNOB: size}).values)])
        tables.append(TextTable(f"{title}, percent", rows, [], values.values.tolist()))
    return tables
