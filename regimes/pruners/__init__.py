"""Pruners for networks: a pruner gives scores, an allocation says how many weights each layer keeps.

A new pruner is one function in a file beside this one and one line here.
"""

PRUNERS = {
    "magnitude": "regimes.pruners.magnitude:magnitude",
    "random": "regimes.pruners.random:random",
}

ALLOCATIONS = {
    "uniform": "regimes.pruners.allocation:uniform",
    "global": "regimes.pruners.allocation:everywhere",
}
