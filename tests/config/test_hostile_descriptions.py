"""Descriptions that nobody means: each is answered in a few short printable lines, before anything is expanded."""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, write_toml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler

from regimes.config.discovery_file import resolve_discovery
from regimes.config.hpo_file import resolve_hpo
from regimes.config.overrides import apply_overrides
from regimes.config.sweep_file import MAX_STAGES, read_sweep, resolve_sweep
from regimes.errors import MAX_LINES, SHORT_LINE, UserError
from regimes.experiment.expand import cell_stages, dense_stages
from regimes.experiment.run import prepare
from regimes.experiment.stages.pretrained import content_hash
from regimes.registry import call_strictly, lookup
from regimes.research.abuse.descriptions import attack

Raw = dict[str, Any]
BASE = {name: TINY[name] for name in ("name", "data", "model", "recipe")}
KINDS: dict[str, tuple[Callable[..., Any], Raw]] = {
    "sweep": (resolve_sweep, TINY),
    "discovery": (resolve_discovery, BASE),
    "search": (resolve_hpo, {**BASE, "space": {"learning_rate": [0.1, 0.2]}}),
}


def answer(resolve: Callable[..., Any], *given: Any) -> list[str]:
    """Lines of the error, of which each is short and printable."""
    with pytest.raises(UserError) as error:
        resolve(*given)
    assert all(line.isprintable() and len(line) <= SHORT_LINE for line in error.value.lines)
    assert len(error.value.lines) <= MAX_LINES + 1
    return list(error.value.lines)


def changed(raw: Raw, key: str, value: Any) -> Raw:
    raw = copy.deepcopy(raw)
    *tables, last = key.split(".")
    place = raw
    for name in tables:
        place = place.setdefault(name, {})
    place[last] = value
    return raw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        *("", " ", ".", "..", "../../x", "/etc/passwd", "a/b", "C:\\x", ".hidden", "-x", "a b", "<b>x</b>", "x" * 101),
        *("x\0y", "\x1b[31mred", "line\nline", "\u202egnp.exe", 3, True, ["x"], {"x": 1}, datetime.date(1979, 5, 27)),
    ],
)
def test_a_name_is_that_of_a_file(kind: str, name: Any) -> None:
    resolve, raw = KINDS[kind]
    (line,) = answer(resolve, changed(raw, "name", name), "x.toml")
    assert line.startswith("x.toml: name")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a", "cifar10-preresnet20_v2.1", "ärger", "x" * 100, "1"])
