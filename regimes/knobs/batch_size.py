"""Batch size as a temperature, at a fixed number of iterations."""

from regimes.knobs.knob import Knob

# Epochs go on being counted at the recipe's own batch size, so every value takes the same number of steps.
KNOB = Knob(
    name="batch_size",
    unit="images",
    long_name="batch size",
    hotter="smaller",
    kind=int,
    low=2,
    low_open=False,
    changes=lambda recipe, value: {"batch_size": int(value), "epoch_batch": recipe.batch_size},
)
