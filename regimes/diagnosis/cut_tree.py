"""Decision trees of a given shape whose cuts are uncertain: prior, posterior, and prediction with missing measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, ndtr

from regimes.diagnosis.measures import Array, measure_named

DRAWS = 256
ROUNDS = 3  # of importance sampling: the first from the prior, the others from a Gaussian fitted to the last
WIDEN = 1.5  # of that Gaussian's standard deviations
PRIOR_SHARE = 0.2  # of the draws of a later round that still come from the prior
# Rows of one grid share their neighbours' errors: two count as one, and all of them as no more than some hundred.
LIKELIHOOD_POWER = 0.5
MOST_ROWS = 200


@dataclass(frozen=True)
class Leaf:
    """A conclusion.

    Attributes:
        yes, no: prior counts of rows for which the answer is yes and no (a Beta distribution).
    """

    yes: float
    no: float


@dataclass(frozen=True)
class Cut:
    """A comparison of one measure with an uncertain threshold.

    Attributes:
        measure: name of the measure.
        start: prior median of the threshold, in the measure's unit.
        spread: prior standard deviation of the threshold, on the measure's scale.
        above, below: branches for values above the threshold, and for all others.
    """

    measure: str
    start: float
    spread: float
    above: Branch
    below: Branch


Branch = Cut | Leaf


def cuts_of(tree: Branch) -> Iterator[Cut]:
    """Return the cuts of a tree, parents first."""
    if isinstance(tree, Cut):
        yield tree
        yield from cuts_of(tree.above)
        yield from cuts_of(tree.below)


def scaled_start(cut: Cut) -> float:
    """Return the prior median of a threshold on the measure's scale."""
    return float(measure_named(cut.measure).scale(np.array(cut.start)))


@dataclass(frozen=True)
class FittedTree:
    """A tree with weighted draws from the posterior of its thresholds.

    Leaves are integrated out: given the thresholds, the number of rows with answer yes in a leaf is beta-binomial. A
    row whose measure is missing takes both branches, in the shares of the rows that had it.

    Attributes:
        tree: its shape and prior.
        thresholds: (cuts, draws), on the measures' scales.
        weights: (draws,), adding up to 1.
        shares: (cuts, draws), share of the learnt rows at a cut that went above.
        answers: (leaves, draws), posterior mean of the probability of yes.
    """

    tree: Branch
    thresholds: Array
    weights: Array
    shares: Array
    answers: Array

    @classmethod
    def fit(cls, tree: Branch, values: Mapping[str, Array], answer: Array, seed: int = 0) -> FittedTree:
        """Return the posterior given rows with known answers, by adaptive importance sampling.

        Args:
            tree: shape and prior.
            values: {measure: (rows,)} on the measures' scales; NaN or no entry where missing.
            answer: (rows,), 1 for yes and 0 for no.
            seed: seed of the draws.
        """
        cuts = list(cuts_of(tree))
        start, spread = np.array([scaled_start(cut) for cut in cuts]), np.array([cut.spread for cut in cuts])
        power = min(LIKELIHOOD_POWER, MOST_ROWS / len(answer))
        random = np.random.default_rng(seed)
        thresholds = random.standard_normal((len(cuts), DRAWS)) * spread[:, None] + start[:, None]
        log_proposal = np.zeros(DRAWS)
        for round_ in range(ROUNDS):
            log_likelihood, shares, answers = _learn(tree, values, answer, thresholds)
            log_prior = _log_normal(thresholds, start, spread) if round_ else np.zeros(DRAWS)
            logs = power * log_likelihood + log_prior - log_proposal
            weights = np.exp(logs - logs.max())
            weights /= weights.sum()
            if round_ == ROUNDS - 1 or not cuts:
                break
            middle = thresholds @ weights
            around = np.sqrt((thresholds - middle[:, None]) ** 2 @ weights)
            around = np.clip(WIDEN * around, 0.02 * spread, spread)
            fresh = random.standard_normal((len(cuts), DRAWS))
            thresholds = fresh * around[:, None] + middle[:, None]
            from_prior = random.random(DRAWS) < PRIOR_SHARE
            thresholds[:, from_prior] = (fresh * spread[:, None] + start[:, None])[:, from_prior]
            log_proposal = np.logaddexp(
                np.log(PRIOR_SHARE) + _log_normal(thresholds, start, spread),
                np.log(1 - PRIOR_SHARE) + _log_normal(thresholds, middle, around),
            )
        return cls(tree, thresholds, weights, shares, answers)

    def probability(self, values: Mapping[str, Array], rows: int, blur: Mapping[str, Array] | None = None) -> Array:
        """Return the probability of yes of every row.

        Args:
            values: as in `fit`.
            rows: number of rows.
            blur: {measure: (rows,)} standard errors of the values on the measures' scales; None: exact.
        """
        reached = _reach(self.tree, values, self.thresholds, rows, self.shares, blur or {})
        return np.asarray(sum((self.weights * p) @ mass for p, mass in zip(self.answers, reached, strict=True)))

    def threshold(self, cut: int, quantile: float) -> float:
        """Return a posterior quantile of a threshold, in the measure's unit."""
        order = np.argsort(self.thresholds[cut])
        at = int(np.searchsorted(np.cumsum(self.weights[order]), quantile))
        scaled = self.thresholds[cut][order[min(at, len(order) - 1)]]
        return float(measure_named(list(cuts_of(self.tree))[cut].measure).inverse(np.array(scaled)))