def test_names_that_are_allowed(kind: str, name: str) -> None:
    resolve, raw = KINDS[kind]
    assert resolve(changed(raw, "name", name)).name == name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "nan is not a finite number"),
        ([1, -math.inf], "-inf is not a finite number"),
        (2**63, "an integer of 64 bits; allowed: 64"),
        (16**3000, "an integer of 12001 bits; allowed: 64"),
        (datetime.date(1979, 5, 27), "must be a number, string, boolean or a list of those, got 1979-05-27"),
        (2j, "must be a number, string, boolean or a list of those, got 2j"),
        ("a\x1b[31m", r"must be printable, without control characters, got 'a\x1b[31m'"),
        ("x" * 5000, "a string of 5,000 characters; allowed: 4,096"),
        ({f"key{each}": 1 for each in range(201)}, "a table of 201 keys; allowed: 200"),
        ([[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]], "nested too deeply; allowed: 20 lists and tables in one another"),
        ([0.5] * 60_000, "more than 20,000 values, the limit of a description"),
        ({"a\nb": 1}, "not a printable key"),
    ],
)
def test_values_that_no_description_contains(kind: str, value: Any, said: str) -> None:
    resolve, raw = KINDS[kind]
    lines = answer(resolve, changed(raw, "recipe.x", value), "x.toml")
    assert all(line.endswith(said) for line in lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x = " + b"9" * 5_000, "not valid TOML: Exceeds the limit (4300 digits)"),
        (b"x = " + b"[" * 1_500 + b"]" * 1_500, "not valid TOML: nested too deeply"),
        (b"x" + b".x" * 1_500 + b" = 1", "nested too deeply; allowed: 20"),
        (b"[load]\ndensity = [" + b"0.25, " * 800_000 + b"]", "more than 1,000,000 bytes"),
        ("# ä\n".encode() * 200_000 + b"name = 'x'", "more than 1,000,000 bytes"),
        (b"\xff\xfe", "not valid TOML: 'utf-8' codec can't decode"),
        (b"x = '\x1b[31m'", "not valid TOML"),
    ],
    ids=range(7),
)
def test_files_that_no_one_writes(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    (line,) = answer(read_sweep, tmp_path / "x.toml")
    assert said in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("recipe.epochs=" + "9" * 5_000, "not valid TOML: Exceeds the limit (4300 digits)"),
        ("recipe.epochs=" + "[" * 1_500, "not valid TOML: nested too deeply"),
        (".".join("x" * 1_500) + "=1", "nested too deeply; allowed: 20"),
        ("load.density=[" + "0.25, " * 800_000 + "]", "more than 1,000,000 bytes"),
        ("recipe.epochs=3\nname = 'x'", "recipe.epochs: must be printable"),
        ("recipe.\x1b[31m=3", "not a printable key"),
        ("recipe.loss=\udcff", "not valid TOML: 'utf-8' codec can't"),
    ],
    ids=range(7),
)
def test_changes_that_no_one_types(tmp_path: Path, change: str, said: str) -> None:
    (line,) = answer(read_sweep, write_toml(tmp_path / "x.toml", TINY), [change])
    assert said in line


def test_changes_leave_the_parsed_file_as_it_is() -> None:
    raw = copy.deepcopy(TINY)
    assert apply_overrides(raw, ["measure.cka.images=8", "recipe.epochs=9", "recipe.last=1"])["recipe"]["epochs"] == 9
    assert raw == TINY


# -- size of a sweep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dense_seeds", 1_000_000, "30,000,000 trainings, prunings and measurements; allowed: 2,000,000"),
        ("retrain_seeds", 1_000_000, "trainings, prunings and measurements; allowed: 2,000,000"),
        ("retrain_seeds", 1_000_001, "retrain_seeds: should be less than or equal to 1000000"),
        (
            "load",
            {"density": [0.5], "schedule": "iterative", "rounds": 300},
            "load.rounds: should be less than or equal",
        ),
        ("load.density", [each / 10_001 for each in range(1, 10_001)] * 2, "more than 20,000 values"),
        ("load.density", [0.5] * 15_000, "load.density: duplicate value 0.5"),
        (
            "temperature",
            {name: [each / 2_000 for each in range(1, 2_000)] for name in ("learning_rate", "weight_decay", "sam_rho")},
            "allowed: 2,000,000; use fewer values of [temperature] and [load], or fewer seeds",
        ),
    ],
)
def test_a_sweep_that_never_ends_is_refused_before_it_is_expanded(tiny: Raw, key: str, value: Any, said: str) -> None:
    (line,) = answer(resolve_sweep, changed(tiny, key, value))
    assert said in line


def test_a_discovery_that_never_ends_is_refused() -> None:
    (line,) = answer(resolve_discovery, {**BASE, "seeds": 1_000_000}, "x.toml")
    assert line == "x.toml: 1,000,000 trainings; allowed: 100,000; use fewer seeds or values of nu"


def test_a_large_sweep_is_allowed(tiny: Raw) -> None:
    tiny["load"]["density"] = [each / 500 for each in range(1, 501)]
    tiny["temperature"] = {"learning_rate": [each / 100 for each in range(1, 101)]}
    tiny["dense_seeds"] = 2
    assert resolve_sweep(tiny).count_stages() == 200 + 100_000 * 7 < MAX_STAGES


