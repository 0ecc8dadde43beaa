"""From measured landscapes to regimes, and to advice. Nothing here imports torch.

A new rule is one file beside this one and one line here.
"""

RULES = {
    "smooth": "regimes.phases.rules:smooth",
    "separation": "regimes.phases.rules:cell_by_cell",
    "error": "regimes.phases.moves:by_error",
}
ADVISERS = {
    "barrier": "regimes.phases.advisers:barrier",
    "regime": "regimes.phases.advisers:regime",
    "similarity": "regimes.phases.advisers:similarity",
    "combined": "regimes.phases.advisers:combined",
    "fitted": "regimes.phases.advisers:fitted",
    "error": "regimes.phases.advisers:error",
    "joint": "regimes.phases.advisers:joint",
}
