"""The sweep of translation.toml and its module: on reversed strings, the whole way; padding that changes nothing."""

from __future__ import annotations

import importlib
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import regimes
from regimes import UserError
from regimes.experiment.run import Result
from regimes.registry import allow_imports_from

SWEEPS = Path(__file__).parents[2] / "sweeps"
SMALL = {"depth": 1, "width": 16, "heads": 2, "hidden": 32}


@pytest.fixture
def module() -> Any:
    allow_imports_from(str(SWEEPS))
    return importlib.import_module("translation")


@pytest.fixture
def strings(tmp_path: Path) -> Path:
    """300 strings of two to five letters, each with itself reversed."""
    draw = random.Random(0)
    found = ["".join(draw.choices("abcd", k=draw.randint(2, 5))) for _ in range(300)]
    path = tmp_path / "reversed.tsv"
    path.write_text("".join(f"{each}\t{each[::-1]}\n" for each in found))
    return path


def test_pairs_can_be_read_back(module: Any, strings: Path) -> None:
    data = module.pairs(str(strings), unit="character", longest=5, test_fraction=0.2)
    assert data.classes == 4 + 4
    sources = []
    for split in (data.train, data.val, data.test):
        sources.append({tuple(row) for row in split.inputs["source"].tolist()})
        for source, target, wanted in zip(
            split.inputs["source"].tolist(), split.inputs["target"].tolist(), split.targets.tolist(), strict=True
        ):
            letters = source[: source.index(module.END)]
            answer = wanted[: wanted.index(module.END)]
            assert answer == letters[::-1]
            assert target[: len(answer) + 1] == [module.BEGIN, *answer]
            assert not any(target[len(answer) + 1 :])
            assert set(wanted[len(answer) + 1 :]) <= {-100}
    assert not sources[0] & sources[1]
    assert not (sources[0] | sources[1]) & sources[2]
    few = module.pairs(str(strings), unit="character", vocabulary=6, longest=3)
    assert few.classes == 6
    assert bool((few.train.inputs["source"] == module.UNKNOWN).any())
    assert few.input_shape == {"source": (4,), "target": (4,)}


def test_files_that_do_not_fit_are_refused_in_one_line(module: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.tsv: cannot read pairs: No such file.*set data.file to a TSV file"):
        module.pairs(str(tmp_path / "none.tsv"))
    (tmp_path / "bad.tsv").write_text("a\tb\nc d\n")
    with pytest.raises(UserError, match=r"bad.tsv, line 2: expected source, tab, target"):
        module.pairs(str(tmp_path / "bad.tsv"))
    (tmp_path / "one.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match=r"one.tsv: no pair of at most 40 tokens for the \w+ split"):
        module.pairs(str(tmp_path / "one.tsv"))


def test_neither_padding_nor_what_follows_changes_an_answer(module: Any) -> None:
    torch.manual_seed(0)
    shape = {"source": (9,), "target": (9,)}
    model = module.EncoderDecoder(shape, 12, **SMALL, dropout=0.0).double()
    source, target = torch.randint(4, 12, (3, 5)), torch.randint(4, 12, (3, 4))
    for mode in (True, False):
        model.train(mode)
        expected = model(source, target)
        longer = [torch.cat([each, torch.zeros(3, 3, dtype=torch.int64)], 1) for each in (source, target)]
        torch.testing.assert_close(model(*longer)[:, :4], expected)
        other = target.clone()
        other[:, 2:] = 4 + (other[:, 2:] - 3) % 8
        changed = model(source, other)
        torch.testing.assert_close(changed[:, :2], expected[:, :2])
        assert float((changed[:, 2:] - expected[:, 2:]).detach().abs().max()) > 1e-3
        assert float((model(4 + (source - 3) % 8, target) - expected).detach().abs().max()) > 1e-3


def test_the_sweep_runs_on_reversed_strings_and_they_are_learnt(strings: Path, run_tiny: Callable[..., Result]) -> None:
    allow_imports_from(str(SWEEPS))
    raw: dict[str, Any] = tomllib.loads((SWEEPS / "translation.toml").read_text())
    raw["data"] |= {"file": str(strings), "unit": "character", "longest": 5}
    raw["model"] |= {**SMALL, "width": 32, "dropout": 0.0}
    raw["recipe"] |= {"epochs": 60, "batch_size": 16, "learning_rate": 5e-3}
    raw["retrain"] = {"epochs": 5}
    raw["temperature"] = {"epochs": [2, 60]}
    raw["load"]["density"] = [0.5]
    raw["measure"] |= {"hessian": {"images": 16, "rel_stderr": 0.5}}
    record = regimes.open(run_tiny(raw, engine="eager").folder)
    assert bool((record.status == 1).all())
    for name in ("lmc", "cka", "hessian_trace", "train_error", "test_error"):
        assert record[name].notnull().all()
    learnt = record["dense_test_error"].sel(epochs=60)
    assert float(learnt.mean()) < 0.15
    assert float(record["dense_test_error"].sel(epochs=2).mean()) > 0.3
