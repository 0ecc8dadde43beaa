"""The adviser "diagnosis": the packaged diagnosis of one setting decides its direction, without other settings."""

from __future__ import annotations

import numpy as np
import pandas as pd

from regimes.diagnosis.diagnosis import Diagnosis
from regimes.errors import UserError
from regimes.regime_map.advisers import neighbour, votes
from regimes.regime_map.candidates import Candidates, once_per_load
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

USED = ("train_error", "train_loss", "curve", "curve_peak", "hessian_trace", "hessian_top")


def diagnosis(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Choose the next hotter temperature with probability ``p_hotter``, else the next colder one.

    Without a current temperature: the one whose probability is closest to one half. LMC and CKA of a grid are other
    measures than those the packaged diagnosis has learnt from, and are left out.

    Raises:
        UserError: the grid has neither training error nor Hessian trace.
    """
    hotter = _hotter(candidates, m)
    draws = len(candidates.lmc)
    if candidates.current is None:
        return np.broadcast_to(np.abs(hotter - 0.5), (draws, len(hotter)))
    share = (np.arange(draws) + 0.5) / draws
    ways = neighbour(candidates, 1), neighbour(candidates, -1)
    return votes(candidates, np.where(share < hotter[candidates.current], *ways))


@once_per_load
def _hotter(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Probability (m,) that hotter than a candidate would be better."""
    known = [name for name in USED if m.has(name)]
    if not {"train_error", "hessian_trace"} & set(known):
        raise UserError("adviser 'diagnosis' needs train_error or hessian_trace, and this grid has neither")
    means = {name: m.transform(name).inverse(m.surface(name).predict(candidates.places)[0]) for name in known}
    if "curve_peak" in means:
        means["curve_peak"] = np.minimum(means["curve_peak"], 0.0)  # never positive; its surface may be
    return Diagnosis.default().predict(pd.DataFrame(means))["p_hotter"].to_numpy()
