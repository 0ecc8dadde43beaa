"""Optimisers, warm-up and clipping: against torch's own classes, closed forms, masks, and resuming."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.models.build import build
from regimes.pruners.prune import prune
from regimes.training.fleet import Lane
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.schedule import TrainingSchedule
from regimes.training.train import Snapshot, train
from regimes.training.update_rules import hidden_matrices, update_rule

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
BASE = {"epochs": 4, "batch_size": 32, "augment": "none", "weight_decay": 0.02, "warmup": 0.3, "schedule": "cosine"}


def recipe_of(optimizer: str, **changes: Any) -> Recipe:
    rate = 0.1 if optimizer == "sgd" else 0.01
    return Recipe.model_validate({**BASE, "optimizer": optimizer, "learning_rate": rate, "clip_norm": 0.5, **changes})


def data() -> Dataset:
    return synthetic(shape=[1, 8, 8], train=150, test=40).to(torch.device("cpu"), torch.float64)


def net(seed: int = 0, batch_norm: bool = True) -> nn.Module:
    return build("mlp", {"widths": [10, 12], "batch_norm": batch_norm}, (1, 8, 8), 4, seed).double()


def all_of(snapshot: Snapshot) -> Tensor:
    return torch.cat([each.double().flatten() for each in (*snapshot.weights.values(), *snapshot.momentum.values())])


# -- against torch ----------------------------------------------------------------------------------------------------


def torchs_own(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    decay, rate = recipe.weight_decay, recipe.learning_rate
    adam = {"betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps, "weight_decay": decay}
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(named.values(), rate, **adam)]  # type: ignore[arg-type]
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(named.values(), rate, **adam)]  # type: ignore[arg-type]
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(named.values(), rate, momentum=recipe.momentum, weight_decay=decay)]
    hidden = ["body.1.weight", "body.4.weight"]
    rest = [each for name, each in named.items() if name not in hidden]
    matrices = [named[name] for name in hidden]
    how = {"momentum": recipe.momentum, "nesterov": recipe.nesterov, "adjust_lr_fn": "match_rms_adamw"}
    return [
        torch.optim.Muon(matrices, rate, weight_decay=decay, **how),
        torch.optim.AdamW(rest, rate, **adam),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(
    "options",
    [
        *({"optimizer": name, "clip_norm": clip} for name in OPTIMIZERS for clip in (0.0, 0.3)),
        {"optimizer": "adamw", "betas": (0.8, 0.9), "eps": 1e-3},
        {"optimizer": "muon", "nesterov": True, "momentum": 0.95},
    ],
)
def test_steps_are_those_of_torchs_classes(options: dict[str, Any]) -> None:
    d, recipe = data(), recipe_of(**options)
    ours, theirs = net(), net()
    stepper, optimizers = OptimizerStep(ours, recipe, None), torchs_own(recipe, theirs)
    for step in range(6):
        rate = recipe.learning_rate / (step + 1)
        stepper(lambda: F.cross_entropy(ours(d.train.inputs), d.train.targets), rate, step)
        theirs.zero_grad()
        F.cross_entropy(theirs(d.train.inputs), d.train.targets).backward()
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip_norm)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("captured", [False, True])
def test_complex_weights_are_pairs_of_real_ones(optimizer: str, captured: bool) -> None:
    recipe = recipe_of(optimizer=optimizer, clip_norm=0.0, nesterov=False)
    ours = nn.Linear(3, 2, dtype=torch.complex128)
    theirs = copy.deepcopy(ours)
    inputs = torch.randn(5, 3, dtype=torch.complex128)
    stepper, (optimizer_of_torch,) = OptimizerStep(ours, recipe, None), torchs_own(recipe, theirs)
    if captured and optimizer == "sgd":
        stepper.set_momentum({name: torch.zeros_like(each) for name, each in stepper.named.items()})
    for number in range(4):
        rate = torch.tensor(recipe.learning_rate).double() if captured else recipe.learning_rate
        stepper(lambda: ours(inputs).abs().mean(), rate, torch.tensor(number) if captured else number)
        theirs.zero_grad()
        theirs(inputs).abs().mean().backward()
        optimizer_of_torch.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


def test_adamw_with_warm_up_and_clipping_equals_a_plain_torch_loop() -> None:
    """Without BatchNorm, under which biases have no gradient but noise, of which Adam makes steps."""
    d, recipe, theirs = data(), recipe_of("adamw", schedule="linear"), net(batch_norm=False)
    (end,) = train(net(batch_norm=False), d, recipe, ("x",), [4])
    timeline = TrainingSchedule(recipe, len(d.train.targets))
    warm, total = timeline.warmup_steps, timeline.horizon
    (optimizer,) = torchs_own(recipe, theirs)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / warm if step < warm else (total - step) / (total - warm)
    )
    stream = Lane(theirs, recipe, ("x",)).stream(d)
    theirs.train()
    for _, inputs, targets in stream.batches(0, total):
        optimizer.zero_grad()
        F.cross_entropy(theirs(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
    for name, value in theirs.state_dict().items():
        assert torch.allclose(end.weights[name].double(), value.double(), rtol=1e-10, atol=1e-12)


# -- schedules --------------------------------------------------------------------------------------------------------


def test_warm_up_and_linear_schedule_by_hand() -> None:
    def rates(**changes: Any) -> list[float]:
        recipe = Recipe.model_validate({"epochs": 5, "batch_size": 10, "learning_rate": 6.0, **changes})
        timeline = TrainingSchedule(recipe, images=25)
        assert timeline.horizon == 10
        return [timeline.learning_rate(step) for step in range(10)]

    assert rates(schedule="linear") == pytest.approx([6 * (1 - step / 10) for step in range(10)])
    warm = [2.0, 4.0, 6.0]
    assert rates(schedule="constant", warmup=0.3) == pytest.approx([*warm, *[6.0] * 7])
    assert rates(schedule="linear", warmup=0.3) == pytest.approx([*warm, *(6 * (1 - step / 7) for step in range(7))])
    cosine = [3 * (1 + math.cos(math.pi * step / 7)) for step in range(7)]
    assert rates(schedule="cosine", warmup=0.3) == pytest.approx([*warm, *cosine])
    assert rates(warmup=0.3) == pytest.approx([*warm, 6.0, 6.0, 0.6, 0.6, 0.6, 0.06, 0.06])
    assert rates(schedule="linear", warmup=0.99)[-1] == pytest.approx(6.0)


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_rate_before_the_decay_is_the_sum_of_its_steps(schedule: str, warmup: float) -> None:
    recipe = Recipe.model_validate({"epochs": 8, "batch_size": 10, "schedule": schedule, "warmup": warmup})
    timeline = TrainingSchedule(recipe, images=35)
    steps = timeline.horizon // 2 if schedule == "step" else timeline.horizon
    assert timeline.rate_before_decay == pytest.approx(sum(timeline.learning_rate(step) for step in range(steps)))


# -- SAM, clipping, masks, resuming -----------------------------------------------------------------------------------


def test_the_gradient_of_sam_is_clipped_not_that_of_the_ascent() -> None:
    """On w'Aw/2 the gradient at the worst neighbour is A (w + rho Aw/|Aw|); Adam's first step is its sign."""
    A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    for optimizer in ("sgd", "adam"):
        model = nn.Linear(2, 1, bias=False).double()
        w = model.weight[0].detach().clone()
        options = {"momentum": 0.0} if optimizer == "sgd" else {"eps": 1e-2}
        recipe = recipe_of(optimizer, sam_rho=0.5, weight_decay=0.0, clip_norm=0.1, **options)
        OptimizerStep(model, recipe, None)(lambda m=model: m.weight[0] @ A @ m.weight[0] / 2, 0.1)  # type: ignore[misc]
        worst = A @ (w + 0.5 * A @ w / (A @ w).norm())
        clipped = worst * 0.1 / worst.norm()
        step = clipped if optimizer == "sgd" else clipped / (clipped.abs() + 1e-2)
        assert torch.allclose(model.weight[0], w - 0.1 * step, rtol=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_masked_weights_stay_zero(optimizer: str, rho: float) -> None:
    model = build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 4, 0).double()
    mask, start = prune(model, 0.3), model.state_dict()["head.weight"].clone()
    (end,) = train(model, data(), recipe_of(optimizer, sam_rho=rho), ("x",), [4], mask=mask)
    for name, layer in mask.layers.items():
        assert int((end.weights[name] != 0).sum()) == int(layer.sum())
        for buffer, each in end.momentum.items():
            assert not buffer.endswith(name) or not each[~layer].any()
    assert not torch.equal(end.weights["head.weight"], start * (start != 0))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_resuming_equals_never_stopping(optimizer: str, rho: float) -> None:
    recipe = recipe_of(optimizer, sam_rho=rho)
    half, whole = train(net(), data(), recipe, ("x",), [2, 4])
    (resumed,) = train(net(9), data(), recipe, ("x",), [4], resume=half)
    assert list(whole.momentum) == list(resumed.momentum)
    assert torch.equal(all_of(whole), all_of(resumed))
    assert whole.history == resumed.history


def test_muon_moves_hidden_matrices_and_convolutions_only() -> None:
    names = hidden_matrices(build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 4, 0))
    assert all(name.endswith("weight") for name in names)
    assert "head.weight" not in names
    assert len(names) == 7 + sum("shortcut" in name for name in names)
    language = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    assert hidden_matrices(language) == {"1.weight"}
    (end,) = train(net(), data(), recipe_of("muon"), ("x",), [1])
    assert {name for name in end.momentum if "/" not in name} == {"body.1.weight", "body.4.weight"}


def test_muon_does_not_depend_on_the_memory_format() -> None:
    """A convolution of one pixel has the same memory in both, with other strides."""
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = build("preresnet", {"depth": 8, "width": 4}, (3, 8, 8), 4, 0).to(memory_format=layout)
        assert any(each.shape[-2:] == (1, 1) for each in model.parameters() if each.dim() == 4)
        rule, named = update_rule(model, recipe_of("muon")), dict(model.named_parameters())
        with torch.no_grad():
            for step in range(2):
                rule(named, {name: each.sin() for name, each in named.items()}, 0.01, step)
        moved.append(torch.cat([each.detach().flatten() for each in named.values()]))
    assert torch.equal(*moved)


class Sequences(nn.Module):
    """Tokens with learnt positions, attention, a head before the norm, and an embedding tied to it if asked."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Parameter(torch.randn(5, 4))
        self.attention, self.body = nn.MultiheadAttention(4, 2), nn.Linear(4, 4)
        self.head = nn.Linear(4, 9)
        self.norm, self.scale = nn.LayerNorm((5, 4)), nn.Parameter(torch.ones(2, 2))
        if tied:
            self.head.weight = self.tokens.weight


