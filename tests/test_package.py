"""What the design promises of the package itself: light start, one-way imports, no torch where maps are made."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "regimes"
# A folder imports only folders above it.
ORDER = [
    "errors",
    "device_faults",
    "faults",
    "source_hash",
    "torchvision_import",
    "registry",
    "losses",
    "knobs",
    "data",
    "models",
    "pruners",
    "landscape",
    "config",
]
ORDER += ["training", "discovery", "experiment", "record", "regime_map", "diagnosis", "plots", "hpo", "cli", "research"]
A_STEP = (
    "import torch; from regimes.config.recipe import Recipe; "
    "from regimes.training.optimizer_step import OptimizerStep; "
    "model = torch.nn.Linear(1, 1); step = OptimizerStep(model, Recipe(), None)"
)


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports while it runs (not for type checking only)."""
    found = set()
    tree = ast.parse(path.read_text())
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in checking:
            found |= {f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Import) and id(node) not in checking:
            found |= {each.name for each in node.names}
    return {each for each in found if each.startswith("regimes.")}


def is_registry(name: str) -> bool:
    """Whether an import is of a table of names, such as ``regimes.hpo.PROXIES``: it imports nothing behind them."""
    return name.rpartition(".")[2].isupper() and len(name.split(".")) == 3


@pytest.mark.parametrize("folder", ORDER)
def test_imports_go_one_way(folder: str) -> None:
    files = list((PACKAGE / folder).rglob("*.py")) or [PACKAGE / f"{folder}.py"]
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    for file in files:
        homes = {each.split(".")[1] for each in imports(file) if not is_registry(each)}
        assert homes <= allowed, f"{file.name} imports {homes - allowed}"


def test_every_folder_has_its_place_in_the_order() -> None:
    homes = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert homes - {"__init__", "__main__", "__pycache__"} == set(ORDER)


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import regimes", ["torch", "xarray", "seaborn", "numpy"]),
        ("import regimes.cli", ["torch", "xarray", "seaborn", "numpy", "pydantic", "rich.progress"]),
        ("import regimes; regimes.open, regimes.classify, regimes.draw_map", ["torch", "torchvision", "optuna"]),
        ("import regimes.plots.run_info, regimes.record.grid, regimes.cli.map", ["torch"]),
        ("import regimes.experiment.run, regimes.landscape.weight_matching", ["scipy.optimize", "optuna", "seaborn"]),
        (f"{A_STEP}; step(lambda: model.weight.sum(), 0.1)", ["torch._dynamo"]),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str, never: list[str]) -> None:
    code = f"import sys; {statement}; print([each for each in {never!r} if each in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_maps_figures_and_records_never_import_torch() -> None:
    code = """
import importlib, pkgutil, sys
for name in ("regimes.record", "regimes.regime_map", "regimes.diagnosis", "regimes.plots"):
    package = importlib.import_module(name)
    modules = [each.name for each in pkgutil.walk_packages(package.__path__, f"{name}.")]
    assert modules, name
    for module in modules:
        importlib.import_module(module)
        assert "torch" not in sys.modules, f"{module} imports torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def test_public_names_are_there() -> None:
    import regimes

    for name in regimes.__all__:
        assert getattr(regimes, name) is not None
    assert set(dir(regimes)) == set(regimes.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        regimes.nothing  # noqa: B018


def test_names_are_found_once() -> None:
    """No public class has the name of another; no file name is used more than twice."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    classes = Counter(node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1 and not name.startswith("_")] == []
    files = Counter(path.name for path in trees if path.name != "__init__.py")
    assert [name for name, count in files.items() if count > 2] == []


def test_docstrings_state() -> None:
    """No public docstring opens with a question word."""
    asking = re.compile(r"\s*(What|Which|Who|Whose|How|Where|When)\b")
    found = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in [tree, *(node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))]:
            name = getattr(node, "name", path.stem)
            if asking.match(ast.get_docstring(node) or "") and not name.startswith("_"):
                found.append(f"{path.name}: {name}")
    assert found == []
