"""Diagnosis of trained networks: too cold, too small, too little data, as probabilities from a printable rule."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit, logit

from regimes.diagnosis.cut_tree import LIKELIHOOD_POWER, MOST_ROWS, Asked, Branch, Cut, FittedTree, Leaf
from regimes.diagnosis.learnt_networks import LearntNetworks
from regimes.diagnosis.measures import GAINS, MEASURES, Array, scaled
from regimes.diagnosis.questions import QUESTIONS, Question
from regimes.diagnosis.table import Table, as_frame, read_columns
from regimes.errors import UserError

SHARPNESS = np.geomspace(0.5, 2, 41)
SPREAD = 0.25  # prior standard deviation of the logarithm of the sharpness
LMC_SPREAD = 0.1  # on a straight line barriers are higher, and less is known of where they matter


@dataclass(frozen=True)
class FittedQuestion:
    """A question with its learnt trees.

    Attributes:
        question: the question.
        trees: learnt trees; empty if the question could not be learnt.
        rows: number of rows it was learnt from.
        sharpness: factor of the trees' mean log odds (temperature scaling, Guo et al. 2017, arXiv 1706.04599); above 1
            if the trees agree more often than one of them is right.
    """

    question: Question
    trees: tuple[FittedTree, ...]
    rows: int
    sharpness: float = 1.0

    def probability(self, asked: Asked) -> Array:
        """Return the probability of yes of every row, NaN if not learnt: the scaled mean of the trees' log odds."""
        if not self.trees:
            return np.full(asked.rows, np.nan)
        return np.asarray(expit(self.sharpness * self.log_odds(asked)))

    def log_odds(self, asked: Asked) -> Array:
        """Return the mean log odds of the trees, unscaled."""
        return np.asarray(np.mean([logit(tree.probability(asked)) for tree in self.trees], axis=0))

    def sharpened(self, values: Mapping[str, Array], answer: Array) -> FittedQuestion:
        """Return the question with the sharpness that is most probable given rows with known answers."""
        odds = np.where(answer == 1, 1, -1) * self.log_odds(Asked(values, len(answer)))
        power = min(LIKELIHOOD_POWER, MOST_ROWS / len(answer))
        posterior = power * log_expit(SHARPNESS[:, None] * odds).sum(1) - 0.5 * (np.log(SHARPNESS) / SPREAD) ** 2
        return replace(self, sharpness=float(SHARPNESS[int(np.argmax(posterior))]))


@dataclass(frozen=True)
class Diagnosis:
    """A learnt diagnosis; ``str()`` of it prints its rule.

    Attributes:
        questions: the learnt questions.
        learnt: the networks it was learnt from.
    """

    questions: tuple[FittedQuestion, ...]
    learnt: LearntNetworks

    @classmethod
    def fit(cls, table: Table, *, seed: int = 0, questions: Sequence[Question] = QUESTIONS) -> Diagnosis:
        """Return a diagnosis learnt from networks whose gains are known.

        Args:
            table: one row per setting, with the measures `MEASURES` and the gains `GAINS`, in fractions; both may be
                missing in part, and other columns are ignored. The gains of a dataset without them are computed from
                its test errors. It is not changed.
            seed: seed of the posterior draws.
            questions: questions with the shapes and priors of their trees.

        Raises:
            UserError: no rows, no measure, no gains, or values that are implausible.
        """
        frame = as_frame(table, gains=True)
        measured, gains = read_columns(frame, tuple(MEASURES)), read_columns(frame, GAINS)
        if not len(frame):
            raise UserError("table: it has no rows; a diagnosis is learnt from at least one network with known gains")
        if not any(np.isfinite(values).any() for values in measured.values()):
            raise UserError(f"table: no known measure; allowed: {', '.join(MEASURES)}")
        if not any(np.isfinite(values).any() for values in gains.values()):
            raise UserError(f"table: no known gain, so nothing can be learnt; allowed: {', '.join(GAINS)}")
        missing = np.full(len(frame), np.nan)
        gains = {name: gains.get(name, missing) for name in GAINS}
        values = scaled(measured)
        return cls(tuple(_fit(each, values, gains, seed) for each in questions), LearntNetworks.of(values))

    @staticmethod
    def default() -> Diagnosis:
        """Return the diagnosis learnt from the packaged reference, see `regimes.diagnosis.reference.reference`."""
        return _default()

    def predict(self, table: Table) -> pd.DataFrame:
        """Return the diagnosis of every row, judged alone.

        Args:
            table: one row per network or setting, with any of `MEASURES`; other columns are ignored.

        Returns:
            Rows, order and index of the table, with the columns

            - ``p_hotter``: probability that a hotter setting lowers the test error more than a colder one;
            - ``p_wider``: probability that a wider network lowers it more than another temperature;
            - ``p_data``: probability that more data lower it more than another temperature;
            - ``familiar``: 1 within the networks learnt from, 0 far from them, see `LearntNetworks.familiarity`.

        Raises:
            UserError: no known measure among the columns, or values that are implausible.
        """
        frame = as_frame(table)
        measured = read_columns(frame, tuple(MEASURES))
        if not measured:
            raise UserError(f"table: none of its columns is a measure; known: {', '.join(MEASURES)}")
        asked = self.asked(measured, len(frame))
        columns = {each.question.name: each.probability(asked) for each in self.questions}
        familiar = self.learnt.familiarity(asked.values, asked.rows)
        return pd.DataFrame(columns | {"familiar": familiar}, index=frame.index)

    def asked(self, measured: Mapping[str, Array], rows: int, blur: Mapping[str, Array] | None = None) -> Asked:
        """Return rows with stand-ins for their missing measures.

        Args:
            measured: {measure: (rows,)}, in the measures' units.
            rows: number of rows.
            blur: {measure: (rows,)} standard errors, on the measures' scales; None: exact.
        """
        values = scaled(measured)
        return Asked(values, rows, blur or {}, self.learnt.stand_ins(values, rows))

    def __str__(self) -> str:
        from regimes.diagnosis.rule_text import rule_text

        return rule_text(self)


def _fit(question: Question, values: Mapping[str, Array], gains: Mapping[str, Array], seed: int) -> FittedQuestion:
    answer = question.answers(gains)
    known = np.isfinite(answer)
    if not known.any():
        needed = ", ".join(question.gains)
        warnings.warn(f"{question.name} is not learnt and will be NaN: no row has {needed} without a tie", stacklevel=4)
        return FittedQuestion(question, (), 0)
    rows = {name: value[known] for name, value in values.items()}
    trees = (_with_connectivity(tree, rows) for tree in question.trees)
    fitted = tuple(FittedTree.fit(tree, rows, answer[known], seed) for tree in trees)
    return FittedQuestion(question, fitted, int(known.sum())).sharpened(rows, answer[known])


def _with_connectivity(tree: Branch, values: Mapping[str, Array]) -> Branch:
    """Return the tree, with cuts on LMC in place of the trained curve where only LMC was measured."""
    if isinstance(tree, Leaf) or "lmc" not in values or np.isfinite(values.get("curve", np.array(np.nan))).any():
        return tree
    above, below = _with_connectivity(tree.above, values), _with_connectivity(tree.below, values)
    if tree.measure == "curve":
        return Cut("lmc", tree.start, LMC_SPREAD, above, below)
    return replace(tree, above=above, below=below)


@functools.cache
def _default() -> Diagnosis:
    from regimes.diagnosis.reference import reference

    return Diagnosis.fit(reference())
