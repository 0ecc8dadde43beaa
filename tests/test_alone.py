"""The measures without a sweep: on modules, tensors and loaders, and from the terminal on checkpoints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hessians import NOTHING, Quadratic, mean, symmetric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import regimes
from regimes import UserError
from regimes.landscape import METRICS
from regimes.landscape.alone import mask_of_zeros, measure
from regimes.landscape.batches import inputs_of, pair
from regimes.landscape.estimate import Estimate, Unsure
from regimes.models.build import build
from regimes.pruners.prune import prune

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(90, 6, generator=random), torch.randint(0, 3, (90,), generator=random)


def net(seed: int) -> nn.Module:
    return build("mlp", {"widths": [8, 8], "batch_norm": True}, (6,), 3, seed)


def test_a_loader_is_the_tensors_it_gives(data: tuple[Tensor, Tensor]) -> None:
    loader = DataLoader(TensorDataset(*data), batch_size=32)
    for one, other in zip(pair(loader), data, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(inputs_of(loader, net(0)), data[0])
    assert pair(data) is not None
    a, b = net(0), net(1)
    for function, arguments in (
        (regimes.hessian_trace, (a, F.cross_entropy)),
        (regimes.hessian_top, (a, F.cross_entropy)),
        (regimes.fisher_trace, (a, F.cross_entropy)),
        (regimes.sharpness, (a, F.cross_entropy)),
        (regimes.gauss_newton_trace, (a, F.cross_entropy)),
        (regimes.linear_connectivity, (a, b)),
    ):
        assert function(*arguments, loader) == function(*arguments, data)
    for function in (regimes.cka, regimes.disagreement, regimes.js_divergence, regimes.output_distance):
        assert function(a, b, loader) == function(a, b, data[0])
    with pytest.raises(UserError, match="a loader of such pairs"):
        pair([data[0]])
    with pytest.raises(UserError, match="a loader of such pairs"):
        pair([])


def test_everything_that_is_promised_is_there() -> None:
    for name in regimes.__all__:
        assert getattr(regimes, name) is not None


def test_every_metric_by_its_name(data: tuple[Tensor, Tensor]) -> None:
    models = [net(seed) for seed in range(3)]
    found = measure(models, data, list(METRICS), {"curve": {"epochs": 2}, "spectrum": {"steps": 3}}, test=data)
    assert {each.metric for each in found} == set(METRICS)
    assert [each.networks for each in found if each.variable == "lmc"] == [(0, 1), (0, 2), (1, 2)]
    assert [each.networks for each in found if each.variable == "hessian_trace"] == [(0,), (1,), (2,)]
    direct = regimes.linear_connectivity(models[0], models[2], data)
    (lmc,) = [each for each in found if each.variable == "lmc" and each.networks == (0, 2)]
    assert lmc.value == direct
    assert lmc.seconds > 0
    tested = [each.value for each in found if each.variable in ("lmc", "lmc_test") and each.networks == (0, 1)]
    assert isinstance(tested[0], Estimate)
    assert tested[0].value == pytest.approx(tested[1].value, abs=0.02)  # type: ignore[union-attr]


def test_what_cannot_be_measured_is_said(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="metric 'lmc' compares two networks"):
        measure([net(0)], data, ["lmc"])
    with pytest.raises(UserError, match="nothing to measure"):
        measure([], data)
    with pytest.raises(UserError, match=r"unexpected keyword argument 'point'; allowed: points, images"):
        measure([net(0), net(1)], data, ["lmc"], {"lmc": {"point": 3}})
    with pytest.raises(UserError, match="did you mean 'cka'"):
        measure([net(0), net(1)], data, ["cak"])


def test_a_pruned_networks_zeros_are_its_mask(data: tuple[Tensor, Tensor]) -> None:
    model = net(0)
    assert mask_of_zeros(model) is None
    mask = prune(model, 0.3)
    mask.apply(model)
    found = mask_of_zeros(model)
    assert found is not None
    assert all(torch.equal(found.layers[name], layer) for name, layer in mask.layers.items())


def test_a_large_standard_error_warns() -> None:
    balanced = Quadratic(symmetric(20, 0) - symmetric(20, 0).trace() / 20 * torch.eye(20))  # of trace zero
    with pytest.warns(Unsure, match="the Hessian trace is not well known: .* from 4 samples"):
        regimes.hessian_trace(balanced, mean, NOTHING, probes=4)
    assert not Estimate(1.0, 0.1, 5).unsure
    assert Estimate(1.0, 0.3, 5).unsure
    assert Estimate(float("nan"), 0.0, 5).unsure


MODEL = ("--model", "mlp", "--data", "synthetic", "--set", "model.widths=[8,8]", "--set", "data.shape=[6]")


def test_checkpoints_from_the_terminal(cli: Cli, tmp_path: Path) -> None:
    pruned = build("mlp", {"widths": [8, 8]}, (6,), 4, 1)
    prune(pruned, 0.25).apply(pruned)
    torch.save(build("mlp", {"widths": [8, 8]}, (6,), 4, 0).state_dict(), tmp_path / "a.pt")
    torch.save(pruned.state_dict(), tmp_path / "b.pt")
    shown = cli("measure", "a.pt", "b.pt", *MODEL, "--metrics", "lmc,hessian_trace")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[:2] == ["a.pt: every weight lives", "b.pt: pruned, density 0.25"]
    assert lines[2].split() == ["networks", "variable", "value", "std.", "error", "unit", "seconds"]
    assert [line.split("  ")[0] for line in lines[3:]] == ["a.pt, b.pt", "a.pt", "b.pt"]
    told = json.loads(
        cli(
            "measure", "b.pt", *MODEL, "--metrics", "hessian_trace", "--json", "--set", "measure.hessian.images=50"
        ).stdout
    )
    assert told[0]["networks"] == ["b.pt"]
    assert told[0]["stderr"] <= 0.05 * told[0]["value"]
    dense = json.loads(cli("measure", "b.pt", *MODEL, "--metrics", "hessian_trace", "--json", "--dense").stdout)
    assert dense[0]["value"] > told[0]["value"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["c.pt"], "c.pt: holds no weights that can be read"),
        (["a.pt", "--metrics", "lmc"], "metric 'lmc' compares two networks"),
        (["a.pt", "--metrics", "lcm"], "measure.metrics: unknown metric 'lcm'"),
        (["a.pt", "--set", "model.widths=[9]"], "a.pt: is of another model"),
        (["a.pt", "--set", "measure.hessian.image=5"], "measure.hessian.image: unknown key (did you mean 'images'?)"),
    ],
)
def test_mistakes_at_the_terminal(cli: Cli, tmp_path: Path, more: list[str], said: str) -> None:
    torch.save(build("mlp", {"widths": [8, 8]}, (6,), 4, 0).state_dict(), tmp_path / "a.pt")
    shown = cli("measure", *more[:1], *MODEL, *more[1:])
    assert shown.returncode == 2
    assert said in shown.stderr
    assert "Traceback" not in shown.stderr
