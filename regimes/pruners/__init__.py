"""Pruners for networks: a pruner gives scores, an allocation says how many weights each layer keeps.

A new pruner is one function in a file beside this one and one line here.
"""

PRUNERS = {
    "magnitude": "regimes.pruners.magnitude:magnitude",
    "random": "regimes.pruners.random:random",
    "snip": "regimes.pruners.snip:snip",
    "synflow": "regimes.pruners.synflow:synflow",
}

STRUCTURED = ("channels-magnitude", "channels-random")  # these make smaller networks; see `channels.shrink`
DISCOVERED = "discovered"  # a training of its own makes the smaller network; see `regimes.discovery`

ALLOCATIONS = {
    "uniform": "regimes.pruners.allocation:uniform",
    "global": "regimes.pruners.allocation:global_allocation",
    "erk": "regimes.pruners.allocation:erk",
    "lamp": "regimes.pruners.allocation:lamp",
}
