"""Training epochs as a temperature: early stopping under one fixed schedule."""

from regimes.knobs.knob import Knob

# One run of the recipe's length is trained and a snapshot taken at each value. A run annealed for each length would be
# another experiment: there the learning rate has always decayed at the end.
KNOB = Knob(
    name="epochs",
    unit="epochs",
    long_name="training epochs",
    hotter="smaller",
    kind=int,
    low=1,
    low_open=False,
    changes=lambda recipe, value: {"stop": int(value)},
)
