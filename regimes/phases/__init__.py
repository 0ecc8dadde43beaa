"""From measured landscapes to regimes. Nothing here imports torch.

A new rule is one file beside this one and one line here.
"""

RULES = {
    "separation": "regimes.phases.separation:separation",
}
