"""Search methods: those that are compared on every recording, and `METHODS`, with the ablations, for that of digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optuna import pruners

BASE = "TPE, full network"
AS_FAST = "as fast as "  # prefix: the narrowed network with the same training time as another fidelity
OWN_STOCK: dict[str, Callable[[], pruners.BasePruner]] = {  # with Optuna's default options
    "median": pruners.MedianPruner,
    "percentile": lambda: pruners.PercentilePruner(25.0),
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
}
EARLY_REPORT = (0.1,)  # share of a training after which halving decides
EVERY_EPOCH = tuple(number / 20 for number in range(1, 20))  # reports to the stock stoppers, of 20 epochs
OWN, HALF = "ours", "half of the images"  # the package's own search, and the fidelity that it uses by default
ONE_EPOCH = 1e-6  # share of a training that is rounded up to one epoch
PAIRS = 16  # settings trained on both networks to estimate the optimum shift


@dataclass(frozen=True)
class SearchMethod:
    """A search method.

    Attributes:
        name: name in tables.
        description: description in the notes.
        sampler: a name in `SAMPLERS`.
        fidelities: names of the fidelities below the full network.
        stopper: a name in `STOPPERS`, set up for the search's steps; "own ...": with Optuna's default options.
        reports: shares of the full training at which trials report an intermediate value.
        proxy_reports: the same for proxies.
        batch: number of trials asked for together.
        promoted: number of trials of the proxy study that are then trained in full; 0: every trial goes through all
            fidelities.
        as_it_goes: whether promotions keep pace with the proxies; if not, they follow when all are done.
        first_share: share of the full training that serves as the cheap fidelity; 0: none.
        uses_map: whether a map chooses the proxy and the first fidelity of each trial; its cost counts.
        pairs: number of settings trained on both networks beforehand; their cost counts.
    """

    name: str
    description: str
    sampler: str = "tpe"
    fidelities: tuple[str, ...] = ()
    stopper: str = "none"
    reports: tuple[float, ...] = ()
    proxy_reports: tuple[float, ...] = ()
    batch: int = 1
    promoted: int = 0
    as_it_goes: bool = False
    first_share: float = 0.0
    uses_map: bool = False
    pairs: int = 0


def _stock(name: str) -> SearchMethod:
    description = "Optuna's stopper with default options, asked every epoch"
    return SearchMethod(f"TPE + {name}", description, stopper=f"own {name}", reports=EVERY_EPOCH)


def _best(name: str, what: str, fidelity: str, promoted: int = 5) -> SearchMethod:
    return SearchMethod(
        name, f"{what}, one by one; the best {promoted} in full", fidelities=(fidelity,), promoted=promoted
    )


def _ladder(name: str, what: str, *fidelities: str) -> SearchMethod:
    return SearchMethod(
        name,
        f"{what}; every trial goes through all fidelities",
        "tpe",
        fidelities,
        "halving",
        EARLY_REPORT,
        EARLY_REPORT,
        64,
    )


def _ours(
    name: str, what: str, *fidelities: str, best: int = 5, batch: int = 64, uses_map: bool = False
) -> SearchMethod:
    description = f"{what}; the best {best} in full"
    return SearchMethod(
        name, description, "tpe", fidelities, "halving", EARLY_REPORT, EARLY_REPORT, batch, best, uses_map=uses_map
    )


OURS = _ours("ours at 0.06", "narrowed to 0.06", "narrowed 0.06")  # the ablations differ from it in one respect
METHODS = (
    SearchMethod("random, full network", "every trial in full", sampler="random"),
    SearchMethod(BASE, "every trial in full: the baseline"),
    *(_stock(name) for name in OWN_STOCK),
    SearchMethod(
        "few epochs, keep the best", "a tenth of the epochs; the best 5 continue", promoted=5, first_share=0.1
    ),
    _best("a quarter of the epochs", "the full network, its schedule shortened", "full, short"),
    _best("a quarter of the images", "the full network on fewer images", "quarter of the images"),
    _best("half of the images", "the full network on fewer images", "half of the images"),
    _best("narrowed", "density 0.06 by width", "narrowed 0.06"),
    _best("narrowed, as fast", "by width, with the training time of saliency at 0.06", f"{AS_FAST}saliency 0.06"),
    _best("random channels", "density 0.06, saliency's widths, any channels", "random 0.06"),
    _best("magnitude", "density 0.06, the largest channels", "magnitude 0.06"),
    _best("saliency", "density 0.06, the most salient channels", "saliency 0.06"),
    _best("the paper's recipe", "density 0.06, the most salient channels", "saliency 0.06", promoted=1),
    _ladder("ours, no proxy", "the full network alone"),
    replace(_ladder("no proxy, judged later", "halving at a quarter and a half"), reports=(0.25, 0.5)),
    OURS,
    _ours("ours at 0.03", "narrowed to 0.03", "narrowed 0.03"),
    _ours("ours at 0.12", "narrowed to 0.12, nearest to the default without a map", "narrowed 0.12"),
    _ours("ours at 0.25", "narrowed to 0.25", "narrowed 0.25"),
    _ours("ours, with the map", "narrowed to a density that the map trusts, if any", uses_map=True),
    _ours("ours + discovery", "a discovered structure", "discovered 0.06"),
    _ours("ours, saliency", "at 0.06, the most salient channels", "saliency 0.06"),
    _ours("ours, magnitude", "at 0.06, the largest channels", "magnitude 0.06"),
    _ours("ours, random channels", "at 0.06, saliency's widths", "random 0.06"),
    _ours("ours, a quarter of the images", "the full network on fewer images, one by one", "quarter of the images"),
    replace(
        _ours("ours, not halved", "every proxy trained to its end", "narrowed 0.06"), stopper="none", proxy_reports=()
    ),
    replace(
        _ours("ours, halved later", "proxies halved at a quarter of their training", "narrowed 0.06"),
        proxy_reports=(0.25,),
    ),
    _ours("ours, four batches", "in batches of 16", "narrowed 0.06", batch=16),
    _ours("ours, the best 3", "narrowed to 0.06", "narrowed 0.06", best=3),
    _ours("ours, the best 8", "narrowed to 0.06", "narrowed 0.06", best=8),
    _ours("ours, short", "narrowed to 0.12, a quarter of the epochs", "narrowed 0.12, short"),
    _ours("ours, scaled", "learning rates times 4", "narrowed 0.06, scaled"),
    replace(
        _ours("ours, shifted", f"settings corrected by the optimum shift of {PAIRS} pairs", "narrowed 0.06, shifted"),
        pairs=PAIRS,
    ),
    _ours("ours, two rungs", "narrowed to 0.06, then to 0.25", "narrowed 0.06", "narrowed 0.25"),
    _ladder("ladder at 0.06", "narrowed to 0.06", "narrowed 0.06"),
    _ladder("ladder at 0.25", "narrowed to 0.25", "narrowed 0.25"),
    _ladder("ladder at 0.06 and 0.25", "two proxies before the full network", "narrowed 0.06", "narrowed 0.25"),
)
CONTRASTS = (  # question, method, method that it is compared with
    ("Do the chosen channels matter?", "saliency", "random channels"),
    ("Do the chosen channels matter?", "ours, saliency", "ours, random channels"),
    ("Is pruning more than width?", "saliency", "narrowed, as fast"),
    ("Is pruning more than width?", "magnitude", "narrowed"),
    ("Is pruning more than width?", "ours, saliency", "ours at 0.06"),
    ("Is pruning more than width?", "ours, magnitude", "ours at 0.06"),
    ("Is discovery more than width?", "ours + discovery", "ours at 0.06"),
    ("Does the map pay?", "ours, with the map", "ours at 0.12"),
    ("Does the map pay?", "ours, with the map", "ours, no proxy"),
    ("Does a proxy pay, compared with halving?", "ours at 0.06", "ours, no proxy"),
    ("Does a proxy pay, compared with few epochs?", "ours at 0.06", "few epochs, keep the best"),
    ("Does a proxy pay, compared with short trainings?", "ours, not halved", "a quarter of the epochs"),
    ("Is a part of the images as good?", "ours at 0.06", "ours, a quarter of the images"),
    ("Do fleets pay?", "ours, not halved", "narrowed"),
    ("Does halving proxies pay?", "ours at 0.06", "ours, not halved"),
    ("Is it better to judge early?", "ours at 0.06", "ours, halved later"),
    ("Is it better to judge early?", "ours, no proxy", "no proxy, judged later"),
    ("Does promotion pay, compared with the ladder?", "ours at 0.06", "ladder at 0.06"),
    ("Does one batch pay?", "ours at 0.06", "ours, four batches"),
    ("Do fewer promotions pay?", "ours, the best 3", "ours at 0.06"),
    ("Do more promotions pay?", "ours, the best 8", "ours at 0.06"),
    ("Do short proxies pay?", "ours, short", "ours at 0.12"),
    ("Do two rungs pay?", "ours, two rungs", "ours at 0.06"),
    ("Does correcting the settings pay?", "ours, scaled", "ours at 0.06"),
    ("Does correcting the settings pay?", "ours, shifted", "ours at 0.06"),
    *(("Ours compared with each stock stopper", "ours at 0.06", f"TPE + {name}") for name in OWN_STOCK),
)


def compared(proxies: Sequence[str]) -> tuple[SearchMethod, ...]:
    """Return the methods that are compared on every recording.

    Args:
        proxies: names of the narrower networks of the recording.
    """
    return (
        SearchMethod("random, full network", "every trial in full", sampler="random"),
        SearchMethod(BASE, "every trial in full: the baseline"),
        SearchMethod("GP, full network", "every trial in full, Bayesian optimisation", sampler="gp"),
        _stock("median"),
        SearchMethod(
            "one epoch, keep the best",
            "one epoch of every trial; the best 5 continue (1-Epoch, Egele et al. 2023, arXiv 2307.15422)",
            promoted=5,
            first_share=ONE_EPOCH,
        ),
        _best("a quarter of the images", "the full network on fewer images", "quarter of the images"),
        *(_best(name, "the narrower network", name) for name in proxies),
        _ladder("ours, no proxy", "the full network alone"),
        _going(OWN, "the default: the full network on half of the images", HALF),
        _ours("ours, half of the images, one batch", "all trials in one batch", HALF),
        *(_going(f"ours, {name}", "the narrower network", name) for name in proxies),
        _ours(f"ours, {proxies[0]}, one batch", "the narrower network, all trials in one batch", proxies[0]),
        replace(
            _going(
                "ours, a quarter of the images", "the full network on fewer images, random", "quarter of the images"
            ),
            sampler="random",
        ),
    )


def _going(name: str, what: str, fidelity: str) -> SearchMethod:
    """The package's own search: promotions keep pace with the trials, which are asked for in batches of 16."""
    return replace(_ours(name, f"{what}, in batches of 16", fidelity, batch=16), as_it_goes=True)


def compared_contrasts(proxies: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Return the comparisons of `compared` methods: (question, method, method that it is compared with)."""
    return (
        ("Does it pay, compared with halving full trainings?", OWN, "ours, no proxy"),
        ("Compared with one epoch", OWN, "one epoch, keep the best"),
        ("Is a narrower network as good?", f"ours, {proxies[0]}", OWN),
        ("Does learning from batches pay?", OWN, "ours, half of the images, one batch"),
        ("Does learning from batches pay?", f"ours, {proxies[0]}", f"ours, {proxies[0]}, one batch"),
        ("Do fleets and halving pay?", f"ours, {proxies[0]}", proxies[0]),
        ("Is a quarter of the images enough?", "ours, a quarter of the images", OWN),
        ("Compared with Bayesian optimisation", OWN, "GP, full network"),
        ("Compared with a stock stopper", OWN, "TPE + median"),
    )
