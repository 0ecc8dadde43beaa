"""Rounds of pruning and rewinding: on from one another, within one another, the same bits."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import xarray as xr
from conftest import done
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regimes
from regimes import UserError
from regimes.config.sweep import LoadConfig
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment.context import RunContext, stored_mask
from regimes.experiment.run import Result
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.store import Store

Sweep = dict[str, Any]
Run = Callable[..., Result]


@settings(max_examples=50)
@given(density=st.floats(0.01, 0.9), rounds=st.integers(2, 20))
def test_the_way_goes_down_to_the_density(density: float, rounds: int) -> None:
    for schedule in ("iterative", "gradual"):
        way = LoadConfig(density=(density,), schedule=schedule, rounds=rounds).path(density)  # type: ignore[arg-type]
        assert len(way) == rounds
        assert way[-1] == density
        assert all(a > b for a, b in zip((1.0, *way), way, strict=False))
        steps = [a - b for a, b in zip((1.0, *way), way, strict=False)]
        ratios = [b / a for a, b in zip((1.0, *way), way, strict=False)]
        if schedule == "iterative":
            assert ratios == pytest.approx([density ** (1 / rounds)] * rounds)
        else:  # smaller and smaller, down to almost nothing
            assert all(a > b for a, b in itertools.pairwise(steps))
            assert steps[0] == pytest.approx((1 - density) * (1 - (1 - 1 / rounds) ** 3))


@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
@pytest.mark.parametrize("pruner", ["magnitude", "random", "snip", "channels-magnitude"])
def test_rounds_go_on_from_one_another(
    tiny: Sweep, run_tiny: Run, count: Counter[str], schedule: str, pruner: str
) -> None:
    tiny["load"] |= {"schedule": schedule, "rounds": 3, "pruner": pruner}
    tiny["model"]["widths"] = [24, 24]
    result = run_tiny(tiny)
    assert not result.progress.todo
    # For each of two temperatures and two densities: three masks, two rounds between, two copies.
    assert count == {"train": 2, "prune": 12, "retrain": 8 + 8, "measure": 16}
    record = regimes.open(result.folder)
    assert bool((record.status == 1).all())
    assert record.test_error.sizes["retrain_seed"] == 2
    wanted = xr.zeros_like(record.kept) + record.density
    assert float(abs(record.kept / wanted - 1).max()) < (0.3 if "channels" in pruner else 0.02)


def test_later_masks_lie_within_earlier_ones(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"] |= {"schedule": "iterative", "rounds": 3, "pruner": "random", "allocation": "lamp"}
    result = run_tiny(tiny)
    context, store = RunContext(_spec(result, tiny)), Store(result.folder)
    for stage in result.stages:
        if isinstance(stage, RetrainStage) and stage.pruned.after is not None:
            model = context.new_model(0)
            inner = stored_mask(context, store, stage.pruned.key, model)
            outer = stored_mask(context, store, stage.pruned.after.pruned.key, model)
            assert inner is not None
            assert outer is not None
            assert inner.kept < outer.kept
            assert not any((inner.layers[n] & ~outer.layers[n]).any() for n in inner.layers)
            assert inner.holds(store.weights(stage.key))


def _spec(result: Result, sweep: Sweep) -> Any:
    from regimes.experiment.run import prepare

    return prepare(resolve_sweep(sweep), result.folder).spec


def test_rounds_give_the_same_bits_with_any_number_of_workers(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"] |= {"schedule": "gradual", "rounds": 2, "rewind": 1}
    results = [done(Store(run_tiny(tiny, f"w{workers}", workers=workers, engine="eager").folder)) for workers in (0, 2)]
    assert results[0] == results[1]


@pytest.mark.parametrize("rewind", [0, 2])
def test_survivors_go_back_to_earlier_weights(
    tiny: Sweep, run_tiny: Run, rewind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[dict[str, Tensor]] = []
    tiny |= {"temperature": {"epochs": [4]}, "load": {"density": [0.5], "rewind": rewind}, "retrain_seeds": 2}
    from regimes.experiment.stages import retrain as retraining

    lane_of = retraining._lane

    def spy(*arguments: Any) -> Any:
        lane = lane_of(*arguments)
        began.append({name: each.clone() for name, each in lane.model.state_dict().items()})
        return lane

    monkeypatch.setattr(retraining, "_lane", spy)
    result = run_tiny(tiny)
    context, store = RunContext(_spec(result, tiny)), Store(result.folder)
    (dense,) = (stage for stage in result.stages if stage.kind == "train" and not stage.intermediate)
    if rewind:
        (aside,) = (stage for stage in result.stages if stage.kind == "train" and stage.intermediate)
        assert aside.key == f"{dense.key.partition('-')[0]}-e2"
        wanted = {name: each for name, each in store.weights(aside.key).items() if "momentum/" not in name}
    else:
        from regimes.config.keys import seed_of

        wanted = dict(context.new_model(seed_of("init", 0)).state_dict())
    assert all(torch.equal(began[0][name], each) for name, each in wanted.items())
    record = regimes.open(result.folder)
    assert record.dense_test_error.sizes == {"epochs": 1, "dense_seed": 1}


def test_a_snapshot_that_is_on_the_map_may_be_gone_back_to(tiny: Sweep, run_tiny: Run) -> None:
    tiny["load"]["rewind"] = 2  # itself one of the epochs
    record = regimes.open(run_tiny(tiny).folder)
    assert record.dense_test_error.notnull().all()
    assert bool((record.status == 1).all())


@pytest.mark.parametrize(
    ("load", "line"),
    [
        ({"rewind": 3}, "load.rewind: 3 exceeds the shortest dense training, 2 epochs"),
        ({"rounds": 3}, "load.rounds: one-shot pruning has one round"),
        ({"schedule": "iterative", "rounds": 1}, "load.rounds: .*greater than or equal to 2"),
        ({"schedule": "slow"}, "load.schedule: .*'one-shot', 'iterative' or 'gradual'"),
        ({"pruner": "channels-magnitude", "rewind": 1}, "load.rewind: needs masks"),
        ({"pruner": "channels-magnitude", "allocation": "erk"}, "channel pruning allows 'uniform' or 'global'"),
        ({"pruner": "channels"}, "load.pruner: unknown pruner 'channels' .did you mean 'channels-"),
    ],
)
def test_ways_that_cannot_be_meant_are_refused(tiny: Sweep, load: Sweep, line: str) -> None:
    tiny["load"] |= load
    with pytest.raises(UserError, match=line):
        resolve_sweep(tiny)


def test_a_round_on_the_way_is_never_a_copy_on_the_map(tiny: Sweep, run_tiny: Run) -> None:
    alone = {**tiny, "load": {"density": [0.5]}}
    rounds = {**tiny, "load": {"density": [0.25], "schedule": "iterative", "rounds": 2}}  # by way of 0.5
    keys = [
        {stage.key for stage in run_tiny(each, name, engine="eager").stages}
        for each, name in ((alone, "a"), (rounds, "b"))
    ]
    shared = [stage for stage in run_tiny(alone, "a", engine="eager").stages if stage.key in keys[1]]
    assert {stage.kind for stage in shared} == {"train", "prune"}  # the same masks, and no retrained network
    run_tiny(rounds, "c", engine="eager")
    run_tiny(alone, "c", engine="eager")
    xr.testing.assert_identical(*(regimes.open(run_tiny(alone, name, engine="eager").folder) for name in "ac"))


def test_a_rewind_beyond_the_end_is_seen_however_epochs_are_written(tiny: Sweep) -> None:
    tiny |= {"temperature": {"epochs": [2.0, 4.0]}, "load": {"density": [0.5], "rewind": 3}}
    with pytest.raises(UserError, match="3 exceeds the shortest dense training, 2 epochs"):
        resolve_sweep(tiny)
