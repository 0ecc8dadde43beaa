"""Where does a network prune well, and which way should its training knobs turn?

The flow, each step a folder of this package::

    sweep file -> spec -> plan -> train -> prune -> retrain -> measure -> record -> classify -> map -> advice

In Python it is as short as in the terminal::

    regimes.run("sweeps/digits.toml")              # train, prune, retrain, measure; resumes where it stopped
    record = regimes.open("runs/digits")           # xarray.Dataset
    labelled = regimes.classify(record)            # + regime, thresholds found in the data
    regimes.draw_map(labelled, "runs/digits/map")  # phase diagram, one panel a metric
    chart = regimes.RegimeMap(record)              # which way to turn, which network to prune, which densities to trust
    print(chart.advise(0.05, {"batch_size": 64}))

Hyperparameters are searched on small proxies that a map trusts: `objective` and `optimize` for an Optuna study,
`ladder` for a training loop of one's own.

The landscape measures also work alone, on any ``nn.Module`` and tensors or a ``DataLoader``: `measure` takes any of
them by name. Connectivity: `linear_connectivity`, `curve_connectivity`, `match`. Similarity: `cka`, `disagreement`,
`js_divergence`, `output_distance`, `weight_distance`. Curvature: `hessian_trace`, `hessian_top`,
`hessian_eigenvalues`, `hessian_spectrum`, `gauss_newton_trace`, `fisher_trace`, `layer_traces`, `sharpness`.

Everything is imported when it is first used, so ``import regimes`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regimes.data.dataset import Dataset as Dataset
    from regimes.errors import UserError as UserError
    from regimes.figures.draw import draw_map as draw_map
    from regimes.flow.run import run as run
    from regimes.hpo.objective import objective as objective
    from regimes.hpo.objective import optimize as optimize
    from regimes.hpo.own import ladder as ladder
    from regimes.hpo.phase import promote as promote
    from regimes.landscape.agreement import disagreement as disagreement
    from regimes.landscape.agreement import js_divergence as js_divergence
    from regimes.landscape.agreement import output_distance as output_distance
    from regimes.landscape.agreement import weight_distance as weight_distance
    from regimes.landscape.alone import mask_of_zeros as mask_of_zeros
    from regimes.landscape.alone import measure as measure
    from regimes.landscape.connectivity import linear_connectivity as linear_connectivity
    from regimes.landscape.curvature import fisher_trace as fisher_trace
    from regimes.landscape.curvature import gauss_newton_trace as gauss_newton_trace
    from regimes.landscape.curvature import layer_traces as layer_traces
    from regimes.landscape.curve import curve_connectivity as curve_connectivity
    from regimes.landscape.estimate import Estimate as Estimate
    from regimes.landscape.hessian import hessian_top as hessian_top
    from regimes.landscape.hessian import hessian_trace as hessian_trace
    from regimes.landscape.matching import match as match
    from regimes.landscape.sharpness import sharpness as sharpness
    from regimes.landscape.similarity import cka as cka
    from regimes.landscape.spectrum import Spectrum as Spectrum
    from regimes.landscape.spectrum import hessian_eigenvalues as hessian_eigenvalues
    from regimes.landscape.spectrum import hessian_spectrum as hessian_spectrum
    from regimes.phases.classify import classify as classify
    from regimes.phases.regime_map import RegimeMap as RegimeMap
    from regimes.pruners.mask import Mask as Mask
    from regimes.pruners.prune import prune as prune
    from regimes.record.assemble import open_record as _open_record
    from regimes.spec.check import read_sweep as read_sweep
    from regimes.structure.discover import Discovery as Discovery
    from regimes.structure.discover import discover as discover

    open = _open_record

_HOME = {
    "Dataset": "regimes.data.dataset",
    "Discovery": "regimes.structure.discover",
    "Estimate": "regimes.landscape.estimate",
    "Mask": "regimes.pruners.mask",
    "Spectrum": "regimes.landscape.spectrum",
    "RegimeMap": "regimes.phases.regime_map",
    "UserError": "regimes.errors",
    "cka": "regimes.landscape.similarity",
    "classify": "regimes.phases.classify",
    "curve_connectivity": "regimes.landscape.curve",
    "disagreement": "regimes.landscape.agreement",
    "discover": "regimes.structure.discover",
    "draw_map": "regimes.figures.draw",
    "fisher_trace": "regimes.landscape.curvature",
    "gauss_newton_trace": "regimes.landscape.curvature",
    "hessian_eigenvalues": "regimes.landscape.spectrum",
    "hessian_spectrum": "regimes.landscape.spectrum",
    "hessian_top": "regimes.landscape.hessian",
    "hessian_trace": "regimes.landscape.hessian",
    "js_divergence": "regimes.landscape.agreement",
    "ladder": "regimes.hpo.own",
    "layer_traces": "regimes.landscape.curvature",
    "linear_connectivity": "regimes.landscape.connectivity",
    "mask_of_zeros": "regimes.landscape.alone",
    "match": "regimes.landscape.matching",
    "measure": "regimes.landscape.alone",
    "objective": "regimes.hpo.objective",
    "open": "regimes.record.assemble:open_record",
    "optimize": "regimes.hpo.objective",
    "output_distance": "regimes.landscape.agreement",
    "promote": "regimes.hpo.phase",
    "prune": "regimes.pruners.prune",
    "read_sweep": "regimes.spec.check",
    "run": "regimes.flow.run",
    "sharpness": "regimes.landscape.sharpness",
    "weight_distance": "regimes.landscape.agreement",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regimes' has no attribute '{name}'")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
