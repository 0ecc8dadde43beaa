"""Training networks: schedule, data order, SGD and SAM steps, snapshots, and the engines that take the steps.

A new engine is one file beside this one and one line here.
"""

ENGINES = {
    "eager": "regimes.training.eager_engine:EagerEngine",
    "graphed": "regimes.training.cuda_graph_engine:CudaGraphEngine",
    "stacked": "regimes.training.vmap_engine:VmapEngine",
}
