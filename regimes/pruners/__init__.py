"""Pruners and allocations: a pruner scores weights, an allocation sets the number of weights each layer keeps.

A new pruner is one function in a module of this folder and one line in `PRUNERS`; see README.md.
"""

PRUNERS = {
    "magnitude": "regimes.pruners.magnitude:magnitude",
    "random": "regimes.pruners.random:random",
    "snip": "regimes.pruners.snip:snip",
    "synflow": "regimes.pruners.synflow:synflow",
}

STRUCTURED_PRUNERS = ("channels-magnitude", "channels-random")  # physically smaller networks; see `channels.shrink`
DISCOVERED = "discovered"  # smaller networks found by gated training; see `regimes.discovery`

ALLOCATIONS = {
    "uniform": "regimes.pruners.allocation:uniform",
    "global": "regimes.pruners.allocation:global_allocation",
    "erk": "regimes.pruners.allocation:erk",
    "lamp": "regimes.pruners.allocation:lamp",
}
