"""What a network can lose: found in any traced model, counted as another library counts, shut as if removed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regimes import UserError
from regimes.models.build import build
from regimes.structure import network as files
from regimes.structure.anatomy import Anatomy
from regimes.structure.blocks import find_blocks
from regimes.structure.complexity import Complexity, size_of
from regimes.structure.gates import Gates, fixed
from regimes.structure.removal import remove
from regimes.structure.tracing import anatomy_of

# (model, options, units, groups, blocks): as one counts them by hand in the class.
KNOWN: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "mlp": ("mlp", {"widths": [12, 10], "batch_norm": True}, 22, 2, 0),
    "mlp without BatchNorm": ("mlp", {"widths": [12, 10], "dropout": 0.2}, 22, 2, 0),
    "preresnet": ("preresnet", {"depth": 14, "width": 4}, 2 * (4 + 8 + 16), 6, 6),
    "resnet": ("resnet", {"depth": 14, "width": 4}, 2 * (4 + 8 + 16), 6, 6),
    "resnet18": ("resnet18", {"width": 4}, 2 * (4 + 8 + 16 + 32), 8, 8),
    "vgg": ("vgg", {"depth": 11, "width": 8}, 8 + 16 + 2 * 32 + 4 * 64, 8, 0),
    "densenet": ("densenet", {"depth": 10, "growth": 4}, 16 + 6 * 4 + 24 + 32, 9, 0),
    "mobilenetv2": ("mobilenetv2", {"width": 0.25, "dropout": 0.0}, 3184, 18, 11),
    "bottlenecks": ("torchvision", {"arch": "resnet50", "width_per_group": 4}, 0, 33, 16),
    "squeeze and excitation": ("torchvision", {"arch": "mobilenet_v3_small"}, 2368, 14, 6),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """In float64, with BatchNorm statistics and affine parameters that are not those of a fresh network."""
    model, options, *_ = KNOWN[name]
    made = build(model, options, (3, 32, 32), 5, seed)
    random = torch.Generator().manual_seed(1)
    for each in made.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.weight.data = 0.5 + torch.rand(each.weight.shape, generator=random)
            each.bias.data = 0.3 * torch.randn(each.bias.shape, generator=random)
            assert each.running_mean is not None
            each.running_mean.data = 0.3 * torch.randn(each.running_mean.shape, generator=random)
    return made.double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()


def some(anatomy: Anatomy, seed: int) -> tuple[Tensor, list[int]]:
    """Units and blocks to take away, at least one unit left of every group that stays."""
    random = torch.Generator().manual_seed(seed)
    units = torch.rand(anatomy.units, generator=random) < 0.4
    blocks = [number for number in range(len(anatomy.blocks)) if torch.rand(1, generator=random) < 0.4]
    for group in anatomy.groups:
        units[group.first] = False
        if group.block in blocks:
            units[group.units] = True
    return units, blocks


def shut(anatomy: Anatomy, units: Tensor, blocks: list[int]) -> Any:
    on = torch.ones(len(anatomy.blocks))
    on[blocks] = 0
    draw = fixed(~units, on)
    return type(draw)(draw.units.double(), draw.blocks.double())


@pytest.mark.parametrize("name", KNOWN)
def test_units_and_blocks_are_found(name: str) -> None:
    *_, units, groups, blocks = KNOWN[name]
    anatomy = anatomy_of(network(name), images(2))
    assert (len(anatomy.groups), len(anatomy.blocks)) == (groups, blocks)
    assert anatomy.units == units or not units
    inside = {group.block for group in anatomy.groups if group.block is not None}
    assert inside <= set(range(blocks))


@pytest.mark.parametrize("name", KNOWN)
def test_a_shut_gate_is_a_removed_unit_and_files_need_no_package(name: str, tmp_path: Path) -> None:
    """Gated, removed, rebuilt from plan and weights, exported: four ways to the same outputs."""
    model, inputs = network(name), images()
    anatomy = anatomy_of(model, inputs[:2])
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
    anatomy = anatomy_of(model, inputs)
    units, blocks = some(anatomy, 0)
    assert blocks
    left, _ = remove(model, anatomy, units, blocks, {})
    files.save(model, left, inputs, tmp_path)
    torch.save({"inputs": inputs, "outputs": model(inputs).detach()}, tmp_path / "want.pt")
    code = BLOCKED + README_LINES + CHECK
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.stdout == "alike\n", out.stderr
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
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


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "params", "macs"), [(20, 269_722, 40.55e6), (56, 853_018, 125.49e6), (110, 1_727_962, 252.89e6)]
)
def test_published_sizes_of_residual_networks(depth: int, params: int, macs: float) -> None:
    model = build("resnet", {"depth": depth}, (3, 32, 32), 10, 0)
    size = size_of(anatomy_of(model, torch.randn(2, 3, 32, 32)))
    assert int(size.params) == params
    assert float(size.macs) == pytest.approx(macs, abs=5e3)


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_are_what_torch_counts(name: str) -> None:
    """Whole, and with units and blocks gone: torch's own counter of operations, and its parameters."""
    model, inputs = network(name), images(1)
    anatomy = anatomy_of(model, images(2))
    units, blocks = some(anatomy, 5)
    for step in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs)
        size = size_of(anatomy)
        assert int(size.macs) == counter.get_total_flops() // 2
        assert int(size.params) == sum(each.numel() for each in model.parameters())
        if not step:
            anatomy, _ = remove(model, anatomy, units, blocks, {})


