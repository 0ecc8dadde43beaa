"""Ways to search, side by side: what is said to save time, its controls, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from optuna import pruners

BASE = "TPE, full network"
AS_FAST = "as fast as "  # a course: the narrowed network that is trained alone in the time of another
OWN_STOCK: dict[str, Callable[[], pruners.BasePruner]] = {  # as Optuna makes them when nothing is said
    "median": pruners.MedianPruner,
    "percentile": lambda: pruners.PercentilePruner(25.0),
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
}
EARLY = (0.1,)  # part of a training after which halving decides
EACH = tuple(number / 20 for number in range(1, 20))  # parts of a training after which stock stoppers are asked
PAIRS = 16  # runs of both networks, by which settings are corrected


@dataclass(frozen=True)
class SearchMethod:
    """A way to search.

    Attributes:
        name: in tables.
        what: in words.
        sampler: a name in `SAMPLERS`.
        courses: of the rungs below the full network.
        stopper: a name in `STOPPERS`, set up for the ladder's steps; "own ...": as Optuna makes it by default.
        reports: shares of the full training at which it is reported too, where trials climb to it.
        proxy_reports: the same of the rungs below.
        batch: trials asked for together.
        promoted: trials of a study on the cheap rungs alone that are then trained in full; 0: every trial climbs.
        begun: share of the full training that is that cheap rung.
        mapped: whether a map chooses the proxy, and where trials that climb start; its cost counts.
        pairs: trainings of both networks that were spent beforehand; their cost counts.
    """

    name: str
    what: str
    sampler: str = "tpe"
    courses: tuple[str, ...] = ()
    stopper: str = "none"
    reports: tuple[float, ...] = ()
    proxy_reports: tuple[float, ...] = ()
    batch: int = 1
    promoted: int = 0
    begun: float = 0.0
    mapped: bool = False
    pairs: int = 0


def _stock(name: str) -> SearchMethod:
    what = "Optuna's stopper as it is made by default, asked every epoch"
    return SearchMethod(f"TPE + {name}", what, stopper=f"own {name}", reports=EACH)


def _best(name: str, what: str, course: str, promoted: int = 5) -> SearchMethod:
    return SearchMethod(name, f"{what}, one by one; the best {promoted} in full", courses=(course,), promoted=promoted)


def _ladder(name: str, what: str, *courses: str) -> SearchMethod:
    return SearchMethod(name, f"{what}; every trial climbs", "tpe", courses, "halving", EARLY, EARLY, 64)


def _ours(name: str, what: str, *courses: str, best: int = 5, batch: int = 64, mapped: bool = False) -> SearchMethod:
    told = f"{what}; the best {best} in full"
    return SearchMethod(name, told, "tpe", courses, "halving", EARLY, EARLY, batch, best, mapped=mapped)


OURS = _ours("ours at 0.06", "narrowed to 0.06", "narrowed 0.06")  # what the others differ from in one thing
METHODS = (
    SearchMethod("random, full network", "every trial in full", sampler="random"),
    SearchMethod(BASE, "every trial in full: the base line"),
    *(_stock(name) for name in OWN_STOCK),
    SearchMethod("few epochs, keep the best", "a tenth of the epochs; the best 5 go on", promoted=5, begun=0.1),
    _best("a quarter of the epochs", "the full network, its schedule shortened", "full, short"),
    _best("a quarter of the images", "the full network on fewer images", "quarter of the images"),
    _best("half of the images", "the full network on fewer images", "half of the images"),
    _best("narrowed", "density 0.06 by width", "narrowed 0.06"),
    _best("narrowed, as fast", "by width, as fast by the clock as saliency at 0.06", f"{AS_FAST}saliency 0.06"),
    _best("random channels", "density 0.06, saliency's widths, any channels", "random 0.06"),
    _best("magnitude", "density 0.06, the largest channels", "magnitude 0.06"),
    _best("saliency", "density 0.06, the most salient channels", "saliency 0.06"),
    _best("the paper's recipe", "density 0.06, the most salient channels", "saliency 0.06", promoted=1),
    _ladder("ours, no proxy", "the full network alone"),
    replace(_ladder("no proxy, judged later", "halving at a quarter and a half"), reports=(0.25, 0.5)),
    OURS,
    _ours("ours at 0.03", "narrowed to 0.03", "narrowed 0.03"),
    _ours("ours at 0.12", "narrowed to 0.12, the nearest to what is taken without a map", "narrowed 0.12"),
    _ours("ours at 0.25", "narrowed to 0.25", "narrowed 0.25"),
    _ours("ours, with the map", "narrowed to what the map trusts, where it does", mapped=True),
    _ours("ours + discovery", "a discovered structure", "discovered 0.06"),
    _ours("ours, saliency", "at 0.06, the most salient channels", "saliency 0.06"),
    _ours("ours, magnitude", "at 0.06, the largest channels", "magnitude 0.06"),
    _ours("ours, random channels", "at 0.06, saliency's widths", "random 0.06"),
    _ours("ours, a quarter of the images", "the full network on fewer images, one by one", "quarter of the images"),
    replace(_ours("ours, not halved", "every proxy to its end", "narrowed 0.06"), stopper="none", proxy_reports=()),
    replace(_ours("ours, halved later", "proxies judged at a quarter", "narrowed 0.06"), proxy_reports=(0.25,)),
    _ours("ours, four batches", "in batches of 16", "narrowed 0.06", batch=16),
    _ours("ours, the best 3", "narrowed to 0.06", "narrowed 0.06", best=3),
    _ours("ours, the best 8", "narrowed to 0.06", "narrowed 0.06", best=8),
    _ours("ours, short", "narrowed to 0.12, a quarter of the epochs", "narrowed 0.12, short"),
    _ours("ours, scaled", "learning rates times 4", "narrowed 0.06, scaled"),
    replace(_ours("ours, shifted", f"settings corrected by {PAIRS} pairs", "narrowed 0.06, shifted"), pairs=PAIRS),
    _ours("ours, two rungs", "narrowed to 0.06, then to 0.25", "narrowed 0.06", "narrowed 0.25"),
    _ladder("ladder at 0.06", "narrowed to 0.06", "narrowed 0.06"),
    _ladder("ladder at 0.25", "narrowed to 0.25", "narrowed 0.25"),
    _ladder("ladder at 0.06 and 0.25", "two rungs below the full network", "narrowed 0.06", "narrowed 0.25"),
)
CONTRASTS = (  # what is asked; a way to search, and what it is held against
    ("Do the chosen channels matter?", "saliency", "random channels"),
    ("Do the chosen channels matter?", "ours, saliency", "ours, random channels"),
    ("Is pruning more than width?", "saliency", "narrowed, as fast"),
    ("Is pruning more than width?", "magnitude", "narrowed"),
    ("Is pruning more than width?", "ours, saliency", "ours at 0.06"),
    ("Is pruning more than width?", "ours, magnitude", "ours at 0.06"),
    ("Is discovery more than width?", "ours + discovery", "ours at 0.06"),
    ("Does the map pay?", "ours, with the map", "ours at 0.12"),
    ("Does the map pay?", "ours, with the map", "ours, no proxy"),
    ("Does a proxy pay, beside halving?", "ours at 0.06", "ours, no proxy"),
    ("Does a proxy pay, beside few epochs?", "ours at 0.06", "few epochs, keep the best"),
    ("Does a proxy pay, beside short trainings?", "ours, not halved", "a quarter of the epochs"),
    ("Is a part of the images as good?", "ours at 0.06", "ours, a quarter of the images"),
    ("Do fleets pay?", "ours, not halved", "narrowed"),
    ("Does halving proxies pay?", "ours at 0.06", "ours, not halved"),
    ("Is it better to judge early?", "ours at 0.06", "ours, halved later"),
    ("Is it better to judge early?", "ours, no proxy", "no proxy, judged later"),
    ("Does promotion pay, beside the ladder?", "ours at 0.06", "ladder at 0.06"),
    ("Does one batch pay?", "ours at 0.06", "ours, four batches"),
    ("Do fewer promotions pay?", "ours, the best 3", "ours at 0.06"),
    ("Do more promotions pay?", "ours, the best 8", "ours at 0.06"),
    ("Do short proxies pay?", "ours, short", "ours at 0.12"),
    ("Do two rungs pay?", "ours, two rungs", "ours at 0.06"),
    ("Does correcting the settings pay?", "ours, scaled", "ours at 0.06"),
    ("Does correcting the settings pay?", "ours, shifted", "ours at 0.06"),
    *(("Ours beside each stock stopper", "ours at 0.06", f"TPE + {name}") for name in OWN_STOCK),
)
