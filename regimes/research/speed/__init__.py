"""Side by side: this engine, the way the paper's code works, plain PyTorch, other libraries; and what the machine can.

A new bench is one file beside this one and one line here.
"""

BENCHES = {
    "engine": "regimes.research.speed.engine:bench",
    "hessian": "regimes.research.speed.hessian:bench",
    "pair": "regimes.research.speed.pair:bench",
    "check": "regimes.research.speed.device_conformance:bench",
    "growth": "regimes.research.speed.scaling:bench",
    "hpo": "regimes.research.hpo_benchmark.bench:bench",
}
