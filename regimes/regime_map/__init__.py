"""From measured landscapes to regimes, and to advice. Nothing here imports torch.

A new rule is one file beside this one and one line here.
"""

RULES = {
    "smooth": "regimes.regime_map.landscape_rules:smooth",
    "separation": "regimes.regime_map.landscape_rules:cell_by_cell",
    "error": "regimes.regime_map.error_rule:by_error",
}
ADVISERS = {
    "barrier": "regimes.regime_map.advisers:barrier",
    "regime": "regimes.regime_map.advisers:regime",
    "similarity": "regimes.regime_map.advisers:similarity",
    "combined": "regimes.regime_map.advisers:combined",
    "fitted": "regimes.regime_map.advisers:fitted",
    "error": "regimes.regime_map.advisers:error",
    "joint": "regimes.regime_map.advisers:joint",
}

# The file in a run folder that holds the rounds of an adaptive sweep, so that a resumed run repeats its choices.
ROUNDS = "adaptive.json"
