"""The rule of a diagnosis as text: its trees with the learnt cuts, their intervals, and the answers of the leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from regimes.diagnosis.cut_tree import Branch, Cut, FittedTree, cuts_of, scaled_start
from regimes.diagnosis.measures import measure_named

if TYPE_CHECKING:
    from regimes.diagnosis.diagnosis import Diagnosis, FittedQuestion

LOW, HIGH = 0.1, 0.9
INTERVAL = "80 % interval"
NORMAL_80 = 1.2816  # half an 80 % interval, in standard deviations


def rule_text(diagnosis: Diagnosis) -> str:
    """Return the rule of a diagnosis as indented text."""
    return "\n".join(line for question in diagnosis.questions for line in _question(question))


def cut_text(tree: FittedTree, number: int) -> str:
    """Return a learnt threshold with its interval, e.g. ``0.02 % (0.01 % to 0.1 %)``."""
    show = measure_named(list(cuts_of(tree.tree))[number].measure).show
    low, middle, high = (show(tree.threshold(number, quantile)) for quantile in (LOW, 0.5, HIGH))
    return f"{middle} ({low} to {high})"


def prior_text(tree: Branch) -> list[str]:
    """Return the starting cuts of a tree with their intervals, one line per cut."""
    return [_prior_cut(cut) for cut in cuts_of(tree)]


def _prior_cut(cut: Cut) -> str:
    measure = measure_named(cut.measure)
    ends = scaled_start(cut) + NORMAL_80 * cut.spread * np.array([-1, 1])
    low, high = (float(value) for value in measure.inverse(ends))
    return f"{measure.long_name}: {measure.show(cut.start)} ({measure.show(low)} to {measure.show(high)})"


def _question(fitted: FittedQuestion) -> Iterator[str]:
    question = fitted.question
    if not fitted.trees:
        yield f"{question.name}: not learnt"
        return
    voters = "" if len(fitted.trees) == 1 else f", mean of {len(fitted.trees)} trees"
    yield f"{question.name}: {question.yes} rather than {question.no} ({fitted.rows} networks{voters}; {INTERVAL}s)"
    for number, tree in enumerate(fitted.trees, start=1):
        yield f"  tree {number}"
        yield from _branch(tree, tree.tree, _Counter(), "    ")


class _Counter:
    """Numbers of the cuts and leaves met so far, in the order of `FittedTree`."""

    def __init__(self) -> None:
        self.cuts = 0
        self.leaves = 0


def _branch(tree: FittedTree, branch: Branch, met: _Counter, indent: str) -> Iterator[str]:
    if not isinstance(branch, Cut):
        yield f"{indent}probability {float(tree.weights @ tree.answers[met.leaves]):.2f}"
        met.leaves += 1
        return
    name = measure_named(branch.measure).long_name
    number, met.cuts = met.cuts, met.cuts + 1
    yield f"{indent}{name} above {cut_text(tree, number)}:"
    yield from _branch(tree, branch.above, met, indent + "  ")
    yield f"{indent}otherwise:"
    yield from _branch(tree, branch.below, met, indent + "  ")
