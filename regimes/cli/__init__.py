"""The command line: one file per command. Heavy imports happen inside commands, so that ``--help`` is quick."""

import os

from regimes.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the ``regimes`` command."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small, and the cores are needed for training
    app()
