"""Searches for hyperparameters of networks that will be pruned: the objective "pruned" of `regimes hpo`.

A trial is a *cell*: a dense network trained with a setting of hyperparameters, pruned to a density and retrained. Cells
are made of the stages of sweeps (`cells`), so trials that differ in density or epoch share one dense training, and the
folder of a search is a run folder. `cell_runner` trains batches of cells, `pruned_search` does a whole search.
"""

DENSITY, EPOCHS = "density", "epochs"  # parameters of a trial that leave its dense training as it is
