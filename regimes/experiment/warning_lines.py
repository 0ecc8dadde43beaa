"""Warnings of a command and its worker processes: each once, as one line, without those that no user can act on.

Importing this package changes nothing: only commands and worker processes call `print_warnings` or `send_warnings`.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

# Beginnings of warnings that are about how torch or this package does its work, not about the user's network or data.
NOT_FOR_USERS = (
    "enable_nested_tensor is True, but",  # nn.TransformerEncoder: it takes the path without nested tensors
    "The PyTorch API of nested tensors is in prototype stage",  # nn.TransformerEncoder with a padding mask
    "There is a performance drop because we have not yet implemented the batching rule",  # stacked training, Hessians
    "Lazy modules are a new feature under heavy development",
    "RNN module weights are not part of single contiguous chunk of memory",  # weights of a pruned copy, on a GPU
    "TypedStorage is deprecated",  # raised inside torch
    "`torch.jit",  # deprecated in favour of torch.compile and torch.export; used by packages that trace networks
)
MOST = 20  # different warnings shown by one process: some contain numbers that always change


@dataclass(frozen=True)
class WorkerWarning:
    """A warning raised in a worker process, to be issued in the process that started it.

    Attributes:
        text: the warning.
        category: its class, pickled, since a user's own may not be known elsewhere.
        file, line: the place that it is about.
    """

    text: str
    category: bytes
    file: str
    line: int

    def issue(self, issued: dict[Any, Any]) -> None:
        """Issue the warning here; ``issued`` remembers those of all workers."""
        try:
            category = pickle.loads(self.category)
            category(self.text)
        except Exception:  # a class of the user's that is not importable here, or takes other arguments
            category = UserWarning
        warnings.warn_explicit(self.text, category, self.file, self.line, registry=issued)


def print_warnings() -> None:
    """Print this process's warnings to stderr from now on."""
    _show(lambda text, *_: print(f"{_start()}warning: {' '.join(text.split())}", file=sys.stderr, flush=True))


def send_warnings(send: Callable[[WorkerWarning], None]) -> None:
    """Send this worker process's warnings to the process that started it from now on."""

    def show(text: str, category: type[Warning], file: str, line: int) -> None:
        try:
            pickled = pickle.dumps(category)
        except Exception:  # a class that was defined in a function
            pickled = pickle.dumps(UserWarning)
        send(WorkerWarning(text, pickled, file, line))

    _show(show)


def _show(show: Callable[[str, type[Warning], str, int], None]) -> None:
    """Call a function once for each text of a warning that Python's filters let pass, unless it is not for users."""
    shown: set[str] = set()

    def hook(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = str(message)
        if text in shown or text.startswith(NOT_FOR_USERS) or len(shown) > MOST:
            return
        shown.add(text)
        text = text if len(shown) <= MOST else f"there are more than {MOST}; the others are not shown"
        show(text, category, filename, lineno)

    warnings.showwarning = hook


def _start() -> str:
    """In a terminal, the codes that clear a progress line which has no end yet."""
    plain = sys.stderr is not None and sys.stderr is sys.__stderr__  # rich's progress bar clears its own line
    return "\r\033[K" if plain and sys.stderr.isatty() else ""
