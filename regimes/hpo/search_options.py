"""Options of a search, and the name of its result file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

RESULT = "result.json"


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        folder: folder of its files.
        map: path of a run or grid; None: a map is made, or none is used.
        storage: URL of the study's storage; None: a journal in the folder.
        timeout: seconds after which nothing new is started.
        workers: number of processes; 1: this process, on the first device.
        device: "cpu", "cuda", or several of one model for the workers in turn, "cuda:0,cuda:1".
        take_over: whether running trials of other machines count as dead.
        file: the search file; None: the search is not made from a file.
    """

    folder: Path
    map: Path | None = None
    storage: str | None = None
    timeout: float = math.inf
    workers: int = 1
    device: str = "cpu"
    take_over: bool = False
    file: Path | None = None
