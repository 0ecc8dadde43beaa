"""What is asked of two ways to search, search by search."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.methods import CONTRASTS
from regimes.research.hpo_benchmark.scores import Interval, Scores, mean_difference, saving


@dataclass(frozen=True)
class Comparison:
    """One way to search beside another.

    Attributes:
        question: that it answers.
        one, other: arms.
        whole, sooner: share of the other's time that it saves, in all and to the target.
        apart: its test error less the other's.
    """

    question: str
    one: str
    other: str
    whole: Interval
    sooner: Interval
    apart: Interval

    @classmethod
    def of(cls, scores: Scores, one: str, other: str, question: str = "") -> Comparison:
        """From paired searches."""
        whole, sooner = (saving(each[one], each[other]) for each in (scores.seconds, scores.times))
        return cls(question, one, other, whole, sooner, mean_difference(scores.errors[one], scores.errors[other]))

    @property
    def better(self) -> list[str]:
        """In what, beyond its interval."""
        found = [(self.whole.low > 0, "takes less time"), (self.sooner.low > 0, "is sooner at the target")]
        return [words for holds, words in [*found, (self.apart.high < 0, "ends better")] if holds]

    @property
    def worse(self) -> list[str]:
        """In what, beyond its interval."""
        found = [(self.whole.high < 0, "takes more time"), (self.sooner.high < 0, "is later at the target")]
        return [words for holds, words in [*found, (self.apart.low > 0, "ends worse")] if holds]

    @property
    def verdict(self) -> str:
        """In words: what differs beyond its interval."""
        return "; ".join([*self.better, *self.worse]) or "undecided"


def contrasts(scores: Scores) -> list[Comparison]:
    """Of all arms that were replayed."""
    asked = [each for each in CONTRASTS if set(each[1:]) <= set(scores.times)]
    return [Comparison.of(scores, one, other, question) for question, one, other in asked]


def contrasts_sheet(found: list[Comparison]) -> TextTable:
    """What is asked, and what the answer is."""
    rows = [["question", "search", "held against", "saves", "saves to the target", "test error, points", "verdict"]]
    for each in found:
        numbers = [each.whole.percent(), each.sooner.percent(), each.apart.points()]
        rows.append([each.question, each.one, each.other, *numbers, each.verdict])
    facts = [{**asdict(each), "verdict": each.verdict} for each in found]
    notes = ["paired searches; a verdict is an interval that leaves out zero"]
    return TextTable("What is asked of them", rows, notes, facts)
