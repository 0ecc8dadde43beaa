"""Sweep files: everything wrong is said at once, in a line each that a user can act on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import write_toml
from hypothesis import given
from hypothesis import strategies as st

from regimes.config.discovery_file import read_discovery_file
from regimes.config.hpo_file import read_hpo
from regimes.config.keys import canonical, digest, seed_of
from regimes.config.overrides import apply_overrides
from regimes.config.recipe import LATER_FIELDS, RECIPES, Recipe
from regimes.config.sweep_file import read_sweep, resolve_sweep
from regimes.errors import UserError

Sweep = dict[str, Any]


def mistakes(sweep: Sweep) -> list[str]:
    with pytest.raises(UserError) as error:
        resolve_sweep(sweep, "s.toml")
    assert all("\n" not in line for line in error.value.lines)
    return list(error.value.lines)


def test_a_good_file_is_read_with_all_defaults(tiny: Sweep, tmp_path: Path) -> None:
    sweep = read_sweep(write_toml(tmp_path / "x.toml", tiny))
    assert sweep.recipe == RECIPES["synthetic"].model_copy(update={"epochs": 4, "batch_size": 32})
    assert sweep.retrain == sweep.recipe
    assert sweep.load.pruner == "magnitude"
    assert list(sweep.temperatures()) == [{"epochs": 2}, {"epochs": 4}]
    assert sweep.pairs() == [(0, 1)]


def test_betas_are_knobs_and_set_together_in_a_recipe(tiny: Sweep) -> None:
    tiny["recipe"] |= {"optimizer": "adamw", "betas": [0.8, 0.9], "clip_norm": 1.0}
    tiny["temperature"] = {"beta1": [0.5, 0.8], "beta2": [0.95]}
    tiny["retrain"] = {"optimizer": "sgd", "momentum": 0.5}
    sweep = resolve_sweep(tiny)
    found = [sweep.dense_recipe(each) for each in sweep.temperatures()]
    assert [(each.beta1, each.beta2) for each in found] == [(0.5, 0.95), (0.8, 0.95)]
    assert (sweep.retrain.beta1, sweep.retrain.optimizer, sweep.retrain.clip_norm) == (0.9, "sgd", 1.0)
    tiny["retrain"] = {"beta2": 0.7}
    assert (resolve_sweep(tiny).retrain.beta1, resolve_sweep(tiny).retrain.beta2) == (0.8, 0.7)


def test_name_defaults_to_the_file(tiny: Sweep, tmp_path: Path) -> None:
    del tiny["name"]
    assert read_sweep(write_toml(tmp_path / "mine.toml", tiny)).name == "mine"


def test_a_search_file_is_said_to_be_one(tiny: Sweep, tmp_path: Path) -> None:
    del tiny["temperature"]
    tiny["space"] = {"learning_rate": [0.1]}
    with pytest.raises(UserError, match="a search file, not a sweep file; use: regimes hpo"):
        read_sweep(write_toml(tmp_path / "x.toml", tiny))


def test_data_without_a_recipe_of_its_own_takes_the_papers(tiny: Sweep) -> None:
    tiny["data"] = {"name": "test_sweep_file:anything"}
    tiny["recipe"] = {}
    assert resolve_sweep(tiny).recipe == Recipe()


def anything() -> None:
    """Stands for a user's data set; never called here."""


def test_retraining_follows_the_recipe_but_no_knob(tiny: Sweep) -> None:
    tiny["temperature"] = {"learning_rate": [0.5]}
    tiny["retrain"] = {"epochs": 9}
    sweep = resolve_sweep(tiny)
    assert sweep.dense_recipe({"learning_rate": 0.5}).learning_rate == 0.5
    assert (sweep.retrain.learning_rate, sweep.retrain.epochs, sweep.recipe.epochs) == (0.1, 9, 4)


