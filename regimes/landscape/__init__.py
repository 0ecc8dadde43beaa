"""Measures of the loss landscape. Each works alone, on any ``nn.Module`` and tensors, and in a sweep by its name.

A new metric is one file beside this one and one line here.
"""

METRICS = {
    "error": "regimes.landscape.error:ERROR",
    "lmc": "regimes.landscape.connectivity:LMC",
    "lmc_test": "regimes.landscape.connectivity:LMC_TEST",
    "lmc_matched": "regimes.landscape.matching:LMC_MATCHED",
    "curve": "regimes.landscape.curve:CURVE",
    "cka": "regimes.landscape.similarity:CKA",
    "hessian_trace": "regimes.landscape.hessian:TRACE",
    "hessian_top": "regimes.landscape.hessian:TOP",
    "agreement": "regimes.landscape.agreement:AGREEMENT",
    "gauss_newton": "regimes.landscape.curvature:GAUSS_NEWTON",
    "fisher": "regimes.landscape.curvature:FISHER",
    "spectrum": "regimes.landscape.spectrum:SPECTRUM",
    "sharpness": "regimes.landscape.sharpness:SHARPNESS",
}
