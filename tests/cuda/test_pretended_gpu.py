"""Runs the tests in ``device`` on pretended GPUs, which compute on the CPU under CUDA's rules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
BACKEND = HERE / "backend"
SCRIPTS = sorted(path.name for path in (HERE / "device").glob("test_*.py"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled backend."""
    if torch.version.cuda is not None or shutil.which("g++") is None:
        pytest.skip("needs a CPU build of torch and g++")
    file, root = tmp_path_factory.mktemp("backend") / "pretended_cuda.so", Path(torch.__file__).parent
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    link = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    source = str(BACKEND / "pretended_cuda.cpp")
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", source, *include, *link, "-o", str(file)], check=True)
    return file


@pytest.mark.parametrize("script", SCRIPTS)
def test_on_pretended_gpus(library: Path, script: str) -> None:
    path = os.pathsep.join([str(BACKEND), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PRETENDED_CUDA": str(library), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(HERE / "device" / script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
