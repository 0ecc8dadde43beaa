"""Runs the tests in ``device`` on pretended GPUs, which compute on the CPU under CUDA's rules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import compile_backend, environment_with

DEVICE = Path(__file__).parent / "device"
SCRIPTS = sorted(path.name for path in DEVICE.glob("test_*.py"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled backend."""
    if torch.version.cuda is not None or shutil.which("g++") is None:
        pytest.skip("needs a CPU build of torch and g++")
    return compile_backend(tmp_path_factory.mktemp("backend"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_on_pretended_gpus(library: Path, script: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(DEVICE / script)]
    done = subprocess.run(command, env=environment_with(library), capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
