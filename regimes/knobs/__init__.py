"""Temperature-like and load-like knobs.

A new knob is one file beside this one and one line here.
"""

from regimes.knobs.knob import Knob, Value

KNOBS = {
    "epochs": "regimes.knobs.epochs:KNOB",
    "batch_size": "regimes.knobs.batch_size:KNOB",
    "learning_rate": "regimes.knobs.learning_rate:KNOB",
    "weight_decay": "regimes.knobs.weight_decay:KNOB",
    "sam_rho": "regimes.knobs.sam_rho:KNOB",
}

__all__ = ["KNOBS", "Knob", "Value"]
