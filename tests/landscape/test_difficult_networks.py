"""Networks that would mislead a measure: the right value, a warning, or one line that says why there is none."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import regimes
from regimes import Dataset, UserError
from regimes.landscape.trial import NetworkWarning, try_network, warn_of
from regimes.models.build import copied, seeded

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))
CURVATURE: list[Callable[..., Any]] = [
    regimes.hessian_trace, regimes.hessian_top, regimes.hessian_spectrum, regimes.layer_traces, regimes.sharpness,
    regimes.fisher_trace, regimes.gauss_newton_trace,
]  # fmt: skip


def mlp(outputs: int = 3) -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


class AlwaysDropping(nn.Module):
    """Dropout in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.body(x), 0.5, training=True)


class InPlace(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        out: Tensor = self.body(x)
        return out


class Returning(nn.Module):
    """Returns more than its logits, as a tuple or a dict."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.body, self.form = nn.Sequential(mlp(8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), form

    def forward(self, x: Tensor) -> Any:
        out = self.body(x)
        return (out, x) if self.form == "tuple" else {self.form: out, "hidden": x}


def test_random_outputs_are_said() -> None:
    for run in (
        lambda: regimes.hessian_trace(AlwaysDropping(), F.cross_entropy, (X, Y)),
        lambda: regimes.cka(AlwaysDropping(), AlwaysDropping(), X),
        lambda: regimes.linear_connectivity(AlwaysDropping(), AlwaysDropping(), (X, Y)),
    ):
        with pytest.warns(NetworkWarning, match="AlwaysDropping returns random outputs in eval mode"):
            run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regimes.cka(mlp(), mlp(), X)


def test_outputs_that_depend_on_the_batch_are_said() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(NetworkWarning, match="depend on the other inputs of a batch"):
        regimes.hessian_trace(model, F.cross_entropy, (X, Y), chunk=16)


class BatchSecond(nn.Module):
    """A network whose outputs have the batch in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.body(x)] * 3)


def test_a_batch_in_the_second_dimension_is_said_at_the_users_line() -> None:
    model = BatchSecond()
    trial = try_network(model, X[:4])
    assert (trial.batch_first, try_network(mlp(), X[:4]).batch_first) == (False, True)
    with pytest.warns(NetworkWarning, match=r"BatchSecond: the first dimension .*\(batch_first=True\)$") as found:
        warn_of(model, X)
    assert len(found) == 1
    with pytest.warns(NetworkWarning, match="the first dimension") as found, contextlib.suppress(UserError):
        regimes.cka(model, model, X)
    assert {each.filename for each in found} == {__file__}


