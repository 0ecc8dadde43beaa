"""Numerics of this machine: the memory format is one in which every convolution is safe."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from regimes.experiment.numerics import memory_layout

CONVOLUTIONS = """
import torch
from regimes.experiment.numerics import memory_layout
layout = getattr(torch, memory_layout("cpu"))
kept = []
for round in range(100):
    for channels in range(1, 13):
        x = torch.randn(8, channels, 8, 8).contiguous(memory_format=layout)
        w = torch.randn(2 * channels, channels, 1, 1).contiguous(memory_format=layout).requires_grad_()
        torch.nn.functional.conv2d(x, w, stride=2).sum().backward()
        kept = [*kept, w.grad, torch.empty(37)][-50:]
print("sound")
"""


@pytest.mark.parametrize(("capability", "layout"), [("AVX2", "contiguous_format"), ("AVX512", "channels_last")])
def test_the_layout_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch, capability: str, layout: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert memory_layout("cpu") == layout
    assert memory_layout("cuda") == "channels_last"


def test_gradients_of_strided_convolutions_keep_the_heap_sound() -> None:
    """In a process of its own, which a write out of bounds would end."""
    out = subprocess.run([sys.executable, "-c", CONVOLUTIONS], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "sound", out.stderr
