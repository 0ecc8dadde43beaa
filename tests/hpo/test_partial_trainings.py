"""Fidelities beside density: the full network on a part of the images, in fewer epochs, and networks of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from searches import RAW, clock, engine, plan_on, spec
from torch import nn

import regimes
from regimes import Dataset, UserError
from regimes.config.hpo import Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.data.synthetic import synthetic
from regimes.hpo.build_fidelities import ImagesContext, facts_of, fidelity_from_facts
from regimes.hpo.fidelities import title_of
from regimes.hpo.fidelity_trainer import FidelityTrainer, TrialJob
from regimes.hpo.plan import Plan, _key, context_of
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions

OWN: dict[str, Any] = {"ladder": {"densities": None}, "study": {"pattern": "promote", "promoted": 2}}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", clock)
    monkeypatch.setattr("regimes.hpo.build_fidelities.select_engine", engine)


def planned_on(asked: Hpo, folder: Path) -> Plan:
    return plan_on(context_of(asked, "cpu", folder), asked)


def names(ladder: dict[str, Any], folder: Path, **changes: Any) -> list[str]:
    asked = spec(ladder={"densities": None, **ladder}, **changes)
    return [rung.name for rung in planned_on(asked, folder).ladder.rungs]


# -- which fidelities a file means ------------------------------------------------------------------------------------


def test_every_network_is_trained_on_every_fraction_of_the_images(tmp_path: Path) -> None:
    assert names({"images": [0.5]}, tmp_path) == ["1 images 0.5", "1"]
    assert names({"images": [0.5, 0.25]}, tmp_path) == ["1 images 0.25", "1 images 0.5", "1"]
    assert names({"images": [0.5], "densities": [0.1]}, tmp_path) == ["0.1 images 0.5", "1"]
    both = names({"images": [0.5, 1.0], "densities": [0.1, 1.0]}, tmp_path)
    assert both == ["0.1 images 0.5", "0.1", "1 images 0.5", "1"]
    assert names({"epochs": 0.25}, tmp_path) == ["1 epochs 0.25", "1"]
    assert names({"epochs": 0.25, "densities": [0.1]}, tmp_path) == ["0.1", "1"]
    assert names({"densities": [1.0]}, tmp_path) == ["1"]


def test_half_of_the_images_is_the_default_and_its_evidence_is_said(tmp_path: Path) -> None:
    found = planned_on(spec(**OWN), tmp_path)
    assert [rung.name for rung in found.ladder.rungs] == ["1 images 0.5", "1"]
    assert found.ladder.costs == [0.5, 1.0]
    assert any("no fidelity given" in note and "untested elsewhere" in note for note in found.notes)
    few = planned_on(spec(**OWN, recipe={"epochs": 4, "batch_size": 150}), tmp_path)
    assert [rung.name for rung in few.ladder.rungs] == ["1"]
    assert any("less than a batch: every trial is a full training" in note for note in few.notes)


def test_a_transformer_is_searched_on_half_of_the_images(tmp_path: Path) -> None:
    tokens = {
        "data": {"name": "own_tokens:data"},
        "model": {"name": "own_tokens:net", "width": 8},
        "recipe": {"epochs": 2, "batch_size": 16, "augment": "none"},
        "space": {"learning_rate": {"low": 0.01, "high": 0.3, "log": True}},
        "study": {"stopper": "none", "promoted": 1},
        "trials": 4,
        "batch": 2,
        "final_seeds": 1,
    }
    result = search(resolve_hpo(tokens), SearchOptions(tmp_path))
    assert [rung["trials"] for rung in result["savings"]["rungs"]] == [4, 1]
    assert result["ladder"][0]["images"] == 0.5


def test_fractions_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ladder\.images: 0.1 of the training images are 16, fewer than .*, 32"):
        names({"images": [0.1]}, tmp_path)
    with pytest.raises(UserError, match=r"ladder\.images: duplicate value"):
        spec(ladder={"images": [0.5, 0.5]})
    with pytest.raises(UserError, match=r"ladder\.images.*less than or equal to 1"):
        spec(ladder={"images": [1.5]})


def test_titles_are_words() -> None:
    assert title_of(0.1) == "density 0.1"
    assert title_of(1.0) == "the full network"
    assert title_of(1.0, 0.25) == "the full network on 25 % of the images"
    assert title_of(0.1, 0.125, 0.5) == "density 0.1 on 12.5 % of the images and 50 % of the epochs"


# -- the images -------------------------------------------------------------------------------------------------------


def test_images_are_drawn_from_every_class_and_by_the_seed_alone(tmp_path: Path) -> None:
    context = context_of(spec(), "cpu", tmp_path)
    parts = [ImagesContext(context, 0.25, seed) for seed in (0, 0, 1)]
    targets, whole = parts[0].data.train.targets, context.data.train.targets
    for label in whole.unique():
        assert int((targets == label).sum()) == max(1, round(0.25 * int((whole == label).sum())))
    first, again, other = (each.data.train.inputs for each in parts)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rows = {tuple(row.tolist()) for row in context.data.train.inputs}
    assert {tuple(row.tolist()) for row in first} <= rows
    assert parts[0].data.val is context.data.val


def test_numbers_as_targets_are_drawn_too(tmp_path: Path) -> None:
    context = context_of(resolve_hpo(_numbers()), "cpu", tmp_path)
    part = ImagesContext(context, 0.5, 0).data.train
    assert len(part.targets) == len(part.inputs) == round(0.5 * len(context.data.train.targets))


def _numbers() -> dict[str, Any]:
    recipe = {"epochs": 1, "batch_size": 16, "augment": "none", "loss": "mse"}
    tables = {"data": {"name": "own_numbers:data"}, "model": {"name": "own_numbers:net"}}
    return {"name": "numbers", **tables, "recipe": recipe, "space": {"learning_rate": [0.01]}}


def test_a_part_of_the_images_has_keys_of_its_own_and_is_read_back(tmp_path: Path) -> None:
    asked = spec(ladder={"densities": [0.1, 1.0], "images": [0.5, 1.0]})
    context = context_of(asked, "cpu", tmp_path)
    found = plan_on(context, asked)
    trainer = FidelityTrainer(context, found.ladder)
    job = TrialJob(asked.recipe, 0)
    keys = [trainer.key(job, segment) for segment in found.ladder.stretches]
    assert len(set(keys)) == len(keys)
    for rung in found.ladder.rungs:
        again = fidelity_from_facts(facts_of(rung), context, asked.recipe, asked.seed)
        fields = [field.name for field in dataclasses.fields(rung) if field.name != "context"]
        assert all(getattr(again, name) == getattr(rung, name) for name in fields)
        assert again.context.identity == rung.context.identity
        assert torch.equal(again.context.data.train.inputs, rung.context.data.train.inputs)
    plain = spec(ladder={"densities": [0.1]})
    assert _key(plain) == _key(plain.model_copy(update={"ladder": plain.ladder.model_copy(update={"images": None})}))
    assert _key(plain) != _key(spec(ladder={"densities": [0.1], "images": [0.5]}))


def test_trials_on_a_part_of_the_images_see_no_others(tmp_path: Path) -> None:
    """With every training image outside the part replaced by NaN, the values are the same."""
    asked = spec(ladder={"densities": None, "images": [0.5], "reports": []}, trials=2, batch=2)
    values = []
    for broken in (False, True):
        context = context_of(asked, "cpu", tmp_path)
        if broken:
            kept = {tuple(row.tolist()) for row in ImagesContext(context, 0.5, asked.seed).data.train.inputs}
            inputs = context.loaded.train.inputs.clone()
            outside = [number for number, row in enumerate(inputs) if tuple(row.tolist()) not in kept]
            inputs[outside] = torch.nan
            context.loaded = dataclasses.replace(context.loaded, train=context.loaded.train._replace(inputs=inputs))
        found = plan_on(context, asked)
        jobs = [TrialJob(asked.recipe, seed) for seed in range(2)]
        results = FidelityTrainer(context, found.ladder).run(jobs, found.ladder.stretches[0])
        values.append([each.loss for each in results])
    assert values[0] == values[1]


# -- from Python ------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(inputs).relu())
        return out


def objective(**how: Any) -> Any:
    data: Dataset = synthetic(shape=[8], train=200, test=60)
    return regimes.objective(Net, data, RAW["space"], recipe={"epochs": 2, "augment": "none", "batch_size": 16}, **how)


def test_smaller_networks_of_ones_own_and_parts_of_the_images_in_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(context: Any, *_: object) -> float:
        return float(sum(each.numel() for each in context.new_model(0).parameters()))

    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", size)
    made = objective(proxies=[lambda: Net(16), lambda: Net(4)], images=[0.5])
    small, middle = ((13 * width + 4) / (13 * 32 + 4) for width in (4, 16))
    assert [rung.density for rung in made.plan(1).ladder.rungs] == pytest.approx([small, middle, 1.0])
    assert made.plan(1).ladder.costs == pytest.approx([small / 2, middle / 2, 1.0])
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    regimes.optimize(study, made, 2, batch=2)
    fidelities = [row.get("fidelity", "1") for row in study.trials[0].user_attrs["regimes:climb"]]
    assert list(dict.fromkeys(fidelities)) == [f"{small:g} images 0.5", f"{middle:g} images 0.5", "1"]


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({}, r"no fidelity: pass densities=\[\.\.\.\]"),
        ({"proxies": [Net], "densities": [0.1]}, "densities and proxies are both given"),
        ({"proxies": []}, r"proxies=\[\] has no function"),
        ({"proxies": [Net(4)]}, "proxies: Net is not a function"),
        ({"proxies": [lambda: Net(64)]}, r"proxies\[0\] makes a network of 836 parameters, the full one has 420"),
        ({"images": [0.05]}, "ladder.images: 0.05 of the training images are"),
    ],
)
def test_what_makes_no_objective_is_refused(how: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        objective(**how).plan(1)