def test_inputs_stay_as_they_were() -> None:
    """As if the network did not change them, and the global generators neither."""
    kept, state = X.clone(), torch.get_rng_state()
    plain = nn.Sequential(mlp())
    moved = InPlace()
    moved.body.load_state_dict(plain[0].state_dict())
    for _ in range(2):
        trace = regimes.hessian_trace(moved, F.cross_entropy, (X, Y))
        expected = regimes.hessian_trace(plain, F.cross_entropy, (X - 0.1, Y))
        assert trace.value == pytest.approx(expected.value, abs=5 * (trace.stderr + expected.stderr) + 1e-5)
        assert regimes.cka(moved, moved, X).value == 1
    (error, *_) = regimes.measure([moved], (X, Y), ["error"])
    assert error.value.value == float((plain(X - 0.1).argmax(1) != Y).double().mean())  # type: ignore[union-attr]
    held = Dataset.from_arrays((X, Y), (X, Y), val=(X, Y), title="one")
    assert next(each.value for each in regimes.measure([moved], held, ["error"])).value == error.value.value  # type: ignore[union-attr]
    assert torch.equal(held.train.inputs, kept)
    assert torch.equal(X, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_log_softmax_in_the_model_has_a_gauss_newton_matrix_of_zero() -> None:
    model = nn.Sequential(mlp(), nn.LogSoftmax(dim=1))
    with pytest.warns(NetworkWarning, match="linear in the outputs .*return logits instead"):
        assert regimes.gauss_newton_trace(model, F.nll_loss, (X, Y)).value == 0
    expected = regimes.hessian_trace(mlp(), F.cross_entropy, (X, Y), rel_stderr=1e-3)
    found = regimes.hessian_trace(model, F.nll_loss, (X, Y), rel_stderr=1e-2)
    assert found.value == pytest.approx(expected.value, rel=0.05)


@pytest.mark.parametrize("measure", CURVATURE)
def test_nothing_to_train(measure: Callable[..., Any]) -> None:
    frozen = mlp().requires_grad_(False)
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        measure(frozen, F.cross_entropy, (X, Y))


@pytest.mark.parametrize("measure", CURVATURE)
@pytest.mark.parametrize("form", ["tuple", "features"])
def test_outputs_without_logits_are_refused(measure: Callable[..., Any], form: str) -> None:
    with pytest.raises(UserError, match="expected one tensor, or a dict with 'logits': wrap the model"):
        measure(Returning(form), F.cross_entropy, (X, Y))


@pytest.mark.parametrize("form", ["tuple", "features"])
def test_paths_and_similarity_refuse_them_too(form: str) -> None:
    a = Returning(form)
    for run in (
        lambda: regimes.linear_connectivity(a, a, (X, Y)),
        lambda: regimes.curve_connectivity(a, a, (X, Y), epochs=1),
        lambda: regimes.cka(a, a, X),
        lambda: regimes.disagreement(a, a, X),
        lambda: regimes.measure([a, a], (X, Y)),
    ):
        with pytest.raises(UserError, match="expected one tensor"):
            run()


def test_a_dict_with_logits_is_as_good_as_a_tensor() -> None:
    named = Returning("logits").eval()
    plain = named.body
    for measure in CURVATURE[:2] + CURVATURE[3:]:
        found, expected = (measure(each, F.cross_entropy, (X, Y)) for each in (named, plain))
        if isinstance(found, dict):
            found, expected = sum(each.value for each in found.values()), sum(each.value for each in expected.values())
            assert found == pytest.approx(expected, rel=1e-4)
        else:
            assert found.value == pytest.approx(expected.value, rel=1e-4)


def test_a_loss_of_ones_own_takes_the_outputs_as_they_are() -> None:
    model = Returning("tuple")
    found = regimes.hessian_trace(model, lambda out, y: F.cross_entropy(out[0], y), (X, Y), rel_stderr=0.01)
    expected = regimes.hessian_trace(model.body, F.cross_entropy, (X, Y), rel_stderr=0.01)
    assert found.value == pytest.approx(expected.value, abs=5 * (found.stderr + expected.stderr) + 1e-5)


@pytest.mark.parametrize("loss", [F.multi_margin_loss])
def test_no_second_derivative(loss: Callable[..., Tensor]) -> None:
    for measure in (regimes.hessian_trace, regimes.hessian_top, regimes.layer_traces):
        with pytest.raises(UserError, match="needs second derivatives, which torch does not have here") as caught:
            measure(mlp(), loss, (X, Y))
        assert "\n" not in str(caught.value)


def test_sparse_gradients_of_embeddings() -> None:
    words = torch.randint(0, 7, (20, 5), generator=torch.Generator().manual_seed(0))
    traces = []
    for sparse in (False, True):
        with seeded(0):
            model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(20, 3))
        traces.append((regimes.hessian_trace(model, F.cross_entropy, (words, Y)).value,
                       regimes.hessian_top(model, F.cross_entropy, (words, Y)).value))  # fmt: skip
        assert model[0].sparse is sparse
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
    ],
)
def test_buffers_of_a_parametrisation_are_no_weights(norm: Callable[..., nn.Module]) -> None:
    """Equal functions whose singular vectors differ in sign are connected; a backward pass before is no obstacle."""
    with seeded(0):
        model = nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    F.cross_entropy(model(X), Y).backward()
    turned = copied(model)
    for buffer in turned.buffers():
        buffer.neg_()
    assert torch.allclose(model.eval()(X), turned.eval()(X), atol=1e-6)
    line = regimes.linear_connectivity(model, turned, (X, Y))
    assert line.value == 0
    assert regimes.curve_connectivity(model, turned, (X, Y), epochs=1).error[0] == line.error[0]


def test_batches_of_two_lengths() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            share = attention_mask / attention_mask.sum(dim=1, keepdim=True)
            out: Tensor = self.head((self.embed(input_ids) * share[..., None]).sum(dim=1))
            return out

    with seeded(0):
        model = Words()
    batches = [
        {"input_ids": torch.randint(1, 7, (4, t)), "attention_mask": torch.ones(4, t), "labels": Y[4 * i : 4 * i + 4]}
        for i, t in enumerate((5, 3))
    ]
    with torch.no_grad():
        outputs = torch.cat([model(each["input_ids"], each["attention_mask"]) for each in batches])
    (error, *_) = regimes.measure([model], batches, ["error"])
    assert error.value.value == float((outputs.argmax(1) != Y[:8]).double().mean())  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"rows of shape \(3,\) and \(5,\); pad them to one length"):
        regimes.hessian_trace(model, F.cross_entropy, [(each["input_ids"], each["labels"]) for each in batches])


def test_one_input_has_no_batch_statistics() -> None:
    model = Returning("logits")
    with pytest.raises(UserError, match="BatchNorm statistics need at least 2 inputs"):
        regimes.linear_connectivity(model, copy.deepcopy(model), (X[:1], Y[:1]))


def test_sequences_as_long_as_there_are_classes() -> None:
    words = torch.randint(0, 5, (20, 5), generator=torch.Generator().manual_seed(0))
    with seeded(0):
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    (error, *_) = regimes.measure([model], (words, words), ["error"], loss_fn=loss)
    assert error.value.value == pytest.approx(float((model(words).argmax(-1) != words).double().mean()))  # type: ignore[union-attr]


def test_a_sum_over_many_inputs() -> None:
    x, y = torch.randn(9000, 6), torch.randint(0, 3, (9000,))
    loss = nn.CrossEntropyLoss(reduction="sum")
    (found,) = (
        each.value
        for each in regimes.measure([mlp()], (x, y), ["error"], loss_fn=loss)
        if each.variable == "train_loss"
    )
    assert found.value == pytest.approx(float(loss(mlp()(x), y).detach()), rel=1e-5)  # type: ignore[union-attr]
