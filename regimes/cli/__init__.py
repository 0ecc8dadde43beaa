"""The command line: one file per command. Heavy imports happen inside commands, so that ``--help`` is quick."""

import os

from regimes.cli.app import app
from regimes.experiment.warning_lines import print_warnings

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the ``regimes`` command."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small, and the cores are needed for training
    print_warnings()
    app()
