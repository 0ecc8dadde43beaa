"""Structure discovery: a known answer is recovered, three numbers do what they say, nothing needed is lost."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import SMALL
from torch import nn

import regimes
from regimes import UserError
from regimes.config.discovery import Pressure
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.discovery.api import train_epochs
from regimes.discovery.gate_state import GateState, guard_removal
from regimes.discovery.gated_training import GatedTraining
from regimes.discovery.removal_criterion import is_removable
from regimes.discovery.trace_graph import trace_graph
from regimes.models.build import build
from regimes.research.studies.teacher_student import Net, teacher_data, train_student, units_left

QUICK = {"warm": 0.1, "ramp": 0.1, "fall": 0.2, "settle": 0.7}


# -- a known answer ---------------------------------------------------------------------------------------------------


def test_the_structure_of_a_teacher_is_recovered() -> None:
    """One block of four units, in at least four of five seeds; what is found has learnt."""
    found = [train_student(seed, nu=0.3, alpha=0.65) for seed in range(5)]
    assert sum(sorted(units_left(each)) == [0, 0, 4] for each in found) >= 4
    assert all(each.error(each.data.test) < 0.03 for each in found)  # answers have variance 1


def test_without_pressure_everything_stays_and_training_is_that_of_a_dense_network() -> None:
    """The very bits: no gate is drawn."""
    from regimes.training.train import train

    data = synthetic(shape=[3, 8, 8], train=96, test=40)
    recipe = Recipe(epochs=3, batch_size=16, augment="none")
    model = build("preresnet", SMALL["preresnet"], data.input_shape, data.classes, 0)
    found = regimes.discover(copy.deepcopy(model), data, nu=0.0, recipe=recipe, seed=4)
    (snapshot,) = train(model, data, recipe, ("dense", 4), [3])
    assert all(torch.equal(each, found.model.state_dict()[name]) for name, each in snapshot.weights.items())
    assert found.macs == found.full_macs
    assert all(found.blocks.values())


def test_alpha_chooses_between_layers_and_units() -> None:
    layers, units = train_student(0, epochs=40, nu=0.2, alpha=1.0), train_student(0, epochs=40, nu=0.2, alpha=0.0)
    assert sorted(set(units_left(layers))) == [0, 16]
    assert layers.blocks.alive < 3
    assert units.units.alive < 24
    assert all(each in (0, *range(1, 16)) for each in units_left(units))
    for number, count in enumerate(units_left(units)):  # a block leaves only with its last unit
        assert bool(units.blocks.removed[number]) == (count == 0)


def test_kappa_moves_the_balance_of_macs_and_parameters() -> None:
    """The pressure itself: an early layer costs MACs, a late one parameters."""
    model = build("preresnet", {"depth": 8, "width": 4}, (3, 16, 16), 4, 0)
    data = synthetic(shape=[3, 16, 16], train=64, test=20)
    pulls = {}
    for kappa in (0.0, 1.0):
        search = GatedTraining(
            model, data, Recipe(epochs=2, batch_size=16, augment="none"), Pressure(kappa=kappa), ("k", 0)
        )
        ones = torch.ones(search.units.alive), torch.ones(3)
        units, blocks = search.complexity.gradient(*ones, search.full, kappa)
        pulls[kappa] = (float(units[0] / units[-1]), float(blocks[0] / blocks[-1]))
    assert pulls[1.0][0] > 4 * pulls[0.0][0]
    assert pulls[1.0][1] > 4 * pulls[0.0][1]


@pytest.mark.parametrize("name", [name for name in SMALL if name != "torchvision"])
def test_every_model_shrinks_and_still_works(name: str) -> None:
    data = synthetic(shape=[3, 8, 8], train=320, test=40)
    model = build(name, SMALL[name], data.input_shape, data.classes, 0)
    recipe = Recipe(epochs=6, batch_size=16, learning_rate=0.02, augment="none")
    found = regimes.discover(model, data, nu=0.5, alpha=0.3, recipe=recipe, **QUICK)
    assert found.macs < found.full_macs
    assert found.params == sum(each.numel() for each in found.model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in found.model.modules())
    assert found.model(data.test.inputs[:2]).shape == (2, data.classes)
    assert found.model.training
    whole = build(name, SMALL[name], data.input_shape, data.classes, 0).state_dict()
    assert all(torch.equal(each, whole[key]) for key, each in model.state_dict().items())  # the one given


# -- the final rule ---------------------------------------------------------------------------------------------------


def test_gates_end_at_zero_or_one_and_the_plain_network_is_as_good_as_the_gated_one() -> None:
    data = regimes_digits()
    model = build("preresnet", {"depth": 8, "width": 6}, data.input_shape, data.classes, 0)
    recipe = Recipe(epochs=14, batch_size=64, augment="none")
    search = GatedTraining(model, data, recipe, Pressure(nu=0.1, settle=0.8), ("dense", 0))
    for number in range(search.schedule.settle_epoch - 1):
        search.epoch(number)
    assert not search.settled
    gated = search.error(data.test)
    for number in range(search.schedule.settle_epoch - 1, 14):
        search.epoch(number)
    for side in (search.units, search.blocks):
        assert set(side.prob.tolist()) <= {0.0, 1.0}
        assert torch.equal(side.prob == 0, side.removed)
    plain = search.error(data.test)
    noise = math.sqrt(2 * 0.05 * 0.95 / len(data.test.targets))
    assert plain < gated + 2 * noise
    assert search.units.alive < search.full_graph.units


def regimes_digits() -> Dataset:
    from regimes.data.digits import digits

    return digits()


# -- guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "preresnet", "mlp"])
def test_a_pressure_that_would_remove_everything_ends_with_the_last_good_network(name: str) -> None:
    data = synthetic(shape=[3, 8, 8], train=200, test=80, spread=0.5)
    model = build(name, SMALL[name], data.input_shape, data.classes, 0)
    recipe = Recipe(epochs=10, batch_size=20, learning_rate=0.02, augment="none")
    found = regimes.discover(model, data, nu=1e4, recipe=recipe, **QUICK)
    assert "nu = 10000 would remove all of" in found.message
    assert "use a smaller nu" in found.message
    assert found.message in str(found)
    assert all(alive > 0 for alive, _ in found.widths.values()) or any(found.blocks.values())
    assert found.model(data.test.inputs[:2]).isfinite().all()


def test_a_layer_keeps_its_last_unit_and_a_block_goes_without_units() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 8), *Net(parts=2, units=3).children())
    anatomy = trace_graph(model, torch.randn(4, 6))
    assert [(group.name, group.block) for group in anatomy.groups] == [("0", None), ("3.0.up", 0), ("3.1.up", 1)]
    units, blocks = (GateState.of(count, 0.5, torch.device("cpu")) for count in (anatomy.units, 2))
    units.prob[3] = 0.6
    ask = torch.ones(anatomy.units, dtype=torch.bool)
    ask[anatomy.groups[2].units] = False
    leaving = guard_removal(anatomy, units, blocks, ask, torch.zeros(2, dtype=torch.bool))
    assert leaving.units.tolist() == [True, True, True, False, True, *[True] * 3, *[False] * 3]
    assert leaving.blocks.tolist() == [True, False]
    assert leaving.spared == ("0",)
    assert leaving.removes_everything  # the network can do nothing without its first layer
    last = guard_removal(anatomy, units, blocks, ~ask & False, torch.tensor([True, True]))
    assert not last.removes_everything  # the first layer has units beside
    bare = trace_graph(Net(parts=2, units=3), torch.randn(4, 8))
    sides = GateState.of(bare.units, 0.5, torch.device("cpu")), GateState.of(2, 0.5, torch.device("cpu"))
    none = torch.zeros(bare.units, dtype=torch.bool)
    assert guard_removal(bare, *sides, none, torch.tensor([True, True])).removes_everything
    assert not guard_removal(bare, *sides, none, torch.tensor([True, False])).removes_everything


def test_only_what_nothing_brings_back_may_leave() -> None:
    """Closed form: without decay and with s = 1 the condition is ``|w| + theta < r / eta``."""
    theta, norm = torch.tensor([0.005, 0.005, 0.02, 0.005]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    worth, pressure = torch.tensor([-0.09, -0.11, -0.09, 0.5]), torch.full((4,), 0.1)
    assert is_removable(theta, worth, norm, pressure, decay=0.0).tolist() == [True, False, False, True]
    assert not is_removable(theta, worth, norm, 0 * pressure, decay=0.0).any()
    eta = 0.11 / 2.0
    for decay in (0.0, 1e-3, 0.1):
        s = (math.sqrt(decay**2 + 4 * eta**2) - decay) / (2 * eta)
        want = s * 2.0 + 0.005 < s * 0.1 / eta + decay * 0.1 / eta**2
        assert bool(is_removable(theta, worth, norm, pressure, decay)[1]) == want


def test_three_checks_in_a_row_are_needed() -> None:
    side = GateState.of(2, 0.9, torch.device("cpu"))
    yes, one = torch.tensor([True, True]), torch.tensor([True, False])
    assert [side.check(each).tolist() for each in (yes, one, yes, yes, yes)] == [
        [False, False],
        [False, False],
        [True, False],
        [True, False],
        [True, True],
    ]


# -- randomness and resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "optimizer"), [(1, "sgd"), (4, "sgd"), (6, "sgd"), (4, "adamw"), (4, "muon")])
def test_a_search_goes_on_as_if_it_had_never_stopped(at: int, optimizer: str) -> None:
    """Before the pressure, between removals, and after the structure is settled; SAM and dropout on the way."""
    data = synthetic(shape=[3, 8, 8], train=320, test=40)
    rate = 0.05 if optimizer == "sgd" else 0.01
    how: dict[str, Any] = {"learning_rate": rate, "optimizer": optimizer, "sam_rho": 0.02}
    recipe = Recipe(epochs=8, batch_size=16, augment="crop-flip", **how)

    def new() -> GatedTraining:
        model = build("preresnet", {"depth": 14, "width": 4}, data.input_shape, data.classes, 0)
        return GatedTraining(model, data, recipe, Pressure(nu=0.05, alpha=0.3, **QUICK), ("dense", 0))

    whole = list(train_epochs(new()))
    resumed = list(train_epochs(new(), whole[at - 1]))
    assert len(resumed) == 8 - at
    first, second = whole[-1], resumed[-1]
    assert set(first.tensors) == set(second.tensors)
    assert all(torch.equal(each, second.tensors[name]) for name, each in first.tensors.items())
    untimed: list[list[dict[str, Any]]] = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in saved.facts["history"]]
        for saved in (first, second)
    ]
    assert untimed[0] == untimed[1]
    alive = [row["units"] for row in first.facts["history"]]
    assert len({56, *alive}) > 2  # some left on the way, some at the end
    assert first.facts["message"] == ""


def test_momentum_shrinks_with_the_weights() -> None:
    search = train_student(0, epochs=60, nu=0.5)
    shapes = {name: each.shape for name, each in search.model.named_parameters()}
    assert {name: each.shape for name, each in search.stepper.momentum().items()} == shapes
    assert Counter(units_left(search))[0] >= 1


def test_later_epochs_have_less_to_compute() -> None:
    """Counted, not timed: multiply-accumulates of one input at the start and at the end."""
    from torch.utils.flop_counter import FlopCounterMode

    search = train_student(0, epochs=60, nu=0.5)
    counts = []
    for model in (search.whole, search.model):
        with FlopCounterMode(display=False) as counter:
            model(search.data.test.inputs[:1])
        counts.append(counter.get_total_flops() // 2)
    assert counts[1] == round(float(search.complexity(search.units.prob, search.blocks.prob).macs))
    assert counts[1] < 0.3 * counts[0]


def test_a_search_that_diverges_says_so() -> None:
    data = teacher_data(0, 200)
    recipe = Recipe(epochs=5, batch_size=20, learning_rate=1e6, augment="none", loss="mse")
    found = regimes.discover(Net(), data, nu=0.1, recipe=recipe)
    assert "diverged in epoch" in found.message


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"estimator": "curvy"}, "unknown estimator 'curvy'"),
        ({"nu": -1.0}, "nu: .*greater than or equal to 0"),
        ({"speed": 1.0}, "speed: "),
        ({"settle": 0.1}, "settle: must be above warm .* got 0.1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        regimes.discover(Net(), teacher_data(0, 200), recipe=Recipe(epochs=1, batch_size=20), **options)


def test_pressure_on_what_is_not_there_is_refused() -> None:
    model = build("mlp", {"widths": [6]}, (8,), 3, 0)
    with pytest.raises(UserError, match="alpha = 1 has no effect: this network has no residual block"):
        regimes.discover(model, synthetic(shape=[8], train=60, test=20), alpha=1.0, recipe=Recipe(batch_size=20))
