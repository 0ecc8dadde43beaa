"""Studies of the method itself: each is one command, ``regimes study NAME --out DIR``, and one page."""

STUDIES = {
    "calibration": "regimes.studies.calibration:study",
    "stability": "regimes.studies.stability:study",
    "knobs": "regimes.studies.knobs:study",
    "measures": "regimes.studies.measures:study",
    "synthetic": "regimes.studies.synthetic:study",
    "advice": "regimes.studies.advice:study",
    "discovery": "regimes.studies.discovery:study",
    "stoppers": "regimes.studies.stoppers:study",
    "recording": "regimes.studies.recording:study",
}
