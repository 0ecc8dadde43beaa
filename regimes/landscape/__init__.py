"""Measures of the loss landscape. Each works alone, on any ``nn.Module`` and tensors, and in a sweep by its name.

A new metric is one file beside this one and one line here.
"""

METRICS = {
    "error": "regimes.landscape.error:ERROR",
    "lmc": "regimes.landscape.linear_path:LMC",
    "lmc_test": "regimes.landscape.linear_path:LMC_TEST",
    "lmc_matched": "regimes.landscape.weight_matching:LMC_MATCHED",
    "curve": "regimes.landscape.bezier_path:CURVE",
    "cka": "regimes.landscape.cka:CKA",
    "hessian_trace": "regimes.landscape.hessian:TRACE",
    "hessian_top": "regimes.landscape.hessian:TOP",
    "agreement": "regimes.landscape.agreement:AGREEMENT",
    "gauss_newton": "regimes.landscape.fisher_and_ggn:GAUSS_NEWTON",
    "fisher": "regimes.landscape.fisher_and_ggn:FISHER",
    "spectrum": "regimes.landscape.spectrum:SPECTRUM",
    "sharpness": "regimes.landscape.sharpness:SHARPNESS",
}
