"""Trees with uncertain cuts: closed forms, missing measures, calibration on data drawn from the model."""

from __future__ import annotations

import numpy as np
import pytest

from regimes.diagnosis.cut_tree import Asked, Cut, FittedTree, Leaf
from regimes.diagnosis.measures import Array, measure_named


def test_a_leaf_alone_has_the_mean_of_its_beta_distribution() -> None:
    answer = np.array([1.0, 1, 0])
    tree = FittedTree.fit(Leaf(2, 1), {}, answer)
    assert tree.probability(Asked({}, 4)) == pytest.approx([4 / 6] * 4)


def test_a_certain_cut_counts_the_rows_on_either_side() -> None:
    tree = Cut("cka", 0.5, 1e-9, above=Leaf(1, 1), below=Leaf(1, 1))
    values = {"cka": np.array([0.6, 0.7, 0.8, 0.1])}
    fitted = FittedTree.fit(tree, values, np.array([1.0, 1, 0, 0]))
    assert fitted.probability(Asked({"cka": np.array([0.9, 0.2])}, 2)) == pytest.approx([3 / 5, 1 / 3])


def test_a_missing_measure_takes_both_branches_in_the_shares_of_the_learnt_rows() -> None:
    tree = Cut("cka", 0.5, 1e-9, above=Leaf(1, 1), below=Leaf(1, 1))
    fitted = FittedTree.fit(tree, {"cka": np.array([0.6, 0.7, 0.8, 0.1])}, np.array([1.0, 1, 0, 0]))
    share = (3 + 1) / (4 + 2)
    assert fitted.probability(Asked({}, 1)) == pytest.approx([share * 3 / 5 + (1 - share) / 3], rel=1e-5)


def test_stand_ins_replace_a_missing_measure_and_a_standard_error_softens_a_cut() -> None:
    tree = Cut("cka", 0.5, 1e-9, above=Leaf(1, 1), below=Leaf(1, 1))
    fitted = FittedTree.fit(tree, {"cka": np.array([0.6, 0.7, 0.8, 0.1])}, np.array([1.0, 1, 0, 0]))
    similar = {"cka": np.array([[0.9, 0.8, 0.7, 0.1]])}
    assert fitted.probability(Asked({}, 1, stand_ins=similar)) == pytest.approx([0.75 * 3 / 5 + 0.25 / 3])
    at_the_cut = Asked({"cka": np.array([0.5])}, 1, blur={"cka": np.array([0.1])})
    assert fitted.probability(at_the_cut) == pytest.approx([0.5 * 3 / 5 + 0.5 / 3], rel=1e-4)


def drawn(random: np.random.Generator, rows: int) -> tuple[dict[str, Array], Array, Array]:
    """Values, answers and true probabilities of a tree with a cut of CKA at 0.6 and one of LMC at -0.2."""
    values = {"cka": random.uniform(0, 1, rows), "lmc": random.uniform(-1, 0, rows)}
    truth = np.where(values["cka"] > 0.6, 0.9, np.where(values["lmc"] > -0.2, 0.7, 0.1))
    return values, (random.random(rows) < truth).astype(float), truth


def test_the_true_cuts_lie_in_their_intervals_and_probabilities_are_calibrated() -> None:
    tree = Cut("cka", 0.5, 0.2, Leaf(1, 1), Cut("lmc", -0.4, 0.3, Leaf(1, 1), Leaf(1, 1)))
    random = np.random.default_rng(0)
    inside, gaps = [], []
    for seed in range(20):
        values, answer, _ = drawn(random, 150)
        fitted = FittedTree.fit(tree, values, answer, seed)
        inside += [fitted.threshold(0, 0.025) <= 0.6 <= fitted.threshold(0, 0.975)]
        others, _, truth = drawn(random, 400)
        gaps.append(np.abs(fitted.probability(Asked(others, 400)) - truth).mean())
    assert np.mean(inside) >= 0.85
    assert np.mean(gaps) < 0.08


def test_the_posterior_of_one_cut_is_that_of_a_fine_grid() -> None:
    random = np.random.default_rng(1)
    cka = random.uniform(0, 1, 60)
    answer = (random.random(60) < np.where(cka > 0.45, 0.8, 0.2)).astype(float)
    fitted = FittedTree.fit(Cut("cka", 0.5, 0.2, Leaf(1, 1), Leaf(1, 1)), {"cka": cka}, answer)
    from scipy.special import betaln

    grid = np.linspace(-0.5, 1.5, 4001)
    above = cka > grid[:, None]
    log = -0.5 * ((grid - 0.5) / 0.2) ** 2
    for side in (above, ~above):
        log += 0.5 * (betaln(1 + side @ answer, 1 + side @ (1 - answer)) - betaln(1, 1))
    exact = np.exp(log - log.max())
    assert float(fitted.thresholds[0] @ fitted.weights) == pytest.approx(float(grid @ exact / exact.sum()), abs=0.02)


def test_scales_and_their_inverses() -> None:
    for name, value in {"train_error": 0.03, "train_loss": 0.4, "curve_peak": -0.2, "hessian_trace": -7.0}.items():
        measure = measure_named(name)
        assert float(measure.inverse(measure.scale(np.array(value)))) == pytest.approx(value)
    trace = measure_named("hessian_trace")
    assert float(trace.scale(np.array(1e4))) == pytest.approx(np.log(1e4), rel=1e-6)