def test_the_space_of_a_search_is_no_grid(tiny: Raw) -> None:
    """A search for pruned networks is checked as a sweep over its choices, of which it tries only a few."""
    choices = [each / 200 for each in range(1, 101)]
    space = dict.fromkeys(("learning_rate", "weight_decay", "sam_rho", "momentum"), choices)
    search = {**BASE, "objective": "pruned", "space": space, "load": {"density": [0.5]}}
    assert len(resolve_hpo(search).space) == 4


@pytest.mark.parametrize(
    ("load", "seeds"),
    [
        ({}, 2),
        ({"schedule": "iterative", "rounds": 4}, 3),
        ({"schedule": "gradual"}, 1),
        ({"rewind": 1}, 2),
        ({"rewind": 0}, 2),
    ],
)
def test_stages_are_counted_without_listing_them(tiny: Raw, tmp_path: Path, load: Raw, seeds: int) -> None:
    tiny["load"] |= load
    tiny |= {"dense_seeds": 2, "retrain_seeds": seeds}
    tiny["measure"] = {"metrics": ["error"] if seeds == 1 else ["error", "lmc", "cka", "val_loss"]}
    sweep = resolve_sweep(tiny)
    context = prepare(sweep, tmp_path / "none", engine="eager").context
    assert sweep.count_stages() == sum(1 + len(list(cell_stages(sweep, each))) for each in dense_stages(sweep, context))


def test_the_most_rounds_are_planned(tiny: Raw, tmp_path: Path) -> None:
    tiny["load"] |= {"schedule": "iterative", "rounds": 100}
    assert len(prepare(resolve_sweep(tiny), tmp_path / "none", engine="eager").stages) == 822


def test_checkpoints_of_a_few_of_many_settings(tiny: Raw) -> None:
    del tiny["temperature"], tiny["dense_seeds"]
    knobs = ("learning_rate", "weight_decay", "sam_rho", "momentum", "epochs", "batch_size")
    checkpoints = [{"path": "a.pt", **dict.fromkeys(knobs, each)} for each in range(1, 500)]
    lines = answer(resolve_sweep, {**tiny, "dense": {"checkpoints": checkpoints}})
    assert "0 checkpoints for dense_seed = 0, learning_rate = 1" in lines[0]


def test_files_of_a_few_of_many_settings(tiny: Raw, tmp_path: Path) -> None:
    for each in range(1, 30):
        (tmp_path / f"a{each}-b{each}-c{each}-d{each}-e{each}-f{each}.pt").touch()
    del tiny["temperature"], tiny["dense_seeds"]
    values = {name: list(range(1, 30)) for name in ("learning_rate", "weight_decay", "sam_rho", "epochs", "batch_size")}
    entry = {"path": str(tmp_path / "a*-b*-c*-d*-e*-f*.pt"), **values}
    (line,) = answer(resolve_sweep, {**tiny, "dense": {"checkpoints": [entry]}}, "x.toml")
    assert line.endswith("matches 29 files, fewer than the 20,511,149 settings in its lists")


def test_a_checkpoint_is_a_file(tmp_path: Path) -> None:
    assert answer(content_hash, str(tmp_path)) == [
        f"{tmp_path}: cannot be read: not a regular file; give the file of a state dict"
    ]


# -- names of functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["antigravity", "this", "idlelib.idle", "turtle", "os", "sys", "builtins", "math"])
def test_a_module_of_the_standard_library_is_not_imported(tiny: Raw, module: str) -> None:
    (line,) = answer(resolve_sweep, changed(tiny, "model", {"name": f"{module}:done"}))
    assert line.endswith(f"{module.partition('.')[0]} is a module of Python's standard library")


