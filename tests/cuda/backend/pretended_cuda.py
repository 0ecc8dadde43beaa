"""Pretended GPUs: the Python side of `pretended_cuda.cpp`, in place of what CPU builds of torch lack in `torch.cuda`.

Tensors, autograd, vmap and autocast are torch's own. Streams do nothing, and a CUDA graph records the operations of its
capture and repeats them in its replay, on the same memory. Kernels, cuDNN, memory limits and time are not emulated, and
global random numbers are the CPU's.
"""

from __future__ import annotations

import ctypes
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

LIBRARY = ctypes.CDLL(os.environ["PRETENDED_CUDA"])
DEVICES = 2
NAME = "Pretended GPU"
BYTES = 80 * 2**30
TO_HOST = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero", "aten::nonzero"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class Stream:
    """A stream without effect: every operation is finished when it returns."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = torch.device("cuda", 0) if device is None else torch.device(device)

    def wait_stream(self, stream: Stream) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


class Graph:
    """A CUDA graph that records operations with their tensors and repeats them."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, Any, Any, list[Tensor]]] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the recorded operations; results are written to the memory of the recorded ones."""
        with _disable_current_modes(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, results in self.recorded:
                for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if old is not new:  # not an argument that was written to
                        old.copy_(new)


class Operations(TorchDispatchMode):
    """Counts operations on the GPU that are not views, the bytes they read and write, and host syncs by source line.

    Args:
        note: called with (func, args, kwargs) before each operation.
        recorded: list to which (func, args, kwargs, results) of each operation are appended; host syncs then raise.
    """

    def __init__(self, note: Callable[..., None] | None = None, recorded: list[Any] | None = None) -> None:
        super().__init__()
        self.note, self.recorded = note, recorded
        self.launches: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, name = _tensors((args, kwargs)), func._schema.name
        reason = _sync(name, args, kwargs, given)
        if reason and self.recorded is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({reason}, {_line()})")
        if reason:
            self.syncs[f"{reason} {_line()}"] += 1
        if self.note is not None:
            self.note(func, args, kwargs)
        result = func(*args, **kwargs)
        results = _tensors(result)
        if any(each.is_cuda for each in (*given, *results)) and not _view(func):
            self.launches[name] += 1
            self.bytes += bytes_of(args, kwargs, results)
            if self.recorded is not None:
                self.recorded.append((func, args, kwargs, results))
        return result


@contextmanager
def capture(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
    """Record the operations of the block in a graph, without effect on memory; a host sync raises, as on a GPU."""
    before: dict[int, tuple[Tensor, Tensor]] = {}  # memory that the block did not make, and its contents

    def note(func: Any, args: Any, kwargs: Any) -> None:
        for each in _tensors((args, kwargs)):
            memory = each.untyped_storage()
            if each.is_cuda and memory.data_ptr() not in before:
                whole = torch.empty(0, dtype=torch.uint8, device=each.device).set_(memory)
                before[memory.data_ptr()] = whole, whole.clone()

    with Operations(note, graph.recorded):
        yield
    for whole, contents in before.values():
        whole.copy_(contents)


def bytes_of(*trees: Any) -> int:
    """Return the bytes of all tensors."""
    return sum(each.nbytes for each in _tensors(trees))


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _sync(name: str, args: Any, kwargs: Any, given: list[Tensor]) -> str:
    """Why an operation waits for the host or the device; "" if it does not."""
    if name == "aten::_to_copy" and kwargs.get("device") is not None:
        to = torch.device(kwargs["device"]).type
        return "" if to == args[0].device.type else f"{args[0].device.type} to {to}"
    if name == "aten::copy_" and args[0].device.type != args[1].device.type:
        return f"{args[1].device.type} to {args[0].device.type}"
    if not any(each.is_cuda for each in given):
        return ""
    if name in TO_HOST:
        return name
    if name in INDEXING:
        indices = _tensors(args[1])
        if any(not each.is_cuda for each in indices):
            return "index on the CPU"
        if any(each.dtype == torch.bool for each in indices):
            return "boolean index"
    return ""


def _line() -> str:
    for frame in reversed(traceback.extract_stack(limit=60)):
        if "/regimes/" in frame.filename and "site-packages" not in frame.filename and "/tests/" not in frame.filename:
            return f"{frame.filename.rpartition('/regimes/')[2]}:{frame.lineno}"
    return "?"


def _index(device: Any = None) -> int:
    if device is None:
        return int(LIBRARY.pretended_get_device())
    index = device if isinstance(device, int) else torch.device(device).index or 0
    if not 0 <= index < DEVICES:
        raise AssertionError("Invalid device id")
    return index


def _clone_storage(self: Any) -> Any:
    if self.device.type != "cuda":
        return _STORAGE_CLONE(self)
    return torch.empty(self.nbytes(), dtype=torch.uint8, device=self.device).untyped_storage().copy_(self)


_STORAGE_CLONE = torch.UntypedStorage.clone


def patch() -> None:
    """Replace what a CPU build lacks in `torch.cuda`, for the rest of the process."""
    replacements: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: DEVICES,
        "current_device": lambda: int(LIBRARY.pretended_get_device()),
        "set_device": lambda device: LIBRARY.pretended_set_device(_index(device)),
        "get_device_name": lambda device=None: NAME if _index(device) >= 0 else "",
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": lambda device=None: (BYTES, BYTES),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda *_, **__: True,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(seed),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "default_generators": (torch.default_generator,) * DEVICES,
    }
    for name, each in replacements.items():
        setattr(torch.cuda, name, each)
    torch._C._cuda_getDevice = lambda: int(LIBRARY.pretended_get_device())  # type: ignore[attr-defined]
    torch.UntypedStorage.clone = _clone_storage  # type: ignore[method-assign]
