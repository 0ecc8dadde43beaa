"""The radius of sharpness-aware minimisation as a temperature."""

from regimes.knobs.knob import Knob

KNOB = Knob(
    name="sam_rho",
    unit="1",
    long_name="SAM rho",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"sam_rho": float(value)},
)
