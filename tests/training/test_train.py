"""Training: against torch's own loop, schedules by hand, resume, SAM, augmentation, divergence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.data.augment import CROP_FLIP, NONE
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.errors import UserError
from regimes.models.build import build, seeded
from regimes.training.batches import BatchStream
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.schedule import TrainingSchedule
from regimes.training.train import Snapshot, train

RECIPE = Recipe(epochs=4, batch_size=32, augment="none")


def data() -> Dataset:
    return synthetic(shape=[1, 8, 8], train=150, test=40).to(torch.device("cpu"), torch.float64)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    options = {"widths": [10], "batch_norm": True, "dropout": dropout}
    return build("mlp", options, (1, 8, 8), 4, seed).double()


def weights(snapshot: Snapshot) -> torch.Tensor:
    return torch.cat([each.double().flatten() for each in snapshot.weights.values()])


# -- time -------------------------------------------------------------------------------------------------------------


def test_step_schedule_by_hand() -> None:
    timeline = TrainingSchedule(Recipe(epochs=8, batch_size=10, learning_rate=1.0), images=25)
    assert (timeline.steps_per_pass, timeline.steps_per_epoch, timeline.horizon) == (2, 2, 16)
    rates = [timeline.learning_rate(step) for step in range(16)]
    assert rates == pytest.approx([1.0] * 8 + [0.1] * 4 + [0.01] * 4)


def test_cosine_and_constant_schedules() -> None:
    cosine = TrainingSchedule(Recipe(epochs=4, batch_size=10, learning_rate=2.0, schedule="cosine"), images=10)
    assert [cosine.learning_rate(step) for step in (0, 2)] == pytest.approx([2.0, 1.0])
    constant = TrainingSchedule(Recipe(epochs=4, batch_size=10, learning_rate=2.0, schedule="constant"), images=10)
    assert {constant.learning_rate(step) for step in range(4)} == {2.0}


def test_batch_size_as_a_knob_keeps_the_number_of_steps() -> None:
    for size in (16, 64, 128):
        timeline = TrainingSchedule(Recipe(epochs=160, batch_size=size, epoch_batch=128), images=50_000)
        assert timeline.horizon == 62_400


@pytest.mark.parametrize("change", [{}, {"stop": 2}, {"stop": 7}, {"schedule": "constant"}, {"milestones": (0.3,)}])
def test_steps_before_the_first_decay(change: dict[str, Any]) -> None:
    schedule = TrainingSchedule(Recipe(epochs=8, batch_size=10).model_copy(update=change), images=35)
    taken = range(schedule.last_epoch * schedule.steps_per_epoch)
    initial = [step for step in taken if schedule.learning_rate(step) == schedule.recipe.learning_rate]
    assert schedule.steps_before_decay == len(initial)


def test_stopping_early_does_not_move_the_schedule() -> None:
    whole, early = (TrainingSchedule(Recipe(epochs=8, batch_size=10, stop=stop), 20) for stop in (None, 3))
    assert early.last_epoch == 3
    assert [early.learning_rate(s) for s in range(6)] == [whole.learning_rate(s) for s in range(6)]


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="larger than the training set of 20"):
        TrainingSchedule(Recipe(batch_size=21), 20)


# -- batches ----------------------------------------------------------------------------------------------------------


def test_every_pass_sees_each_image_at_most_once_and_drops_the_rest() -> None:
    split = synthetic(train=100, test=20).train
    stream = BatchStream(
        ("a",),
        TrainingSchedule(Recipe(batch_size=32, augment="none"), len(split.targets)),
        split,
        CROP_FLIP.__class__(0.0, False),
    )
    seen = [inputs for _, inputs, _ in stream.batches(0, 4)]
    first = torch.cat(seen[: stream.schedule.steps_per_pass])
    assert len(first.unique(dim=0)) == len(first) == 32 * (len(split.targets) // 32)
    again = [inputs for _, inputs, _ in stream.batches(1, 3)]
    assert all(torch.equal(a, b) for a, b in zip(seen[1:3], again, strict=True))
    assert not torch.equal(seen[0], seen[2 if stream.schedule.steps_per_pass == 2 else 3])


def test_crop_and_flip_equal_slicing_by_hand() -> None:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = CROP_FLIP.draw(5, (3, 32, 32), torch.Generator().manual_seed(1))
    out = CROP_FLIP.apply(images, draws)
    padded = F.pad(images, (4, 4, 4, 4))
    for image, (row, column, flip), result in zip(padded, draws.tolist(), out, strict=True):
        cut = image[:, row : row + 32, column : column + 32]
        assert torch.equal(result, cut.flip(-1) if flip else cut)
    many = CROP_FLIP.draw(4000, (3, 32, 32), torch.Generator().manual_seed(2)).double()
    assert many[:, :2].min() == 0
    assert many[:, :2].max() == 8
    assert many[:, 2].mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shape", [(2, 16, 32), (1, 32, 8)])
def test_images_need_not_be_square(shape: tuple[int, int, int]) -> None:
    images = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    draws = CROP_FLIP.draw(200, shape, torch.Generator().manual_seed(1))
    high, wide = shape[1] // 8, shape[2] // 8
    assert draws[:, 0].max() == 2 * high
    assert draws[:, 1].max() == 2 * wide
    for image, (row, column, flip), result in zip(images, draws.tolist(), CROP_FLIP.apply(images, draws), strict=True):
        cut = F.pad(image, (wide, wide, high, high))[:, row : row + shape[1], column : column + shape[2]]
        assert torch.equal(result, cut.flip(-1) if flip else cut)


def test_images_are_asked_for_where_augmentation_needs_them() -> None:
    with pytest.raises(UserError, match="needs images"):
        CROP_FLIP.check((16,), "crop-flip")
    CROP_FLIP.check((3, 32, 32), "crop-flip")


# -- against torch's own loop -----------------------------------------------------------------------------------------


def test_equals_a_plain_torch_loop() -> None:
    recipe = RECIPE.model_copy(update={"weight_decay": 0.01, "nesterov": True, "label_smoothing": 0.1})
    ours, theirs, d = net(), net(), data()
    (end,) = train(ours, d, recipe, ("x",), [4])
    timeline = TrainingSchedule(recipe, len(d.train.targets))
    stream = BatchStream(("x",), timeline, d.train, CROP_FLIP.__class__(0.0, False))
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    milestones = [timeline.horizon // 2, timeline.horizon * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, gamma=0.1)
    theirs.train()
    for _, inputs, targets in stream.batches(0, timeline.horizon):
        sgd.zero_grad()
        F.cross_entropy(theirs(inputs), targets, label_smoothing=0.1).backward()
        sgd.step()
        schedule.step()
    for name, value in theirs.state_dict().items():
        assert torch.allclose(end.weights[name].double(), value.double(), atol=1e-12)


def test_dropout_is_that_of_torchs_generator_seeded_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `torch.manual_seed`, which would also queue a seed for every device that is not initialised yet."""
    theirs, d = net(dropout=0.5), data()
    stream = BatchStream(("x",), TrainingSchedule(RECIPE, len(d.train.targets)), d.train, NONE)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=RECIPE.weight_decay, foreach=True)
    theirs.train()
    with seeded(0):
        for step, inputs, targets in stream.batches(0, stream.schedule.steps_per_epoch):
            torch.manual_seed((seed_of("x", "noise") + step) % 2**63)
            sgd.zero_grad()
            F.cross_entropy(theirs(inputs), targets).backward()
            sgd.step()
    monkeypatch.delattr(torch, "manual_seed")
    (end,) = train(net(dropout=0.5), d, RECIPE, ("x",), [1])
    assert all(torch.equal(end.weights[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("rho", [0.0, 0.2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resuming_equals_never_stopping(rho: float, dropout: float) -> None:
    recipe = RECIPE.model_copy(update={"sam_rho": rho, "batch_size": 16, "epoch_batch": 32})
    half, whole = train(net(dropout=dropout), data(), recipe, ("x",), [2, 4])
    (resumed,) = train(net(9, dropout), data(), recipe, ("x",), [4], resume=half)
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)
    assert all(torch.equal(whole.momentum[name], resumed.momentum[name]) for name in whole.momentum)
    assert whole.history == resumed.history


def test_same_role_same_bits_and_another_role_others() -> None:
    ends = [next(train(net(), data(), RECIPE, role, [4])) for role in (("a", 0), ("a", 0), ("a", 1))]
    assert torch.equal(weights(ends[0]), weights(ends[1]))
    assert not torch.equal(weights(ends[0]), weights(ends[2]))


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(train(net(dropout=0.5), data(), RECIPE, ("x",), [2]))
    assert torch.equal(torch.get_rng_state(), before)


# -- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"nesterov": True, "momentum": 0.8}, {"weight_decay": 0.0}])
def test_steps_are_those_of_torchs_class(options: dict[str, Any]) -> None:
    """To the last bit; a parameter without a gradient stays, and has momentum of its own once it has one."""
    d, recipe = data(), Recipe(**options)
    ours, theirs = net(), net()
    stepper = OptimizerStep(ours, recipe, None)
    keys = ("momentum", "nesterov", "weight_decay")
    sgd = torch.optim.SGD(theirs.parameters(), foreach=True, **{key: getattr(recipe, key) for key in keys})

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        model.head.bias.requires_grad_(step % 2 == 1)  # type: ignore[union-attr, operator]
        return F.cross_entropy(model(d.train.inputs), d.train.targets)

    for step in range(4):
        rate = 0.1 / (step + 1)
        stepper(lambda step=step: loss(ours, step), rate)  # type: ignore[misc]
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        loss(theirs, step).backward()
        sgd.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


# -- SAM --------------------------------------------------------------------------------------------------------------


def test_sam_step_is_the_gradient_at_the_worst_neighbour() -> None:
    """On w'Aw/2 the step is w - lr A (w + rho Aw/|Aw|)."""
    A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    model = nn.Linear(2, 1, bias=False).double()
    w = model.weight[0].detach().clone()
    stepper = OptimizerStep(model, Recipe(sam_rho=0.5, momentum=0.0, weight_decay=0.0), None)
    stepper(lambda: model.weight[0] @ A @ model.weight[0] / 2, 0.1)
    worst = w + 0.5 * A @ w / (A @ w).norm()
    assert torch.allclose(model.weight[0], w - 0.1 * A @ worst)


def test_sam_updates_batch_norm_statistics_once() -> None:
    d = data()
    plain, sam = net(), net()
    for model, rho in ((plain, 0.0), (sam, 0.5)):
        stepper = OptimizerStep(model, Recipe(sam_rho=rho), None)
        model.train()
        stepper(lambda m=model: F.cross_entropy(m(d.train.inputs[:32]), d.train.targets[:32]), 0.1)  # type: ignore[misc]
    norms = [next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d)) for model in (plain, sam)]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)  # type: ignore[arg-type]
    assert int(norms[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert not torch.equal(plain.head.weight, sam.head.weight)  # type: ignore[union-attr]


# -- what is reported -------------------------------------------------------------------------------------------------


def test_divergence_is_a_result() -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30})
    ends = list(train(build("mlp", {"widths": [8]}, (1, 8, 8), 4, 0).double(), data(), recipe, ("x",), [1, 3, 4]))
    assert [each.epoch for each in ends] == [1, 3, 4]
    assert ends[-1].diverged
    assert ends[-1].weights == {}


def test_history_holds_an_error_for_each_epoch_asked_for() -> None:
    (end,) = train(net(), data(), RECIPE.model_copy(update={"last": 2}), ("x",), [4], evaluate_all=False)
    assert [("test_error" in row, "val_error" in row) for row in end.history] == [(False, False)] * 2 + [
        (True, True)
    ] * 2
    model = net()
    model.load_state_dict(end.weights)
    wrong = (model.eval()(data().test.inputs).argmax(1) != data().test.targets).double().mean()
    assert end.history[-1]["test_error"] == pytest.approx(float(wrong))
    assert math.isfinite(end.history[-1]["train_loss"])