@pytest.mark.parametrize(
    "path",
    [
        "regimes.__main__:main",
        "../../x:y",
        "..:x",
        ":",
        "x:",
        ":x",
        "a b:c",
        "a:b:c",
        "a-b:c",
        "a..b:c",
        "a:b.c",
        "a:1",
    ],
)
def test_what_is_no_import_path(tiny: Raw, path: str) -> None:
    (line,) = answer(resolve_sweep, changed(tiny, "model", {"name": path}))
    assert line.endswith(f"cannot import model '{path}': not an import path 'package.module:attribute'")


def test_a_module_of_ones_own_may_have_a_name_of_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tabnanny.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    assert lookup({}, "tabnanny:answer", "number") == 42


# -- types of options --------------------------------------------------------------------------------------------------


def untyped(input_shape, classes, norm=False, scale=1, later: Missing = True, kind="x"):  # type: ignore[no-untyped-def]  # noqa: F821
    """A model's function without types that can be read."""


OWN = "test_hostile_descriptions:untyped"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "mlp", "batch_norm": "no"}, "model.batch_norm: should be a valid boolean, got 'no'"),
        ({"name": "mlp", "batch_norm": 1}, "model.batch_norm: should be a valid boolean, got 1"),
        ({"name": "mlp", "dropout": True}, "model.dropout: should be a valid number, got True"),
        ({"name": "mlp", "widths": [1.5]}, "model.widths.0: should be a valid integer, got 1.5"),
        ({"name": "mlp", "widths": "12"}, "model.widths: should be a valid array, got '12'"),
        ({"name": OWN, "norm": "no"}, "model.norm: should be a valid boolean, got 'no'"),
        ({"name": OWN, "scale": True}, "model.scale: should be a valid number, got True"),
        ({"name": OWN, "later": 0}, "model.later: should be a valid boolean, got 0"),
    ],
)
def test_options_are_not_converted(tiny: Raw, model: Raw, said: str) -> None:
    assert answer(resolve_sweep, {**tiny, "model": model}, "x.toml") == [f"x.toml: {said}"]


def test_options_of_the_right_type(tiny: Raw) -> None:
    own = {"name": OWN, "norm": True, "scale": 0.5, "later": False, "kind": 3}
    for model in ({"name": "mlp", "widths": [], "dropout": 0, "batch_norm": False}, own):
        assert resolve_sweep({**tiny, "model": model}).model.name == model["name"]


def test_values_of_a_proxys_option_are_not_converted() -> None:
    resolve, raw = KINDS["search"]
    ladder = {"option": "batch_norm", "values": [False, "no"]}
    (line,) = answer(resolve, {**raw, "ladder": ladder}, "x.toml")
    assert line == "x.toml: ladder.values: should be a valid boolean, got 'no'"


@pytest.mark.parametrize(("value", "taken"), [(True, True), (False, True), (None, True), ("no", False), (1, False)])
def test_options_of_samplers_are_not_converted(value: Any, taken: bool) -> None:
    if taken:
        assert isinstance(call_strictly(TPESampler, {"multivariate": value}), TPESampler)
    else:
        with pytest.raises(TypeError, match=f"multivariate must be true or false, got {value!r}"):
            call_strictly(TPESampler, {"multivariate": value})


# -- anything at all ---------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def keys(raw: Raw, before: str = "") -> list[str]:
    inner = [each for name, value in raw.items() if isinstance(value, dict) for each in keys(value, f"{before}{name}.")]
    return [f"{before}{name}" for name in raw] + inner


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_refused(kind: str, data: st.DataObject) -> None:
    resolve, raw = KINDS[kind]
    raw = changed(raw, data.draw(st.sampled_from(keys(raw))), data.draw(plain))
    try:
        resolve(raw)
    except UserError:
        answer(resolve, raw)


def test_random_malformed_files_are_accepted_or_refused(tmp_path: Path) -> None:
    found = {attack(seed, tmp_path) for seed in range(200)}
    assert found == {"accepted", "refused"}
    assert [attack(seed, tmp_path) for seed in range(20)] == [attack(seed, tmp_path) for seed in range(20)]
