"""Whether a proxy is worth its seconds."""

from __future__ import annotations

from collections.abc import Sequence

from regimes.config.hpo import Hpo
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.stoppers import FACTOR

SLOW = 0.8  # of the next rung's time, from which a rung saves too little


def drop_slow(rungs: list[Fidelity], notes: list[str], most: float = SLOW) -> list[Fidelity]:
    """Leave out proxies that are too slow by the clock to save any time.

    Args:
        rungs: the full network last.
        notes: is told what is left out.
        most: share of the full network's time that the rung below it may take.
    """
    kept = rungs[-1:]
    for rung in rungs[-2::-1]:
        limit = most if len(kept) == 1 else SLOW
        share = rung.seconds * rung.epochs / (kept[0].seconds * kept[0].epochs)
        if share >= limit:
            saves = f"to save enough it has to take less than {limit:.2f}" if limit > 0 else "nothing would save enough"
            notes.append(f"density {rung.density:g} takes {share:.2f} of the next rung's time; {saves}: left out")
        else:
            kept.insert(0, rung)
    return kept


def max_cost_share(reports: Sequence[float], proxy_reports: Sequence[float], goes_on: float) -> float:
    """Share of the full network's time from which a proxy saves too little, beside halving alone.

    A trial that is reported first at ``r`` takes ``s = r + (1 - r) / 3`` of a training on the mean, since a third goes
    on: ``s`` of a full training without proxies, ``c s'`` on a proxy that takes ``c`` of its time, and ``p`` of them go
    on to a full training. It has to be ``c s' + p < 0.8 s``.

    Args:
        reports: shares of the training at which the full network is reported, where there is no proxy.
        proxy_reports: the same of the proxy's.
        goes_on: ``p``.
    """
    return (SLOW * _part(reports) - goes_on) / _part(proxy_reports)


def _part(reports: Sequence[float]) -> float:
    first = min(reports, default=1.0)
    return first + (1 - first) / FACTOR


def max_cost_share_for(spec: Hpo) -> float:
    """Share of the full network's time that a proxy may take which the map chose; see `max_cost_share`."""
    if spec.study.stopper == "none":
        return SLOW
    promoted = spec.study.promoted / spec.trials if spec.study.pattern == "promote" else FACTOR**-2
    return max_cost_share(spec.ladder.reports, spec.ladder.proxy_reports, promoted)
