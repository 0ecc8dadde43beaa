"""Decision trees of a given shape whose cuts are uncertain: prior, posterior, and prediction with missing measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

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
class Asked:
    """Rows that a tree is asked about.

    Attributes:
        values: {measure: (rows,)} on the measures' scales; NaN or no entry where missing.
        rows: number of rows.
        blur: {measure: (rows,)} standard errors of the values, on the measures' scales.
        stand_ins: {measure: (rows, networks)} values of similar networks, for rows that lack the measure.
    """

    values: Mapping[str, Array]
    rows: int
    blur: Mapping[str, Array] = field(default_factory=dict)
    stand_ins: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedTree:
    """A tree with weighted draws from the posterior of its thresholds.

    Leaves are integrated out: given the thresholds, the number of rows with answer yes in a leaf is beta-binomial. A
    row that lacks a measure takes both branches: in the shares of networks most like it, or else of all learnt ones.

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

    def probability(self, asked: Asked) -> Array:
        """Return the probability of yes of every row."""
        reached = _reach(self.tree, asked, self.thresholds, self.shares)
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


def _reach(tree: Branch, asked: Asked, thresholds: Array, shares: Array) -> Iterator[Array]:
    """Yield for every leaf the probability (draws, rows) that a row reaches it; fill NaN in ``shares`` on the way."""
    numbers = {id(cut): number for number, cut in enumerate(cuts_of(tree))}

    def descend(branch: Branch, mass: Array) -> Iterator[Array]:
        if isinstance(branch, Leaf):
            yield mass
            return
        number = numbers[id(branch)]
        value = asked.values.get(branch.measure, np.full(asked.rows, np.nan))
        missing = np.isnan(value)
        up = mass * _above(value, thresholds[number], asked.blur.get(branch.measure))
        if np.isnan(shares[number]).any():
            shares[number] = (up @ ~missing + 1) / (mass @ ~missing + 2)
        if missing.any():
            stand_ins = asked.stand_ins.get(branch.measure, np.full((asked.rows, 1), np.nan))[missing]
            up[:, missing] = mass[:, missing] * _share_above(stand_ins, thresholds[number], shares[number])
        yield from descend(branch.above, up)
        yield from descend(branch.below, mass - up)

    yield from descend(tree, np.ones((thresholds.shape[1], asked.rows), np.float32))


def _above(value: Array, threshold: Array, blur: Array | None) -> Array:
    """Return the probability (draws, rows) that a value is above the thresholds; 0 for a missing value."""
    beyond = value - threshold[:, None]
    above = (beyond > 0).astype(np.float32)
    if blur is not None:
        uncertain = blur > 0
        above[:, uncertain] = ndtr(beyond[:, uncertain] / blur[uncertain])
    return np.nan_to_num(above)


def _share_above(stand_ins: Array, threshold: Array, share: Array) -> Array:
    """Return the share (draws, rows) of stand-ins above the thresholds; where there are none, that of learnt rows."""
    known = np.isfinite(stand_ins)
    above = (stand_ins[None] > threshold[:, None, None]).sum(2)
    count = known.sum(1)
    return np.where(count > 0, above / np.maximum(count, 1), share[:, None])


def _leaves(tree: Branch) -> list[Leaf]:
    return [tree] if isinstance(tree, Leaf) else _leaves(tree.above) + _leaves(tree.below)


def _learn(tree: Branch, values: Mapping[str, Array], answer: Array, thresholds: Array) -> tuple[Array, Array, Array]:
    """Return log likelihood (draws,), shares above every cut, and answers of every leaf, given the thresholds."""
    shares = np.full(thresholds.shape, np.nan)
    log_likelihood, answers = np.zeros(thresholds.shape[1]), []
    both = np.stack([answer, 1 - answer], 1).astype(np.float32)
    for leaf, reach in zip(_leaves(tree), _reach(tree, Asked(values, len(answer)), thresholds, shares), strict=True):
        yes, no = (reach @ both).T.astype(float)
        log_likelihood += betaln(leaf.yes + yes, leaf.no + no) - betaln(leaf.yes, leaf.no)
        answers.append((leaf.yes + yes) / (leaf.yes + leaf.no + yes + no))
    return log_likelihood, shares, np.array(answers)
