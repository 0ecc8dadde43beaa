"""The rule "transition": regime I begins where the barrier falls off a cliff, II-A ends where colder stops improving.

*The cliff.* In the phase diagram of the three-regime study (Zhou et al. 2023, arXiv 2305.18383), regime I is not where
a barrier first differs from zero: between II and I the barrier jumps within one or two steps by up to half of the error
of guessing, while on the connected side it may already amount to some points. See `regimes.regime_map.cliff`.

*Colder or not.* Along the temperature, similarity peaks: hotter than the peak (II-A), a colder training still makes two
retrained copies more alike, and lowers their test error, where it is known; from the peak on (II-B) it does not. A cut
in CKA cannot show this, since CKA increases with density along the border itself. See `regimes.regime_map.peak`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import ndtr

from regimes.regime_map.classification import Classification, Regions
from regimes.regime_map.cliff import find_cliff
from regimes.regime_map.measured_grid import UNDERFIT_SHARE, MeasuredGrid
from regimes.regime_map.peak import colder_improves


def transition(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Classify the Gaussian-process surfaces through LMC, CKA and, if known, the test error.

    P(I) is the posterior probability that LMC is below its cut, averaged over cuts and over whether there is a cliff;
    P(II-A) and P(II-B) split the rest by the probability that a colder temperature improves. Cells that are not
    measured get the probabilities of the surfaces.

    Args:
        m: the grid.
        given: cuts given by the user, {"lmc": ..., "cka": ...}; an LMC cut replaces the cliff, a CKA cut the peak.
    """
    if not m.usable.any():
        return Classification(np.full((len(m.places), 3), 1 / 3), None, ["no usable cell"])
    cliff = find_cliff(m, given.get("lmc"))
    poorly = cliff.probability(m, m.places)
    if "cka" in given:
        mean, spread = m.predicted("cka")
        colder = ndtr((m.transform("cka").forward(np.array(given["cka"])) - mean) / spread)
        note = f"CKA cut {given['cka']:g}: given"
    else:
        colder, note = colder_improves(m, poorly)
    regions = Regions(m, cliff, colder, m.underfit)
    notes = [cliff.note, note]
    if count := int((m.underfit >= 0.5).sum()):
        notes.append(
            f"{count} cells are underfit (training error above {UNDERFIT_SHARE:.0%} of the error of guessing): their "
            "copies are alike because they have learnt little, so their regimes are unsure"
        )
    return Classification(regions.probabilities(m.places), regions, notes)
