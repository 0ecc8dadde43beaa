"""Training of networks: schedule, data order, SGD and SAM steps, snapshots, and the engines that run the steps.

A new engine is one module in this folder and one line in `ENGINES`; see README.md.
"""

ENGINES = {
    "eager": "regimes.training.eager_engine:EagerEngine",
    "graphed": "regimes.training.cuda_graph_engine:CudaGraphEngine",
    "stacked": "regimes.training.vmap_engine:VmapEngine",
}
