"""Sweeps over every kind of network: trained, pruned, retrained and measured; the recorded values are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY
from network_kinds import KINDS, LOSS_NAMES

from regimes.config.sweep_file import resolve_sweep
from regimes.data.inputs import call
from regimes.experiment.run import prepare
from regimes.experiment.store import Store

Sweep = dict[str, Any]


def sweep_of(kind: str, **recipe: Any) -> Sweep:
    loss = LOSS_NAMES.get(KINDS[kind].loss, "cross-entropy")
    metrics = ["error", "lmc", "cka"] + ([] if kind == "complex" else ["hessian_trace"])
    return {
        **TINY,
        "data": {"name": "network_kinds:data", "kind": kind},
        "model": {"name": "network_kinds:net", "kind": kind},
        "recipe": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "augment": "none", "loss": loss, **recipe},
        "temperature": {"epochs": [1, 2]},
        "load": {"density": [0.5], "embeddings": kind == "embedding-bag"},
        "measure": {
            "metrics": metrics,
            "cka": {"on": "logits"} if kind == "regression" else {},
            "hessian": {"images": 16, "rel_stderr": 0.5},
        },
    }


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_errors_are_those_of_the_stored_networks(
    kind: str, run_tiny: Callable[..., Any], tmp_path: Any
) -> None:
    if kind == "bert":
        pytest.importorskip("transformers")
    result = run_tiny(sweep_of(kind))
    assert not result.progress.failed
    prepared = prepare(resolve_sweep(sweep_of(kind)), result.folder)
    store, context = Store(result.folder), prepared.context
    checked = 0
    for stage in prepared.stages:
        if stage.kind != "measure" or stage.name != "error":  # type: ignore[attr-defined]
            continue
        (subject,) = stage.subjects  # type: ignore[attr-defined]
        model = context.model_with(store.weights(subject.key)).eval()
        with torch.no_grad():
            outputs = call(model, context.data.test.inputs)
        outputs = outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
        found = store.read(stage.key)["values"]["final_test_error"]  # type: ignore[index]
        assert found["value"] == pytest.approx(float(KINDS[kind].wrong(outputs, context.data.test.targets)), rel=1e-5)
        assert found["units"] == ("loss" if kind == "regression" else "1")
        checked += 1
    assert checked == 4
