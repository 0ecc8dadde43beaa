"""Gains computed from test errors are those published with the reference."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regimes.diagnosis.gains import gains_of
from regimes.diagnosis.measures import GAINS
from regimes.diagnosis.reference import FILE
from regimes.record.grid import load_netcdf


def test_the_gains_of_the_reference_follow_from_its_test_errors() -> None:
    data = load_netcdf(FILE)
    computed = gains_of(data.drop_vars(GAINS))
    for name in GAINS:
        expected = data[name].transpose(*computed[name].dims).values
        assert np.allclose(computed[name].values, expected, atol=1e-4), name


def test_a_small_sweep_by_hand() -> None:
    error = xr.DataArray([[0.3, 0.1], [0.2, 0.2], [0.4, np.nan]], dims=("batch_size", "dense_seed"))
    data = xr.Dataset({"test_error": error}, coords={"batch_size": [16, 32, 64]})
    gains = gains_of(data)
    assert np.allclose(gains["gain_hotter"], [0, 0, 0.2])
    assert np.allclose(gains["gain_colder"], [0, 0, 0])
    assert "gain_wider" not in gains
    assert "gain_hotter" not in data


def test_gains_that_are_there_are_kept() -> None:
    data = xr.Dataset({"test_error": ("batch_size", [0.3, 0.2])}, coords={"batch_size": [16, 32]})
    given = data.assign(gain_hotter=("batch_size", [0.7, 0.7]))
    assert np.allclose(gains_of(given)["gain_hotter"], 0.7)
