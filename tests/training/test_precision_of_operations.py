"""With bfloat16, the operations of a step that multiply matrices or convolve take bfloat16, and no others' do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from network_kinds import KINDS, LOSS_NAMES, data
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regimes.config.discovery import Pressure
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.data.inputs import call
from regimes.data.synthetic import synthetic
from regimes.discovery.gated_training import GatedTraining
from regimes.errors import UserError
from regimes.experiment.engine_selection import EngineChoice, select_engine
from regimes.experiment.numerics import numerics_of
from regimes.experiment.run import prepare
from regimes.models.build import build
from regimes.registry import lookup
from regimes.training import ENGINES
from regimes.training.fleet import Engine, Lane
from regimes.training.precision import ProductDtypes, precision_context
from regimes.training.train import train_fleet

CPU = torch.device("cpu")
PRODUCT = re.compile(r"mm|mv|dot|conv|attention|rnn|lstm|gru|^linear|_trilinear")
# What stays in the precision of the weights: power iteration, complex numbers, and attention with dropout or a mask of
# padding, which on a CPU is not fused, and then computed in float32 by torch's own choice.
FULL = {
    "spectral-norm": {"mv", "vdot"},
    "complex": {"mm", "addmm"},
    **{kind: {"bmm"} for kind in ("encoder", "dict", "bert")},
}


class Products(TorchDispatchMode):
    """Notes the operations that multiply matrices or convolve, forward and backward, with the dtypes they take."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if PRODUCT.search(name):
            taken = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
            # The backward pass of attention takes beside its matrices the logarithms of sums, (n, heads, length).
            matrices = [each for each in taken if each.dim() > 3 or not name.startswith("_scaled")]
            self.found.append((name, {each.dtype for each in matrices if each.dtype != torch.uint8}))
        return func(*args, **(kwargs or {}))

    def of_other_dtype(self, dtype: torch.dtype) -> set[str]:
        return {name for name, dtypes in self.found if dtypes != {dtype}}


def one_epoch(kind: str, engine: str, precision: str = "bfloat16", **change: Any) -> tuple[Engine, Products]:
    loss = LOSS_NAMES.get(KINDS[kind].loss, "cross-entropy")
    recipe = Recipe(epochs=1, batch_size=48, augment="none", last=1, loss=loss, **change)
    network = KINDS[kind].network()
    lane = Lane(network if kind == "complex" else network.float(), recipe, ("x",))
    trained: Engine = lookup(ENGINES, engine, "engine")(
        [lane], data(kind).to(CPU, torch.float64 if kind == "complex" else torch.float32), precision
    )
    with Products() as products:
        trained.epoch(0)
    return trained, products


