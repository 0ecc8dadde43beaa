"""The command line. Each command is a few lines and one call into the package; heavy imports wait inside commands."""

from regimes.cli.app import main

__all__ = ["main"]
