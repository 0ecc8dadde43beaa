"""Studies of the method; ``python -m regimes.research study NAME --out DIR`` runs one and writes its report."""

STUDIES = {
    "calibration": "regimes.research.studies.calibration:study",
    "stability": "regimes.research.studies.stability:study",
    "knobs": "regimes.research.studies.knobs:study",
    "measures": "regimes.research.studies.metric_correlations:study",
    "synthetic": "regimes.research.studies.synthetic:study",
    "advice": "regimes.research.studies.advice:study",
    "advisers": "regimes.research.studies.advisers:study",
    "directions": "regimes.research.studies.directions:study",
    "diagnosis": "regimes.research.studies.diagnosis:study",
    "mnist1d": "regimes.research.studies.mnist1d:study",
    "text": "regimes.research.studies.text:study",
    "discovery": "regimes.research.studies.discovery:study",
}
