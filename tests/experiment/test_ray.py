"""Workers of a Ray cluster: the same records, and the work of a machine that goes is done by the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import done

from regimes.config.sweep_file import resolve_sweep
from regimes.errors import UserError
from regimes.experiment.executors import pool_of
from regimes.experiment.run import Result, run
from regimes.experiment.store import Store

Sweep = dict[str, Any]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of three pretended machines: a head without room for workers, and two with room for one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1, num_gpus=0)
    yield made
    made.shutdown()


def test_a_machine_that_goes_is_replaced_by_the_others(
    tiny: Sweep, run_tiny: Run, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    tiny |= {"dense_seeds": 3, "recipe": tiny["recipe"] | {"epochs": 8}}
    alone = run_tiny(tiny, "alone", engine="eager")
    gone: list[Any] = []

    def watch(stage: Any, outcome: Any) -> None:
        assert outcome.error is None
        if not gone:
            gone.append(next(node for node in cluster.worker_nodes))
            cluster.remove_node(gone[0], allow_graceful=False)

    sweep = resolve_sweep(tiny)
    how: dict[str, Any] = {"executor": "ray", "address": cluster.address, "engine": "eager", "watch": watch}
    result = run(sweep, tmp_path / "by-ray", **how)
    assert gone
    assert not result.progress.todo
    assert not result.progress.failed
    assert done(Store(tmp_path / "by-ray")) == done(Store(alone.folder))


def test_a_cell_that_raises_fails_and_the_rest_goes_on(
    tiny: Sweep, run_tiny: Run, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["model"] = {"name": "test_failures:broken_mlp"}
    result = run_tiny(tiny, workers=1, executor="ray", address=cluster.address)
    assert set(result.progress.failed.values()) == {"ValueError: too thin for me"}
    assert len(result.progress.done) == 2 + 4 + 4 + 2 * 4


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"executor": "dask"}, "--executor dask: unknown; allowed: processes, ray"),
        ({"executor": "processes", "address": "auto"}, "--address and --gpus belong to --executor ray"),
        ({"executor": "processes", "gpus": 0.5}, "--address and --gpus belong to --executor ray"),
        ({"executor": "ray", "workers": 0}, "--executor ray: its workers are processes; use --workers 1 or more"),
        ({"executor": "ray", "gpus": 0.5}, "--gpus 0.5: needs --device cuda, got cpu"),
        ({"executor": "ray", "address": "127.0.0.1:1"}, "--address 127.0.0.1:1: no Ray cluster there"),
    ],
)
def test_wrong_options_are_one_line(how: dict[str, Any], says: str) -> None:
    if how.get("address") == "127.0.0.1:1":
        pytest.importorskip("ray")
    with pytest.raises(UserError) as raised, pool_of(**{"workers": None, "devices": ("cpu",), **how}):
        pass
    assert str(raised.value).startswith(says)
    assert len(raised.value.lines) == 1


def test_a_cluster_without_room_is_refused(cluster: Any) -> None:
    with (
        pytest.raises(UserError, match=r"a worker needs 1 CPU and 0.5 GPUs, but the cluster has"),
        pool_of("ray", None, ("cuda:0",), cluster.address, 0.5),
    ):
        pass


def test_a_missing_ray_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'regimes\[ray\]'"), pool_of("ray", 1, ("cpu",)):
        pass
