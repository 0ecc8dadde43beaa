"""Hardware and package versions of this machine, read without importing the packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("regimes", "torch", "torchvision", "pyhessian", "optuna", "xarray", "seaborn", "typer", "scikit-learn")


def environment() -> dict[str, Any]:
    """Return Python, system, processor, number of cores, and the versions of the packages behind a result."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": default_workers(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def default_workers(devices: Sequence[str] = ("cpu",)) -> int:
    """Return the default number of worker processes: one per available core, or one per CUDA device."""
    if devices[0] != "cpu":
        return len(devices)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
