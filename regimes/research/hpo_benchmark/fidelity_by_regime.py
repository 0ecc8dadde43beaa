"""How proxies rank, drawn over the regime map: does a network stand in for the full one where the map says so?"""

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
from regimes.research.hpo_benchmark.table import SearchTable, courses_of

BINS = 5  # of the learning rate
KNOB = "learning_rate"


@dataclass(frozen=True)
class MapBin:
    """One density in one range of the learning rate.

    Attributes:
        density: of the proxies.
        low, high: of the learning rate.
        tau: of the proxies with the full network, over the settings here.
        again: of another seed of the full network.
        less: the one less the other.
        regime: of pruned networks here, by the map; "" outside of it.
        chance: its probability.
    """

    density: float
    low: float
    high: float
    tau: float
    again: float
    less: Interval
    regime: str
    chance: float


def places(tape: SearchTable, guide: MapGuidance, kind: str = "narrowed") -> list[MapBin]:
    """Proxies of a kind at every recorded density, in each range of the learning rate."""
    rates = np.array([each[KNOB] for each in tape.settings])
    edges = np.quantile(rates, np.linspace(0, 1, BINS + 1))
    edges[-1] *= 1 + 1e-9
    again, found = pairs_of(tape, FULL, tape.epochs), []
    for course in courses_of(tape.facts):
        if course.proxy != kind or not course.plain:
            continue
        pairs = pairs_of(tape, course.name, tape.epochs)
        for low, high in itertools.pairwise(map(float, edges)):
            here = (rates >= low) & (rates < high)
            regime, chance = _regime(guide, course.density, math.sqrt(low * high))
            found.append(MapBin(course.density, low, high, *_taus(pairs, again, np.flatnonzero(here)), regime, chance))
    return found


def _taus(pairs: Pairs, again: Pairs, here: NDArray[np.int64]) -> tuple[float, float, Interval]:
    less = bootstrap(lambda at: mean_of(tau, pairs, here[at]) - mean_of(tau, again, here[at]), len(here))
    return mean_of(tau, pairs, here), mean_of(tau, again, here), less


def by_regime(found: Sequence[MapBin]) -> dict[str, tuple[int, float]]:
    """{regime: (places, mean of what their tau is less than another seed's)}, of places that are on the map."""
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


def sheet(found: Sequence[MapBin], guide: MapGuidance) -> TextTable:
    """The same as a table, with what the map says of each density as a whole."""
    rows = [["density", "learning rate", "regime", "tau", "another seed's", "less"]]
    for each in found:
        regime = f"{each.regime} ({each.chance:.2f})" if each.regime else "not on the map"
        taus = [f"{each.tau:.2f}", f"{each.again:.2f}", each.less.plain()]
        rows.append([f"{each.density:g}", f"{each.low:.2g} to {each.high:.2g}", regime, *taus])
    notes = [
        "tau: Kendall's, with the full network's validation loss, over the settings of that range; the regime is that "
        "at the middle of the range, with its probability; intervals hold 95 %, by bootstrap over settings",
    ]
    notes += [
        f"{name}: {count} places, tau {less:+.2f} beside another seed's, on the mean"
        for name, (count, less) in by_regime(found).items()
    ]
    notes += [
        f"the map on density {each.density:g}: {'trusted' if each.trusted else 'not trusted'}, {each.reason}"
        for each in guide.judged()
    ]
    return TextTable("Over the regime map", rows, notes, [asdict(each) for each in found])


def figure(found: Sequence[MapBin]) -> Figure:
    """A square for each place: its colour is the tau, its text tau and regime; on top another seed's."""
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
