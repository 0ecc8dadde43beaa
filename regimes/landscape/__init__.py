"""Measures of the loss landscape. Each works alone, on any ``nn.Module`` and tensors, and in a sweep by its name.

A new metric is one file beside this one and one line here.
"""

METRICS = {
    "error": "regimes.landscape.error:ERROR",
    "lmc": "regimes.landscape.connectivity:LMC",
    "cka": "regimes.landscape.similarity:CKA",
    "hessian_trace": "regimes.landscape.hessian:TRACE",
    "hessian_top": "regimes.landscape.hessian:TOP",
}
