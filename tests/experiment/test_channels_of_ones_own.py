"""Sweeps whose pruner removes channels of a user's own networks: done, or refused before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import regimes
from regimes import UserError
from regimes.experiment.run import Result


def sweep(model: str, load: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "own",
        "dense_seeds": 1,
        "retrain_seeds": 2,
        "data": {"name": "own_tokens:data"},
        "model": {"name": model},
        "recipe": {"epochs": 2, "batch_size": 16, "augment": "none", "last": 1},
        "temperature": {"learning_rate": [0.01, 0.1]},
        "load": load,
        "measure": {"metrics": ["error", "lmc"]},
    }


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_transformer_on_padded_tokens_loses_feed_forward_units(
    allocation: str, run_tiny: Callable[..., Result]
) -> None:
    load = {"pruner": "channels-magnitude", "allocation": allocation, "density": [0.8]}
    result = run_tiny(sweep("own_tokens:net", load))
    assert not result.progress.failed
    record = regimes.open(result.folder)
    assert bool((record.status == 1).all())
    assert float(abs(record.kept - 0.8).max()) < 0.05


@pytest.mark.parametrize(
    "load", [{"pruner": "channels-magnitude", "density": [0.5]}, {"pruner": "discovered", "nu": [0.1]}]
)
def test_shared_weights_are_refused_before_any_training(load: dict[str, Any], run_tiny: Callable[..., Result]) -> None:
    with pytest.raises(UserError, match=r"second must keep all its own|nothing in Shared can be removed"):
        run_tiny(sweep("own_tokens:shared", load))


def test_a_transformer_on_padded_tokens_is_discovered() -> None:
    from own_tokens import data, net

    from regimes.config.recipe import Recipe

    recipe = Recipe(epochs=6, batch_size=16, augment="none", learning_rate=0.05)
    found = regimes.discover(net((), 2), data(), nu=0.3, alpha=0.0, recipe=recipe)
    assert set(found.widths) == {"body.linear1"}
    assert found.widths["body.linear1"][0] <= found.widths["body.linear1"][1] == 32
    assert found.full_macs == 6 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 2