@pytest.mark.parametrize("engine", ["eager", "graphed"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_a_step_take_bfloat16(kind: str, engine: str) -> None:
    if engine == "graphed" and kind in ("encoder", "dict", "bert"):  # have dropout
        with pytest.raises(ValueError, match="draws random numbers"):
            one_epoch(kind, engine)
        return
    trained, products = one_epoch(kind, engine)
    assert products.found
    assert products.of_other_dtype(torch.bfloat16) == FULL.get(kind, set())
    with Products() as measured:
        trained.errors()
    weights = torch.complex128 if kind == "complex" else torch.float32
    assert measured.found
    assert measured.of_other_dtype(weights) == set()
    assert all(each.dtype != torch.bfloat16 for part in trained.state(0) for each in part.values())
    _, twice = one_epoch(kind, engine, sam_rho=0.1)
    assert twice.of_other_dtype(torch.bfloat16) == products.of_other_dtype(torch.bfloat16)
    assert len(twice.found) == 2 * len(products.found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_before_a_run_sees_what_stays(kind: str) -> None:
    network = KINDS[kind].network()
    network = network if kind == "complex" else network.float()
    inputs = data(kind).to(CPU, torch.float32).train.inputs
    with ProductDtypes() as products, precision_context("bfloat16", CPU):
        call(network, inputs)
    assert products.found
    stay = {name for name, dtype in products.found if dtype != torch.bfloat16}
    assert stay == FULL.get(kind, set()) - {"mm"}  # a backward pass has that


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["mlp", "batch-norm", "attention"])
def test_products_of_a_float32_step_take_float32(kind: str, engine: str) -> None:
    _, products = one_epoch(kind, engine, "float32", optimizer="adamw", clip_norm=1.0)
    assert products.found
    assert products.of_other_dtype(torch.float32) == set()


def test_products_of_a_discovery_take_bfloat16() -> None:
    found = synthetic(shape=[1, 8, 8], train=120, test=40).to(CPU, torch.float32)
    recipe = Recipe(epochs=2, batch_size=40, augment="none", sam_rho=0.1)
    network = build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 4, 0)
    search = GatedTraining(network, found, recipe, Pressure(), ("x",), "bfloat16")
    with Products() as products:
        for step, inputs, targets in search.stream.batches(0, 3):
            search._step(step, inputs, targets)
    assert products.found
    assert products.of_other_dtype(torch.bfloat16) == set()


# -- what cannot be in bfloat16 ----------------------------------------------------------------------------------------


class Bilinear(nn.Module):
    """Has a product that autocast leaves alone."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, cast: bool = True) -> None:
        super().__init__()
        self.cast, self.body = cast, nn.Linear(*input_shape, 8)
        self.pair, self.head = nn.Bilinear(8, 8, 8), nn.Linear(8, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.body(inputs)
        hidden = hidden.float() if self.cast else hidden
        out: torch.Tensor = self.head(self.pair(hidden, hidden).relu())
        return out


def test_what_stays_in_float32_is_told_before_any_work(tiny: dict[str, Any], tmp_path: Path) -> None:
    name = "test_precision_of_operations:Bilinear"
    sweep = {**tiny, "model": {"name": name}}
    said = r"--precision bfloat16: 1 of 3 matrix products .* stay in another precision \(_trilinear\)"
    with pytest.warns(UserWarning, match=said):
        prepare(resolve_sweep(sweep), tmp_path / "run", precision="bfloat16")
    sweep["model"] = {"name": name, "cast": False}
    with pytest.raises(UserError, match="--precision bfloat16: the model raised RuntimeError: All tensors must"):
        prepare(resolve_sweep(sweep), tmp_path / "run", precision="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(resolve_sweep(tiny), tmp_path / "run", precision="bfloat16")
        prepare(resolve_sweep(sweep), tmp_path / "run", engine="eager")


def test_stacked_steps_are_in_float32_only(
    tiny: dict[str, Any], tmp_path: Path, cli: Callable[..., CompletedProcess[str]]
) -> None:
    with pytest.raises(ValueError, match="bfloat16 steps cannot be stacked"):
        one_epoch("mlp", "stacked")
    chosen = prepare(resolve_sweep(tiny), tmp_path / "run", precision="bfloat16")
    assert (chosen.spec.numerics.engine, chosen.spec.numerics.precision) == ("eager", "bfloat16")
    chosen.context.spec = chosen.spec
    assert select_engine(chosen.context, [chosen.sweep.recipe], 100) == EngineChoice("eager", 1)
    assert numerics_of("cpu", "stacked", "stacked").precision == "float32"
    (tmp_path / "s.toml").write_text(
        '[data]\nname = "synthetic"\n[model]\nname = "mlp"\n[temperature]\nepochs = [1]\n[load]\ndensity = [0.5]\n'
    )
    told = cli("run", "s.toml", "--engine", "stacked", "--precision", "bfloat16")
    assert told.returncode == 2
    assert "--precision bfloat16: the engine stacked trains in float32 only" in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def loop(model: nn.Module) -> Any:
    yield None


def test_a_loop_of_ones_own_chooses_its_precision_itself(tiny: dict[str, Any], tmp_path: Path) -> None:
    own = "test_precision_of_operations:loop"
    tiny["recipe"]["train"] = own
    with pytest.raises(UserError, match=r"recipe\.train = .* chooses its own precision"):
        prepare(resolve_sweep(tiny), tmp_path / "run", precision="bfloat16")
    lane = Lane(KINDS["mlp"].network(), Recipe(epochs=1, batch_size=16, augment="none", train=own), ("x",))
    with pytest.raises(ValueError, match="cannot be set to bfloat16"):
        list(train_fleet([lane], data("mlp").to(CPU, torch.float64), [1], precision="bfloat16"))
