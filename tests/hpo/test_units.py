"""The error of a search is said in its own unit: a share wrong, the loss, or a function of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regimes.cli.hpo import _print
from regimes.config.hpo_file import resolve_hpo
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions
from regimes.plots.hpo_plots import search_figure

NUMBERS: dict[str, Any] = {
    "name": "numbers",
    "data": {"name": "own_numbers:data"},
    "model": {"name": "own_numbers:net"},
    "space": {"learning_rate": {"low": 0.001, "high": 0.01, "log": True}},
    "ladder": {"densities": []},
    "study": {"sampler": "random", "stopper": "none", "pattern": "ladder", "value": "error"},
    "trials": 2,
    "batch": 2,
    "final_seeds": 2,
}
RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 16, "augment": "none", "loss": "mse"}


@pytest.mark.parametrize(
    ("error", "said", "axis"),
    [
        (None, "test mse of 2 new trainings: {:.4g} ±", "validation mse of the full network"),
        (
            {"function": "own_numbers:metres", "name": "distance", "unit": "m"},
            "test distance of 2 new trainings: {:.4g} m ±",
            "validation distance of the full network (m)",
        ),
        (
            {"function": "own_numbers:r2", "name": "R2", "better": "higher"},
            "test 1 - R2 of 2 new trainings: {:.4g} ±",
            "validation 1 - R2 of the full network",
        ),
    ],
)
def test_a_regression_is_not_a_share_wrong(
    error: dict[str, Any] | None, said: str, axis: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RECIPE if error is None else {**RECIPE, "error": error}
    found = search(resolve_hpo({**NUMBERS, "recipe": recipe}), SearchOptions(tmp_path))
    _print(found, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert said.format(found["winner"]["test_error"]) in lines[1]
    assert "%" not in lines[1]
    assert search_figure(found).axes[0].get_ylabel() == axis
    rows = [row["test_error"] for row in found["winner"]["runs"]]
    assert found["winner"]["test_error"] == pytest.approx(sum(rows) / 2)


def test_the_error_of_a_winner_is_the_function_of_the_recipe(tmp_path: Path) -> None:
    """By hand: the mean distance of the winner's outputs, computed from a network trained in the same way."""
    from regimes.hpo.optimize_loop import _errors
    from regimes.hpo.plan import context_of

    recipe = {**RECIPE, "error": {"function": "own_numbers:metres"}}
    asked = resolve_hpo({**NUMBERS, "recipe": recipe})
    context = context_of(asked, "cpu", tmp_path)
    model = context.new_model(0)
    data: Dataset = context.data
    assert isinstance(asked.recipe, Recipe)
    assert isinstance(data.test.inputs, torch.Tensor)
    expected = float((model(data.test.inputs) - data.test.targets).abs().mean())
    assert _errors(model, asked.recipe, context)["test_error"] == pytest.approx(expected, rel=1e-5)
