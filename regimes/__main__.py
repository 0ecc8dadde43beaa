"""``python -m regimes``: the command line, where its script is not on the path."""

from regimes.cli import main

main()
