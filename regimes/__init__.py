"""Where does a network prune well, and which way should its training knobs turn?

The flow, each step a folder of this package::

    sweep file -> spec -> plan -> train -> prune -> retrain -> measure -> record -> classify -> map

In Python it is as short as in the terminal::

    regimes.run("sweeps/digits.toml")              # train, prune, retrain, measure; resumes where it stopped
    record = regimes.open("runs/digits")           # xarray.Dataset
    labelled = regimes.classify(record)            # + regime, thresholds found in the data
    regimes.draw_map(labelled, "runs/digits/map")  # phase diagram, one panel a metric

The landscape measures also work alone, on any ``nn.Module`` and tensors: `hessian_trace`, `hessian_top`,
`linear_connectivity`, `cka`. Everything is imported when it is first used, so ``import regimes`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regimes.data.dataset import Dataset as Dataset
    from regimes.errors import UserError as UserError
    from regimes.figures.draw import draw_map as draw_map
    from regimes.flow.run import run as run
    from regimes.landscape.connectivity import linear_connectivity as linear_connectivity
    from regimes.landscape.estimate import Estimate as Estimate
    from regimes.landscape.hessian import hessian_top as hessian_top
    from regimes.landscape.hessian import hessian_trace as hessian_trace
    from regimes.landscape.similarity import cka as cka
    from regimes.phases.classify import classify as classify
    from regimes.pruners.mask import Mask as Mask
    from regimes.pruners.prune import prune as prune
    from regimes.record.assemble import open_record as _open_record
    from regimes.spec.check import read_sweep as read_sweep

    open = _open_record

_HOME = {
    "Dataset": "regimes.data.dataset",
    "Estimate": "regimes.landscape.estimate",
    "Mask": "regimes.pruners.mask",
    "UserError": "regimes.errors",
    "cka": "regimes.landscape.similarity",
    "classify": "regimes.phases.classify",
    "draw_map": "regimes.figures.draw",
    "hessian_top": "regimes.landscape.hessian",
    "hessian_trace": "regimes.landscape.hessian",
    "linear_connectivity": "regimes.landscape.connectivity",
    "open": "regimes.record.assemble:open_record",
    "prune": "regimes.pruners.prune",
    "read_sweep": "regimes.spec.check",
    "run": "regimes.flow.run",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regimes' has no attribute '{name}'")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
