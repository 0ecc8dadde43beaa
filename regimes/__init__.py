"""Regimes of pruning: where a network prunes well, and which way to turn its training knobs.

The pipeline::

    sweep file -> config -> plan -> train -> prune -> retrain -> measure -> record -> regime map -> figures, advice

In Python it is as short as in the terminal::

    regimes.run("sweeps/digits.toml")              # train, prune, retrain, measure; resumes where it stopped
    record = regimes.open("runs/digits")           # xarray.Dataset
    labelled = regimes.classify(record)            # + regime, thresholds found in the data
    regimes.draw_map(labelled, "runs/digits/map")  # phase diagram, one panel a metric
    chart = regimes.RegimeMap(record)              # which way to turn, which network to prune
    print(chart.advise(0.05, {"batch_size": 64}))

A few trained networks are diagnosed without a sweep: `diagnose` and `Diagnosis` say whether a hotter or colder setting,
a wider network or more data would lower the test error.

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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regimes.config.sweep_file import read_sweep as read_sweep
    from regimes.data.dataset import Dataset as Dataset
    from regimes.diagnosis.diagnose_networks import diagnose as diagnose
    from regimes.diagnosis.diagnosis import Diagnosis as Diagnosis
    from regimes.discovery.api import Discovery as Discovery
    from regimes.discovery.api import discover as discover
    from regimes.errors import UserError as UserError
    from regimes.experiment.run import run as run
    from regimes.hpo.custom_loop import ladder as ladder
    from regimes.hpo.objective import objective as objective
    from regimes.hpo.objective import optimize as optimize
    from regimes.hpo.promotion import promote as promote
    from regimes.landscape.agreement import disagreement as disagreement
    from regimes.landscape.agreement import js_divergence as js_divergence
    from regimes.landscape.agreement import output_distance as output_distance
    from regimes.landscape.agreement import weight_distance as weight_distance
    from regimes.landscape.bezier_path import curve_connectivity as curve_connectivity
    from regimes.landscape.cka import cka as cka
    from regimes.landscape.estimate import Estimate as Estimate
    from regimes.landscape.fisher_and_ggn import fisher_trace as fisher_trace
    from regimes.landscape.fisher_and_ggn import gauss_newton_trace as gauss_newton_trace
    from regimes.landscape.fisher_and_ggn import layer_traces as layer_traces
    from regimes.landscape.hessian import hessian_top as hessian_top
    from regimes.landscape.hessian import hessian_trace as hessian_trace
    from regimes.landscape.linear_path import linear_connectivity as linear_connectivity
    from regimes.landscape.measure_networks import mask_of_zeros as mask_of_zeros
    from regimes.landscape.measure_networks import measure as measure
    from regimes.landscape.sharpness import sharpness as sharpness
    from regimes.landscape.spectrum import Spectrum as Spectrum
    from regimes.landscape.spectrum import hessian_eigenvalues as hessian_eigenvalues
    from regimes.landscape.spectrum import hessian_spectrum as hessian_spectrum
    from regimes.landscape.weight_matching import match as match
    from regimes.losses.tasks import ErrorFunction as ErrorFunction
    from regimes.plots.draw_map import draw_map as draw_map
    from regimes.pruners.mask import Mask as Mask
    from regimes.pruners.prune import prune as prune
    from regimes.record.assemble import open_record as _open_record
    from regimes.regime_map.classify import classify as classify
    from regimes.regime_map.regime_map import RegimeMap as RegimeMap

    open = _open_record

_HOME = {
    "Dataset": "regimes.data.dataset",
    "Diagnosis": "regimes.diagnosis.diagnosis",
    "Discovery": "regimes.discovery.api",
    "ErrorFunction": "regimes.losses.tasks",
    "Estimate": "regimes.landscape.estimate",
    "Mask": "regimes.pruners.mask",
    "Spectrum": "regimes.landscape.spectrum",
    "RegimeMap": "regimes.regime_map.regime_map",
    "UserError": "regimes.errors",
    "cka": "regimes.landscape.cka",
    "classify": "regimes.regime_map.classify",
    "curve_connectivity": "regimes.landscape.bezier_path",
    "diagnose": "regimes.diagnosis.diagnose_networks",
    "disagreement": "regimes.landscape.agreement",
    "discover": "regimes.discovery.api",
    "draw_map": "regimes.plots.draw_map",
    "fisher_trace": "regimes.landscape.fisher_and_ggn",
    "gauss_newton_trace": "regimes.landscape.fisher_and_ggn",
    "hessian_eigenvalues": "regimes.landscape.spectrum",
    "hessian_spectrum": "regimes.landscape.spectrum",
    "hessian_top": "regimes.landscape.hessian",
    "hessian_trace": "regimes.landscape.hessian",
    "js_divergence": "regimes.landscape.agreement",
    "ladder": "regimes.hpo.custom_loop",
    "layer_traces": "regimes.landscape.fisher_and_ggn",
    "linear_connectivity": "regimes.landscape.linear_path",
    "mask_of_zeros": "regimes.landscape.measure_networks",
    "match": "regimes.landscape.weight_matching",
    "measure": "regimes.landscape.measure_networks",
    "objective": "regimes.hpo.objective",
    "open": "regimes.record.assemble:open_record",
    "optimize": "regimes.hpo.objective",
    "output_distance": "regimes.landscape.agreement",
    "promote": "regimes.hpo.promotion",
    "prune": "regimes.pruners.prune",
    "read_sweep": "regimes.config.sweep_file",
    "run": "regimes.experiment.run",
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
