"""Ranking quality of proxies by region of the regime map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regimes.errors import OutsideRange
from regimes.hpo.map_guidance import MapGuidance
from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.fidelities import FULL
from regimes.research.hpo_benchmark.ranking_quality import Pairs, bootstrap, mean_of, pairs_of, tau
from regimes.research.hpo_benchmark.scores import Interval
from regimes.research.hpo_benchmark.table import SearchTable, fidelities_of

BINS = 5  # learning rate ranges
KNOB = "learning_rate"


@dataclass(frozen=True)
class MapBin:
    """Ranking quality at one density in one range of the learning rate.

    Attributes:
        density: density of the proxies.
        low, high: ends of the learning rate range.
        tau: Kendall's tau of the proxies with the full network over the settings in the range.
        again: the same of another seed of the full network.
        less: difference of the two, with its interval.
        regime: the map's most probable regime at the middle of the range; "" outside the map.
        chance: probability of that regime.
    """

    density: float
    low: float
    high: float
    tau: float
    again: float
    less: Interval
    regime: str
    chance: float


def map_bins(table: SearchTable, guide: MapGuidance, kind: str = "narrowed") -> list[MapBin]:
    """Evaluate the proxies of one kind at every recorded density, in each range of the learning rate."""
    rates = np.array([each[KNOB] for each in table.settings])
    edges = np.quantile(rates, np.linspace(0, 1, BINS + 1))
    edges[-1] *= 1 + 1e-9
    again, found = pairs_of(table, FULL, table.epochs), []
    for fidelity in fidelities_of(table.facts):
        if fidelity.proxy != kind or not fidelity.unmodified:
            continue
        pairs = pairs_of(table, fidelity.name, table.epochs)
        for low, high in itertools.pairwise(map(float, edges)):
            here = (rates >= low) & (rates < high)
            regime, chance = _regime(guide, fidelity.density, math.sqrt(low * high))
            found.append(
                MapBin(fidelity.density, low, high, *_taus(pairs, again, np.flatnonzero(here)), regime, chance)
            )
    return found


def _taus(pairs: Pairs, again: Pairs, here: NDArray[np.int64]) -> tuple[float, float, Interval]:
    less = bootstrap(lambda at: mean_of(tau, pairs, here[at]) - mean_of(tau, again, here[at]), len(here))
    return mean_of(tau, pairs, here), mean_of(tau, again, here), less


def by_regime(found: Sequence[MapBin]) -> dict[str, tuple[int, float]]:
    """Return {regime: (bins, mean difference of their tau to another seed's)} of the bins on the map."""
    names = sorted({each.regime for each in found if each.regime})
    less = {name: [each.less.value for each in found if each.regime == name] for name in names}
    return {name: (len(each), float(np.mean(each))) for name, each in less.items()}


def _regime(guide: MapGuidance, density: float, rate: float) -> tuple[str, float]:
    try:
        found = guide.chart.regimes(density, {KNOB: rate})
    except OutsideRange:
        return "", 0.0
    best = max(found, key=lambda name: found[name])
    return best, found[best]


def regime_table(found: Sequence[MapBin], guide: MapGuidance) -> TextTable:
    """Return the bins as a table, with the map's verdict on each density."""
    rows = [["density", "learning rate", "regime", "tau", "another seed's", "difference"]]
    for each in found:
        regime = f"{each.regime} ({each.chance:.2f})" if each.regime else "not on the map"
        taus = [f"{each.tau:.2f}", f"{each.again:.2f}", each.less.plain()]
        rows.append([f"{each.density:g}", f"{each.low:.2g} to {each.high:.2g}", regime, *taus])
    notes = [
        "tau: Kendall's, with the full network's validation loss, over the settings of that range; regime: at the "
        "middle of the range, with its probability; 95 % intervals by bootstrap over settings",
    ]
    notes += [
        f"{name}: {count} bins, mean difference of tau to another seed's {less:+.2f}"
        for name, (count, less) in by_regime(found).items()
    ]
    notes += [
        f"the map at density {each.density:g}: {'trusted' if each.trusted else 'not trusted'}, {each.reason}"
        for each in guide.densities()
    ]
    return TextTable("Ranking quality by region of the regime map", rows, notes, [asdict(each) for each in found])


def regime_figure(found: Sequence[MapBin]) -> Figure:
    """Draw a heat map of tau by density and learning rate, labelled with regimes; top row: another seed."""
    densities = sorted({each.density for each in found}, reverse=True)
    ranges = sorted({(each.low, each.high) for each in found})
    at = {(each.density, each.low): each for each in found}
    rows = [[(at[densities[0], low].again, "") for low, _ in ranges]]
    for density in densities:
        rows.append([(at[density, low].tau, f"\n{at[density, low].regime or 'off the map'}") for low, _ in ranges])
    drawn = Figure(figsize=(7.2, 1.5 + 0.8 * len(rows)), layout="constrained")
    axes = drawn.subplots()
    image = axes.imshow([[value for value, _ in row] for row in rows], cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, cells in enumerate(rows):
        for column, (value, regime) in enumerate(cells):
            colour = "black" if value > 0.55 else "white"
            axes.text(column, row, f"{value:.2f}{regime}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(ranges)), [f"{low:.2g}-{high:.2g}" for low, high in ranges])
    axes.set_yticks(range(len(rows)), ["another seed", *(f"{each:g}" for each in densities)])
    axes.set_xlabel("learning rate of the settings")
    axes.set_ylabel("density of the proxy")
    axes.set_title("Kendall's tau with the full network, and the map's regime", fontsize=10)
    drawn.colorbar(image, ax=axes, label="Kendall's tau")
    return drawn
