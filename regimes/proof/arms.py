"""Ways to search, side by side: what is said to save time, its controls, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optuna import pruners

BASE = "TPE, full network"
AS_FAST = "as fast as "  # a course: the narrowed network that is trained alone in the time of another
OWN_STOCK: dict[str, Callable[[], pruners.BasePruner]] = {  # as Optuna makes them when nothing is said
    "median": pruners.MedianPruner,
    "percentile": lambda: pruners.PercentilePruner(25.0),
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
}
EACH = tuple(number / 20 for number in range(1, 20))  # parts of a training after which stock stoppers are asked
PAIRS = 16  # runs of both networks, by which settings are corrected


@dataclass(frozen=True)
class Arm:
    """A way to search.

    Attributes:
        name: in tables.
        what: in words.
        sampler: a name in `SAMPLERS`.
        courses: of the rungs below the full network.
        stopper: a name in `STOPPERS`, set up for the ladder's steps; "own ...": as Optuna makes it by default.
        reports: shares of the full training at which it is reported too.
        batch: trials asked for together.
        promoted: trials of a study on the cheap rung alone that are then trained in full; 0: every trial climbs.
        begun: share of the full training that is that cheap rung.
        mapped: whether a map chooses the proxy, and where trials start; its cost counts.
        pairs: trainings of both networks that were spent beforehand; their cost counts.
    """

    name: str
    what: str
    sampler: str = "tpe"
    courses: tuple[str, ...] = ()
    stopper: str = "none"
    reports: tuple[float, ...] = ()
    batch: int = 1
    promoted: int = 0
    begun: float = 0.0
    mapped: bool = False
    pairs: int = 0


def _stock(name: str) -> Arm:
    what = "Optuna's stopper as it is made by default, asked every epoch"
    return Arm(f"TPE + {name}", what, stopper=f"own {name}", reports=EACH)


def _best(name: str, what: str, course: str, promoted: int = 5) -> Arm:
    return Arm(name, f"{what}, one by one; the best {promoted} in full", courses=(course,), promoted=promoted)


def _ours(name: str, what: str, *courses: str, mapped: bool = False, pairs: int = 0) -> Arm:
    return Arm(name, what, "tpe", courses, "halving", (0.25, 0.5), batch=32, mapped=mapped, pairs=pairs)


def _promoted(name: str, what: str, course: str, best: int = 5, batch: int = 32) -> Arm:
    told = f"{what}, in fleets of batches of {batch}; the best {best} in full"
    return Arm(name, told, courses=(course,), batch=batch, promoted=best)


ARMS = (
    Arm("random, full network", "every trial in full", sampler="random"),
    Arm(BASE, "every trial in full: the base line"),
    *(_stock(name) for name in OWN_STOCK),
    Arm("few epochs, keep the best", "a tenth of the epochs; the best 5 go on", promoted=5, begun=0.1),
    _best("a quarter of the epochs", "the full network, its schedule shortened", "full, short"),
    _best("a quarter of the images", "the full network on fewer images", "quarter of the images"),
    _best("half of the images", "the full network on fewer images", "half of the images"),
    _best("narrowed", "density 0.06 by width", "narrowed 0.06"),
    _best("narrowed, as fast", "by width, as fast by the clock as saliency at 0.06", f"{AS_FAST}saliency 0.06"),
    _best("random channels", "density 0.06, saliency's widths, any channels", "random 0.06"),
    _best("magnitude", "density 0.06, the largest channels", "magnitude 0.06"),
    _best("saliency", "density 0.06, the most salient channels", "saliency 0.06"),
    _best("the paper's recipe", "density 0.06, the most salient channels", "saliency 0.06", promoted=1),
    _ours("ours, no proxy", "the full network in batches; halving at a quarter and a half"),
    _ours("ours, a quarter of the images", "the same below it: a quarter of the images", "quarter of the images"),
    _ours("ours, no map", "narrowed to 0.12, the nearest to the default; halving", "narrowed 0.12"),
    _ours("ours, with the map", "narrowed to what the map trusts, where it does; halving", mapped=True),
    _ours("ours at 0.03", "narrowed to 0.03", "narrowed 0.03"),
    _ours("ours at 0.06", "narrowed to 0.06", "narrowed 0.06"),
    _ours("ours at 0.25", "narrowed to 0.25", "narrowed 0.25"),
    _ours("ours at 0.06 and 0.25", "two rungs below the full network", "narrowed 0.06", "narrowed 0.25"),
    _ours("ours at 0.06, short", "narrowed to 0.06, a quarter of the epochs", "narrowed 0.06, short"),
    _ours("ours at 0.25, short", "narrowed to 0.25, a quarter of the epochs", "narrowed 0.25, short"),
    _promoted("ours, promoted", "narrowed to 0.06", "narrowed 0.06"),
    _promoted("ours, promoted at once", "narrowed to 0.06", "narrowed 0.06", batch=64),
    _promoted("ours, the best 3 promoted at once", "narrowed to 0.06", "narrowed 0.06", best=3, batch=64),
    _promoted("ours, promoted at 0.12", "narrowed to 0.12", "narrowed 0.12"),
    _promoted("ours, promoted at 0.25", "narrowed to 0.25", "narrowed 0.25"),
    _promoted("ours, promoted, discovery", "a discovered structure", "discovered 0.06"),
    _promoted("ours, promoted, short", "narrowed to 0.12, a quarter of the epochs", "narrowed 0.12, short"),
    _promoted("ours, promoted, short at 0.06", "narrowed to 0.06, a quarter of the epochs", "narrowed 0.06, short"),
    _promoted("ours, promoted, short at 0.25", "narrowed to 0.25, a quarter of the epochs", "narrowed 0.25, short"),
    _ours("ours at 0.06, shifted", f"settings corrected by {PAIRS} pairs", "narrowed 0.06, shifted", pairs=PAIRS),
    _ours("ours, magnitude", "at 0.06, the largest channels", "magnitude 0.06"),
    _ours("ours, saliency", "at 0.06, the most salient channels", "saliency 0.06"),
    _ours("ours, random channels", "at 0.06, saliency's widths", "random 0.06"),
    _ours("ours + discovery", "a discovered structure; halving", "discovered 0.06"),
)
CONTRASTS = (  # what is asked; a way to search, and what it is held against
    ("Do the chosen channels matter?", "saliency", "random channels"),
    ("Do the chosen channels matter?", "ours, saliency", "ours, random channels"),
    ("Is pruning more than width?", "saliency", "narrowed, as fast"),
    ("Is pruning more than width?", "magnitude", "narrowed"),
    ("Is pruning more than width?", "ours, saliency", "ours at 0.06"),
    ("Is pruning more than width?", "ours, magnitude", "ours at 0.06"),
    ("Is pruning more than width?", "ours + discovery", "ours at 0.03"),
    ("Does the map pay?", "ours, with the map", "ours, no map"),
    ("Does the map pay?", "ours, with the map", "ours at 0.06"),
    ("Does a proxy pay, beside halving?", "ours, no map", "ours, no proxy"),
    ("Does a proxy pay, beside halving?", "ours at 0.06", "ours, no proxy"),
    ("Is a part of the images as good?", "ours at 0.06", "ours, a quarter of the images"),
    ("Does correcting the settings pay?", "ours at 0.06, shifted", "ours at 0.06"),
    ("Do short proxies pay?", "ours at 0.06, short", "ours at 0.06"),
    ("Do two rungs pay?", "ours at 0.06 and 0.25", "ours at 0.06"),
    ("Do short proxies pay?", "ours, promoted, short", "ours, promoted"),
    ("Does a proxy pay, beside short trainings?", "ours, promoted", "a quarter of the epochs"),
    ("Do fleets pay?", "ours, promoted", "narrowed"),
    ("Does promotion pay, beside the ladder?", "ours, promoted", "ours at 0.06"),
    ("Does one batch pay?", "ours, promoted at once", "ours, promoted"),
    ("Do fewer promotions pay?", "ours, the best 3 promoted at once", "ours, promoted at once"),
    ("Is discovery more than width?", "ours, promoted, discovery", "ours, promoted"),
    *(("Our ladder beside each stock stopper", "ours at 0.06", f"TPE + {name}") for name in OWN_STOCK),
    *(("Our promotion beside each stock stopper", "ours, promoted at once", f"TPE + {name}") for name in OWN_STOCK),
)
