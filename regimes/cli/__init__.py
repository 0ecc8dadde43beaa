"""The command line. Each command is a few lines and one call into the package; heavy imports wait inside commands."""

import regimes.cli.app
import regimes.cli.asking
import regimes.cli.searching  # noqa: F401
from regimes.cli.options import app

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``regimes`` command."""
    app()
