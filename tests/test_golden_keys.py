"""Content keys that never change: of every kind of stage, of user code, trials, recordings and proxies.

The keys in `fixtures/golden/keys.json` were made before the package's files were renamed. A key that changes makes old
runs useless, so an intended change raises `SCHEMA`. ``python tests/test_golden_keys.py`` writes the file anew.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import regimes
from regimes.config.discovery_file import resolve_discovery
from regimes.config.hpo_file import resolve_hpo
from regimes.config.keys import digest
from regimes.config.recipe import RECIPES, Recipe
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.engine_selection import EngineChoice
from regimes.experiment.numerics import Numerics
from regimes.experiment.run import expand
from regimes.experiment.run_discovery import _describe, tasks
from regimes.experiment.run_discovery import context_of as discovery_lab
from regimes.hpo import PROXIES
from regimes.hpo.build_fidelities import ProxyContext
from regimes.hpo.fidelities import Fidelity, Ladder, Segment
from regimes.hpo.fidelity_trainer import FidelityTrainer, TrialJob
from regimes.hpo.plan import _key as search_key
from regimes.hpo.proxies import Proxy
from regimes.registry import allow_imports_from
from regimes.research.hpo_benchmark.fidelities import RecordedFidelity, as_facts
from regimes.research.hpo_benchmark.record import RecordTask

FOLDER = Path(__file__).parent / "fixtures" / "golden"
NUMERICS = Numerics("eager", "stacked", "float32", "cpu", "x86_64 AVX2", "2.13.0", layout="channels_last")
OWN: dict[str, Any] = {
    "data": {"name": "golden_own:data"},
    "model": {"name": "mlp", "widths": [12, 12], "batch_norm": True},
}
METRICS = ["error", "lmc", "cka", "hessian_trace", "hessian_top"]
SWEEPS: dict[str, dict[str, Any]] = {
    "density": {
        **OWN,
        "dense_seeds": 2,
        "retrain_seeds": 3,
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
        "temperature": {"epochs": [2, 4], "sam_rho": [0.0, 0.05]},
        "load": {"density": [0.2, 0.6]},
        "measure": {"metrics": METRICS, "hessian": {"images": 64}},
    },
    "knobs": {
        **OWN,
        "recipe": {"augment": "none", "epochs": 3, "batch_size": 16, "schedule": "cosine", "label_smoothing": 0.1},
        "retrain": {"epochs": 2, "batch_size": 32},
        "temperature": {"batch_size": [16, 32], "learning_rate": [0.1, 0.2], "weight_decay": [0.0, 0.001]},
        "load": {"density": [0.5], "pruner": "snip", "allocation": "erk"},
    },
    "rounds": {
        **OWN,
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
        "temperature": {"epochs": [4]},
        "load": {
            "density": [0.1],
            "schedule": "iterative",
            "rounds": 3,
            "rewind": 2,
            "pruner": "synflow",
            "allocation": "lamp",
        },
    },
    "gradual": {
        **OWN,
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
        "temperature": {"epochs": [4]},
        "load": {"density": [0.1, 0.3], "schedule": "gradual", "rounds": 2, "pruner": "random", "allocation": "global"},
    },
    "width": {
        "data": {"name": "golden_own:data"},
        "model": {"name": "golden_own:net"},
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
        "temperature": {"epochs": [2, 4]},
        "load": {"density": [0.5], "width": [4, 8]},
    },
    "own": {
        "data": {"name": "golden_own:data", "shift": 3},
        "model": {"name": "golden_own:net", "width": 6},
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32, "loss": "golden_own:loss"},
        "temperature": {"epochs": [4]},
        "load": {"density": [0.5], "pruner": "golden_own:first", "allocation": "golden_own:even"},
    },
    "discovered": {
        **OWN,
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
        "temperature": {"batch_size": [16, 32]},
        "load": {"pruner": "discovered", "nu": [0.1, 0.3], "discover": {"alpha": 0.5}},
    },
    "given": {
        **OWN,
        "dense": {
            "checkpoints": [
                {"path": "checkpoint.safetensors", "epochs": 10},
                {"path": "checkpoint.safetensors", "epochs": 20},
            ]
        },
        "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
        "load": {"density": [0.5]},
    },
}
SEARCH: dict[str, Any] = {
    **OWN,
    "name": "golden",
    "recipe": {"augment": "none", "epochs": 4, "batch_size": 32},
    "space": {
        "learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "batch_size": [16, 32],
        "sam_rho": {"low": 0.0, "high": 0.2},
    },
    "ladder": {"densities": [0.1]},
}
SHAPES = {"layer.weight": (4, 6), "layer.bias": (4,)}


def context(raw: dict[str, Any], folder: str = "unused") -> RunContext:
    asked = resolve_sweep({"name": "golden", "temperature": {"epochs": [1]}, "load": {"density": [0.5]}, **raw})
    return RunContext(ContextSpec(asked.data, asked.model, "cpu", NUMERICS, folder))


def stages(raw: dict[str, Any]) -> dict[str, Any]:
    """{key: [kind, hash of the description, where its values stand]} of every stage of a sweep."""
    asked = resolve_sweep({"name": "golden", **raw}, folder=FOLDER)
    made = expand(asked, RunContext(ContextSpec(asked.data, asked.model, "cpu", NUMERICS, "unused")))
    return {stage.key: [stage.kind, digest(stage.describe()), dict(stage.coords)] for stage in made}


def proxies() -> dict[str, str]:
    """{name: key of the identity of its networks}, and of a trial's training on it."""
    whole, recipe = context(OWN), Recipe(epochs=4, batch_size=32, augment="none")
    found = {}
    for name in PROXIES:
        small = ProxyContext(whole, Proxy(name, 0.1, 0.12, SHAPES))
        rung = Fidelity(0.1, 0.12, small, 4, EngineChoice("stacked", 8), 0.1, 0.2)
        full = Fidelity(1.0, 1.0, whole, 4, EngineChoice("eager", 1), 0.2, 0.2)
        ladder = Ladder((rung, full), (Segment(0, 0, 2, 1, 0.1), Segment(1, 0, 4, 2, 1.1)), 1.0)
        trainer = FidelityTrainer(whole, ladder, 7)
        found[name] = [digest(small.identity), *(trainer.key(TrialJob(recipe, 3), each) for each in ladder.stretches)]
        course = RecordedFidelity(f"{name} 0.1", name, 0.1)
        task = RecordTask(as_facts(course, rung), (5,), (recipe,), 1, False)
        found[f"{name}, recorded"] = [task.key(0, whole)]
    return found