@pytest.mark.parametrize(
    ("table", "key", "value", "said"),
    [
        ("load", "density", [0.5, 1.5], r"load.density.1: .*less than or equal to 1, got 1.5"),
        ("load", "density", [0.5, 0.0], r"load.density.1: .*greater than 0, got 0.0"),
        ("load", "density", [0.5, 0.5], r"load.density: duplicate value 0.5"),
        ("load", "density", [], r"load.density: must be a list of at least one value"),
        ("load", "density", 0.5, r"load.density: must be a list"),
        (
            "load",
            "densty",
            [0.5],
            r"load.densty: unknown key \(did you mean 'density'\?\); allowed: density, nu, width, pruner",
        ),
        ("recipe", "learning_rate", "0.1", r"recipe.learning_rate: .*valid number, got '0.1'"),
        ("recipe", "epochs", True, r"recipe.epochs: .*valid integer, got True"),
        ("recipe", "epochs", 10**18, r"recipe.epochs: .*less than or equal to 1000000"),
        ("recipe", "base", ["x"], r"recipe.base: unknown recipe '\['x'\]'"),
        ("load", "density", [[0.1], [0.1]], r"load.density: must be a plain list of values, got \[0.1\] in it"),
        ("load", "density", [0.6, "0.5"], r"load.density.1: .*valid number, got '0.5'"),
        ("load", "pruner", "torch:pi", r"load.pruner: 'torch:pi' is a float; expected a function"),
        ("model", "name", "torch:pi", r"model.name: 'torch:pi' is a float; expected a function"),
        (
            "measure",
            "metrics",
            ["torch:sin"],
            r"measure.metrics: 'torch:sin' is a builtin_function_or_method; expected a Metric",
        ),
        ("temperature", "torch:pi", [1], r"temperature.torch:pi: 'torch:pi' is a float; expected a Knob"),
        ("temperature", "regimes.knobs:EPOCHS", [1], r"duplicate knob 'epochs'"),
        ("model", "widths", float("nan"), r"model.widths: nan is not a finite number"),
        ("measure", "lmc", {"points": 2}, r"measure.lmc.points: .*greater than or equal to 3, got 2"),
        ("measure", "cka", {"images": 2}, r"measure.cka.images: allowed: 0 \(all images\) or at least 8, got 2"),
        ("measure", "hessian", {"images": "64"}, r"measure.hessian.images: .*valid integer, got '64'"),
        ("measure", "hessian", {"probes": 1}, r"measure.hessian.probes: allowed: 0, or at least 2.*got 1"),
        ("temperature", "epochs", [10**400], r"temperature.epochs: an integer of 1329 bits; allowed: 64"),
        ("load", "pruner", "magnitud", r"load.pruner: unknown pruner 'magnitud' \(did you mean 'magnitude'\?\)"),
        (
            "load",
            "allocation",
            "even",
            r"load.allocation: unknown allocation 'even'.*allowed: erk, global, lamp, uniform, or an import path",
        ),
        ("model", "name", "mpl", r"model.name: unknown model 'mpl' \(did you mean 'mlp'\?\)"),
        ("model", "width", [3], r"model.width: unknown key \(did you mean 'widths'\?\); allowed: name, widths"),
        ("data", "name", "digit", r"data.name: unknown data set 'digit' \(did you mean 'digits'\?\)"),
        ("data", "shapes", [3], r"data.shapes: unknown key \(did you mean 'shape'\?\)"),
        ("recipe", "learning_rat", 0.1, r"recipe.learning_rat: unknown key \(did you mean 'learning_rate'\?\)"),
        ("recipe", "learning_rate", -0.1, r"recipe.learning_rate: .*greater than 0, got -0.1"),
        ("recipe", "learning_rate", "fast", r"recipe.learning_rate: .*valid number.*got 'fast'"),
        (
            "recipe",
            "base",
            "three-regimes",
            r"recipe.base: unknown recipe 'three-regimes' \(did you mean 'three-regime'\?\)",
        ),
        ("recipe", "schedule", "steps", r"recipe.schedule: .*'step', 'cosine', 'linear' or 'constant'"),
        ("recipe", "optimizer", "adamx", r"recipe.optimizer: .*'sgd', 'adam', 'adamw' or 'muon'"),
        ("recipe", "eps", 0.1, r"recipe.eps: not used by optimizer 'sgd', only by adam, adamw, muon; remove it"),
        ("recipe", "betas", [0.9], r"recipe: betas must be two numbers, e.g. .0.9, 0.999., and are .0.9."),
        ("recipe", "warmup", 5, r"recipe.warmup: .*less than 1"),
        ("recipe", "augment", "flip", r"recipe.augment: unknown augmentation 'flip'"),
        ("recipe", "stop", 3, r"recipe.stop: cannot be set here; use .temperature. epochs"),
        ("retrain", "epoch", 3, r"retrain.epoch: unknown key \(did you mean 'epochs'\?\)"),
        (
            "temperature",
            "epochs",
            [2, 99],
            r"temperature.epochs: 99 exceeds recipe.epochs = 4",
        ),
        (
            "temperature",
            "epochs",
            [2, 0],
            r"temperature.epochs: invalid training epochs 0; allowed: whole numbers from 1 up",
        ),
        ("temperature", "epochs", [2, 2], r"temperature.epochs: duplicate value 2"),
        ("temperature", "momentum", [0.5, 1.5], r"temperature.momentum: invalid momentum 1.5: should be less than 1"),
        ("temperature", "beta1", [0.5, 0.6], r"temperature.beta1: not used by optimizer 'sgd', only by adam, adamw"),
        ("temperature", "epoch", [2], r"temperature.epoch: unknown knob 'epoch' \(did you mean 'epochs'\?\)"),
        ("measure", "metrics", ["lmcc"], r"measure.metrics: unknown metric 'lmcc' \(did you mean 'lmc'\?\)"),
        ("measure", "lmc", {"point": 3}, r"measure.lmc.point: unknown key \(did you mean 'points'\?\)"),
        ("measure", "hesian", {}, r"measure.hesian: unknown key \(did you mean 'hessian'\?\)"),
        ("measure", "hessian", {"backend": "own2"}, r"measure.hessian.backend: .*'own' or 'pyhessian'"),
    ],
)
def test_a_mistake_is_said_in_one_line(tiny: Sweep, table: str, key: str, value: Any, said: str) -> None:
    tiny[table] = {**tiny.get(table, {}), key: value}
    lines = mistakes(tiny)
    assert len(lines) == 1
    assert lines[0].startswith(f"s.toml: {table}")
    import re

    assert re.search(said, lines[0]), lines[0]


