"""The Python examples on the pages of record, regime_map and plots run as shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def examples(folder: str) -> list[str]:
    text = (ROOT / "regimes" / folder / "README.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("http")]
    assert all((ROOT / "regimes" / folder / target).exists() for target in targets)
    return re.findall(r"```python\n(.*?)```", text.replace('"reports/', f'"{ROOT}/reports/'), flags=re.S)


def test_the_page_of_record() -> None:
    names: dict[str, Any] = {}
    exec(examples("record")[0], names)
    assert set(names["rows"].variable) >= {"lmc", "cka", "test_error"}


def test_the_page_of_regime_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    use, adviser = examples("regime_map")
    exec(use, names)
    assert names["advice"].direction == "hotter"
    (tmp_path / "mine.py").write_text(adviser)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert names["chart"].select(0.05, adviser="mine:hottest").selected == {"batch_size": 8}


def test_the_page_of_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regimes.plots.report.advice_section", lambda data: iter(()))  # slow, and tested elsewhere
    exec(examples("plots")[0], names)
    assert {"phase.png", "lmc.png", "README.md"} <= {file.name for file in names["files"]}
