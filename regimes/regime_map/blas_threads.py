"""Run small linear algebra on one BLAS thread; more threads only compete with each other and with training."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import scipy.linalg  # noqa: F401 - the controller only sees libraries that are loaded already
from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = ThreadpoolController()


def one_blas_thread(do: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that its linear algebra uses one BLAS thread."""
    alone: Callable[P, T] = _THREADS.wrap(limits=1, user_api="blas")(do)
    return alone