def _log_normal(at: Array, middle: Array, around: Array) -> Array:
    """Return the log density of independent normals, up to the constant that all proposals share."""
    deviation = (at - middle[:, None]) / around[:, None]
    return np.asarray(-0.5 * (deviation**2).sum(0) - np.log(around).sum())


def _reach(
    tree: Branch,
    values: Mapping[str, Array],
    thresholds: Array,
    rows: int,
    shares: Array,
    blur: Mapping[str, Array],
) -> Iterator[Array]:
    """Yield for every leaf the probability (draws, rows) that a row reaches it; fill NaN in ``shares`` on the way."""
    numbers = {id(cut): number for number, cut in enumerate(cuts_of(tree))}

    def descend(branch: Branch, mass: Array) -> Iterator[Array]:
        if isinstance(branch, Leaf):
            yield mass
            return
        number = numbers[id(branch)]
        value = values.get(branch.measure)
        value = np.full(rows, np.nan) if value is None else value
        beyond = value - thresholds[number][:, None]
        above = (beyond > 0).astype(np.float32)
        if branch.measure in blur:
            uncertain = blur[branch.measure] > 0
            above[:, uncertain] = ndtr(beyond[:, uncertain] / blur[branch.measure][uncertain])
        missing = np.isnan(value)
        up = mass * above
        if np.isnan(shares[number]).any():
            known = ~missing
            shares[number] = (up @ known + 1) / (mass @ known + 2)  # nothing missing goes above yet
        if missing.any():
            up[:, missing] = mass[:, missing] * shares[number][:, None]
        yield from descend(branch.above, up)
        yield from descend(branch.below, mass - up)

    yield from descend(tree, np.ones((thresholds.shape[1], rows), np.float32))


def _leaves(tree: Branch) -> list[Leaf]:
    return [tree] if isinstance(tree, Leaf) else _leaves(tree.above) + _leaves(tree.below)


def _learn(
    tree: Branch, values: Mapping[str, Array], answer: Array, thresholds: Array
) -> tuple[Array, Array, Array]:
    """Return log likelihood (draws,), shares above every cut, and answers of every leaf, given the thresholds."""
    shares = np.full(thresholds.shape, np.nan)
    log_likelihood, answers = np.zeros(thresholds.shape[1]), []
    both = np.stack([answer, 1 - answer], 1).astype(np.float32)
    for leaf, reach in zip(_leaves(tree), _reach(tree, values, thresholds, len(answer), shares, {}), strict=True):
        yes, no = (reach @ both).T.astype(float)
        log_likelihood += betaln(leaf.yes + yes, leaf.no + no) - betaln(leaf.yes, leaf.no)
        answers.append((leaf.yes + yes) / (leaf.yes + leaf.no + yes + no))
    return log_likelihood, shares, np.array(answers)
