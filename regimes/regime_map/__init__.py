"""Regime maps: from measured loss landscapes to regimes with probabilities, and to advice. Torch-free.

A new rule or adviser is a function in a file of this folder and one line in `RULES` or `ADVISERS`.
"""

RULES = {
    "transition": "regimes.regime_map.transition:transition",
    "error": "regimes.regime_map.error_rule:by_error",
}
ADVISERS = {
    "barrier": "regimes.regime_map.advisers:barrier",
    "regime": "regimes.regime_map.advisers:regime",
    "similarity": "regimes.regime_map.advisers:similarity",
    "combined": "regimes.regime_map.advisers:combined",
    "landscape": "regimes.regime_map.advisers:landscape",
    "diagnosis": "regimes.diagnosis.adviser:diagnosis",
    "fitted": "regimes.regime_map.advisers:fitted",
    "error": "regimes.regime_map.advisers:error",
    "joint": "regimes.regime_map.advisers:joint",
}

# File in a run folder with the rounds of an adaptive sweep, so that a resumed run repeats its choices.
ROUNDS_FILE = "adaptive.json"
