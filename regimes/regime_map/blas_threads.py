"""One thread for small linear algebra: a second one only spins beside the first, and beside whatever trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import scipy.linalg  # noqa: F401 - the controller knows the libraries that are loaded when it is made
from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = ThreadpoolController()


def one_blas_thread(do: Callable[P, T]) -> Callable[P, T]:
    """A function that gives its linear algebra one thread, as long as it runs."""
    alone: Callable[P, T] = _THREADS.wrap(limits=1, user_api="blas")(do)
    return alone
