"""The command line. Each command is a few lines and one call into the package; heavy imports wait inside commands."""

import os

import regimes.cli.app
import regimes.cli.asking
import regimes.cli.searching  # noqa: F401
from regimes.cli.options import app

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``regimes`` command."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small here, and the cores are for training
    app()
