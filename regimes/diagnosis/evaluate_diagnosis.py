"""Evaluation of diagnoses: the five cases of MD tree, shifts, controls, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from regimes.diagnosis.diagnosis import Diagnosis
from regimes.diagnosis.measures import GAINS, Array
from regimes.diagnosis.questions import QUESTIONS, Question

Learner = Callable[[pd.DataFrame, str, int], Callable[[pd.DataFrame], Array]]
Mask = NDArray[np.bool_]
Shift = Callable[[pd.DataFrame], pd.DataFrame]
FEW_IMAGES, NARROWEST = 0.1, 2  # 5,000 images; 11,420 parameters
MEMORISED = 0.001  # training error up to which a network counts as interpolating


@dataclass(frozen=True)
class DiagnosisCase:
    """A question, and the part of the basic collection that it is learnt on.

    Attributes:
        title: the part in words.
        question: column of the answer.
        published: accuracies on the collection with label noise published with MD tree: hyperparameters and validation
            errors with a decision tree, and MD tree.
        chosen: (reference, random generator) -> mask of the rows learnt on.
    """

    title: str
    question: str
    published: tuple[float, float, float]
    chosen: Callable[[pd.DataFrame, np.random.Generator], Mask]


def _at_random(count: int) -> Callable[[pd.DataFrame, np.random.Generator], Mask]:
    def chosen(table: pd.DataFrame, random: np.random.Generator) -> Mask:
        mask = np.zeros(len(table), bool)
        mask[random.choice(len(table), count, replace=False)] = True
        return mask

    return chosen


def _few_images(table: pd.DataFrame, random: np.random.Generator) -> Mask:
    return np.asarray(table.index.get_level_values("data_fraction") <= FEW_IMAGES + 1e-9)


def _narrow(table: pd.DataFrame, random: np.random.Generator) -> Mask:
    return np.asarray(table.index.get_level_values("width") <= NARROWEST)


CASES = (
    DiagnosisCase("hotter or colder; 96 settings at random", "p_hotter", (49.6, 72.8, 87.7), _at_random(96)),
    DiagnosisCase("hotter or colder; at most 5,000 images", "p_hotter", (64.7, 51.7, 75.9), _few_images),
    DiagnosisCase("hotter or colder; at most 11,420 parameters", "p_hotter", (60.1, 67.6, 82.6), _narrow),
    DiagnosisCase("wider or temperature; 167 settings at random", "p_wider", (53.5, 55.8, 74.1), _at_random(167)),
    DiagnosisCase("wider or temperature; at most 5,000 images", "p_wider", (53.5, 63.6, 78.2), _few_images),
)


def bayesian_trees(questions: Sequence[Question] = QUESTIONS) -> Learner:
    """Return the learner of this package, with the shapes and priors of some questions."""

    def learn(table: pd.DataFrame, question: str, seed: int) -> Callable[[pd.DataFrame], Array]:
        fitted = Diagnosis.fit(table, seed=seed, questions=[each for each in questions if each.name == question])
        return lambda other: fitted.predict(other)[question].to_numpy()

    return learn


def answers(table: pd.DataFrame, question: str) -> Array:
    """Return the true answers to a question, NaN for ties."""
    (known,) = (each for each in QUESTIONS if each.name == question)
    return known.answers({name: table[name].to_numpy() for name in GAINS})


def accuracy(probability: Array, answer: Array) -> float:
    """Return the share of right answers among those with a truth; a probability of exactly 0.5 is half right."""
    known = np.isfinite(answer)
    right = np.where(probability[known] == 0.5, 0.5, (probability[known] > 0.5) == answer[known])
    return float(right.mean())


def case_accuracy(
    case: DiagnosisCase,
    table: pd.DataFrame,
    learner: Learner,
    seed: int,
    shifts: Mapping[str, Shift] | None = None,
    shuffled: bool = False,
) -> dict[str, float]:
    """Return the accuracies of a case on the rows that it was not learnt on.

    Args:
        case: the question and the part learnt on.
        table: the basic collection, indexed by its settings.
        learner: the learner.
        seed: seed of the choice of rows, of the learner and of the shuffle.
        shifts: {name: change of the judged rows' measures}; the unchanged rows are always judged, as "none".
        shuffled: whether to shuffle the gains among the rows learnt on.
    """
    random = np.random.default_rng(seed)
    chosen = case.chosen(table, random)
    learnt, judged = table[chosen], table[~chosen]
    if shuffled:
        order = random.permutation(len(learnt))
        learnt = learnt.assign(**{name: learnt[name].to_numpy()[order] for name in GAINS})
    predict = learner(learnt, case.question, seed)
    truth = answers(judged, case.question)
    changes: dict[str, Shift] = {"none": lambda rows: rows, **(shifts or {})}
    return {name: accuracy(predict(change(judged)), truth) for name, change in changes.items()}


def left_out_probabilities(table: pd.DataFrame, learner: Learner, question: str, level: str, seed: int = 0) -> Array:
    """Return probabilities of every row, learnt on the rows with other values of an index level."""
    values = table.index.get_level_values(level)
    probability = np.full(len(table), np.nan)
    for value in np.unique(values):
        out = np.asarray(values == value)
        probability[out] = learner(table[~out], question, seed)(table[out])
    return probability


def _floor(rows: pd.DataFrame) -> pd.DataFrame:
    """Label noise that networks do not memorise: a floor under training error and loss."""
    hot = rows["train_error"] > MEMORISED
    return rows.assign(
        train_error=np.where(hot, 0.1 + 0.9 * rows["train_error"], rows["train_error"]),
        train_loss=np.where(hot, 0.5 + rows["train_loss"], rows["train_loss"]),
    )


def _floor_of_curve(rows: pd.DataFrame) -> pd.DataFrame:
    hot = rows["train_error"] > MEMORISED
    return _floor(rows.assign(curve_peak=np.where(hot, np.maximum(rows["curve_peak"] - 0.05, -1), rows["curve_peak"])))


def _worse_curve(rows: pd.DataFrame) -> pd.DataFrame:
    hot = rows["train_error"] > MEMORISED
    return rows.assign(curve=np.where(hot, np.maximum(rows["curve"] - 0.05, -1), rows["curve"]))


def _larger_curvature(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(hessian_trace=3 * rows["hessian_trace"], hessian_top=3 * rows["hessian_top"])


def _all(rows: pd.DataFrame) -> pd.DataFrame:
    return _less_similar(_larger_loss(_larger_curvature(_floor_of_curve(rows))))


def _larger_loss(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(train_loss=2 * rows["train_loss"])


def _less_similar(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(cka=0.8 * rows["cka"])


SHIFTS: Mapping[str, Shift] = {
    "Hessian x 3": _larger_curvature,
    "training loss x 2": _larger_loss,
    "CKA x 0.8": _less_similar,
    "error floor of 10 %": _floor,
    "floor, and 5 points on the curve": _floor_of_curve,
    "curve 5 points worse": _worse_curve,
    "floor, curve, Hessian, loss, CKA": _all,
}


def reliability(probability: Array, answer: Array, bins: int = 10) -> tuple[list[tuple[float, float, int]], float]:
    """Return (mean probability, share of yes, rows) of equal-width bins, and the expected calibration error.

    The error is the mean over the rows of the absolute difference between the two in their bin.
    """
    known = np.isfinite(answer) & np.isfinite(probability)
    probability, answer = probability[known], answer[known]
    number = np.minimum((probability * bins).astype(int), bins - 1)
    rows = [
        (float(probability[number == each].mean()), float(answer[number == each].mean()), int((number == each).sum()))
        for each in np.unique(number)
    ]
    return rows, sum(abs(said - seen) * count for said, seen, count in rows) / max(1, len(answer))
