"""Scores, comparisons and conclusions of replayed searches; ranking quality by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from search_tables import COUNT, table, world

from regimes.research.hpo_benchmark.comparisons import Comparison, contrasts
from regimes.research.hpo_benchmark.conclusions import conclusions
from regimes.research.hpo_benchmark.fidelities import FULL
from regimes.research.hpo_benchmark.figures import SHOWN
from regimes.research.hpo_benchmark.live_check import LIVE_METHODS
from regimes.research.hpo_benchmark.methods import CONTRASTS, METHODS
from regimes.research.hpo_benchmark.optimum_shift import shift_between
from regimes.research.hpo_benchmark.ranking_quality import ranking_quality, recall, regret
from regimes.research.hpo_benchmark.ranking_tables import validation_value_table
from regimes.research.hpo_benchmark.run_method import MethodResult
from regimes.research.hpo_benchmark.scores import (
    Interval,
    Scores,
    final_error,
    incumbents,
    mean_difference,
    not_worse,
    saving,
    time_to,
)

# -- scores -----------------------------------------------------------------------------------------------------------


def test_a_target_is_reached_when_what_is_held_stays_within_it() -> None:
    tested = np.array([0.3, 0.1, 0.25, 0.05])
    found = MethodResult(((10.0, 0, 1.0), (20.0, 1, 0.9), (30.0, 3, 0.95), (40.0, 2, 0.8)), 50.0)
    assert incumbents(found) == [(10.0, 0), (20.0, 1), (40.0, 2)]  # setting 3 is never held
    assert time_to(found, tested, 0.3) == 10.0
    assert time_to(found, tested, 0.25) == 20.0
    assert time_to(found, tested, 0.1) == math.inf  # held at 20, given away at 40
    assert final_error(found, tested) == 0.25
    assert final_error(MethodResult((), 5.0), tested) == 1.0
    assert time_to(MethodResult((), 5.0), tested, 0.5) == math.inf


def test_savings_are_of_medians_and_bear_what_never_arrives() -> None:
    base = [100.0, 110.0, 90.0, 105.0, 95.0] * 2
    found = saving([each / 4 for each in base], base)
    assert found.value == pytest.approx(0.75)
    assert found.low <= 0.75 <= found.high
    assert saving([*base[:-1], math.inf], base).value == pytest.approx(1 - 100 / 100, abs=0.06)
    assert saving([math.inf] * 10, base).value == -math.inf
    assert saving(base, [math.inf] * 10).value == 1.0
    assert saving([math.inf] * 10, [math.inf] * 10).value == 0.0
    assert saving([math.inf] * 10, base).percent() == "never"
    assert saving(base, [math.inf] * 10).percent() == "the other never"


@given(st.lists(st.floats(0.01, 0.2), min_size=5, max_size=20), st.floats(-0.05, 0.05))
def test_a_difference_lies_in_its_interval(errors: list[float], apart: float) -> None:
    found = mean_difference([each + apart for each in errors], errors)
    assert found.value == pytest.approx(apart, abs=1e-9)
    assert found.low - 1e-9 <= apart <= found.high + 1e-9
    assert not_worse(found, abs(apart) + 1e-6)
    assert not not_worse(found, apart - 1e-6)


# -- fidelity and shift -----------------------------------------------------------------------------------------------


def test_fidelity_is_what_brute_force_says() -> None:
    found = ranking_quality(table(), "narrowed 0.12")  # of one seed
    cheap, pairs = table().final_values("narrowed 0.12"), list(itertools.combinations(range(COUNT), 2))
    expected = []
    for full in (table().final_values(FULL, 0), table().final_values(FULL, 1)):
        signs = [[np.sign(np.nan_to_num(each[a] - each[b])) for a, b in pairs] for each in (cheap, full)]
        ties = sum(np.isinf(cheap[a]) and np.isinf(cheap[b]) for a, b in pairs)
        expected.append(float(np.dot(*signs)) / (len(pairs) - ties))
        assert expected[-1] == pytest.approx(kendalltau(cheap, full).statistic)
    assert found.tau.value == pytest.approx(np.mean(expected), abs=1e-6)
    again = ranking_quality(table(), FULL)
    assert again.tau.value == pytest.approx(
        kendalltau(table().final_values(FULL, 0), table().final_values(FULL, 1)).statistic
    )
    assert again.less == Interval(0.0, 0.0, 0.0)
    assert found.less.value == pytest.approx(found.tau.value - again.tau.value)
    assert found.tau.low < found.tau.value < found.tau.high
    assert (found.cost, found.alone) == pytest.approx((0.2, 0.8))
    assert ranking_quality(table(), FULL, 5).cost == pytest.approx(0.25)


def test_a_value_is_held_against_the_full_networks_and_against_test_errors_of_other_seeds() -> None:
    facts = {each["course"]: each for each in validation_value_table(table()).facts}
    assert list(facts) == ["full, another seed", "narrowed 0.06", "narrowed 0.12"]
    zeros, ones = np.zeros(COUNT, dtype=np.int64), np.ones(COUNT, dtype=np.int64)
    for value in ("loss", "error", "calibrated"):
        one, two = (table().final_values(FULL, seed, value) for seed in (0, 1))
        again = facts["full, another seed"][value]
        assert again["alike"] == pytest.approx(kendalltau(one, two).statistic)
        truly = [
            kendalltau(*pair).statistic
            for pair in ((one, table().expected_test_errors(zeros)), (two, table().expected_test_errors(ones)))
        ]
        assert again["truly"] == pytest.approx(np.mean(truly))
        small = table().final_values("narrowed 0.12", 0, value)
        truly = [kendalltau(small, table().expected_test_errors(each)).statistic for each in (zeros, ones)]
        assert facts["narrowed 0.12"][value]["truly"] == pytest.approx(np.mean(truly))


def test_regret_is_what_validation_would_choose() -> None:
    full, tested = np.arange(10.0), np.linspace(0.1, 0.2, 10)
    tested[5] = 0.0  # the test split must not choose it
    assert regret(full, full, tested) == 0.0
    assert regret(-full, full, tested) == pytest.approx(tested[5] - tested[0])  # 5 is the best of 9, 8, 7, 6, 5
    assert regret(np.roll(full, 1), full, tested) == pytest.approx(tested[1] - tested[0])


def test_verdicts_are_of_intervals_that_leave_out_zero() -> None:
    less, more, none = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.0, -0.1, 0.1)

    def verdict(*found: Interval) -> str:
        return Comparison("", "one", "other", *found).verdict

    assert verdict(none, none, none) == "undecided"
    assert verdict(less, none, none) == "takes less time"
    assert verdict(more, less, more) == "is sooner at the target; ends better; takes more time"
    assert verdict(none, more, less) == "is later at the target; ends worse"


def searched(seconds: float, error: float, overhead: float = 0.0) -> list[MethodResult]:
    """Forty searches that take about so long, and end near so many errors."""
    return [
        MethodResult(((seconds + each % 3, round(1000 * error) + each % 2, 1.0),), seconds + 3, overhead)
        for each in range(40)
    ]


def words(**methods: list[MethodResult]) -> list[str]:
    """What is said of methods, by names that are spelled with underscores."""
    names = {"base": "TPE, full network", "median": "TPE + median", "ours": "ours at 0.06", "wide": "ours at 0.12"}
    names |= {
        "alone": "ours, no proxy",
        "mapped": "ours, with the map",
        "salient": "ours, saliency",
        "large": "ours, magnitude",
    }
    found = {names[key]: each for key, each in methods.items()}
    scores = Scores.of(found, [np.arange(1000) / 1000] * 40, 0.005)
    return conclusions(scores, contrasts(scores))


def test_what_searches_came_to_is_said_in_words() -> None:
    base = searched(400, 0.04)
    saved, stoppers = words(base=base, ours=searched(60, 0.041), median=searched(80, 0.04))
    assert "saves 84 % (84 % to 84 %) of the time in total" in saved
    assert "80 % was the goal: reached." in saved
    assert "+0.10 (+0.10 to +0.10) points of test error, 0.50 allowed" in saved
    assert "*TPE + median* is the fastest" in stoppers
    assert "30 % was the goal: not reached." in stoppers
    saved, stoppers = words(base=base, ours=searched(60, 0.06), median=searched(80, 0.06))
    assert "It may end worse: +2.00" in saved
    assert "and misses the target; 80 % was the goal: reached in total, not reached to the target" in saved
    assert "none of them is shown" in stoppers


def test_width_and_the_map_are_said_by_what_their_comparisons_show() -> None:
    base, ours = searched(400, 0.04), searched(60, 0.04)
    (*_, said) = words(base=base, ours=ours, salient=searched(80, 0.04))
    assert "Only width. Of 1 comparisons 0 favour pruning, 1 uniformly narrower layers. " in said
    assert "*ours, saliency* compared with *ours at 0.06*: takes more time; is later at the target." in said
    (*_, said) = words(base=base, ours=ours, salient=searched(60, 0.03))
    assert "Pruning does." in said
    (*_, said) = words(base=base, ours=ours, salient=searched(60, 0.03), large=searched(60, 0.05))
    assert "Undecided. Of 2 comparisons 1 favour pruning, 1 uniformly narrower layers." in said
    (*_, said) = words(base=base, wide=ours, alone=searched(100, 0.04), mapped=searched(80, 0.04, 50.0))
    assert said.startswith("**Does the map pay?** No.")
    assert said.endswith("Making the map takes 50 s of it.")
    (*_, said) = words(base=base, wide=ours, alone=searched(100, 0.04), mapped=searched(50, 0.04, 20.0))
    assert said.startswith("**Does the map pay?** Yes.")


def test_contrasts_name_existing_methods() -> None:
    names = {method.name for method in METHODS}
    assert len(names) == len(METHODS)
    assert {name for _, *both in CONTRASTS for name in both} <= names
    assert {*SHOWN, *LIVE_METHODS} <= names


def test_recall_of_the_best() -> None:
    full = np.arange(40.0)
    assert recall(full, full) == 1.0
    assert recall(-full, full) == 0.0
    swapped = full.copy()
    swapped[[3, 30]] = swapped[[30, 3]]
    assert recall(swapped, full) == 0.75  # of the best four one is lost


def test_a_known_shift_is_found() -> None:
    space = world()[0].space
    full = np.full(COUNT, np.nan)
    few = [number for number, each in enumerate(table().settings) if each["learning_rate"] < 0.9][:24]
    full[few] = table().final_values(FULL)[few]
    found = shift_between(table().settings, table().final_values("narrowed 0.06"), full, space)
    assert found.pairs == 24
    assert found.factors["learning_rate"] == pytest.approx(2.0, rel=0.25)
    assert found.low["learning_rate"] < 2.0 < found.high["learning_rate"] * 1.1
    assert found.factors["weight_decay"] == pytest.approx(1.0, rel=0.5)
    none = shift_between(table().settings, table().final_values(FULL, 0), table().final_values(FULL, 1), space)
    assert none.factors["learning_rate"] == pytest.approx(1.0, rel=0.1)
