"""Weight decay as a temperature."""

from regimes.knobs.knob import Knob

KNOB = Knob(
    name="weight_decay",
    unit="1",
    long_name="weight decay",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"weight_decay": float(value)},
)
