"""Complexity-aware training: units and residual blocks are removed from a network while it trains.

`trace_graph` finds units and blocks (`prunable_graph`), `verify_removal` checks that each can be removed, `gates`
samples their gates, `gate_estimators` estimate the effect of each gate on the loss, `complexity` and
`pressure_schedule` set its penalty, `gated_training` updates gates and weights, `removal_criterion` and `gate_state`
decide what is removed, `removal` removes it from the network and `shrinking_network` from the training, `save_network`
writes the result.
"""

ESTIMATORS = {
    "straight-through": "regimes.discovery.gate_estimators:straight_through",
    "trapezoid": "regimes.discovery.gate_estimators:trapezoid",
    "curved": "regimes.discovery.gate_estimators:curved",
}
