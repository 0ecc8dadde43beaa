"""Table of the rates of a benchmark's contenders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regimes.plots.text_table import TextTable
from regimes.research.speed.harness import Timing

CORES_NOTE = "the first rows use every core with one single-threaded process each; rows without a note use one process"


@dataclass(frozen=True)
class RateTable:
    """Rates of the contenders, and how many times as fast the package's own are.

    Attributes:
        title: title of the table.
        unit: unit of the rates.
        scale: factor from units per second to ``unit``.
        timings: results of the contenders, the package's own first.
        checks: names of the numbers on which contenders have to agree.
        notes: lines below the table.
        ours: number of the package's own contenders; each has a column of ratios.
    """

    title: str
    unit: str
    scale: float
    timings: Sequence[Timing]
    checks: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)
    ours: int = 1

    def with_limit(self, limit: Mapping[str, float], cores: int) -> RateTable:
        """Return the table with the share of the machine's limit that the package reaches, as notes.

        Args:
            limit: result of `roofline.measure`.
            cores: number of cores that the package's contenders use.
        """
        images = limit["images_per_epoch"]
        flops, moved = limit["flops_per_image"] * images, limit["bytes_per_image"] * images
        lines = []
        for timing in self.timings:
            if not timing.contender.name.startswith("regimes"):
                continue
            precision = timing.contender.options.get("precision", "float32")
            rate = limit[f"flops_per_second_{precision}"] * cores
            share = timing.rate * flops / rate
            lines.append(
                f"{timing.contender.name}: {share:.0%} of the {precision} matrix rate measured here "
                f"({rate / 1e9:.0f} GFLOP/s on {cores} core{'s' * (cores != 1)}, {flops / 1e9:.0f} GFLOP per epoch)"
            )
        lines.append(
            f"the operations of an epoch in float32, unfused, move {moved / 1e9:.0f} GB; "
            f"measured copy bandwidth: {limit['bytes_per_second'] / 1e9:.1f} GB/s on one core, caches not counted"
        )
        return dataclasses.replace(self, notes=(*self.notes, *lines))

    def table(self) -> TextTable:
        """Return the table: one row per contender with rate, ratios and checks."""
        ours = self.timings[: self.ours]
        rows = [["", self.unit, *(f"{timing.contender.name} is faster by" for timing in ours), *self.checks]]
        for timing in self.timings:
            ratios = ["" if timing is mine else _ratio(*timing.speedup_of(mine)) for mine in ours]
            checks = [_spread(timing.check(name), timing.spread(name)) for name in self.checks]
            rows.append([timing.contender.name, f"{timing.rate * self.scale:.3g}", *ratios, *checks])
        contenders = [
            {
                "name": timing.contender.name,
                "rates": [rate * self.scale for rate in timing.rates],
                "faster": [timing.speedup_of(mine) for mine in ours],
                "checks": timing.checks,
            }
            for timing in self.timings
        ]
        return TextTable(self.title, rows, self.notes, {"title": self.title, "unit": self.unit, "arms": contenders})


def _ratio(median: float, least: float, greatest: float) -> str:
    middle, low, high = (f"{each:.2g}" if each < 100 else f"{each:.0f}" for each in (median, least, greatest))
    return f"{middle}x ({low}-{high})"


def _spread(value: float, deviation: float) -> str:
    return f"{value:.4g} ± {deviation:.1g}" if math.isfinite(deviation) else f"{value:.4g}"
