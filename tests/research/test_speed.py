"""Benchmarks: contenders do the same work and agree on it; ratios and limits are computed correctly."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from regimes import UserError, cka, hessian_top, linear_connectivity
from regimes.data.dataset import Split
from regimes.landscape.hessian_operator import HessianOperator
from regimes.landscape.trace_estimators import hutchinson
from regimes.pruners import PRUNERS
from regimes.registry import lookup
from regimes.research.page import benchmark_page
from regimes.research.speed import BENCHES, pytorch_arm, reference_pipeline
from regimes.research.speed.harness import BenchOptions, Case, Contender, Timing, run_contenders
from regimes.research.speed.rate_table import RateTable
from regimes.research.speed.regimes_arm import Ready, in_workers
from regimes.research.speed.roofline import step
from regimes.research.speed.scaling import _slope
from regimes.research.speed.workloads import data_of, enlarged_digits, load_trained, new_network, train_and_save
from regimes.training import ENGINES
from regimes.training.precision import PRECISIONS

CASE: dict[str, Any] = {"model": "preresnet14-w8", "epochs": 1, "batch": 64, "augment": False, "seeds": [0, 1]}


def steady(case: Case) -> dict[str, Any]:
    """An arm for the tests below."""
    return {"seconds": case["takes"], "units": 10, "found": case["round"]}


def broken(case: Case) -> dict[str, Any]:
    raise ValueError("no such thing")


def lonely(case: Case) -> dict[str, Any]:
    raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")


# -- contenders ----------------------------------------------------------------------------------------------------


def contender(name: str, work: str, **options: Any) -> Contender:
    return Contender(name, f"test_speed:{work}", options=options)


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("on_path")
def test_arms_are_run_in_turn_and_compared() -> None:
    said: list[str] = []
    contenders = [
        contender("ours", "steady", takes=2.0),
        contender("other", "steady", takes=5.0),
        contender("absent", "lonely"),
    ]
    timings = run_contenders(contenders, {}, 2, said.append)
    assert [timing.contender.name for timing in timings] == ["ours", "other"]
    assert said[2] == "  absent: left out: elsewhere is not installed"
    assert [line.split("  ")[-1] for line in said[3:]] == ["ours: 2.0 s", "other: 5.0 s"]
    ours, other = timings
    assert ours.rate == 5.0
    assert other.speedup_of(ours) == (2.5, 2.5, 2.5)
    assert other.check("found") == 0.5
    assert other.spread("found") == pytest.approx(math.sqrt(0.5))
    table = RateTable("work", "units/s", 1.0, timings, ["found"]).table()
    assert table.rows[2][:3] == ["other", "2", "2.5x (2.5-2.5)"]
    assert "| other | 2 | 2.5x (2.5-2.5) |" in table.markdown()


@pytest.mark.usefixtures("on_path")
def test_an_arm_that_fails_says_so_in_one_line() -> None:
    with pytest.raises(UserError, match="benchmark contender 'bad' failed: ValueError: no such thing"):
        run_contenders([contender("bad", "broken")], {}, 1, lambda line: None)
    said: list[str] = []
    (left,) = run_contenders([contender("ours", "steady", takes=1.0), contender("bad", "broken")], {}, 2, said.append)
    assert left.contender.name == "ours"
    assert "  bad: left out: ValueError: no such thing" in said


def test_a_bench_is_written_as_a_page_and_as_json(tmp_path: Path) -> None:
    timing = Timing(Contender("ours", "x"), [1.0, 3.0], [{"error": math.nan}, {"error": 0.5}])
    bench = benchmark_page("engine", [RateTable("work", "units/s", 1.0, [timing], ["error"]).table()])
    page, data = bench.write(tmp_path / "bench", "python -m regimes.research bench engine")
    assert "`python -m regimes.research bench engine`" in page.read_text()
    facts = json.loads(data.read_text())
    assert facts["sheets"][0]["facts"]["arms"][0]["rates"] == [1.0, 3.0]
    assert facts["sheets"][0]["facts"]["arms"][0]["checks"][0] == {"error": None}
    assert facts["environment"]["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_is_there(name: str) -> None:
    assert callable(lookup(BENCHES, name, "bench"))


def test_slope_of_a_power_law() -> None:
    x = [1.0, 10.0, 100.0]
    assert _slope(x, [3 * each**1.5 for each in x]) == pytest.approx(1.5)


# -- the same work ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    case = {**CASE, "folder": str(tmp_path_factory.mktemp("pair"))}
    train_and_save(case)
    return case


def test_all_arms_measure_the_same_line_and_the_same_cka(pair: dict[str, Any]) -> None:
    a, b = load_trained(pair, 0), load_trained(pair, 1)
    split = data_of(pair).train
    few = Split(split.inputs[:256], split.targets[:256])
    ours = linear_connectivity(a, b, few), cka(a, b, few.inputs)
    theirs = pytorch_arm.measure_lmc(a, b, few), pytorch_arm.measure_cka(a, b, few)
    paper = reference_pipeline.measure_lmc(a, b, few, pair), reference_pipeline.measure_cka(a, b, few, pair)
    # 256 images in batches of 64, of 256 and of 512: BatchNorm statistics differ a little, answers hardly
    assert theirs[0] == pytest.approx(ours[0].value, abs=0.01)
    assert paper[0] == pytest.approx(ours[0].value, abs=0.03)
    assert theirs[1] == pytest.approx(ours[1].value, abs=1e-6)
    assert paper[1] == pytest.approx(ours[1].value, abs=0.01)  # its images are bytes


def test_all_arms_measure_the_same_curvature(pair: dict[str, Any]) -> None:
    model = load_trained(pair, 0)
    split = data_of(pair).train
    few = Split(split.inputs[:32], split.targets[:32])
    hessian = HessianOperator(model, F.cross_entropy, few)
    trace = hutchinson(hessian, torch.Generator().manual_seed(5), 40, None, 40)
    top = hessian_top(model, F.cross_entropy, few, tolerance=1e-4)
    for found in (
        pytorch_arm.measure_curvature(model, few, 40, 100, 0),
        reference_pipeline.measure_curvature(model, few, 40, 100),
    ):
        assert found[0] == pytest.approx(trace.value, abs=6 * trace.stderr)
        assert found[1] == pytest.approx(top.value, rel=0.05)


def test_plain_and_reference_training_learn_alike(pair: dict[str, Any]) -> None:
    data = data_of(pair)
    errors = []
    for train in (pytorch_arm, reference_pipeline):
        model = new_network(pair, 3)
        if train is pytorch_arm:
            pytorch_arm.train_network(model, data.train, pair, 3, seed=0)
            errors.append(pytorch_arm.error_rate(model, data.test))
        else:
            errors.append(reference_pipeline.train_network(model, data.train, data.test, pair, 3, seed=0))
    assert max(errors) < 0.3
    assert abs(errors[0] - errors[1]) < 0.15


def test_work_in_workers_starts_together_and_never_hangs() -> None:
    started = time.perf_counter()
    found = in_workers(together, {"nap": 0.2}, [0, 1])
    assert found["units"] == 2
    assert 0.2 <= found["seconds"] <= time.perf_counter() - started - 1.0  # the second worker is ready a second later
    with pytest.raises((ValueError, threading.BrokenBarrierError)):
        in_workers(together, {"nap": 0.2, "fails": 1}, [0, 1])


def together(case: Case, number: int, ready: Ready) -> dict[str, Any]:
    if case.get("fails") == number:
        raise ValueError("no data")
    time.sleep(number)
    ready()
    time.sleep(case["nap"])
    return {"units": 1}


def test_enlarged_digits_are_as_many_as_asked() -> None:
    data = enlarged_digits(1500)
    assert data.val.inputs.shape[1:] == data.test.inputs.shape[1:] == (3, 32, 32)
    assert data.train.inputs.shape == (1500, 3, 32, 32)
    assert torch.equal(data.train.inputs[0], data.train.inputs[1151])
    assert torch.equal(data.train.inputs[:, 0], data.train.inputs[:, 2])


def test_this_cpu_computes_what_it_should() -> None:
    (sheet,) = lookup(BENCHES, "check", "bench")(BenchOptions(), lambda line: None).tables
    assert len(sheet.rows) == 1 + 2 * len(ENGINES) + 2 * 6 + len(PRUNERS) + 2 + 1 + len(PRECISIONS)
    assert all(row[2] == "equal" for row in sheet.rows[1:])


# -- limits -----------------------------------------------------------------------------------------------------------


def test_flops_and_bytes_of_a_linear_layer_are_counted() -> None:
    model = nn.Linear(10, 20, bias=False)
    flops, moved = step(model, torch.randn(4, 10))
    assert flops == 2 * (2 * 4 * 10 * 20)  # forward, and the weights' gradient; inputs need none
    least = 4 * (2 * 4 * 10 + 2 * 10 * 20 + 2 * 4 * 20)  # bytes of the operands and results of these two products
    assert least <= moved <= 4 * least


def test_images_from_a_folder_are_tensors_for_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    data = data_of({"model": "preresnet20", "images": str(tmp_path), "count": 40})
    assert all(isinstance(split.inputs, torch.Tensor) for split in (data.train, data.val, data.test))
    assert data.train.inputs.shape == (36, 3, 32, 32)
