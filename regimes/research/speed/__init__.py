"""Speed benchmarks: this package, the paper's pipeline, plain PyTorch and other libraries; limits of the machine.

A new benchmark is a file in this folder and a line in `BENCHES`.
"""

BENCHES = {
    "engine": "regimes.research.speed.engine:bench",
    "hessian": "regimes.research.speed.hessian:bench",
    "pair": "regimes.research.speed.pair:bench",
    "steps": "regimes.research.speed.steps:bench",
    "check": "regimes.research.speed.device_conformance:bench",
    "growth": "regimes.research.speed.scaling:bench",
    "sharing": "regimes.research.speed.sharing:bench",
    "hpo": "regimes.research.hpo_benchmark.bench:bench",
}
