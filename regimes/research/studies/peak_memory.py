"""Peak memory of Hessian measures, measured and planned."""

from __future__ import annotations

import subprocess
import sys

import torch
import torch.nn.functional as F

from regimes.experiment.memory import PROCESS_BYTES, bytes_in_measuring, peak_bytes
from regimes.landscape.hessian import hessian_top, hessian_trace
from regimes.models.build import build
from regimes.plots.text_table import TextTable
from regimes.research.page import Say

CHUNKS = (16, 64, 256)


def memory_table(say: Say) -> TextTable:
    """Return planned and measured peak memory of traces and Lanczos on PreResNet-20 by chunk, in separate processes."""
    rows, facts = [["inputs per chunk", "planned, MB", "measured peak, MB"]], []
    for chunk in CHUNKS:
        output = subprocess.run(
            [sys.executable, "-c", f"from regimes.research.studies.peak_memory import peak; peak({chunk})"],
            check=True,
            capture_output=True,
            text=True,
        )
        planned, measured = (float(each) for each in output.stdout.split())
        say(f"memory, chunk {chunk}: {measured:.0f} MB, planned {planned:.0f} MB")
        facts.append({"chunk": chunk, "planned_MB": planned, "peak_MB": measured})
        rows.append([str(chunk), f"{planned:.0f}", f"{measured:.0f}"])
    notes = ["PreResNet-20, 256 inputs of 3x32x32, 'auto', 4 probes, and 40 steps of Lanczos, float32, one thread"]
    return TextTable("Memory of Hessian measures", rows, notes, facts)


def peak(chunk: int, images: int = 256) -> None:
    """Print the planned and the measured peak memory of this process in MB, for measures of PreResNet-20."""
    torch.set_num_threads(1)
    model = build("preresnet", {"depth": 20}, (3, 32, 32), 10, 0)
    random = torch.Generator().manual_seed(0)
    data = torch.randn(images, 3, 32, 32, generator=random), torch.randint(0, 10, (images,), generator=random)
    planned = PROCESS_BYTES + bytes_in_measuring(model, data[0][:16], data[1][:16], chunk, 80)
    hessian_trace(model, F.cross_entropy, data, rel_stderr=0.05, chunk=chunk)
    hessian_trace(model, F.cross_entropy, data, probes=4, chunk=chunk)
    hessian_top(model, F.cross_entropy, data, tolerance=1e-9, max_steps=40, chunk=chunk)
    print(planned / 1e6, peak_bytes() / 1e6)
