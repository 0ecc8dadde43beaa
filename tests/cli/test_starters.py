"""Starter files run as typed: the commands that ``regimes new`` prints, one after another."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import regimes
from regimes.cli.new import KINDS

Cli = Callable[..., subprocess.CompletedProcess[str]]
SWEEPS = ("images", "tokens", "tabular", "checkpoints")


def typed(shown: str) -> list[list[str]]:
    """The commands that ``regimes new`` prints."""
    return [shlex.split(line) for line in shown.splitlines()[1:]]


def types(cli: Cli, words: list[str], folder: Path) -> str:
    """Type a command; it must succeed without a warning. Return what it prints."""
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, cwd=folder, check=False)
    else:
        done = cli(*words[1:], *(["--workers", "1"] if words[1] == "run" else []), cwd=folder)
    assert done.returncode == 0, (words, done.stderr)
    assert "warning" not in done.stderr.lower()
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_runs_as_typed(kind: str, cli: Cli, tmp_path: Path) -> None:
    made = cli("new", kind)
    assert made.returncode == 0, made.stderr
    commands = typed(made.stdout)
    assert all(words[0] in ("regimes", "python") for words in commands)
    for words in commands:
        types(cli, words, tmp_path)
    if kind in SWEEPS:
        assert (tmp_path / f"runs/{kind}/map/phase.png").exists()
        record = regimes.open(tmp_path / f"runs/{kind}")
        assert int(record.status.min()) == 1
        assert float(record.dense_test_error.max()) < 0.35  # it learns: guessing is wrong in 37 to 90 %
    else:
        assert list((tmp_path / f"runs/{kind}").glob("*.png"))


@pytest.mark.parametrize(("target", "loss"), [("logit", "binary-cross-entropy"), ("number", "mse")])
def test_the_variants_in_a_starters_comments_run(target: str, loss: str, cli: Cli, tmp_path: Path) -> None:
    assert cli("new", "tabular").returncode == 0
    changes = [f"data.target={target}", f"recipe.loss={loss}", "recipe.epochs=4", "retrain.epochs=2"]
    changes += ["load.density=[0.3]", "temperature.learning_rate=[0.01]"]
    changes += ['measure.cka={ on = "logits" }'] if target == "number" else []
    done = cli("run", "tabular.toml", "--workers", "0", *(word for each in changes for word in ("--set", each)))
    assert done.returncode == 0, done.stderr
    assert regimes.open(tmp_path / "runs/tabular").test_error.attrs["units"] == ("1" if target == "logit" else "loss")


def test_names_follow_the_file_and_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    made = cli("new", "checkpoints", "--out", "a b/c-d.toml")
    assert made.stdout.splitlines()[:4] == [
        "wrote a b/c-d.toml and a b/my_c_d.py; next:",
        "  python 'a b/my_c_d.py'",
        "  regimes run 'a b/c-d.toml'",
        "  regimes map runs/c-d",
    ]
    assert tomllib.loads((tmp_path / "a b/c-d.toml").read_text())["data"]["name"] == "my_c_d:data"
    (tmp_path / "a b/c-d.toml").unlink()
    again = cli("new", "checkpoints", "--out", "a b/c-d.toml")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith("regimes: a b/my_c_d.py: exists already and is not overwritten")
    assert not (tmp_path / "a b/c-d.toml").exists()
    into = cli("new", "hpo", "--out", "a b")
    assert into.stdout == "wrote a b/hpo.toml; next:\n  regimes hpo 'a b/hpo.toml'\n"


@pytest.mark.parametrize("words", [(), ("image",), ("images", "--out", "images.py")])
def test_a_wrong_kind_or_name_is_one_line(words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    done = cli("new", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    allowed = "allowed: a name that ends with .toml" if len(words) > 1 else f"allowed: {', '.join(KINDS)}"
    assert allowed in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_and_completion_list_the_kinds(cli: Cli, tmp_path: Path) -> None:
    shown = cli("new", "--help").stdout
    assert all(kind in shown for kind in KINDS)
    asked = {"_REGIMES_COMPLETE": "complete_bash", "COMP_WORDS": "regimes new t", "COMP_CWORD": "2"}
    program = str(Path(sys.executable).with_name("regimes"))
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, **asked}, check=False)
    assert done.stdout.split() == ["tokens", "tabular"]


def test_the_built_package_holds_the_starters() -> None:
    """Every file in the folder matches the package data of pyproject.toml."""
    root = Path(__file__).parent.parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["regimes"]
    matched = {path for pattern in patterns for path in (root / "regimes").glob(pattern)}
    assert {path.stem for path in matched if path.parent.name == "starters"} >= set(KINDS)