def snapshot() -> dict[str, Any]:
    """Everything that is held fixed."""
    allow_imports_from(str(FOLDER))
    discovery = resolve_discovery(
        {"name": "golden", **OWN, "recipe": {"augment": "none", "epochs": 4}, "discover": {"nu": [0.1, 0.3]}}
    )
    where = discovery_lab(discovery, "cpu", Path("unused"))
    where.spec = ContextSpec(where.spec.data, where.spec.model, "cpu", NUMERICS, "unused")
    return {
        "data": context(OWN).loaded.fingerprint,
        "numerics": NUMERICS.id,
        "recipes": {name: digest(recipe.key_fields()) for name, recipe in RECIPES.items()},
        "sweeps": {name: stages(raw) for name, raw in SWEEPS.items()},
        "discoveries": {task.name: digest(_describe(task, where)) for task in tasks(discovery, Path("unused"))},
        "search": search_key(resolve_hpo(SEARCH)),
        "proxies": proxies(),
    }


def test_keys_have_not_changed() -> None:
    kept = json.loads((FOLDER / "keys.json").read_text())
    found = json.loads(json.dumps(snapshot()))
    assert found.keys() == kept.keys()
    for name, part in kept.items():
        assert found[name] == part, name
    kinds = {stage[0] for sweep in kept["sweeps"].values() for stage in sweep.values()}
    assert kinds == {"train", "prune", "retrain", "measure", "discover", "given"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with the run and the search that were made with the fixtures' files before the renaming."""
    with tarfile.open(FOLDER / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("golden_own.py", "golden-run.toml", "golden-search.toml"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json")) if path.is_file()
    }


def test_an_old_run_is_resumed_with_nothing_done_again(old: Path, cli: Callable[..., CompletedProcess[str]]) -> None:
    before = files(old / "runs/golden-run/records")
    again = cli("run", "golden-run.toml", "--workers", "1", "--allow-mixed", cwd=old)
    assert again.returncode == 0, again.stderr
    assert files(old / "runs/golden-run/records") == before
    assert len(before) == 38
    grid = regimes.open(old / "runs/golden-run")
    assert int((grid["lmc"].notnull()).sum()) == 4
    drawn = cli("map", "runs/golden-run", cwd=old)
    assert drawn.returncode == 0, drawn.stderr


def test_an_old_search_is_resumed_with_nothing_trained_again(
    old: Path, cli: Callable[..., CompletedProcess[str]]
) -> None:
    folder = old / "runs/golden-search"
    before, result = files(folder / "trials/records"), json.loads((folder / "result.json").read_text())
    again = cli("hpo", "golden-search.toml", cwd=old)
    assert again.returncode == 0, again.stderr
    assert files(folder / "trials/records") == before
    found = json.loads((folder / "result.json").read_text())
    assert {name: found["content"][name] for name in result["content"]} == result["content"]


def checkpoint() -> None:
    """Write the dense network that the sweep "given" takes in."""
    from safetensors.torch import save_file

    state = context(OWN).new_model(0).state_dict()
    save_file({name: each * 0 + 1 for name, each in state.items()}, FOLDER / "checkpoint.safetensors")


if __name__ == "__main__":
    allow_imports_from(str(FOLDER))
    if not (FOLDER / "checkpoint.safetensors").exists():
        checkpoint()
    (FOLDER / "keys.json").write_text(json.dumps(snapshot(), indent=1) + "\n")
