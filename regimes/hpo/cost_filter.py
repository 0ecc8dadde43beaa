"""Removal of proxies that are too slow to save time."""

from __future__ import annotations

from collections.abc import Sequence

from regimes.config.hpo import Hpo
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.stoppers import REDUCTION_FACTOR

MAX_COST_SHARE = 0.8  # largest useful cost of a fidelity, as a share of the next one's


def drop_slow(rungs: list[Fidelity], notes: list[str], max_share: float = MAX_COST_SHARE) -> list[Fidelity]:
    """Remove proxies whose measured training time is too large a share of the next fidelity's.

    Args:
        rungs: the fidelities, cheapest first, the full network last.
        notes: list to which a line is appended for every proxy removed.
        max_share: largest allowed share of the full network's time for the fidelity before it.
    """
    kept = rungs[-1:]
    for rung in rungs[-2::-1]:
        limit = max_share if len(kept) == 1 else MAX_COST_SHARE
        share = rung.training_seconds / kept[0].training_seconds
        if share >= limit:
            allowed = f"the limit is {limit:.2f}" if limit > 0 else "no proxy would save time"
            notes.append(f"{rung.title} left out: takes {share:.2f} of the next fidelity's time; {allowed}")
        else:
            kept.insert(0, rung)
    return kept


def max_cost_share(reports: Sequence[float], proxy_reports: Sequence[float], full_share: float) -> float:
    """Return the largest cost of a proxy, as a share of a full training, that saves time over halving alone.

    A trial whose first report is at share ``r`` of a training costs ``s = r + (1 - r) / 3`` trainings on average,
    since a third of the trials continue: ``s`` full trainings without proxies, ``c s'`` with a proxy of cost ``c``,
    plus ``p`` full trainings for the share of trials that continue. The condition is ``c s' + p < 0.8 s``.

    Args:
        reports: shares of the training at which the full network is reported if there is no proxy.
        proxy_reports: shares of the training at which a proxy is reported.
        full_share: ``p``, the share of trials that are trained in full.
    """
    return (MAX_COST_SHARE * _expected_share(reports) - full_share) / _expected_share(proxy_reports)


def _expected_share(reports: Sequence[float]) -> float:
    first = min(reports, default=1.0)
    return first + (1 - first) / REDUCTION_FACTOR


def max_cost_share_for(spec: Hpo) -> float:
    """Return the largest cost share of a proxy that a map chose, for a search's settings; see `max_cost_share`."""
    if spec.study.stopper == "none":
        return MAX_COST_SHARE
    promoted = spec.study.promoted / spec.trials if spec.study.pattern == "promote" else REDUCTION_FACTOR**-2
    return max_cost_share(spec.ladder.reports, spec.ladder.proxy_reports, promoted)
