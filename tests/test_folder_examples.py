"""The Python examples on the pages of the building blocks run as shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from regimes.models.build import build
from regimes.pruners.prune import prune

PAGES = Path(__file__).parent.parent / "regimes"


def example(folder: str) -> dict[str, Any]:
    """The names defined by a page's only Python example."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / folder / "README.md").read_text(), flags=re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_data_model_and_pruner_of_ones_own() -> None:
    data = example("data")["noisy"](noise=0.2)
    model = example("models")["small"](data.input_shape, data.classes, width=6)
    assert model(data.val.inputs).shape == (50, 2)
    scores = example("pruners")["distance"]
    network = build("mlp", {"widths": [8]}, data.input_shape, 2, 0)
    assert {name: each.shape for name, each in scores(Weights(network)).items()} == {
        name: each.shape for name, each in prune(network, 0.5).layers.items()
    }


class Weights:
    """The part of a pruner's `Candidate` that the example reads."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {"body.1.weight": model.get_parameter("body.1.weight")}


def test_a_fleet_as_shown() -> None:
    names = example("training")
    assert names["lane"] == 2
    assert names["snapshot"].epoch == 4
