"""Trained paths between two networks: ends stay, the loss on the way falls."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from regimes.errors import UserError
from regimes.landscape.bezier_path import BezierPath, curve_connectivity
from regimes.landscape.linear_path import linear_connectivity
from regimes.models.build import build
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prune


def trained(seed: int, x: torch.Tensor, y: torch.Tensor, mask: Mask | None = None) -> nn.Module:
    """A small network that fits its data."""
    model = build("mlp", {"widths": [16, 16], "batch_norm": True}, (4,), 2, seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        if mask is not None:
            mask.apply(model)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    if mask is not None:
        mask.apply(model)
    return model


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes, no line between them."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()


def test_shapes_of_paths() -> None:
    """By hand: the quadratic curve of (1-t)^2, 2t(1-t), t^2; a chain that is at its bend in the middle."""
    start, end = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([2.0, 0.0])}
    path = BezierPath("bezier", start, end, 1)
    torch.testing.assert_close(path.at(0.3)["w"], torch.tensor([0.6, 0.0]))  # straight at first
    path.bends[0]["w"].data = torch.tensor([1.0, 4.0])
    torch.testing.assert_close(path.at(0.5)["w"], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(path.at(0.25)["w"], torch.tensor([2 * 0.1875 + 2 * 0.0625, 4 * 0.375]))
    chain = BezierPath("chain", start, end, 2)
    torch.testing.assert_close(chain.at(0.1)["w"], torch.tensor([0.2, 0.0]))
    chain.bends[0]["w"].data = torch.tensor([0.0, 3.0])
    torch.testing.assert_close(chain.at(1 / 6)["w"], torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(chain.at(2 / 3)["w"], chain.bends[1]["w"])
    for one in (path, chain):
        assert one.at(0.0)["w"] is start["w"]
        assert one.at(1.0)["w"] is end["w"]
        assert all(sum(one.coefficients(t / 7)) == pytest.approx(1) for t in range(8))


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("chain", 1), ("bezier", 2)])
def test_a_trained_path_is_lower_than_the_line(kind: str, bends: int, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (trained(seed, *data) for seed in (0, 1))
    before = [copy.deepcopy(each.state_dict()) for each in (a, b)]
    line = linear_connectivity(a, b, data)
    curve = curve_connectivity(a, b, data, kind, bends, epochs=30)  # type: ignore[arg-type]
    assert line.barrier > 0.05  # else there is nothing to bend around
    assert curve.barrier < 0.5 * line.barrier
    assert max(curve.loss) < 0.7 * max(line.loss)
    assert (curve.error[0], curve.error[-1]) == (line.error[0], line.error[-1])
    for model, state in zip((a, b), before, strict=True):
        assert all(torch.equal(state[key], each) for key, each in model.state_dict().items())
    again = curve_connectivity(a, b, data, kind, bends, epochs=30)  # type: ignore[arg-type]
    assert again == curve


def test_a_path_stays_where_a_mask_and_frozen_weights_let_it(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    mask = prune(build("mlp", {"widths": [16, 16], "batch_norm": True}, (4,), 2, 0), 0.4)
    a, b = (trained(seed, *data, mask) for seed in (0, 1))
    seen: list[dict[str, torch.Tensor]] = []
    keep = BezierPath.at

    def noting(self: BezierPath, t: float) -> dict[str, torch.Tensor]:
        found = keep(self, t)
        seen.append(found)
        return found

    a.head.bias.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BezierPath, "at", noting)
        curve_connectivity(a, b, data, mask=mask, epochs=3)
    for weights in seen:
        assert all(not weights[name][~layer].any() for name, layer in mask.layers.items())
    ends = [dict(each.named_parameters()) for each in (a, b)]
    middle = seen[-6]["head.bias"]  # of the eleven points the sixth
    torch.testing.assert_close(middle, (ends[0]["head.bias"] + ends[1]["head.bias"]) / 2)
    name = next(iter(mask.layers))
    straight = (ends[0][name] + ends[1][name]) / 2
    assert float((seen[-6][name] - straight).norm()) > 1e-3


def test_paths_that_cannot_be_meant(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    a = build("mlp", {"widths": [4]}, (4,), 2, 0)
    with pytest.raises(UserError, match="allowed: bezier, chain"):
        curve_connectivity(a, a, data, "spline")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="bends = 0"):
        curve_connectivity(a, a, data, bends=0)
    with pytest.raises(UserError, match="different parameters"):
        curve_connectivity(a, build("mlp", {"widths": [5]}, (4,), 2, 0), data)


def test_masks_are_held_against_the_network(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    a = build("mlp", {"widths": [4]}, (4,), 2, 0)
    with pytest.raises(UserError, match=r"mask of head.bias has shape \(1,\), the parameter \(2,\)"):
        curve_connectivity(a, a, data, mask={"head.bias": torch.ones(1)})
    with pytest.raises(UserError, match="the mask names unknown parameters nothing; the model has"):
        curve_connectivity(a, a, data, mask={"nothing": torch.ones(1)})


def test_buffers_go_along_the_line(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    class Shifted(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            nn.init.ones_(self.head.weight[0:1].data)
            self.shift = nn.Buffer(torch.tensor(shift))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.shift)

    a, b = Shifted(0.0), Shifted(5.0)
    line = linear_connectivity(a, b, data)
    for error, model in ((line.error[0], a), (line.error[-1], b)):
        assert error == pytest.approx(float((model(data[0]).argmax(dim=1) != data[1]).double().mean()))


def test_errors_on_other_images_with_the_training_images_statistics(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (trained(seed, *data) for seed in (0, 1))
    held = (torch.randn(200, 4, generator=torch.Generator().manual_seed(9)), torch.zeros(200, dtype=torch.int64))
    here, there = linear_connectivity(a, b, data), linear_connectivity(a, b, data, judge=held)
    assert here.samples == 300
    assert there.samples == 200
    walker = copy.deepcopy(a)
    from regimes.landscape.batchnorm import reestimate_batch_norm

    reestimate_batch_norm(walker, data[0])
    wrong = float((walker(held[0]).argmax(dim=1) != held[1]).double().mean())
    assert there.error[0] == pytest.approx(wrong, abs=0.006)
    assert linear_connectivity(a, b, data, judge=data).error == pytest.approx(here.error, abs=0.01)
