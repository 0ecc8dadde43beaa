"""How far two networks agree, by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from regimes import UserError, cka
from regimes.landscape.agreement import disagreement, js_divergence, output_distance, weight_distance
from regimes.landscape.cka import cka_of_features, layer_outputs
from regimes.models.build import build


class Table(nn.Module):
    """Answers that are written down."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits[inputs.long().flatten()]


ROWS = torch.arange(4.0)[:, None]


def test_by_hand() -> None:
    a = Table(torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]))
    b = Table(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [1.0, 0.0]]))
    found = disagreement(a, b, ROWS)
    assert (found.value, found.samples) == (0.25, 4)
    assert found.stderr == pytest.approx((0.25 * 0.75 / 4) ** 0.5)
    assert weight_distance(a, b).value == pytest.approx(8**0.5)
    assert output_distance(a, b, ROWS).value == pytest.approx(8**0.5 / 4)
    sure = Table(torch.tensor([[0.0, 1e4]] * 4))
    other = Table(torch.tensor([[1e4, 0.0]] * 4))
    assert js_divergence(sure, other, ROWS).value == pytest.approx(math.log(2))
    assert js_divergence(sure, sure, ROWS).value == 0


def test_divergence_is_scipys() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (Table(2 * torch.randn(4, 5, generator=random)) for _ in range(2))
    p, q = (each.logits.detach().double().softmax(dim=1).numpy() for each in (a, b))
    truth = np.square(jensenshannon(p, q, axis=1))
    found = js_divergence(a, b, ROWS)
    assert found.value == pytest.approx(truth.mean(), rel=1e-6)
    assert found.stderr == pytest.approx(truth.std(ddof=1) / 2, rel=1e-6)
    assert found.value == pytest.approx(js_divergence(b, a, ROWS).value)


def test_answers_that_are_no_logits_are_refused() -> None:
    with pytest.raises(UserError, match="logits of the same shape"):
        disagreement(Table(torch.zeros(4, 2)), Table(torch.zeros(4, 3)), ROWS)


# -- CKA of layers ----------------------------------------------------------------------------------------------------


def test_a_layers_outputs_are_what_it_puts_out() -> None:
    model = build("mlp", {"widths": [6, 5]}, (4,), 3, 0).train()
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    layer = next(name for name, each in model.named_modules() if isinstance(each, nn.Linear))
    torch.testing.assert_close(layer_outputs(model, layer, x), model.get_submodule(layer)(x).double())
    assert model.training
    torch.testing.assert_close(layer_outputs(model, "head", x), model(x).double())
    other = build("mlp", {"widths": [6, 5]}, (4,), 3, 1)
    assert cka(model, other, x, on="head").value == pytest.approx(cka(model, other, x, on="logits").value)
    assert cka(model, model, x, on=layer).value == pytest.approx(1)
    with pytest.raises(UserError, match=r"no such layer \(did you mean 'head'"):
        cka(model, other, x, on="haed")


@pytest.mark.parametrize("debiased", [False, True])
def test_fewer_inputs_than_features_give_the_same_cka(debiased: bool) -> None:
    """Through the inner products of inputs instead of those of features."""
    random = torch.Generator().manual_seed(0)
    X, Y = torch.randn(24, 60, generator=random), torch.randn(24, 40, generator=random)
    wide = cka_of_features(X, Y, debiased)
    padded = cka_of_features(X, torch.cat([Y, torch.zeros(24, 8)], dim=1), debiased)
    assert wide.value == pytest.approx(padded.value, rel=1e-9)
    # As features (n, n) that have the same inner products.
    roots = [torch.linalg.cholesky(each.double() @ each.double().T + 1e-12 * torch.eye(24)) for each in (X, Y)]
    same = cka_of_features(roots[0][:, :24], roots[1], debiased)
    assert wide.value == pytest.approx(same.value, rel=1e-6)


def test_convolutions_and_a_layer_that_is_called_twice() -> None:
    a, b = (build("preresnet", {"depth": 8, "width": 4}, (3, 8, 8), 4, seed) for seed in (0, 1))
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = cka(a, b, x, on="blocks.0.conv1")
    assert 0 < found.value < 1
    assert layer_outputs(a, "blocks.0.conv1", x).shape == (40, 4 * 64)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.inner(self.inner(inputs))

    with pytest.raises(UserError, match="one tensor per forward pass"):
        layer_outputs(Twice(), "inner", torch.zeros(5, 4))


def test_a_layer_is_read_before_what_follows_works_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert float(layer_outputs(model, "0", x).min()) < 0
