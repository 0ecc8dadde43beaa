"""A training loop of one's own: its networks get masks, keys, resuming and measures like all others."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import done
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import regimes
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.errors import UserError
from regimes.experiment.run import Result
from regimes.experiment.store import Store
from regimes.landscape.error import error_and_loss
from regimes.models.build import build
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prune
from regimes.training.train import Snapshot, train

HERE = "test_custom_loop"
EPOCHS_RUN: list[int] = []


# -- loops ------------------------------------------------------------------------------------------------------------


def epoch_of(model: nn.Module, data: Dataset, recipe: Recipe, optimizer: torch.optim.Optimizer) -> float:
    loss = torch.zeros(())
    for batch in torch.randperm(len(data.train.targets)).split(recipe.batch_size):
        optimizer.zero_grad()
        loss = recipe.training_loss(model(data.train.inputs[batch]), data.train.targets[batch])
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def with_state(
    model: nn.Module, data: Dataset, recipe: Recipe, seed: int, start: int, state: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(start, recipe.epochs):
        EPOCHS_RUN.append(epoch)
        loss = epoch_of(model, data, recipe, optimizer)
        yield {"optimizer": optimizer.state_dict(), "train_loss": loss}


def without_state(model: nn.Module, data: Dataset, recipe: Recipe) -> Iterator[None]:
    optimizer = torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=0.1)
    for epoch in range(recipe.epochs):
        EPOCHS_RUN.append(epoch)
        epoch_of(model, data, recipe, optimizer)
        yield


def by_hand(model: nn.Module, data: Dataset, mask: Mask | None) -> Iterator[None]:
    while True:
        with torch.no_grad():
            for each in model.parameters():
                each.add_(0.01)
        if mask is not None and data.classes == 4:
            mask.apply(model)
        yield


def careless(model: nn.Module) -> Iterator[None]:
    yield from by_hand(model, synthetic(classes=3), None)


def explodes(model: nn.Module) -> Iterator[None]:
    yield
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    yield


def fails() -> Iterator[None]:
    yield
    raise ValueError("no more\nof this")


def returns() -> None:
    """Is no generator."""


def yields_a_number() -> Iterator[int]:
    yield 1


def keeps_a_function(state: Any) -> Iterator[dict[str, Any]]:
    yield {"it": open}


def wants_more(model: nn.Module, scheduler: Any) -> Iterator[None]:
    yield


# -- one training -----------------------------------------------------------------------------------------------------


def data() -> Dataset:
    return synthetic(shape=[8], train=150, test=60, classes=4).to(torch.device("cpu"), torch.float32)


def net(seed: int = 0) -> nn.Module:
    return build("mlp", {"widths": [12], "batch_norm": True, "dropout": 0.2}, (8,), 4, seed)


def recipe_of(loop: str) -> Recipe:
    return Recipe(epochs=4, batch_size=32, augment="none", learning_rate=0.02, train=f"{HERE}:{loop}")


def weights(snapshot: Snapshot) -> Tensor:
    return torch.cat([each.flatten().double() for each in snapshot.weights.values()])


@pytest.mark.parametrize(("loop", "resumed_from"), [("with_state", 2), ("without_state", 0)])
def test_resuming_equals_never_stopping(loop: str, resumed_from: int) -> None:
    half, whole = train(net(), data(), recipe_of(loop), ("x", 0), [2, 4])
    EPOCHS_RUN.clear()
    (again,) = train(net(), data(), recipe_of(loop), ("x", 0), [4], resume=half)
    assert list(range(resumed_from, 4)) == EPOCHS_RUN
    assert torch.equal(weights(again), weights(whole))
    assert again.history == whole.history
    assert all(torch.equal(again.momentum[name], whole.momentum[name]) for name in whole.momentum)
    (other,) = train(net(), data(), recipe_of(loop), ("x", 1), [4])
    assert not torch.equal(weights(other), weights(whole))


def test_history_holds_the_loops_loss_or_the_measured_one() -> None:
    model = net()
    (told,) = train(net(), data(), recipe_of("with_state"), ("x",), [1])
    (measured,) = train(model, data(), recipe_of("without_state"), ("x",), [1])
    torch.manual_seed(0)
    _, loss = error_and_loss(model, data().train, F.cross_entropy)
    assert measured.history[0]["train_loss"] == pytest.approx(float(loss.value))
    wrong = (model.eval()(data().test.inputs).argmax(1) != data().test.targets).double().mean()
    assert measured.history[0]["test_error"] == pytest.approx(float(wrong))
    assert set(told.history[0]) == set(measured.history[0])


@pytest.mark.parametrize("loop", ["with_state", "without_state", "by_hand"])
def test_masked_weights_stay_zero_in_a_loop_that_knows_no_mask(loop: str) -> None:
    model = net()
    mask = prune(model, 0.4)
    (end,) = train(model, data(), recipe_of(loop), ("x",), [3], mask=mask)
    assert mask.holds(end.weights)
    assert not _global_optimizer_post_hooks


def test_the_loop_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(train(net(), data(), recipe_of("without_state"), ("x",), [2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_not_finite_have_diverged() -> None:
    first, second = train(net(), data(), recipe_of("explodes"), ("x",), [1, 2])
    assert (first.diverged, second.diverged) == (False, True)


@pytest.mark.parametrize(
    ("loop", "line"),
    [
        ("fails", "epoch 2: ValueError: no more"),
        ("returns", "epoch 1: TypeError: 'NoneType' object is not iterable"),
        ("explodes", "epoch 3: ended after 2 epochs; it must yield after each of them"),
        ("yields_a_number", "epoch 1: yielded int; allowed: nothing, or a dict"),
        ("keeps_a_function", "epoch 1: yielded what cannot be kept; allowed: tensors, numbers, lists and dicts"),
        ("careless", "epoch 1: a pruned weight is no longer zero; call mask.apply(model) after each step"),
    ],
)
def test_what_a_loop_does_wrong_is_said_in_a_line_with_its_name(loop: str, line: str) -> None:
    model, at = net(), [1] if loop == "keeps_a_function" else [4]
    if loop == "explodes":  # is over before it is asked for a third epoch
        sys.modules[HERE].__dict__["explodes"] = lambda: iter([None, None])
    with pytest.raises(RuntimeError) as error:
        list(train(model, data(), recipe_of(loop), ("x",), at, mask=prune(model, 0.4)))
    assert str(error.value) == f"recipe.train = '{HERE}:{loop}', {line}"


# -- a sweep ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("train", "recipe.train: .*pattern"),
        (f"{HERE}:nothing", f"recipe.train: cannot import training loop '{HERE}:nothing'"),
        (
            f"{HERE}:wants_more",
            f"recipe.train: '{HERE}:wants_more' needs 'scheduler'; given: model, data, recipe, seed",
        ),
    ],
)
def test_a_loop_that_cannot_be_called_is_refused(tiny: dict[str, Any], given: str, line: str) -> None:
    tiny["recipe"]["train"] = given
    with pytest.raises(UserError, match=line):
        resolve_sweep(tiny)


def test_discovery_has_a_loop_of_its_own(tiny: dict[str, Any]) -> None:
    tiny["recipe"]["train"] = f"{HERE}:with_state"
    tiny["load"] = {"pruner": "discovered", "nu": [1.0]}
    with pytest.raises(UserError, match=r"recipe.train: discovery trains with a loop of its own; remove it"):
        resolve_sweep(tiny)


def test_a_sweep_with_a_loop_of_ones_own(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], count: Counter[str]
) -> None:
    tiny["recipe"] |= {"train": f"{HERE}:with_state", "learning_rate": 0.01, "betas": [0.5, 0.6]}
    whole = run_tiny(tiny, "whole")
    record = regimes.open(whole.folder)
    assert record["lmc"].notnull().all()
    assert record["test_error"].notnull().all()
    assert count["train"] == 2
    run_tiny({**tiny, "temperature": {"epochs": [2]}}, "grown")
    EPOCHS_RUN.clear()
    grown = run_tiny(tiny, "grown")
    assert EPOCHS_RUN[:2] == [2, 3]
    assert done(Store(grown.folder)) == done(Store(whole.folder))
    count.clear()
    run_tiny({**tiny, "retrain": {"train": ""}}, "whole")
    assert count["retrain"] == 8
    assert count["train"] == 0


def test_the_loop_of_the_readme_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(regimes.__file__).parent / "README.md").read_text()
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "def train(" in each)
    (tmp_path / "loop_of_the_readme.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = recipe_of("").model_copy(update={"train": "loop_of_the_readme:train"})
    half, whole = train(net(), data(), recipe, ("x",), [2, 4])
    (again,) = train(net(9), data(), recipe, ("x",), [4], resume=half)
    assert torch.equal(weights(again), weights(whole))


def test_an_edited_loop_makes_new_cells(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    monkeypatch.syspath_prepend(str(tmp_path))
    for number in range(2):
        (tmp_path / f"loop_{number}.py").write_text(f"def train(model):\n    while True:\n        yield  # {number}\n")
        fields = Recipe(train=f"loop_{number}:train").key_fields()
        assert fields["train_source"]
        keys.append(fields["train_source"])
    assert keys[0] != keys[1]
    assert "train" not in Recipe().key_fields()
    assert re.match(r"^\w+$", keys[0])
