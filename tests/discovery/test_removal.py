"""A gate that is shut is a unit removed, and what is left needs no package: four ways to the same outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_networks import KNOWN, images, network, shut, some

from regimes import UserError
from regimes.discovery import save_network as files
from regimes.discovery.complexity import size_of
from regimes.discovery.gates import Gates
from regimes.discovery.removal import remove
from regimes.discovery.trace_graph import trace_graph
from regimes.models.build import build


@pytest.mark.parametrize("name", KNOWN)
def test_a_shut_gate_is_a_removed_unit_and_files_need_no_package(name: str, tmp_path: Path) -> None:
    """Gated, removed, rebuilt from plan and weights, exported: four ways to the same outputs."""
    model, inputs = network(name), images()
    anatomy = trace_graph(model, inputs[:2])
    units, blocks = some(anatomy, 3)
    gates = Gates(model, anatomy)
    with torch.no_grad(), gates.at(shut(anatomy, units, blocks)):
        gated = model(inputs)
    gates.remove()
    with torch.no_grad():
        whole = model(inputs)
        left, _ = remove(model, anatomy, units, blocks, {})
        small = model(inputs)
    assert not torch.allclose(whole, gated, rtol=1e-3)
    torch.testing.assert_close(small, gated, rtol=1e-7, atol=1e-12)
    assert sum(each.numel() for each in model.parameters()) == int(size_of(left).params)
    files.save(model.float(), left, inputs.float(), tmp_path)
    again = files.rebuild(
        build(*KNOWN[name][:2], (3, 32, 32), 5, 9),
        json.loads((tmp_path / files.PLAN).read_text()),
        load_file(tmp_path / files.WEIGHTS),
    )
    program = torch.export.load(tmp_path / files.PROGRAM).module()
    with torch.no_grad():
        want = model(inputs.float())
        torch.testing.assert_close(again.eval()(inputs.float()), want, rtol=0, atol=0)
        torch.testing.assert_close(program(inputs.float()), want)


def test_a_users_own_network_is_rebuilt_where_this_package_is_not_installed(tmp_path: Path) -> None:
    """With torch alone: the lines that the README gives."""
    (tmp_path / "own.py").write_text(OWN)
    sys.path.insert(0, str(tmp_path))
    try:
        import own  # type: ignore[import-not-found]

        torch.manual_seed(0)
        model = own.Net().eval()
    finally:
        sys.path.remove(str(tmp_path))
    inputs = torch.randn(4, 6)
    anatomy = trace_graph(model, inputs)
    units, blocks = some(anatomy, 0)
    assert blocks
    left, _ = remove(model, anatomy, units, blocks, {})
    files.save(model, left, inputs, tmp_path)
    torch.save({"inputs": inputs, "outputs": model(inputs).detach()}, tmp_path / "want.pt")
    code = BLOCKED + README_LINES + CHECK
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.stdout == "alike\n", out.stderr
    readme = Path(__file__).parents[2].joinpath("regimes/discovery/README.md").read_text()
    assert README_LINES.strip() in readme


OWN = """
import torch
from torch import nn


class Part(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.parts = nn.Sequential(Part(10), Part(12), Part(14), Part(9))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.parts(self.first(x)))
"""

BLOCKED = """
import sys
sys.modules["regimes"] = None
from own import Net
model = Net()
"""

README_LINES = """
import json, torch
from collections import OrderedDict
from safetensors.torch import load_file

plan = json.load(open("network.json"))
for name, rest in plan["blocks"].items():  # a removed block leaves its skip path
    block = model.get_submodule(name)
    parts = OrderedDict((each, block.get_submodule(each)) for each in rest["keep"])
    parts.update({"behind": torch.nn.ReLU()} if rest["relu"] else {})
    model.set_submodule(name, torch.nn.Sequential(parts))
for name, (kind, arguments) in plan["layers"].items():
    model.set_submodule(name, getattr(torch.nn, kind)(**arguments))
model.load_state_dict(load_file("network.safetensors"))
"""

CHECK = """
want = torch.load("want.pt")
assert torch.equal(model.eval()(want["inputs"]), want["outputs"])
program = torch.export.load("network.pt2").module()
torch.testing.assert_close(program(want["inputs"]), want["outputs"])
print("alike")
"""


def test_a_plan_of_another_network_is_refused() -> None:
    model = build("mlp", {"widths": [6]}, (8,), 3, 0)
    plan = files.plan_of(model, trace_graph(model, torch.randn(2, 8)))
    with pytest.raises(UserError, match="is not the class of this network"):
        files.rebuild(build("preresnet", {"depth": 8, "width": 2}, (1, 8, 8), 3, 0), plan, model.state_dict())
