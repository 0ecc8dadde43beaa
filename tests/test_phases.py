"""Regimes found in data with a known answer, and reported absent where the data show none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from regimes import UserError, classify
from regimes.phases.classify import present

EPOCHS = [5, 10, 20, 40, 80, 160]
DENSITY = [0.03, 0.05, 0.08, 0.14, 0.3, 0.8]


def diagram(
    seed: int, noise: float = 0.005, barrier: float = 0.2, dissimilar: float = 0.7, pairs: int = 3
) -> tuple[xr.Dataset, np.ndarray]:
    """A phase diagram with known borders: I where cold and sparse, II-A where hot, II-B where cold and dense."""
    rng = np.random.default_rng(seed)
    cold = np.arange(6)[:, None] / 5
    dense = np.arange(6)[None, :] / 5
    poorly = (dense < 0.15 + 0.4 * cold) & (barrier > 0)
    similar = dense + 1.2 * cold > 0.9
    truth = np.where(poorly, 0, np.where(similar | (dissimilar == 0), 2, 1))
    depth = barrier * (0.3 + 0.7 * rng.random((6, 6)))
    lmc = np.where(truth == 0, -depth, 0.0)[..., None] + noise * rng.standard_normal((6, 6, pairs))
    distance = np.where(truth == 2, 0.06, 0.06 + 0.2 * dissimilar) * (1.4 - 0.8 * dense)
    cka = np.clip(1 - distance[..., None] * np.exp(0.1 * rng.standard_normal((6, 6, pairs))), 0, 1)
    dims = ("epochs", "density", "pair")
    return xr.Dataset({"lmc": (dims, lmc), "cka": (dims, cka)}, {"epochs": EPOCHS, "density": DENSITY}), truth


@pytest.mark.parametrize("seed", range(12))
def test_known_regimes_are_found(seed: int) -> None:
    data, truth = diagram(seed)
    found = classify(data).regime.values
    assert (found == truth).mean() >= 34 / 36


@pytest.mark.parametrize("seed", range(4))
def test_absent_regimes_are_reported_absent(seed: int) -> None:
    connected = classify(diagram(seed, barrier=0.0)[0])
    assert present(connected)["I"] == 0
    assert "I" in connected.regime.attrs["absent"].split()
    similar = classify(diagram(seed, dissimilar=0.0)[0])
    counts = present(similar)
    assert counts["II-A"] == 0, similar.regime.attrs["thresholds"]
    assert counts["I"] > 0


def test_a_grid_of_barriers_alone_is_all_regime_one() -> None:
    data, _ = diagram(0)
    data["lmc"] = data.lmc * 0 - 0.3 + 0.05 * np.random.default_rng(0).standard_normal(data.lmc.shape)
    assert present(classify(data)) == {"I": 36, "II-A": 0, "II-B": 0}


def test_given_thresholds_are_taken_and_recorded() -> None:
    data, _ = diagram(1)
    labelled = classify(data, lmc=-0.1, cka=0.85)
    lmc, cka = data.lmc.mean("pair"), data.cka.mean("pair")
    by_hand = xr.where(lmc < -0.1, 0, xr.where(cka < 0.85, 1, 2))
    assert (labelled.regime == by_hand).all()
    assert labelled.regime.attrs["lmc_cut"] == -0.1
    assert "LMC cut -0.1: given" in labelled.regime.attrs["thresholds"]
    assert (labelled.cka_cut == 0.85).all()


def test_unmeasured_cells_are_unknown_and_disturb_nobody() -> None:
    data, truth = diagram(2)
    data.lmc[0, 0] = np.nan
    data.cka[5, 5] = np.nan
    found = classify(data).regime.values
    assert found[0, 0] == found[5, 5] == -1
    truth[0, 0] = truth[5, 5] = -1
    assert (found == truth).mean() >= 34 / 36


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500), data=st.data())
def test_order_of_cells_and_pairs_changes_nothing(seed: int, data: st.DataObject) -> None:
    made, _ = diagram(seed)
    rows, columns = data.draw(st.permutations(range(6))), data.draw(st.permutations(range(6)))
    shuffled = made.isel(epochs=rows, density=columns, pair=[2, 0, 1]).transpose("pair", "density", "epochs")
    assert classify(shuffled).regime.sortby("epochs").sortby("density").equals(classify(made).regime)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500))
def test_more_of_a_barrier_never_leaves_regime_one(seed: int) -> None:
    made, _ = diagram(seed)
    once = classify(made, lmc=-0.05)
    deeper = classify(made.assign(lmc=made.lmc - 0.02), lmc=-0.05)
    assert bool((deeper.regime.where(once.regime == 0, 0) == 0).all())


def test_one_value_a_cell_and_several_knobs() -> None:
    data, truth = diagram(3, noise=0.001, pairs=1)
    two = xr.concat([data.isel(pair=0), data.isel(pair=0)], dim="batch_size").assign_coords(batch_size=[32, 64])
    found = classify(two).regime
    assert set(found.dims) == {"batch_size", "epochs", "density"}
    assert (found.isel(batch_size=0).transpose("epochs", "density").values == truth).mean() >= 33 / 36


def test_unknown_rule_is_said() -> None:
    with pytest.raises(UserError, match=r"unknown rule 'separatio' .*did you mean 'separation'"):
        classify(diagram(0)[0], rule="separatio")