def test_a_basic_block_costs_what_the_formula_says() -> None:
    """``rho (a sum theta + d)`` with ``a = 9 (c_in + c_out) + 2``, ``d = 2 c_out``, times 9 H W (c_in + c_out) MACs."""
    model = build("resnet", {"depth": 8, "width": 4}, (3, 16, 16), 10, 0)
    anatomy = anatomy_of(model, torch.randn(2, 3, 16, 16))
    complexity = Complexity(anatomy)
    theta = torch.rand(anatomy.units, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    found = complexity(theta, rho)
    stem, head = 27 * 4, 16 * 10
    params, macs = stem + 8 + head + 10.0, 16 * 16 * stem + float(head)
    for number, (c_in, c_out, side) in enumerate([(4, 4, 16), (4, 8, 8), (8, 16, 4)]):
        alive = float(theta[anatomy.groups[number].units].sum())
        a = 9 * (c_in + c_out)
        params += float(rho[number]) * ((a + 2) * alive + 2 * c_out)
        macs += float(rho[number]) * side * side * a * alive
    assert float(found.params) == pytest.approx(params, rel=1e-12)
    assert float(found.macs) == pytest.approx(macs, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(["vgg", "densenet", "preresnet"]))
def test_expected_size_is_the_mean_over_draws(seed: int, name: str) -> None:
    """It is linear in each gate alone, so its mean over two values of one gate is its value at the middle."""
    anatomy = ANATOMIES[name] if name in ANATOMIES else ANATOMIES.setdefault(name, anatomy_of(network(name), images(2)))
    complexity = Complexity(anatomy)
    random = torch.Generator().manual_seed(seed)
    theta = torch.rand(anatomy.units, dtype=torch.float64, generator=random)
    rho = torch.rand(len(anatomy.blocks), dtype=torch.float64, generator=random)
    unit = int(torch.randint(anatomy.units, (1,), generator=random))
    ends = []
    for value in (0.0, 1.0):
        theta[unit] = value
        ends.append(complexity(theta, rho))
    theta[unit] = 0.25
    middle = complexity(theta, rho)
    for each in ("macs", "params"):
        low, high = (float(getattr(end, each)) for end in ends)
        assert float(getattr(middle, each)) == pytest.approx(0.75 * low + 0.25 * high, rel=1e-9)
        assert high > low or name == "preresnet"
    full = size_of(anatomy)
    slope, _ = complexity.pull(theta, rho, full, kappa=1.0)
    assert float(slope[unit]) == pytest.approx(float((ends[1].macs - ends[0].macs) / full.macs), rel=1e-9, abs=1e-15)


ANATOMIES: dict[str, Anatomy] = {}


# -- what is no unit and no block -------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Two additions, or a branch that ends in a function: no block."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.one, self.two, self.functional = nn.Linear(6, 6), nn.Linear(6, 6), functional

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return x + torch.tanh(self.one(x))
        x = x + self.one(x)
        return x + self.two(x)


class Shuffled(nn.Module):
    """Its own code counts on a width: units of the first layer cannot leave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        hidden = hidden * torch.linspace(0, 1, 8, dtype=x.dtype) if hidden.shape[1] == 8 else hidden * 2
        out: Tensor = self.head(torch.relu(self.second(hidden)))
        return out


def test_what_cannot_be_switched_off_by_one_factor_is_no_block() -> None:
    for functional in (False, True):
        assert find_blocks(nn.Sequential(Twice(functional), nn.Linear(6, 3))) == ()


def test_units_whose_removal_changes_something_else_stay() -> None:
    anatomy = anatomy_of(Shuffled(), torch.randn(4, 6))
    assert [group.name for group in anatomy.groups] == ["second"]
    assert bool((anatomy.layers["first"].rows < 0).all())


def test_layers_that_are_not_needed_alone_are_told_from_those_that_are() -> None:
    dense = anatomy_of(network("densenet"), images(2))
    vital = {group.name: group.vital for group in dense.groups}
    assert vital["stem"]
    assert not vital["blocks.0.conv"]  # what it adds stands beside what came in
    squeezed = anatomy_of(network("squeeze and excitation"), images(2))
    assert not next(group for group in squeezed.groups if "fc1" in group.name).vital


class Residual(nn.Module):
    """``x + two(relu(one(x)))``, in ways that a trace does not see through."""

    def __init__(self, how: str = "", shared: nn.Linear | None = None) -> None:
        super().__init__()
        self.how = how
        self.one, self.two = shared or nn.Linear(6, 8), nn.Linear(8, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        out: Tensor = x + self.two(self.one(self.relu(x) if self.how == "in place" else x))
        return out


class Host(nn.Module):
    """Two residual blocks and a head, used in ways that forbid to take the first one out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = Residual(how)
        self.second = Residual(shared=self.first.one if how == "shared" else None)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        x = self.first(x, None) if self.how == "two arguments" else self.first(x)
        if self.how == "attribute":
            x = x + self.first.two.bias
        out: Tensor = self.head(self.second(x))
        return out


@pytest.mark.parametrize(
    ("how", "blocks"),
    [("", 2), ("in place", 1), ("shared", 0), ("two arguments", 1), ("attribute", 1)],
)
def test_blocks_that_cannot_be_taken_out_are_none(how: str, blocks: int) -> None:
    assert len(anatomy_of(Host(how), torch.randn(4, 6)).blocks) == blocks


def test_the_network_itself_is_no_block() -> None:
    anatomy = anatomy_of(Residual(), torch.randn(4, 6))
    assert anatomy.blocks == ()
    assert [group.name for group in anatomy.groups] == ["one"]


class Standardised(nn.Conv2d):
    """A layer of one's own: what it computes is not what its class in torch would."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize("kind", ["own", "transposed", "parametrized"])
def test_layers_that_are_not_plain_keep_their_size_and_are_counted(kind: str, tmp_path: Path) -> None:
    middle: nn.Module = {
        "own": Standardised(8, 8, 3, padding=1),
        "transposed": nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
        "parametrized": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
    }[kind]
    tail = [nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), copy.deepcopy(middle), nn.ReLU(), *copy.deepcopy(tail))

    model, inputs = net().eval(), torch.randn(3, 3, 9, 9)
    anatomy = anatomy_of(model, inputs)
    assert [group.name for group in anatomy.groups] == ["4", "6"]
    size = size_of(anatomy)
    assert int(size.params) == sum(each.numel() for each in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs[:1])
    assert int(size.macs) == counter.get_total_flops() // 2
    units, _ = some(anatomy, 1)
    left, _ = remove(model, anatomy, units, [], {})
    again = files.rebuild(net().eval(), files.plan_of(model, left), model.state_dict())
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)


def test_a_head_of_zeros_hides_nothing() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.nn.functional.normalize(torch.relu(self.one(x)), dim=1)  # its units know of each other
            out: Tensor = self.head(torch.relu(self.two(hidden)))
            return out

    anatomy = anatomy_of(Normalised(), torch.randn(4, 6))
    assert [group.name for group in anatomy.groups] == ["two"]


def test_an_axis_folded_into_the_batch_is_refused() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.two(torch.relu(self.one(x.reshape(-1, 3))))
            out: Tensor = hidden.reshape(len(x), -1, 3).mean(1)
            return out

    with pytest.raises(UserError, match="Folded mixes the inputs of a batch, or folds another axis into it"):
        anatomy_of(Folded(), torch.randn(4, 6))


def test_sizes_of_batch_norm_without_scales_are_renamed() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))

    model, inputs = net().eval(), torch.randn(4, 6)
    anatomy = anatomy_of(model, inputs)
    left, _ = remove(model, anatomy, torch.arange(8) < 3, [], {})
    assert model[1].num_features == 5  # type: ignore[index]
    again = files.rebuild(net().eval(), files.plan_of(model, left), model.state_dict())
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)


def test_a_network_that_can_lose_nothing_says_so() -> None:
    with pytest.raises(UserError, match="nothing in Linear can leave"):
        anatomy_of(nn.Linear(4, 3), torch.randn(2, 4))


def test_a_plan_of_another_network_is_refused() -> None:
    model = build("mlp", {"widths": [6]}, (8,), 3, 0)
    plan = files.plan_of(model, anatomy_of(model, torch.randn(2, 8)))
    with pytest.raises(UserError, match="is not what this network was found in"):
        files.rebuild(build("preresnet", {"depth": 8, "width": 2}, (1, 8, 8), 3, 0), plan, model.state_dict())
