"""The measures without a sweep: on modules, tensors and loaders, and from the terminal on checkpoints."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hessian_problems import NOTHING, Quadratic, mean, symmetric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import regimes
from regimes import UserError
from regimes.landscape import METRICS
from regimes.landscape.estimate import Estimate, UncertainEstimateWarning
from regimes.landscape.inputs import inputs_of, pair
from regimes.landscape.measure_networks import mask_of_zeros, measure
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
    assert pair(data)[0] is data[0]
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
    with pytest.raises(UserError, match="models: expected a list of at least one network"):
        measure([], data)
    with pytest.raises(UserError, match=r"options of 'lmc': unknown 'point' \(did you mean 'points'\?\); allowed"):
        measure([net(0), net(1)], data, ["lmc"], {"lmc": {"point": 3}})
    with pytest.raises(UserError, match="did you mean 'cka'"):
        measure([net(0), net(1)], data, ["cak"])


@pytest.mark.parametrize(
    ("metrics", "options", "line"),
    [
        (["lmc"], {"lcm": {}}, "unknown table 'lcm'"),
        (["cka"], {"cka": {"split": "valid"}}, "options of 'cka': split: Input should be 'train', 'val' or 'test'"),
        (["cka"], {"cka": {"images": -5}}, "options of 'cka': images"),
        (["error", "lmc"], {"lmc": {"points": 2.5}}, "options of 'lmc': points"),
    ],
)
def test_options_are_checked_before_anything_is_measured(
    data: tuple[Tensor, Tensor], metrics: list[str], options: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        measure([net(0), net(1)], data, metrics, options)


def test_more_that_cannot_be_meant(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="expected a list of at least one network"):
        measure(net(0), data)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="masks: expected one per network"):
        measure([net(0), net(1)], data, ["cka"], masks=[None])
    numbers = (data[0], torch.randn(90, 3))
    with pytest.raises(UserError, match="'agreement' needs classes"):
        measure([net(0), net(1)], numbers, ["agreement"], loss_fn=F.mse_loss)
    assert {each.metric for each in measure([net(0)], data)} == {"error", "hessian_trace"}


def test_a_loader_that_shuffles_is_read_once(data: tuple[Tensor, Tensor]) -> None:
    shuffling = DataLoader(TensorDataset(*data), batch_size=16, shuffle=True)
    model = net(0)
    for function in (regimes.disagreement, regimes.js_divergence, regimes.output_distance):
        assert function(model, model, shuffling).value == 0
    assert inputs_of(iter([data]), model).shape == data[0].shape
    assert torch.equal(inputs_of(data, model), data[0])
    assert torch.equal(inputs_of(TensorDataset(*data), model), data[0])
    assert torch.equal(pair(TensorDataset(*data))[1], data[1])
    with pytest.raises(UserError, match="equally many inputs and targets, at least one: got 90 and 80"):
        regimes.linear_connectivity(model, model, (data[0], data[1][:80]))
    for nothing in ((data[0][:0], data[1][:0]), []):
        with pytest.raises(UserError, match="data: "):
            pair(nothing)
    with pytest.raises(UserError, match="a pair"):
        inputs_of(data[0].numpy(), model)


def test_networks_that_put_out_no_numbers_have_no_measures(data: tuple[Tensor, Tensor]) -> None:
    lost = [net(0), net(1)]
    with torch.no_grad():
        for model in lost:
            model.head.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    names = ["error", "lmc", "lmc_test", "curve", "cka", "hessian_trace", "hessian_top", "gauss_newton", "fisher"]
    found = measure(lost, data, [*names, "agreement", "sharpness", "spectrum"], {"curve": {"epochs": 1}})
    values = {each.variable: each.value for each in found if isinstance(each.value, Estimate)}
    values.pop("weight_distance")
    assert len(values) == 17
    assert all(math.isnan(value.value) for value in values.values()), values


def test_answers_with_more_dimensions(data: tuple[Tensor, Tensor]) -> None:
    """Several classes an input, as in segmentation: errors are shares, and the line's value is the curve's."""

    class Rows(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.inner = build("mlp", {"widths": [8]}, (6,), 15, seed)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).view(len(x), 5, 3)

    targets = torch.randint(0, 5, (90, 3), generator=torch.Generator().manual_seed(1))
    a, b = Rows(0), Rows(1)
    line = regimes.linear_connectivity(a, b, (data[0], targets))
    gaps = [(line.error[0] + line.error[-1]) / 2 - each for each in line.error[1:-1]]
    assert line.value == pytest.approx(max(gaps, key=abs))
    wrong = float((a(data[0]).argmax(dim=1) != targets).double().mean())
    assert line.error[0] == pytest.approx(wrong)
    found = measure([a, b], (data[0], targets), ["error", "cka"])
    assert found[0].value.value == pytest.approx(wrong)  # type: ignore[union-attr]
    assert 0 <= found[-1].value.value <= 1  # type: ignore[union-attr]


def test_a_model_that_puts_out_no_tensor(data: tuple[Tensor, Tensor]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    with pytest.raises(UserError, match="returns tuple; expected one tensor"):
        measure([Two()], data, ["error"])


def test_frozen_and_linear_networks_can_be_measured(data: tuple[Tensor, Tensor]) -> None:
    model = net(0)
    prune(model, 0.3).apply(model)
    mask = mask_of_zeros(model)
    assert mask is not None
    first = next(iter(mask.layers))
    model.get_parameter(first).requires_grad_(False)
    assert regimes.hessian_trace(model, F.cross_entropy, data, mask).value > 0
    assert mask_of_zeros(nn.Linear(6, 3)) is None


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
    with pytest.warns(UncertainEstimateWarning, match="the Hessian trace is uncertain: .* from 4 samples"):
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
    assert lines[:2] == ["a.pt: no pruned weights", "b.pt: pruned, density 0.25"]
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
        (["c.pt"], "c.pt: cannot be read: No such file or directory"),
        (["a.pt", "--metrics", "lmc"], "metric 'lmc' compares two networks"),
        (["a.pt", "--metrics", "lcm"], "measure.metrics: unknown metric 'lcm'"),
        (["a.pt", "--set", "model.widths=[9]"], "a.pt: does not fit the model"),
        (["a.pt", "--set", "measure.hessian.image=5"], "measure.hessian.image: unknown key (did you mean 'images'?)"),
    ],
)
def test_mistakes_at_the_terminal(cli: Cli, tmp_path: Path, more: list[str], said: str) -> None:
    torch.save(build("mlp", {"widths": [8, 8]}, (6,), 4, 0).state_dict(), tmp_path / "a.pt")
    shown = cli("measure", *more[:1], *MODEL, *more[1:])
    assert shown.returncode == 2
    assert said in shown.stderr
    assert "Traceback" not in shown.stderr
