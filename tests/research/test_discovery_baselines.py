"""Baselines of structure discovery: comparable trainings, saved once, shown as saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regimes.config.recipe import Recipe
from regimes.research.studies.discovery import _baselines
from regimes.research.studies.discovery_baselines import NETWORKS, BaselineExperiment, load_or_train, named

REPORT = Path(__file__).parents[2] / "reports/discovery"


def test_baselines_are_comparable_and_the_page_shows_the_saved_results(tmp_path: Path) -> None:
    """A tiny experiment, and the rows of the saved results."""
    experiment = BaselineExperiment(
        name="digits",
        data=named("synthetic", shape=[3, 8, 8], train=200, test=60, spread=2.0),
        model=named("preresnet", depth=8, width=4),
        recipe=Recipe(epochs=6, batch_size=20, learning_rate=0.05, augment="none"),
        nus=(0.1,),
        seeds=2,
        widths=(2, 3, 4),
    )
    found = load_or_train(experiment, tmp_path, lambda line: None)
    arms = [(each["seed"], each["arm"]) for each in found["records"]]
    assert arms == [(seed, arm) for seed in (0, 1) for arm in NETWORKS]
    for seed in (0, 1):
        dense, discovered, magnitude, scratch, narrowed = found["records"][5 * seed : 5 * seed + 5]
        assert scratch["macs"] == discovered["macs"] <= dense["macs"]
        assert scratch["params"] == discovered["params"]
        assert magnitude["macs"] <= dense["macs"]
        assert narrowed["width"] in (2, 3, 4)
        assert magnitude["train_seconds"] > dense["train_seconds"] > 0
    assert load_or_train(experiment, tmp_path, lambda line: pytest.fail("trained again")) == found
    assert len(_baselines("digits", found).rows) == 6
    page = (REPORT / "README.md").read_text()
    for name in ("digits", "cifar10"):
        shipped = json.loads((REPORT / f"{name}.json").read_text())
        assert all(f"| {' | '.join(row)} |" in page for row in _baselines(name, shipped).rows)
