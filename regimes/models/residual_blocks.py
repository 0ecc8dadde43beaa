"""Residual blocks of any model: detection by symbolic tracing, and removal."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import add, iadd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_ADDITIONS: tuple[Any, ...] = (add, iadd, torch.add, "add", "add_")
_RELUS: tuple[Any, ...] = (F.relu, torch.relu, "relu", "relu_")
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class ResidualBlock:
    """A module that adds a branch to a skip path: ``y = after(skip(x) + branch(x))``.

    Attributes:
        name: name of the block's module in the model.
        gate: name of the branch's last module, whose output is added to the skip path.
        branch: names of the modules used by the branch only.
        skip: names of the modules on the skip path, in order; empty for an identity.
        relu: whether a ReLU follows the addition.
    """

    name: str
    gate: str
    branch: tuple[str, ...]
    skip: tuple[str, ...]
    relu: bool


def find_blocks(model: nn.Module) -> tuple[ResidualBlock, ...]:
    """Return the model's residual blocks in the order of its modules; of nested ones, the innermost.

    A block is a module whose forward contains exactly one addition. One summand (the skip path) is the module's input,
    possibly passed through a chain of modules; the other (the branch) is the output of a module and depends on more
    convolutions and linear layers. Modules that cannot be traced symbolically are not recognised.
    """
    found: dict[str, ResidualBlock] = {}
    for name, module in reversed(list(model.named_modules())):  # children before their parents
        inside = f"{name}." if name else ""
        if any(other.startswith(inside) for other in found) or not any(module.children()):
            continue
        block = _block(name, module)
        if block is not None:
            found[name] = block
    return tuple(found[name] for name, _ in model.named_modules() if name in found)


def remove_block(model: nn.Module, block: ResidualBlock) -> None:
    """Replace a block by its skip path, in place, without branch and addition.

    Modules on the skip path keep their names, so that the remaining entries of a state dict still fit.
    """
    keep_skip(model, block.name, [name.rpartition(".")[2] for name in block.skip], block.relu)


def keep_skip(model: nn.Module, name: str, keep: Sequence[str], relu: bool) -> None:
    """Replace a block by some of its children, in order, followed by a ReLU if ``relu``."""
    block = model.get_submodule(name)
    parts = OrderedDict((each, block.get_submodule(each)) for each in keep)
    parts = OrderedDict((each, part) for each, part in parts.items() if not isinstance(part, nn.Identity))
    if relu:
        parts["behind"] = nn.ReLU()
    model.set_submodule(name, nn.Sequential(parts).train(block.training))


def remove_missing_blocks(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Remove the blocks whose branch has no entries in a state dict, in place; return the model."""
    if all(name in state for name in model.state_dict()):
        return model
    for block in find_blocks(model):
        if not any(name.startswith(tuple(f"{each}." for each in block.branch)) for name in state):
            remove_block(model, block)
    return model


class _Shallow(fx.Tracer):
    """Tracer that does not trace into the children of a module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _block(name: str, module: nn.Module) -> ResidualBlock | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = _Shallow().trace(module)
        except Exception:  # a user's forward may do anything with a symbolic value
            return None
    additions = [node for node in graph.nodes if node.target in _ADDITIONS and _two_nodes(node)]
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    if len(additions) != 1 or len(inputs) != 1:
        return None
    (addition,), (start,) = additions, inputs
    sides = sorted(addition.args[:2], key=lambda node: _weights(module, _behind(node)))
    skip, branch = sides
    way, after = _chain(skip, start), _chain(_result(graph), addition)
    if way is None or after is None or branch.op != "call_module" or len(branch.users) != 1:
        return None
    if _weights(module, _behind(branch)) <= _weights(module, _behind(skip)):
        return None
    relu = [node for node in after if node.target in _RELUS or _is_relu(module, node)]
    if len(relu) != len(after) or any(node.op != "call_module" or "." in str(node.target) for node in way):
        return None
    prefix = f"{name}." if name else ""
    alone = [node for node in _behind(branch) - _behind(skip) if node.op == "call_module"]
    order = {node: index for index, node in enumerate(graph.nodes)}
    return ResidualBlock(
        name,
        prefix + str(branch.target),
        tuple(prefix + str(node.target) for node in sorted(alone, key=order.__getitem__)),
        tuple(prefix + str(node.target) for node in way),
        bool(relu),
    )


def _two_nodes(node: fx.Node) -> bool:
    return len(node.args) >= 2 and all(isinstance(each, fx.Node) for each in node.args[:2])


def _behind(node: fx.Node) -> set[fx.Node]:
    """A node and all nodes that it is computed from."""
    found, todo = {node}, [node]
    while todo:
        more = [each for each in todo.pop().all_input_nodes if each not in found]
        found.update(more)
        todo += more
    return found


def _weights(module: nn.Module, nodes: set[fx.Node]) -> int:
    """Number of convolutions and linear layers among the nodes."""
    called = (module.get_submodule(str(node.target)) for node in nodes if node.op == "call_module")
    return sum(isinstance(each, _WEIGHTED) for one in called for each in one.modules())


def _chain(last: fx.Node, first: fx.Node) -> list[fx.Node] | None:
    """The nodes after ``first`` up to ``last`` if each has one input; None if they are not a chain."""
    way: list[fx.Node] = []
    node = last
    while node is not first:
        if len(node.all_input_nodes) != 1:
            return None
        way.append(node)
        (node,) = node.all_input_nodes
    return way[::-1]


def _result(graph: fx.Graph) -> fx.Node:
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = output.all_input_nodes
    return results[0] if len(results) == 1 else output


def _is_relu(module: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.ReLU)


def blocks_containing(blocks: tuple[ResidualBlock, ...], layer: str) -> Iterator[int]:
    """Yield the indices of the blocks whose branch contains a layer."""
    for number, block in enumerate(blocks):
        if any(layer == name or layer.startswith(f"{name}.") for name in block.branch):
            yield number
