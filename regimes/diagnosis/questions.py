"""Questions of a diagnosis: their answers by gains, and the trees with starting cuts that are brought along.

The shape of the trees is prior knowledge. A network whose training error is near 0 was trained too cold, or has nothing
to gain: noise would help it. A path between two networks that is better than its ends says that training noise is what
keeps them from the minimum: too hot. A barrier with a large curvature, or an error on the path above that of the ends,
says too cold. A path without errors says that the network is large enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from regimes.diagnosis.cut_tree import Branch, Cut, Leaf
from regimes.diagnosis.measures import Array


@dataclass(frozen=True)
class Question:
    """A question with two answers.

    Attributes:
        name: column of the answer's probability.
        yes, no: the two answers in words.
        gains: names of the gains that decide.
        margin: gains -> by how much "yes" saves more test error than "no"; ties are left out.
        trees: shapes and priors; the probability is the mean over the trees.
    """

    name: str
    yes: str
    no: str
    gains: tuple[str, ...]
    margin: Callable[[Mapping[str, Array]], Array]
    trees: tuple[Branch, ...]

    def answers(self, gains: Mapping[str, Array]) -> Array:
        """Return 1 for yes, 0 for no, and NaN for ties and missing gains, of every row."""
        margin = self.margin(gains)
        return np.where(np.isnan(margin) | (margin == 0), np.nan, (margin > 0).astype(float))


def _hotter(gains: Mapping[str, Array]) -> Array:
    return gains["gain_hotter"] - gains["gain_colder"]


def _wider(gains: Mapping[str, Array]) -> Array:
    return gains["gain_wider"] - np.maximum(gains["gain_hotter"], gains["gain_colder"])


def _data(gains: Mapping[str, Array]) -> Array:
    return gains["gain_data"] - np.maximum(gains["gain_hotter"], gains["gain_colder"])


LIKELY, UNLIKELY = Leaf(4.5, 1.5), Leaf(1.5, 4.5)  # six rows of prior experience in a leaf
YES, NO = Leaf(9, 3), Leaf(3, 9)  # twelve rows, for questions that fewer measures decide


def _interpolating(yes: Branch, no: Branch) -> Cut:
    return Cut("train_error", 0.001, 0.3, above=no, below=yes)


def _sharp(yes: Branch, no: Branch) -> Cut:
    return Cut("hessian_trace", 665, 0.7, above=yes, below=no)


HOTTER_TREES: tuple[Branch, ...] = (
    _interpolating(yes=LIKELY, no=Cut("curve", 0.0, 0.02, above=UNLIKELY, below=_sharp(yes=LIKELY, no=UNLIKELY))),
    _interpolating(yes=LIKELY, no=Cut("curve_peak", -0.05, 0.4, above=UNLIKELY, below=_sharp(yes=LIKELY, no=UNLIKELY))),
    _interpolating(yes=LIKELY, no=Cut("peak_ratio", 1.0, 0.7, above=LIKELY, below=UNLIKELY)),
)
WIDER_TREES: tuple[Branch, ...] = (
    _interpolating(
        yes=Cut("train_loss", 0.0008, 0.3, above=YES, below=NO),
        no=Cut("curve", 0.0, 0.01, above=Cut("peak_ratio", 0.16, 0.9, above=YES, below=NO), below=YES),
    ),
    _interpolating(
        yes=Cut("cka", 0.44, 0.1, above=NO, below=YES),
        no=Cut("curve", 0.0, 0.01, above=Cut("hessian_ratio", 9, 0.4, above=NO, below=YES), below=YES),
    ),
)
DATA_TREES: tuple[Branch, ...] = (
    _interpolating(yes=YES, no=Cut("curve", 0.0, 0.02, above=NO, below=Cut("hessian_trace", 1600, 0.7, NO, YES))),
    _interpolating(yes=YES, no=Cut("cka", 0.37, 0.1, above=NO, below=YES)),
)

TEMPERATURE = ("gain_hotter", "gain_colder")
QUESTIONS: tuple[Question, ...] = (
    Question("p_hotter", "hotter", "colder", TEMPERATURE, _hotter, HOTTER_TREES),
    Question("p_wider", "wider", "another temperature", ("gain_wider", *TEMPERATURE), _wider, WIDER_TREES),
    Question("p_data", "more data", "another temperature", ("gain_data", *TEMPERATURE), _data, DATA_TREES),
)