@pytest.mark.parametrize("tied", [False, True])
def test_muon_leaves_the_head_embeddings_and_own_parameters_to_adamw(tied: bool) -> None:
    assert hidden_matrices(Sequences(tied)) == {"attention.in_proj_weight", "attention.out_proj.weight", "body.weight"}


def test_muon_trains_layers_whose_weights_cannot_be_masked_by_adamw() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    nn.utils.parametrizations.orthogonal(model[0])
    assert hidden_matrices(model) == {"1.weight"}


# -- what a file says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"optimizer": "adamw", "nesterov": True}, ["nesterov"]),
        ({"optimizer": "adam", "momentum": 0.8}, ["momentum"]),
        ({"betas": [0.8, 0.9], "eps": 1e-6}, ["beta1", "beta2", "eps"]),
        ({"optimizer": "muon", "nesterov": True, "betas": [0.8, 0.9], "momentum": 0.95}, []),
    ],
)
def test_options_of_another_optimizer_are_named(options: dict[str, Any], fields: list[str]) -> None:
    assert list(Recipe.model_validate(options).unused) == fields


def test_new_fields_at_their_defaults_change_no_key() -> None:
    new = {"optimizer": "sgd", "betas": (0.9, 0.999), "eps": 1e-8, "warmup": 0.0, "clip_norm": 0.0}
    assert Recipe.model_validate(new).key_fields() == Recipe().key_fields()
    for name, value in {"optimizer": "adamw", "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "clip_norm": 1.0}.items():
        changed = Recipe.model_validate({name: value})
        assert changed.key_fields() == {**Recipe().key_fields(), name: value}
        assert Recipe.model_validate(changed.model_dump()) == changed
