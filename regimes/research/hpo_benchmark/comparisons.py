"""Paired comparisons of two search methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.methods import CONTRASTS
from regimes.research.hpo_benchmark.scores import Interval, Scores, mean_difference, saving


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of one search method with another.

    Attributes:
        question: the question that it answers.
        one, other: names of the methods.
        whole, sooner: share of the other method's time saved, in total and until the target is reached.
        apart: difference of the test errors, one minus other.
    """

    question: str
    one: str
    other: str
    whole: Interval
    sooner: Interval
    apart: Interval

    @classmethod
    def of(cls, scores: Scores, one: str, other: str, question: str = "") -> Comparison:
        """Compare two methods over paired searches."""
        whole, sooner = (saving(each[one], each[other]) for each in (scores.seconds, scores.times))
        return cls(question, one, other, whole, sooner, mean_difference(scores.errors[one], scores.errors[other]))

    @property
    def better(self) -> list[str]:
        """Respects in which the first method is better, beyond the interval."""
        found = [(self.whole.low > 0, "takes less time"), (self.sooner.low > 0, "is sooner at the target")]
        return [words for holds, words in [*found, (self.apart.high < 0, "ends better")] if holds]

    @property
    def worse(self) -> list[str]:
        """Respects in which the first method is worse, beyond the interval."""
        found = [(self.whole.high < 0, "takes more time"), (self.sooner.high < 0, "is later at the target")]
        return [words for holds, words in [*found, (self.apart.low > 0, "ends worse")] if holds]

    @property
    def verdict(self) -> str:
        """All differences beyond their intervals, in words; "undecided" if there are none."""
        return "; ".join([*self.better, *self.worse]) or "undecided"


def contrasts(scores: Scores, questions: Sequence[tuple[str, str, str]] = CONTRASTS) -> list[Comparison]:
    """Evaluate all comparisons, (question, method, other method), whose methods were replayed."""
    asked = [each for each in questions if set(each[1:]) <= set(scores.times)]
    return [Comparison.of(scores, one, other, question) for question, one, other in asked]


def contrasts_table(found: list[Comparison]) -> TextTable:
    """Return the comparisons as a table."""
    rows = [["question", "search", "compared with", "saves", "saves to the target", "test error, points", "verdict"]]
    for each in found:
        numbers = [each.whole.percent(), each.sooner.percent(), each.apart.points()]
        rows.append([each.question, each.one, each.other, *numbers, each.verdict])
    facts = [{**asdict(each), "verdict": each.verdict} for each in found]
    notes = ["paired searches; a verdict is given where the interval excludes zero"]
    return TextTable("Comparisons", rows, notes, facts)