def test_all_mistakes_are_said_at_once(tiny: Sweep) -> None:
    tiny["dense_seed"] = 3
    tiny["retrain_seeds"] = 1
    tiny["name"] = "a/b"
    tiny["load"] = {"density": [2.0], "pruner": "x"}
    tiny["model"]["name"] = "y"
    tiny["temperature"] = {"heat": [1]}
    del tiny["data"]
    text = "\n".join(mistakes(tiny))
    for expected in (
        "dense_seed: unknown key",
        "name: ",
        "load.density.0",
        "model.name",
        "temperature.heat",
        "data: missing",
        "retrain_seeds: metric 'lmc'",
    ):
        assert f"s.toml: {expected}" in text


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such sweep file"):
        read_sweep(tmp_path / "none.toml")
    with pytest.raises(UserError, match="is a folder"):
        read_sweep(tmp_path)
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(UserError, match=r"not valid TOML.*line 1"):
        read_sweep(tmp_path / "bad.toml")


def test_a_table_that_is_no_table(tiny: Sweep) -> None:
    tiny["load"] = 3
    assert any("load: must be a table [load], got 3" in line for line in mistakes(tiny))


READERS: dict[str, Any] = {"discover": read_discovery_file, "hpo": read_hpo, "proof": read_hpo, "search": read_hpo}


def test_shipped_sweeps_are_sound() -> None:
    files = sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml"))
    assert files
    for file in files:
        read = READERS.get(file.stem.rpartition("-")[2], read_sweep)
        assert read(file).name == file.stem


# -- changes from the command line -------------------------------------------------------------------------------------


def test_a_change_is_the_same_as_an_edited_file(tiny: dict[str, Any], tmp_path: Path) -> None:
    changes = [
        "recipe.epochs=3", "temperature.epochs = [1, 3]", "load.pruner=random", 'retrain={learning_rate=0.5}',
        "measure.cka.images=32", "retrain_seeds=3",
    ]  # fmt: skip
    edited = copy.deepcopy(tiny)
    edited["recipe"]["epochs"], edited["temperature"]["epochs"], edited["load"]["pruner"] = 3, [1, 3], "random"
    edited["retrain"], edited["measure"]["cka"], edited["retrain_seeds"] = {"learning_rate": 0.5}, {"images": 32}, 3
    assert read_sweep(write_toml(tmp_path / "s.toml", tiny), changes) == resolve_sweep(edited)
    before = copy.deepcopy(tiny)
    assert apply_overrides(tiny, changes) == edited
    assert tiny == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("recipe.epochs", "--set recipe.epochs: allowed: KEY=VALUE"),
        ("=3", "--set =3: allowed: KEY=VALUE"),
        ("recipe..epochs=3", "allowed: KEY=VALUE"),
        ("name.x=3", "'name' is not a table in this file"),
        ("recipe.epoch=3", "recipe.epoch: unknown key .did you mean 'epochs'"),
        ("recipe.epochs=many", "recipe.epochs: .*got 'many'"),
    ],
)
def test_a_change_that_cannot_be_meant(tiny: dict[str, Any], tmp_path: Path, change: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_sweep(write_toml(tmp_path / "s.toml", tiny), [change])


# -- keys -------------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_key_does_not_depend_on_the_order_of_a_dict(value: Any) -> None:
    def turned(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: turned(each[key]) for key in reversed(each)}
        return [turned(one) for one in each] if isinstance(each, list) else each

    assert digest(turned(copy.deepcopy(value))) == digest(value)


def test_key_of_a_known_description_stays() -> None:
    """A changed hash would orphan every stored cell."""
    assert digest({"b": [1, 2.5, None], "a": "x"}) == "ce74053d7a9997b7a9ff"
    assert seed_of("order", "dense", 0) == 2143555256813390772
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


def test_no_field_of_a_recipe_is_left_out_of_the_key() -> None:
    """Only `stop` is left out, which selects a snapshot of the same training, and later fields at their defaults."""
    assert set(Recipe.model_fields) - set(Recipe().key_fields()) == {"stop", *LATER_FIELDS}
    assert "error" in Recipe(error="torch:hypot").key_fields()
