"""Side by side: this engine, the way the paper's code works, plain PyTorch, other libraries; and what the machine can.

A new bench is one file beside this one and one line here.
"""

BENCHES = {
    "engine": "regimes.bench.engine:bench",
    "hessian": "regimes.bench.hessian:bench",
    "pair": "regimes.bench.pair:bench",
    "check": "regimes.bench.check:bench",
    "growth": "regimes.bench.growth:bench",
    "hpo": "regimes.bench.hpo:bench",
}
