"""Diagnosis from tables: every row alone, missing measures, refusals, and accuracies on the reference."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import regimes
from regimes.diagnosis.evaluate_diagnosis import (
    CASES,
    SHIFTS,
    accuracy,
    answers,
    bayesian_trees,
    case_accuracy,
    left_out_probabilities,
    reliability,
)
from regimes.diagnosis.measures import GAINS, MEASURES
from regimes.diagnosis.reference import FILE, reference
from regimes.record.grid import load_netcdf

COLUMNS = ["p_hotter", "p_wider", "p_data", "familiar"]
ONE = pd.DataFrame({"train_error": [0.02], "hessian_trace": [300.0]})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return reference()


@pytest.fixture(scope="module")
def default() -> regimes.Diagnosis:
    return regimes.Diagnosis.default()


def test_rows_order_and_index_are_kept_and_every_row_is_judged_alone(
    table: pd.DataFrame, default: regimes.Diagnosis
) -> None:
    some = table.sample(30, random_state=0)
    before = some.copy(deep=True)
    said = default.predict(some)
    assert list(said.columns) == COLUMNS
    assert said.index.equals(some.index)
    pd.testing.assert_frame_equal(some, before)
    for number in (0, 7, 29):
        pd.testing.assert_frame_equal(default.predict(some.iloc[[number]]), said.iloc[[number]])
    pd.testing.assert_frame_equal(default.predict(some[::-1]), said[::-1])


def test_duplicate_and_unsorted_indices_and_foreign_columns(table: pd.DataFrame, default: regimes.Diagnosis) -> None:
    some = table.iloc[:6].reset_index(drop=True)
    other = some.set_axis([3, 3, 1, 0, 9, 9]).assign(test_error=9.0, comment="x", batch_size=np.inf)
    said = default.predict(other)
    assert list(said.index) == [3, 3, 1, 0, 9, 9]
    np.testing.assert_array_equal(said.to_numpy(), default.predict(some).to_numpy())


def test_the_same_seed_gives_the_same_diagnosis_whatever_the_order_of_the_rows(table: pd.DataFrame) -> None:
    some = table.sample(120, random_state=1)
    first, again = (regimes.Diagnosis.fit(some, seed=3).predict(table.iloc[::50]) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    turned = regimes.Diagnosis.fit(some[::-1], seed=3).predict(table.iloc[::50])
    np.testing.assert_allclose(turned, first, atol=2e-3)


def test_a_dataset_is_a_table_too(default: regimes.Diagnosis) -> None:
    data = load_netcdf(FILE)
    said = default.predict(data)
    assert said.index.names == ["width", "batch_size", "data_fraction"]
    assert len(said) == 1690
    learnt = regimes.Diagnosis.fit(data.drop_vars(GAINS))  # the gains follow from the test errors
    np.testing.assert_allclose(learnt.predict(data)["p_hotter"], said["p_hotter"], atol=0.05)


def test_seeds_and_pairs_of_a_dataset_are_averaged(default: regimes.Diagnosis) -> None:
    dims = ("batch_size", "retrain_seed")
    data = xr.Dataset({"train_error": (dims, [[0.0, 0.02], [0.3, 0.3]])}, coords={"batch_size": [16, 32]})
    expected = default.predict(pd.DataFrame({"train_error": [0.01, 0.3]}, index=pd.Index([16, 32], name="batch_size")))
    pd.testing.assert_frame_equal(default.predict(data), expected)


@pytest.mark.parametrize("measure", [name for name in MEASURES if name != "lmc"])
def test_any_measure_may_be_missing(measure: str, table: pd.DataFrame, default: regimes.Diagnosis) -> None:
    some = table.sample(200, random_state=2)
    without = default.predict(some.drop(columns=measure))
    as_nan = default.predict(some.assign(**{measure: np.nan}))
    pd.testing.assert_frame_equal(without, as_nan)
    truth = answers(some, "p_hotter")
    assert accuracy(without["p_hotter"].to_numpy(), truth) > 0.85
    alone = default.predict(some[[measure]])
    assert alone.notna().all(axis=None)


def test_a_row_without_measures_is_unfamiliar(default: regimes.Diagnosis) -> None:
    said = default.predict(pd.DataFrame({"train_error": [np.nan, 0.1]}))
    assert said["familiar"].iloc[0] == 0
    assert 0 < said["p_hotter"].iloc[0] < 1


def test_far_from_the_reference_is_unfamiliar(table: pd.DataFrame, default: regimes.Diagnosis) -> None:
    some = table.sample(50, random_state=3)
    near, far = (default.predict(rows)["familiar"] for rows in (some, some.assign(hessian_trace=1e9, train_loss=50.0)))
    assert near.median() == 1
    assert far.max() < 0.3


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("train_error", 12.5, "divide percentages by 100"),
        ("cka", 97.0, "allowed: -0.2 to 1.001"),
        ("curve", -30.0, "divide percentages by 100"),
        ("curve_peak", 0.3, "flip the sign"),
        ("hessian_trace", np.inf, "'hessian_trace' is infinite in 1 of 1 rows"),
        ("train_loss", "low", "numbers"),
        ("train_error", True, "expected numbers"),
        ("train_error", 1j, "expected numbers"),
    ],
)
def test_implausible_values_are_refused(column: str, value: object, message: str, default: regimes.Diagnosis) -> None:
    with pytest.raises(regimes.UserError, match=message) as error:
        default.predict(ONE.assign(**{column: [value]}))
    assert len(error.value.lines) == 1


def test_tables_that_cannot_be_used_are_refused(table: pd.DataFrame, default: regimes.Diagnosis) -> None:
    with pytest.raises(regimes.UserError, match="none of its columns is a measure"):
        default.predict(pd.DataFrame({"x": [1.0]}))
    with pytest.raises(regimes.UserError, match="expected a pandas DataFrame or an xarray Dataset"):
        default.predict([1.0])  # type: ignore[arg-type]
    with pytest.raises(regimes.UserError, match="2 columns are named 'cka'"):
        default.predict(pd.DataFrame([[0.1, 0.2]], columns=["cka", "cka"]))
    with pytest.raises(regimes.UserError, match="no known gain"):
        regimes.Diagnosis.fit(table.drop(columns=[*GAINS]))
    with pytest.raises(regimes.UserError, match="no known measure"):
        regimes.Diagnosis.fit(table[[*GAINS]])
    with pytest.raises(regimes.UserError, match="no rows"):
        regimes.Diagnosis.fit(table.iloc[:0])
    with pytest.raises(regimes.UserError, match="gains are fractions"):
        regimes.Diagnosis.fit(table.assign(gain_wider=20.0))
    assert len(default.predict(table.iloc[:0])) == 0


def test_gains_that_are_missing_leave_a_question_open(table: pd.DataFrame) -> None:
    with pytest.warns(UserWarning, match="p_data is not learnt"), pytest.warns(UserWarning, match="p_wider"):
        learnt = regimes.Diagnosis.fit(table[["train_error", "curve", "gain_hotter", "gain_colder"]])
    said = learnt.predict(table.iloc[:5])
    assert said[["p_wider", "p_data"]].isna().all(axis=None)
    assert said["p_hotter"].notna().all()
    assert "p_wider: not learnt" in str(learnt)


def test_negative_traces_and_nullable_columns(default: regimes.Diagnosis) -> None:
    rows = pd.DataFrame({"hessian_trace": [-3.0, 0.0], "hessian_top": [0.0, 1.0], "train_error": [0.1, 0.2]})
    said = default.predict(rows)
    assert said.notna().all(axis=None)
    nullable = rows.convert_dtypes()
    np.testing.assert_array_equal(default.predict(nullable).to_numpy(), said.to_numpy())


def test_own_runs_with_lmc_alone_are_learnt_with_lmc() -> None:
    random = np.random.default_rng(0)
    lmc = random.uniform(-0.6, 0.3, 80)
    mine = pd.DataFrame({"train_error": 0.1, "lmc": lmc, "gain_hotter": lmc < 0, "gain_colder": lmc > 0}).astype(float)
    with pytest.warns(UserWarning, match="not learnt"):
        learnt = regimes.Diagnosis.fit(mine / [1, 1, 10, 10])
    said = learnt.predict(pd.DataFrame({"train_error": [0.1, 0.1], "lmc": [-0.5, 0.25]}))["p_hotter"]
    assert said[0] > 0.6 > 0.4 > said[1]
    assert "linear mode connectivity" in str(learnt)


def test_the_five_cases_are_ahead_of_the_published_accuracies(table: pd.DataFrame) -> None:
    """On the basic collection, in part chosen on it: a bound against regressions, not evidence."""
    for case, least in zip(CASES, (0.93, 0.92, 0.93, 0.83, 0.80), strict=True):
        found = case_accuracy(case, table, bayesian_trees(), seed=0, shifts=SHIFTS)
        assert found["none"] > max(least, case.published[2] / 100), case.title


def test_the_default_is_accurate_and_calibrated_on_widths_left_out(table: pd.DataFrame) -> None:
    probability = left_out_probabilities(table, bayesian_trees(), "p_hotter", "width")
    truth = answers(table, "p_hotter")
    assert accuracy(probability, truth) > 0.93
    assert reliability(probability, truth)[1] < 0.06


def test_shuffled_gains_teach_nothing_where_the_prior_says_nothing() -> None:
    table = reference()
    found = [case_accuracy(CASES[0], table, bayesian_trees(), seed, shuffled=True)["none"] for seed in range(5)]
    assert np.mean(found) < 0.75


def test_the_rule_can_be_read(default: regimes.Diagnosis) -> None:
    text = str(default)
    assert "p_hotter: hotter rather than colder (1560 networks" in text
    assert "training error above" in text
    assert "probability 0.9" in text
    assert max(map(len, text.splitlines())) < 120


def test_reliability_by_hand() -> None:
    bins, error = reliability(np.array([0.95, 0.95, 0.15, np.nan]), np.array([1.0, 0, 0, 1]))
    assert bins == [(0.15, 0.0, 1), (0.95, 0.5, 2)]
    assert error == pytest.approx((0.15 + 2 * 0.45) / 3)


def test_the_default_needs_no_torch_and_is_learnt_once() -> None:
    code = (
        "import sys, regimes; from regimes.diagnosis.reference import reference; "
        "regimes.Diagnosis.default().predict(reference()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert regimes.Diagnosis.default() is regimes.Diagnosis.default()


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_map_of_the_public_collection_is_advised_by_its_diagnosis(share: float) -> None:
    """Curve connectivity is mostly slightly negative there, which is no error to take a logarithm of."""
    chart = regimes.RegimeMap(load_netcdf(FILE).sel(data_fraction=share, drop=True))
    for name in ("curve", "curve_peak"):
        mean, spread = chart._measured.predicted(name)
        assert np.isfinite(mean).all()
        assert spread.max() < 2
        assert np.corrcoef(chart._measured.transform(name).inverse(mean), chart._measured.mean(name))[0, 1] > 0.9
    errors = load_netcdf(FILE).sel(data_fraction=share)["test_error"]
    excess, chance = [], []
    for width in errors["width"].values.tolist():
        chosen = chart.select(None, {"width": width}, "diagnosis").selected["batch_size"]
        above = errors.sel(width=width) - errors.sel(width=width).min()
        excess.append(float(above.sel(batch_size=chosen)))
        chance.append(float(above.mean()))
    assert np.mean(excess) < 0.9 * np.mean(chance)
