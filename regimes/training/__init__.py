"""Training of networks: schedule, data order, steps of SGD, Adam, AdamW and Muon, SAM, snapshots, and the engines.

A new engine is one module in this folder and one line in `ENGINES`; see README.md.
"""

ENGINES = {
    "eager": "regimes.training.eager_engine:EagerEngine",
    "graphed": "regimes.training.cuda_graph_engine:CudaGraphEngine",
    "stacked": "regimes.training.vmap_engine:VmapEngine",
}
