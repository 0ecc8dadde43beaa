"""The process of one arm: a case comes in as JSON, what it took goes out as JSON."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Do the work named on the command line."""
    case = json.loads(sys.stdin.read())
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print; the answer is ours alone
    import torch

    from regimes.registry import load

    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        found = load({}, sys.argv[1], "arm")(case)
    except ModuleNotFoundError as error:
        found = {"absent": f"{error.name} is not installed"}
    os.write(answers, json.dumps(found).encode())


if __name__ == "__main__":
    main()
