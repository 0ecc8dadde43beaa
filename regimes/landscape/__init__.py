"""Measures of the loss landscape, usable on their own on any ``nn.Module`` and by name in a sweep.

A new metric is one module in this folder and one line in `METRICS`; see README.md.
"""

METRICS = {
    "error": "regimes.landscape.error:ERROR",
    "val_loss": "regimes.landscape.error:VAL_LOSS",
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
