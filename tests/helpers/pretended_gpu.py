"""Environment of processes that see pretended GPUs: ``python tests/helpers/pretended_gpu.py COMMAND ...`` runs one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

BACKEND = Path(__file__).parents[1] / "cuda" / "backend"


def compile_backend(folder: Path) -> Path:
    """Compile the backend for this torch; needs g++."""
    file, root = folder / "pretended_cuda.so", Path(torch.__file__).parent
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    link = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    source = str(BACKEND / "pretended_cuda.cpp")
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", source, *include, *link, "-o", str(file)], check=True)
    return file


def environment_with(library: Path) -> dict[str, str]:
    """Environment variables with which Python, and every process it starts, has pretended GPUs."""
    path = os.pathsep.join([str(BACKEND), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PRETENDED_CUDA": str(library), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        environment = environment_with(compile_backend(Path(folder)))
        sys.exit(subprocess.run(sys.argv[1:], env=environment).returncode)
