"""Regimes found in data with a known answer, and reported absent where the data show none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from known_grids import DENSITY, EPOCHS, diagram
from threadpoolctl import threadpool_info, threadpool_limits

from regimes import UserError, classify
from regimes.regime_map import RULES
from regimes.regime_map.blas_threads import one_blas_thread
from regimes.regime_map.cell_stats import cell_stderr
from regimes.regime_map.classify import present


@pytest.mark.parametrize("seed", range(12))
def test_known_regimes_are_found(seed: int) -> None:
    data, truth = diagram(seed)
    found = classify(data).regime.values
    assert (found == truth).mean() >= 34 / 36


def shared_copies(seed: int, size: int, deviation: float, value: float) -> np.ndarray:
    """Cells whose three pairs share three copies, each copy with an effect of its own: (size, size, 3)."""
    effects = deviation * np.random.default_rng(seed).standard_normal((size, size, 3))
    return value + effects[..., [0, 0, 1]] + effects[..., [1, 2, 2]]


@pytest.mark.parametrize("deviation", [0.002, 0.01, 0.03])
def test_noise_alone_is_seldom_taken_for_a_regime(deviation: float) -> None:
    dims = ("epochs", "density", "pair")
    false_one, false_a = 0, 0
    for seed in range(50):
        lmc, cka = shared_copies(seed, 5, deviation, 0.0), shared_copies(seed + 999, 5, 0.2 * deviation, 0.95)
        coords = {"epochs": EPOCHS[:5], "density": DENSITY[:5]}
        counts = present(classify(xr.Dataset({"lmc": (dims, lmc), "cka": (dims, np.clip(cka, 0, 1))}, coords)))
        false_one += counts["I"] > 0
        false_a += counts["II-A"] > 0
    assert false_one <= 8
    assert false_a <= 8


def test_fits_take_one_thread_whatever_the_machine_gives() -> None:
    def threads() -> set[int]:
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        assert threads() == {2}
        assert one_blas_thread(threads)() == {1}
        assert threads() == {2}


def test_a_grid_that_tells_no_noise_is_not_split_by_rounding() -> None:
    coords = {"epochs": EPOCHS, "density": DENSITY}
    for spread in (0.0, 1e-4):
        cka = 0.95 + spread * np.random.default_rng(0).standard_normal((6, 6))
        dims = ("epochs", "density")
        grid = xr.Dataset({"lmc": (dims, np.zeros((6, 6))), "cka": (dims, cka)}, coords)
        assert present(classify(grid)) == {"I": 0, "II-A": 0, "II-B": 36}


def barriers(values: np.ndarray, noise: float = 0.001) -> xr.Dataset:
    """A grid with given barriers over (epochs, density) and equal similarity everywhere."""
    lmc = -values[..., None] + noise * np.random.default_rng(0).standard_normal((*values.shape, 3))
    dims = ("epochs", "density", "pair")
    variables = {"lmc": (dims, lmc), "cka": (dims, np.full(lmc.shape, 0.97))}
    return xr.Dataset(variables, {"epochs": EPOCHS[: len(values)], "density": DENSITY[: values.shape[1]]})


def test_small_barriers_before_a_cliff_are_connected() -> None:
    """As in the three-regime study: some points of barrier, far beyond the noise, are not yet regime I."""
    values = np.repeat(np.array([0.08, 0.1, 0.12, 0.5, 0.52, 0.55])[:, None], 6, axis=1)
    found = classify(barriers(values)).regime
    assert ((found == 0) == (values > 0.3)).all()


def test_a_gradual_increase_is_no_cliff() -> None:
    values = np.repeat(np.linspace(0, 0.15, 6)[:, None], 6, axis=1)
    found = classify(barriers(values))
    assert present(found)["I"] == 0
    assert "no cliff of the barrier is seen" in found.regime.attrs["thresholds"]


@pytest.mark.parametrize("base", [-0.02, -0.1])
def test_a_path_below_its_ends_everywhere_is_no_barrier(base: float) -> None:
    """As of networks trained with dropout, whose error falls in the middle of the path."""
    values = base + 0.01 * np.random.default_rng(0).random((6, 6))
    assert present(classify(barriers(values, noise=0.0)))["I"] == 0
    assert present(classify(barriers(values[:2, :2], noise=0.0)))["I"] == 0


@pytest.mark.parametrize("height", [0.12, 0.3, 0.6])
def test_one_dense_seed_shows_a_cliff(height: float) -> None:
    values = np.where(np.add.outer(np.arange(6), -np.arange(6)) > 0, height, 0.01)
    found = classify(barriers(values, noise=0.01).isel(pair=[0])).regime
    assert ((found == 0) == (values > 0.05)).mean() >= 35 / 36


def test_a_single_wild_cell_has_the_regime_of_its_neighbours() -> None:
    data, truth = diagram(0)
    data["lmc"][1, 4], data["lmc"][4, 0] = -0.6, 0.0
    found = classify(data).regime.values
    assert found[1, 4] == truth[1, 4] != 0
    assert found[4, 0] == truth[4, 0] == 0
    assert (found == truth).mean() >= 34 / 36


def test_neither_spacing_nor_name_of_the_axes_matters() -> None:
    data, _ = diagram(0)
    once = classify(data).regime
    moved = data.assign_coords(epochs=[1, 2, 3, 100, 101, 5000], density=[0.01, 0.011, 0.012, 0.5, 0.6, 1.0])
    assert (classify(moved).regime.values == once.values).all()
    named = data.rename(epochs="age", density="budget").transpose("budget", "pair", "age")
    named["age"].attrs["hotter"], named["budget"].attrs["load"] = "smaller", 1
    assert (classify(named).regime.transpose("age", "budget").values == once.values).all()


def test_errors_that_are_no_fractions_are_refused() -> None:
    data, _ = diagram(0)
    for factor, said in ((100.0, "divide percentages by 100"), (-1.0, "an error is a fraction"), (np.inf, "infinite")):
        for name in ("test_error", "train_error", "dense_test_error"):
            wrong = data.assign({name: factor * data.lmc.clip(max=-0.1).isel(pair=0, drop=True) * -1})
            with pytest.raises(UserError, match=said):
                classify(wrong)


def test_any_load_and_a_curve_in_place_of_the_line() -> None:
    data, truth = diagram(0)
    wide = data.rename(density="width", lmc="curve").assign_coords(width=[4, 8, 16, 32, 64, 128])
    found = classify(wide)
    assert (found.regime.values == truth).mean() >= 34 / 36
    assert "trained curve" in found.lmc.attrs["long_name"]
    with pytest.raises(UserError, match=r"no load among the dimensions .*load = true"):
        classify(data.rename(density="size"))


def test_large_grids_are_mapped_or_refused_in_a_line() -> None:
    values = np.where(np.add.outer(np.linspace(0, 1, 45), -np.linspace(0, 1, 45)) > 0, 0.4, 0.01)
    dims, coords = ("epochs", "density"), {"epochs": np.arange(1, 46), "density": np.linspace(0.01, 1, 45)}
    noise = 0.01 * np.random.default_rng(0).standard_normal(values.shape)
    grid = xr.Dataset({"lmc": (dims, noise - values), "cka": (dims, np.full(values.shape, 0.97))}, coords)
    found = classify(grid).regime
    assert ((found == 0) == (values > 0.1)).mean() > 0.97
    huge = grid.isel(epochs=np.arange(200) % 45, density=np.arange(200) % 45)
    huge = huge.assign_coords(epochs=np.arange(1, 201), density=np.linspace(0.01, 1, 200))
    with pytest.raises(UserError, match=r"200 x 200 = 40,000 cells; a map takes 10,000 at most"):
        classify(huge)


def test_standard_error_counts_what_is_independent() -> None:
    """Three pairs of three copies are one independent pair; dense seeds are averaged first; images are shared."""
    means = shared_copies(0, 60, 0.01, 0.0)
    grid = xr.Dataset({"lmc": (("epochs", "density", "pair"), means)})
    claimed = float((cell_stderr(grid, "lmc", ["epochs"]) ** 2).mean() ** 0.5)
    true = float(means.mean(-1).std())
    assert 0.7 * true < claimed < 1.5 * true
    dense = 0.1 * np.random.default_rng(1).standard_normal((60, 60, 4, 1)) + means[:, :, None]
    grid = xr.Dataset({"lmc": (("epochs", "density", "dense_seed", "pair"), dense)})
    claimed = float((cell_stderr(grid, "lmc", ["epochs"]) ** 2).mean() ** 0.5)
    assert claimed == pytest.approx(float(dense.mean((2, 3)).std()), rel=0.1)
    images = xr.full_like(grid.lmc, 0.5)
    assert (cell_stderr(grid.assign(lmc_stderr=images), "lmc", ["epochs"]) == 0.5).all()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_labels_every_measured_cell_and_says_how(rule: str) -> None:
    data, _ = diagram(0)
    data["test_error"] = 0.1 - 0.5 * data.lmc.clip(max=0.0)
    data.lmc[0, 0] = np.nan
    labelled = classify(data, rule=rule)
    assert set(np.unique(labelled.regime)) <= {-1, 0, 1, 2}
    assert (labelled.regime == -1).sum() == 1
    assert labelled.regime.attrs["rule"] == rule
    assert labelled.regime.attrs["thresholds"]
    shares = labelled.regime_probability
    np.testing.assert_allclose(shares.sum("regime_name"), 1.0, atol=1e-9)
    best = shares.argmax("regime_name").where(labelled.regime >= 0, -1)
    assert (best == labelled.regime).all()


def test_rules_with_cuts_take_those_given() -> None:
    data, _ = diagram(0)
    assert "given" in classify(data, lmc=-0.1, cka=0.9).regime.attrs["thresholds"]
    with pytest.raises(UserError, match="rule 'error' has no cut for lmc"):
        classify(data.assign(test_error=data.cka), rule="error", lmc=-0.1)
    with pytest.raises(UserError, match="rule 'error' needs test errors"):
        classify(data, rule="error")


@pytest.mark.parametrize(
    ("lmc", "cka", "said"), [(0.5, None, "LMC cut 0.5"), (None, 2.0, "CKA cut 2"), (-3, None, "LMC cut -3")]
)
def test_impossible_thresholds_are_refused(lmc: float | None, cka: float | None, said: str) -> None:
    with pytest.raises(UserError, match=f"{said}: allowed"):
        classify(diagram(0)[0], lmc=lmc, cka=cka)


@settings(max_examples=40)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 999), holes=st.floats(0, 0.6))
def test_any_grid_is_labelled(rows: int, columns: int, seed: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (rows, columns)
    lmc = np.where(rng.random(shape) < holes, np.nan, -rng.choice([0.0, 0.1, 0.3], shape))
    lmc[0, 0] = -0.1
    cka = rng.choice([0.0, 0.5, 0.9, 1.0], shape)
    dims = ("epochs", "density")
    grid = xr.Dataset({"lmc": (dims, lmc), "cka": (dims, cka)}, {"epochs": EPOCHS[:rows], "density": DENSITY[:columns]})
    labelled = classify(grid)
    assert ((labelled.regime.values == -1) == np.isnan(lmc)).all()


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
    assert (labelled.regime == by_hand).mean() >= 34 / 36
    assert labelled.regime.attrs["lmc_cut"] == pytest.approx(-0.1)
    assert "LMC cut -0.1: given" in labelled.regime.attrs["thresholds"]
    assert "CKA cut 0.85: given" in labelled.regime.attrs["thresholds"]


def test_unmeasured_cells_are_unknown_and_disturb_nobody() -> None:
    data, truth = diagram(2)
    data.lmc[0, 0] = np.nan
    data.cka[5, 5] = np.nan
    found = classify(data).regime.values
    assert found[0, 0] == found[5, 5] == -1
    truth[0, 0] = truth[5, 5] = -1
    assert (found == truth).mean() >= 34 / 36


@settings(max_examples=20)
@given(seed=st.integers(0, 500), data=st.data())
def test_order_of_cells_and_pairs_changes_nothing(seed: int, data: st.DataObject) -> None:
    made, _ = diagram(seed)
    rows, columns = data.draw(st.permutations(range(6))), data.draw(st.permutations(range(6)))
    shuffled = made.isel(epochs=rows, density=columns, pair=[2, 0, 1]).transpose("pair", "density", "epochs")
    assert classify(shuffled).regime.sortby("epochs").sortby("density").equals(classify(made).regime)


def test_one_value_a_cell_and_several_knobs() -> None:
    data, truth = diagram(3, noise=0.001, pairs=1)
    two = xr.concat([data.isel(pair=0), data.isel(pair=0)], dim="batch_size").assign_coords(batch_size=[32, 64])
    found = classify(two).regime
    assert set(found.dims) == {"batch_size", "epochs", "density"}
    assert (found.isel(batch_size=0).transpose("epochs", "density").values == truth).mean() >= 33 / 36


def test_unknown_rule_is_said() -> None:
    with pytest.raises(UserError, match=r"unknown rule 'transitio' .*did you mean 'transition'"):
        classify(diagram(0)[0], rule="transitio")


@pytest.mark.parametrize("count", [16, 24, 28])
def test_without_a_cliff_regime_i_is_where_barriers_are_large(count: int) -> None:
    """Large barriers here and there are no cliff, and are poorly connected nevertheless; the other cells are not."""
    large = np.random.default_rng(4).permutation(np.arange(49) < count).reshape(7, 7)
    found = classify(flat_grid(np.where(large, -0.6, -0.01)))
    assert "no cliff" in found["regime"].attrs["thresholds"]
    assert "I is where one is above about 0.23" in found["regime"].attrs["thresholds"]
    assert ((found["regime"].values == 0) == large).mean() > 0.85


def test_a_grid_of_large_barriers_alone_is_all_beyond_the_cliff() -> None:
    found = classify(flat_grid(-0.3 + 0.02 * np.random.default_rng(5).standard_normal((7, 7))))
    assert (found["regime"].values == 0).all()
    assert "I is everywhere" in found["regime"].attrs["thresholds"]


def flat_grid(lmc: np.ndarray) -> xr.Dataset:
    dims = ("learning_rate", "density")
    coords = {"learning_rate": np.arange(1.0, 8), "density": np.arange(1, 8) / 10}
    return xr.Dataset({"lmc": (dims, lmc), "cka": (dims, np.full(lmc.shape, 0.95))}, coords)
