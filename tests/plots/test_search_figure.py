"""The figure of a search shows every trial: over time, cheap against full, and by hyperparameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from searches import clock, engine, spec

from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions
from regimes.plots.hpo_plots import draw_search, search_figure


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)
    study = {"pattern": "promote", "promoted": 3, "stopper": "halving"}
    space = {"batch_size": [16, 32]}
    asked = spec(
        study=study, space=space, trials=12, ladder={"densities": None, "images": [0.5], "proxy_reports": [0.5]}
    )
    return search(asked, SearchOptions(tmp_path / "search"))


def points(axes: Axes) -> list[tuple[float, float]]:
    marked = (line for line in axes.get_lines() if line.get_marker() not in ("None", None, ""))
    return [tuple(map(float, xy)) for line in marked for xy in line.get_xydata()]  # type: ignore[union-attr]


def test_every_trial_is_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    curve, both, *by_name = search_figure(result).axes
    trials = result["table"]["trials"]
    full = sorted(each["values"]["1"] for each in trials if each["proxy"] is not None)
    assert len(full) >= 2
    assert len(trials) == 12 + len(full)
    assert sorted(y for _, y in points(both)) == pytest.approx(full)
    proxies = {each["trial"]: each["values"]["1 images 0.5"] for each in trials if each["proxy"] is None}
    pairs = {(proxies[each["proxy"]], each["values"]["1"]) for each in trials if each["proxy"] is not None}
    assert set(points(both)) == pairs
    assert min(y for _, y in points(curve)) == pytest.approx(full[0])
    shown = {axes.get_xlabel(): axes for axes in by_name if axes.get_xlabel()}
    assert shown.keys() == {"learning_rate", "weight_decay", "label_smoothing", "batch_size"}
    values = sorted(list(each["values"].values())[-1] for each in trials)
    for name, axes in shown.items():
        assert sorted(y for _, y in points(axes)) == pytest.approx(values)
        assert axes.get_xscale() == ("log" if name in ("learning_rate", "weight_decay") else "linear")
    assert [each.get_text() for each in shown["batch_size"].get_xticklabels()] == ["16", "32"]
    assert {file.suffix for file in draw_search(result, tmp_path)} == {".png", ".svg"}


def test_a_search_without_cheap_trainings_is_drawn_too(tmp_path: Path) -> None:
    alone = search(spec(ladder={"densities": []}, trials=3, batch=3), SearchOptions(tmp_path))
    _, both, *_ = search_figure(alone).axes
    assert [each.get_text() for each in both.texts] == ["none"]
