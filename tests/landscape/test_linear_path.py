"""Linear mode connectivity: the sign, the closed form, BatchNorm on the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from regimes import UserError, linear_connectivity
from regimes.landscape.batchnorm import reestimate_batch_norm, reestimated_outputs
from regimes.landscape.error import outputs
from regimes.models.build import build

LINE = tuple(index / 10 for index in range(11))


class Threshold(nn.Module):
    """Says class 1 where ``f(w) > input``: with inputs spread over (0, 1) the error is any function of w we like."""

    def __init__(self, w: float, shape: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        height = {"hill": (1 - self.w**2) / 2, "valley": self.w**2 / 2}[self.shape]
        wrong = (height - inputs[:, 0]).detach() + 0 * self.w
        return torch.stack([-wrong, wrong], dim=1)


LEVELS = ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)[:, None]
ZEROS = torch.zeros(1000, dtype=torch.int64)


def test_a_hill_between_two_networks_is_negative() -> None:
    line = linear_connectivity(Threshold(-1.0, "hill"), Threshold(1.0, "hill"), (LEVELS, ZEROS))
    assert line.value == pytest.approx(-0.5)
    assert line.barrier == pytest.approx(0.5)
    assert line.t_star == 0.5
    assert line.t == pytest.approx(LINE)


def test_a_valley_between_two_networks_is_positive() -> None:
    line = linear_connectivity(Threshold(-1.0, "valley"), Threshold(1.0, "valley"), (LEVELS, ZEROS))
    assert line.value == pytest.approx(0.5)  # x^2/2 from -1 to 1
    assert line.barrier == 0.0


def test_uneven_ends_count_by_their_mean() -> None:
    line = linear_connectivity(Threshold(0.0, "valley"), Threshold(1.0, "valley"), (LEVELS, ZEROS))
    gaps = [0.25 - t**2 / 2 for t in LINE]
    assert line.value == pytest.approx(max(gaps[1:-1], key=abs), abs=2e-3)


def test_a_network_is_connected_with_itself() -> None:
    model = build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 4, 0)
    inputs = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(60) % 4
    line = linear_connectivity(model, copy.deepcopy(model), (inputs, targets))
    assert line.value == 0.0
    assert len(set(line.error)) == 1


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 0.5), (0.2, 0.9)])
@pytest.mark.parametrize("shape", ["hill", "valley"])
def test_swapping_the_ends_changes_nothing_but_the_direction(shape: str, ends: tuple[float, float]) -> None:
    a, b = (Threshold(end, shape) for end in ends)
    there, back = linear_connectivity(a, b, (LEVELS, ZEROS)), linear_connectivity(b, a, (LEVELS, ZEROS))
    assert there.error == pytest.approx(back.error[::-1])
    assert there.value == pytest.approx(back.value)
    assert there.t_star == pytest.approx(1 - back.t_star)


def test_loss_along_the_line_of_a_quadratic_is_the_parabola() -> None:
    """For equal ends the dip is d'Hd/8; here in the loss, which the line carries beside the error."""
    a, b = nn.Linear(3, 1, bias=False).double(), nn.Linear(3, 1, bias=False).double()
    inputs = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    targets = torch.zeros(50, dtype=torch.float64)

    def square(outputs: Tensor, goal: Tensor) -> Tensor:
        return ((outputs[:, 0] - goal) ** 2).mean() / 2

    with torch.no_grad():
        b.weight.copy_(-a.weight)
    line = linear_connectivity(a, b, (inputs, targets), loss_fn=square)
    H = inputs.T @ inputs / len(inputs)
    d = (a.weight - b.weight)[0].detach()
    ends = (line.loss[0] + line.loss[-1]) / 2
    assert ends - min(line.loss) == pytest.approx(float(d @ H @ d) / 8)


def test_batch_norm_is_estimated_again_at_every_point_ends_included() -> None:
    a, b = (build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 4, seed) for seed in (0, 1))
    inputs = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 3.0
    targets = torch.arange(64) % 4
    line = linear_connectivity(a, b, (inputs, targets))
    ruined = [copy.deepcopy(each) for each in (a, b)]
    for model in ruined:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(100.0)  # type: ignore[union-attr]
    again = linear_connectivity(*ruined, (inputs, targets))
    assert again.error == line.error
    assert again.loss == line.loss


def test_reestimated_statistics_are_those_of_the_inputs() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, dtype=torch.float64))
    inputs = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4 + 1
    reestimate_batch_norm(model, inputs, batch=64)
    assert torch.allclose(model[0].running_mean, inputs.mean(0))  # type: ignore[arg-type]
    assert torch.allclose(model[0].running_var, inputs.var(0))  # type: ignore[arg-type]
    reestimate_batch_norm(model, inputs, batch=20)  # three equal batches of 16; two inputs are left out
    assert torch.allclose(model[0].running_mean, inputs.mean(0), atol=0.5)  # type: ignore[arg-type]
    ordered = inputs[inputs[:, 0].argsort()]  # as data on a disk stand, class by class
    reestimate_batch_norm(model, ordered, batch=10)
    assert model[0].running_var[0] > 0.6 * inputs.var(0)[0]  # type: ignore[index]
    assert model[0].momentum == 0.1
    assert not model.training


def test_one_pass_gives_the_statistics_and_the_outputs() -> None:
    model = build("preresnet", {"depth": 8, "width": 4}, (1, 8, 8), 4, 0).double()
    inputs = torch.randn(96, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1.0
    two = copy.deepcopy(model)
    reestimate_batch_norm(two, inputs)
    expected = outputs(two, inputs)
    found = reestimated_outputs(model, inputs)
    assert not any(module.training for module in model.modules())
    for one, other in zip(model.buffers(), two.buffers(), strict=True):
        assert torch.allclose(one, other)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-3)  # n - 1 against n values a channel
    assert torch.allclose(outputs(model, inputs), expected)
    assert torch.equal(reestimated_outputs(model, inputs, batch=32), _in_two_passes(two, inputs, 32))
    by_batch = reestimated_outputs(model, inputs, batch=48, by_batch=True)
    assert torch.equal(reestimated_outputs(model, inputs, by_batch=True), found)
    assert by_batch.shape == found.shape
    assert 0 < (by_batch - found).abs().max() < 0.3 * found.abs().max()
    assert torch.allclose((by_batch - found).mean(dim=0), torch.zeros(4, dtype=torch.float64), atol=0.05)


def _in_two_passes(model: nn.Module, inputs: Tensor, batch: int) -> Tensor:
    reestimate_batch_norm(model, inputs, batch)
    return outputs(model, inputs)


def test_standard_error_is_that_of_the_images() -> None:
    line = linear_connectivity(Threshold(-1.0, "hill"), Threshold(1.0, "hill"), (LEVELS, ZEROS))
    # half the images are wrong in the middle only: the gap is -1 for them and 0 for the rest
    assert line.stderr == pytest.approx((0.25 / 999) ** 0.5, rel=1e-3)
    assert line.samples == 1000


def test_networks_of_different_shape_are_refused() -> None:
    data = (torch.zeros(8, 3), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(UserError, match="the same architecture"):
        linear_connectivity(nn.Linear(3, 2), nn.Linear(3, 4), data)
    with pytest.raises(UserError, match="at least 3"):
        linear_connectivity(nn.Linear(3, 2), nn.Linear(3, 2), data, points=2)
