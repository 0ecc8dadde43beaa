"""Subprocess of one contender: reads the case from stdin and writes the result to stdout, both as JSON."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Run the work named on the command line."""
    case = json.loads(sys.stdin.read())
    answers = os.dup(1)
    os.dup2(2, 1)  # keeps stdout free from the output of libraries
    import torch

    from regimes.registry import lookup

    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        found = lookup({}, sys.argv[1], "arm")(case)
    except ModuleNotFoundError as error:
        found = {"absent": f"{error.name} is not installed"}
    os.write(answers, json.dumps(found).encode())


if __name__ == "__main__":
    main()
