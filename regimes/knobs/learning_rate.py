"""The initial learning rate as a temperature."""

from regimes.knobs.knob import Knob

KNOB = Knob(
    name="learning_rate",
    unit="1",
    long_name="learning rate",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=True,
    changes=lambda recipe, value: {"learning_rate": float(value)},
)
